"""Judge that pools the verdicts of several judges."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from trl_real.errors import TrlRealError
from trl_real.labeling.base import VerdictJudge
from trl_real.labeling.verdicts import TIE, Judge, Verdict, ask, evidence_of, name_of


def mean(probabilities: Sequence[float]) -> float:
    """Return the mean of the probabilities."""
    return sum(probabilities) / len(probabilities)


def majority(probabilities: Sequence[float]) -> float:
    """Return the share of judges that prefer `response_a`; a tie counts as half a vote."""
    return sum((p > TIE) + (p == TIE) / 2 for p in probabilities) / len(probabilities)


POOLING: dict[str, Callable[[Sequence[float]], float]] = {"mean": mean, "majority": majority}


class JudgePanel(VerdictJudge):
    """
    Judge that pools the verdicts of several judges; the report of `annotate` gives their agreement.

    Args:
        judges: Two judges or more (`--panel`: a YAML file that lists them, each with `judge:` and its settings).
        pooling: `"mean"` of the probabilities, or `"majority"`: the share of votes.
        quorum: Number of judges that must give a verdict; more than half by default.

    Raises:
        TrlRealError: If there are fewer than two judges, or a setting is out of range.
    """

    def __init__(self, judges: Sequence[Judge], pooling: str = "mean", quorum: int | None = None):
        self.judges = list(judges)
        if len(self.judges) < 2:
            raise TrlRealError(f"The panel has {len(self.judges)} judges. Give two or more: JudgePanel([one, other]).")
        if pooling not in POOLING:
            raise TrlRealError(f"pooling={pooling!r} is not one of {', '.join(POOLING)}.")
        self.pooling, self.quorum = pooling, len(self.judges) // 2 + 1 if quorum is None else quorum
        if not 1 <= self.quorum <= len(self.judges):
            raise TrlRealError(f"quorum={quorum} of {len(self.judges)} judges. Give 1 to {len(self.judges)}.")
        self.name = f"panel({', '.join(map(name_of, self.judges))})"
        saves = (getattr(judge, "rows_per_save", None) for judge in self.judges)
        self.rows_per_save = min((rows for rows in saves if rows), default=None)

    @property
    def identity(self) -> dict[str, Any]:
        """Everything that the verdicts depend on."""
        members = [getattr(judge, "identity", {"name": name_of(judge)}) for judge in self.judges]
        return {"pooling": self.pooling, "quorum": self.quorum, "judges": members}

    def verdicts(self, batch: dict[str, list[Any]]) -> list[Verdict]:
        """Judge a batch; `members` of each verdict holds the probability of each judge."""
        columns = [ask(judge, batch) for judge in self.judges]
        return [self._pooled(row) for row in zip(*columns, strict=True)]

    def evidence(self, batch: dict[str, list[Any]]) -> list[Any]:
        """Return what the members read of each row in addition to its texts; None if no member reads more."""
        rows = zip(*(evidence_of(judge, batch) for judge in self.judges), strict=True)
        return [None if all(value is None for value in row) else row for row in rows]

    def _pooled(self, row: Sequence[Verdict]) -> Verdict:
        known = [verdict.probability for verdict in row if not math.isnan(verdict.probability)]
        enough = len(known) >= self.quorum
        totals = ("n_asked", "n_cached", "input_tokens", "output_tokens", "cost")
        return replace(
            Verdict(POOLING[self.pooling](known) if enough else math.nan),
            failure="" if enough else f"fewer than {self.quorum} judges had a verdict",
            truncated=any(verdict.truncated for verdict in row),
            source=self.name,
            members=tuple(verdict.probability for verdict in row),
            **{name: sum(getattr(verdict, name) for verdict in row) for name in totals},
        )
