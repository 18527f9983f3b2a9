"""Result of a comparison of a model with a baseline."""

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from trl_real.errors import TrlRealError
from trl_real.evaluation.checks import Doubt
from trl_real.evaluation.people import INCLUSION
from trl_real.functional.statistics.paired import PairedComparison, paired_comparison
from trl_real.functional.statistics.people import paired_people
from trl_real.labeling.verdicts import VerdictSummary
from trl_real.runtime.atomic_files import without_nan


@dataclass
class Comparison:
    """
    Result of a judge's comparison of a model with a baseline.

    Args:
        model (`str`): Name of the model, or column of its completions.
        baseline (`str`): Name of the baseline, or column of its completions.
        judge (`str`): Name of the judge.
        rates (`dict`): Result of `trl_real.functional.statistics.win_rate.win_rate`; with people, of
            `trl_real.functional.statistics.people.people_win_rate`, with `judge_accuracy` and its interval.
        model_length (`float`): Mean length of the model's completions, in characters; NaN without rows.
        baseline_length (`float`): Mean length of the baseline's completions, in characters.
        n_identical (`int`): Number of rows with two identical completions: ties that the judge did not see.
        n_prompts (`int`): Number of different prompts.
        confidence (`float`): Confidence level of the interval.
        seed (`int`, *optional*): Seed of the judge, if it has one.
        verdicts (`VerdictSummary`): Failures by reason, position bias, tokens and cost.
        doubts (`list[Doubt]`): Reasons to doubt the rate.
        rows (`dict[str, list]`): Columns with one value per row: `prompt` (a hash), `preference`, `a_first`,
            `b_first`, `failure`, `length`, `baseline_length`; with people also `people` and `inclusion_probability`.
            Not part of `to_dict`.
        people (`str`): Name of the people's judge; empty without people.
    """

    model: str
    baseline: str
    judge: str
    rates: dict[str, Any]
    model_length: float
    baseline_length: float
    n_identical: int = 0
    n_prompts: int = 0
    confidence: float = 0.95
    seed: int | None = None
    verdicts: VerdictSummary = field(default_factory=VerdictSummary)
    doubts: list[Doubt] = field(default_factory=list)
    rows: dict[str, list] = field(default_factory=dict, repr=False)
    people: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values; NaN becomes None."""
        own = ("model", "baseline", "judge", "rates", "model_length", "baseline_length", "n_identical", "n_prompts")
        values = {name: getattr(self, name) for name in (*own, "confidence", "seed")}
        values |= {"people": self.people} if self.people else {}
        values["doubts"] = [doubt._asdict() for doubt in self.doubts]
        return {**{name: without_nan(value) for name, value in values.items()}, "verdicts": self.verdicts.to_dict()}

    def summary(self) -> str:
        """Return a readable summary: the rate with its interval and counts, the two sides, and the doubts."""
        r = self.rates
        equal = r.get("equal_length_win_rate", math.nan)
        lines = [
            f"win rate {r['win_rate']:.2f} [{r['ci_low']:.2f}, {r['ci_high']:.2f}] (n={r['n_total']}: "
            f"{r['n_wins']} wins, {r['n_losses']} losses, {r['n_ties']} ties, {r['n_failed']} failed)",
            f"{self.model} against {self.baseline}, judged by {self.judge}{' and by people' if self.people else ''}; "
            f"mean length {self.model_length:.0f} against {self.baseline_length:.0f} characters"
            + ("" if math.isnan(equal) else f", at equal length {equal:.2f}"),
            self.verdicts.words(),
            people_words(r, self.verdicts.flip_rate) if self.people else "",
            *(f"{'DO NOT TRUST' if doubt.grave else 'doubt'}: {doubt.words}" for doubt in self.doubts),
        ]
        return "\n".join(filter(None, lines))

    def against_by_people(self, other: "Comparison") -> dict[str, float | int]:
        """
        Estimate by how much people prefer this comparison's model over another's, from both models' rates against the
        same baseline; the result of `paired_people`. Draws by `"uniform"` take the same prompts for both models.

        Args:
            other: Comparison of another model with the same baseline, judge and prompts, in the same order.

        Raises:
            TrlRealError: If judge, baseline or prompts differ, or one of them was made without people.
        """
        self._check_paired(other)
        if not (self.people and other.people):
            raise TrlRealError("A comparison was made without people. Give both people=…")
        ours, theirs = ((c.rows["preference"], c.rows["people"]) for c in (self, other))
        # A prompt has one number for all models: it is drawn for both where the smaller probability draws it.
        chances = np.minimum(self.rows[INCLUSION], other.rows[INCLUSION])
        return paired_people(ours, theirs, chances, clusters=self.rows["prompt"], confidence=self.confidence)

    def against(self, other: "Comparison", seed: int = 42) -> PairedComparison:
        """
        Test whether this comparison's model is better than another's, prompt by prompt.

        Args:
            other: Comparison of another model with the same baseline, judge and prompts, in the same order.
            seed: Seed of the permutations.

        Raises:
            TrlRealError: If judge, baseline or prompts differ.
        """
        self._check_paired(other)
        clusters = self.rows["prompt"]
        ours, theirs = self.rows["preference"], other.rows["preference"]
        return paired_comparison(ours, theirs, clusters=clusters, confidence=self.confidence, seed=seed)

    def _check_paired(self, other: "Comparison") -> None:
        for what, ours, theirs in (
            ("judge", self.judge, other.judge),
            ("baseline", self.baseline, other.baseline),
            ("prompts", self.rows.get("prompt"), other.rows.get("prompt")),
        ):
            if ours != theirs:
                raise TrlRealError(f"The two comparisons differ in their {what}. Compare both models in the same way.")


def people_words(rates: dict[str, Any], flip_rate: float) -> str:
    """Return what people and the judge say, in a few lines."""
    r, lines = rates, []
    if math.isnan(r["win_rate"]):
        return (
            f"no vote of people yet ({r['n_asked']} pairs for them); judge alone {r['judge_win_rate']:.2f} "
            f"[{r['judge_ci_low']:.2f}, {r['judge_ci_high']:.2f}]"
        )
    lines.append(
        f"people alone {r['people_only_win_rate']:.2f} [{r['people_only_ci_low']:.2f}, "
        f"{r['people_only_ci_high']:.2f}] ({r['n_asked']} pairs: {r['n_skipped']} skipped, {r['n_open']} open); "
        f"judge alone {r['judge_win_rate']:.2f} [{r['judge_ci_low']:.2f}, {r['judge_ci_high']:.2f}], "
        f"bias {r['judge_bias']:+.2f}"
    )
    consistent = "" if math.isnan(flip_rate) else f"; names the same winner in both orders in {1 - flip_rate:.0%}"
    lines.append(
        f"the votes are worth {r['effective_people']:.0f} of people alone; the judge agrees with people in "
        f"{r['judge_accuracy']:.2f} [{r['judge_accuracy_low']:.2f}, {r['judge_accuracy_high']:.2f}]{consistent}"
    )
    return "\n".join(lines)
