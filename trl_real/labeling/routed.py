"""Judge that asks a cheap judge about all pairs and a dear one about the least certain of them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from trl_real.errors import TrlRealError
from trl_real.functional.statistics.intervals import wilson_interval
from trl_real.labeling.base import VerdictJudge
from trl_real.labeling.people.votes import pair_key
from trl_real.labeling.verdicts import TIE, Judge, Report, Verdict, ask, evidence_of, name_of
from trl_real.runtime.digests import sha256


TOTALS = ("n_asked", "n_cached", "input_tokens", "output_tokens", "cost")


@dataclass
class RoutingReport(Report):
    """
    What the dear judge of a `RoutedJudge` changed.

    Args:
        cheap, dear: Names of the judges.
        n_pairs: Number of pairs.
        n_asked: Number of pairs that went to the dear judge, the random ones included.
        n_answered: Number of these with a verdict; a failure leaves the cheap judge's verdict.
        n_changed: Number of these on which the verdicts name different winners; a tie counts as another winner.
        n_random: Number of answered pairs of the random share.
        random_agreement: Share of the random pairs on which both judges agree: an estimate for all pairs.
        ci_low, ci_high: Its Wilson interval at 95 %; NaN without random pairs.
    """

    cheap: str
    dear: str
    n_pairs: int
    n_asked: int
    n_answered: int
    n_changed: int
    n_random: int
    random_agreement: float
    ci_low: float
    ci_high: float

    def words(self) -> str:
        """Return a one-line summary."""
        line = (
            f"{self.n_asked} of {self.n_pairs} pairs went to {self.dear}: {self.n_answered} answered, "
            f"{self.n_changed} labels changed"
        )
        if not self.n_random:
            return line
        at_random = (1 - self.random_agreement) * self.n_answered
        return (
            f"{line}; on {self.n_random} random ones both agree in {self.random_agreement:.2f} [{self.ci_low:.2f}, "
            f"{self.ci_high:.2f}], so as many at random would have changed about {at_random:.0f}"
        )


class RoutedJudge(VerdictJudge):
    """
    Judge that asks `cheap` about all pairs, and `dear` (people, or a larger model) about those of which `cheap` is
    least certain, until a budget is spent. `label_source` of each row says who labelled it.

    A share of the budget goes to random pairs: they measure how often the two agree on all pairs, and so what the same
    budget would have changed at random. `annotate` routes over all pairs of the dataset, and keeps both judges'
    verdicts in its journal: a larger budget later asks only about the additional pairs.

    Args:
        cheap: Judge of all pairs; calibrated, so that its probabilities say how certain it is.
        dear: Judge of the least certain pairs, such as `PageJudge` or `VotesJudge`. Its verdict replaces the other,
            unless it fails.
        budget: Number of pairs for `dear`, or a share in (0, 1] as a float.
        random_share: Share of the budget for random pairs, in [0, 1].
        seed: Seed of the random pairs, combined with their texts.

    Raises:
        TrlRealError: If the budget or the share is out of range.
    """

    def __init__(self, cheap: Judge, dear: Judge, budget: int | float, *, random_share: float = 0.2, seed: int = 42):
        is_count = isinstance(budget, int) and not isinstance(budget, bool)
        if not (is_count and budget >= 0 or isinstance(budget, float) and 0 < budget <= 1):
            raise TrlRealError(f"budget={budget!r}: give a share in (0, 1] as a float, or a number of pairs.")
        if not 0 <= random_share <= 1:
            raise TrlRealError(f"random_share={random_share} is not a share. Give a number in [0, 1].")
        self.cheap, self.dear, self.budget, self.random_share = cheap, dear, budget, random_share
        self.seed, self.name = seed, f"routed({name_of(cheap)}, {name_of(dear)})"
        self.report: RoutingReport | None = None
        self._n_spent = 0

    @property
    def identity(self) -> dict[str, Any]:
        """Everything that the verdicts depend on."""
        judges = [getattr(judge, "identity", {"name": name_of(judge)}) for judge in (self.cheap, self.dear)]
        return {"judges": judges, "budget": self.budget, "random_share": self.random_share, "seed": self.seed}

    def evidence(self, batch: dict[str, list[Any]]) -> list[Any]:
        """Return what the two judges read of each row in addition to its texts; None for nothing."""
        rows = zip(*(evidence_of(judge, batch) for judge in (self.cheap, self.dear)), strict=True)
        return [None if all(value is None for value in row) else row for row in rows]

    def verdicts(self, batch: dict[str, list[Any]]) -> list[Verdict]:
        """Judge a batch, routed within the batch; a budget in pairs counts over all batches."""
        found = ask(self.cheap, batch)
        rows = self.rows_for_dear(batch, found, self._n_spent)
        self._n_spent += len(rows)
        asked = {name: [column[row] for row in rows] for name, column in batch.items()}
        return self.merged(found, rows, ask(self.dear, asked, rows) if rows else [])

    def rows_for_dear(self, batch: dict[str, list[Any]], found: Sequence[Verdict], n_spent: int = 0) -> list[int]:
        """
        Return the rows of a batch for the dear judge, in ascending order.

        Args:
            batch: Columns `prompt`, `response_a` and `response_b`.
            found: Verdicts of the cheap judge.
            n_spent: Part of a budget in pairs that is spent already.
        """
        n = round(self.budget * len(found)) if isinstance(self.budget, float) else max(self.budget - n_spent, 0)
        texts = zip(batch["prompt"], batch["response_a"], batch["response_b"], strict=True)
        names = [min(pair_key(prompt, a, b), pair_key(prompt, b, a)) for prompt, a, b in texts]
        draws = np.array([int.from_bytes(sha256(self.seed, "route", name)[:6]) for name in names], dtype=float)
        probabilities = np.array([verdict.probability for verdict in found])
        self._random = set(np.argsort(draws, kind="stable")[: round(self.random_share * n)].tolist())
        certainty = np.nan_to_num(np.abs(probabilities - TIE), nan=-1.0)  # a failure is the least certain
        others = [row for row in np.lexsort((draws, certainty)).tolist() if row not in self._random]
        return sorted([*self._random, *others[: max(n - len(self._random), 0)]])

    def merged(self, found: Sequence[Verdict], rows: Sequence[int], dear: Sequence[Verdict]) -> list[Verdict]:
        """Replace the cheap judge's verdicts on these rows by those of the dear one, and fill in `report`."""
        verdicts = [verdict if verdict.source else replace(verdict, source=name_of(self.cheap)) for verdict in found]
        changed = {row: verdict.outcome != found[row].outcome for row, verdict in zip(rows, dear, strict=True)}
        for row, verdict in zip(rows, dear, strict=True):
            decided = verdict.outcome != "failed"
            taken = replace(verdict, source=verdict.source or name_of(self.dear)) if decided else verdicts[row]
            sums = {name: getattr(verdict, name) + getattr(found[row], name) for name in TOTALS}
            verdicts[row] = replace(taken, members=(), **sums)
            if not decided:
                del changed[row]
        agree = [not changed[row] for row in self._random & changed.keys()]
        low, high = wilson_interval(sum(agree), len(agree), 0.95) if agree else (math.nan, math.nan)
        self.report = RoutingReport(
            cheap=name_of(self.cheap),
            dear=name_of(self.dear),
            n_pairs=len(found),
            n_asked=len(rows),
            n_answered=len(changed),
            n_changed=sum(changed.values()),
            n_random=len(agree),
            random_agreement=sum(agree) / len(agree) if agree else math.nan,
            ci_low=low,
            ci_high=high,
        )
        return verdicts
