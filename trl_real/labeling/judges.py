"""
Table of the judges, and the judge that compares scores.

A judge is a callable with a `name`. It takes a batch of rows with `prompt`, `response_a` and `response_b` and returns,
for each row, the probability in [0, 1] that `response_a` is better: 1 and 0 are certain, 0.5 is a tie, NaN means no
verdict.
"""

import math
from dataclasses import dataclass
from pkgutil import resolve_name
from typing import Any

from trl_real.errors import TrlRealError, check_columns
from trl_real.labeling.base import VerdictJudge
from trl_real.labeling.verdicts import Judge, Verdict


class ScoreJudge(VerdictJudge):
    """
    Judge that prefers the response with the higher score; scores that are equal, or too close, are a tie.

    Args:
        column: Column with a list of scores, one per response of the row.
        min_gap: Smallest score difference that decides, in units of the score.
        min_ratio: Smallest ratio of the higher to the lower score that decides. Scores of 0 and below have no ratio
            and give no verdict. REAL uses 1.5 on the votes of SHP-2.

    Raises:
        TrlRealError: If `min_gap` is negative or `min_ratio` below 1.
    """

    def __init__(self, column: str = "scores", min_gap: float = 0.0, min_ratio: float | None = None):
        if not min_gap >= 0:
            raise TrlRealError(f"min_gap={min_gap} is negative. Give 0 to let any difference decide.")
        if min_ratio is not None and not min_ratio >= 1:
            raise TrlRealError(f"min_ratio={min_ratio} is below 1. Give a ratio of scores, such as 1.5.")
        self.column, self.min_gap, self.min_ratio = column, min_gap, min_ratio
        self.name = f"score:{column}"
        self.identity = {"name": self.name, "min_gap": min_gap, "min_ratio": min_ratio}

    def verdicts(self, batch: dict[str, list[Any]]) -> list[Verdict]:
        """Judge a batch of selected pairs; raises the errors of `evidence`."""
        found = [self._verdict(*scores) for scores in self.evidence(batch)]
        return [Verdict(p, failure="no scores to compare" if math.isnan(p) else "", source=self.name) for p in found]

    def evidence(self, batch: dict[str, list[Any]]) -> list[tuple[float, float]]:
        """
        Return the two scores of each selected pair, NaN for a missing one.

        Raises:
            MissingColumnError: If the column of scores or of pairs is missing.
            TrlRealError: If a row has fewer scores than its pair needs.
        """
        check_columns(batch, [self.column], "Name the scores: ScoreJudge('…') or --column …")
        check_columns(batch, ["pair"], "Select pairs first: EmbeddingPairSelector(…).select(dataset)")
        rows = zip(batch[self.column], batch["pair"], strict=True)
        return [self._two(scores, pair) for scores, pair in rows]

    def _two(self, scores: list[float | None] | None, pair: list[int]) -> tuple[float, float]:
        first, second = pair
        if scores is None or first < 0:
            return math.nan, math.nan
        if max(first, second) >= len(scores):
            raise TrlRealError(
                f"Column {self.column!r} has {len(scores)} scores in a row with the pair {list(pair)}. "
                "Give one score per response, None for a missing one."
            )
        two = scores[first], scores[second]
        if not all(score is None or isinstance(score, int | float) for score in two):
            raise TrlRealError(
                f"Column {self.column!r} holds {two!r}, not two numbers. Correct it, or remove the row."
            )
        a, b = (math.nan if score is None else float(score) for score in two)
        return a, b

    def _verdict(self, first: float, second: float) -> float:
        if not (math.isfinite(first) and math.isfinite(second)):
            return math.nan
        low, high = sorted((first, second))
        if self.min_ratio is not None and low <= 0:
            return math.nan
        if low == high or high - low < self.min_gap or (self.min_ratio is not None and high < self.min_ratio * low):
            return 0.5
        return float(first > second)


@dataclass(frozen=True)
class JudgeSpec:
    """
    Entry of `JUDGES`: call it with the arguments of the judge's class to make the judge.

    Args:
        home: Class of the judge, as `module:Class` below `trl_real.labeling`; imported when it is needed.
        about: Line of help for `--judge`.
        first: Name of the flag for the first positional argument; empty if the judge has none.
        reads_new_texts: Whether the judge can compare texts that it has not seen before.
        backends: Classes that take the judge's `**settings`, as `module:Class`: without and with `base_url`.
    """

    home: str
    about: str
    first: str = ""
    reads_new_texts: bool = True
    backends: tuple[str, ...] = ()

    def __call__(self, *args: Any, **settings: Any) -> Judge:
        return load_class(self.home)(*args, **settings)


def load_class(home: str) -> type:
    """Import a class given as `module:Class` below `trl_real.labeling`."""
    return resolve_name(f"trl_real.labeling.{home}")


JUDGES: dict[str, JudgeSpec] = {
    "score": JudgeSpec("judges:ScoreJudge", "scores in the data", reads_new_texts=False),
    "reward": JudgeSpec("reward_model:RewardModelJudge", "a reward model", first="model"),
    "chat": JudgeSpec(
        "chat.judge:ChatJudge",
        "a chat model, here or on a server",
        first="model",
        backends=("chat.local:LocalChat", "chat.server:Endpoint"),
    ),
    "votes": JudgeSpec("people.votes:VotesJudge", "votes of people", first="votes", reads_new_texts=False),
    "implicit_reward": JudgeSpec(
        "implicit_reward:ImplicitRewardJudge", "a policy compared with its reference", first="model"
    ),
    "panel": JudgeSpec("panel:JudgePanel", "several judges", first="panel"),
}
