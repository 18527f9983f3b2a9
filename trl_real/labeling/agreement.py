"""Agreement of judges with gold labels, and with each other."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from trl_real.functional.statistics.intervals import wilson_interval
from trl_real.labeling.verdicts import Report, Verdict


DECIDED = ("a", "b")
# Upper end of alpha, words, advice. The ends .667 and .8 are Krippendorff's (Content Analysis, 2004); the lower ones
# are this project's, for preferences.
ALPHA_WORDS = (
    (0.0, "less than chance", "check that left and right mean the same to all"),
    (
        0.2,
        "hardly above chance",
        "do not train on these labels: rewrite the guidelines, discuss twenty pairs together",
    ),
    (0.4, "low", "usual between similar responses; collect several votes per pair, or choose pairs that differ more"),
    (0.667, "moderate", "usable with soft labels (label_confidence)"),
    (0.8, "good", "usable"),
    (math.inf, "high", "usable, and one vote per pair is enough"),
)


@dataclass
class GoldAgreement(Report):
    """
    Agreement of a judge with gold labels.

    Args:
        n: Number of pairs that both decided.
        n_agree: Number of these pairs with the same winner.
        n_undecided: Number of pairs with a gold winner that the judge called a tie or failed on; not in the rate.
        rate: `n_agree / n`; NaN if `n` is 0.
        ci_low, ci_high: Wilson interval at 95 %.
    """

    n: int
    n_agree: int
    n_undecided: int
    rate: float
    ci_low: float
    ci_high: float

    @classmethod
    def of(cls, n: int, n_agree: int, n_undecided: int) -> "GoldAgreement":
        """Compute the rate and its interval from the counts."""
        low, high = wilson_interval(n_agree, n, 0.95) if n else (math.nan, math.nan)
        return cls(n, n_agree, n_undecided, n_agree / n if n else math.nan, low, high)

    def __add__(self, other: "GoldAgreement") -> "GoldAgreement":
        """Agreement on both sets of pairs together."""
        return self.of(self.n + other.n, self.n_agree + other.n_agree, self.n_undecided + other.n_undecided)

    def words(self) -> str:
        """Return a one-line summary."""
        if not self.n:
            return "agreement with gold labels: no pair was decided by both"
        return (
            f"agreement with gold labels {self.rate:.2f} [{self.ci_low:.2f}, {self.ci_high:.2f}] "
            f"on {self.n} pairs that both decided; the judge left {self.n_undecided} more undecided"
        )


@dataclass
class PanelAgreement(Report):
    """
    Agreement among the judges of a panel.

    Args:
        alpha: Krippendorff's alpha, nominal; 1 is perfect, 0 is chance.
        ci_low, ci_high: Bootstrap interval of alpha.
        n_judges, n_pairs: Number of judges, and of pairs that two or more of them judged.
    """

    alpha: float
    ci_low: float
    ci_high: float
    n_judges: int
    n_pairs: int

    def words(self) -> str:
        """Return a one-line summary."""
        return (
            f"agreement of {self.n_judges} raters: Krippendorff's alpha {self.alpha:.2f} "
            f"[{self.ci_low:.2f}, {self.ci_high:.2f}] on {self.n_pairs} pairs{in_words(self.alpha)}"
        )


def alpha_words(alpha: float) -> tuple[str, str]:
    """Return what an agreement means, and what to do about it; empty texts for NaN."""
    return next(((words, advice) for end, words, advice in ALPHA_WORDS if alpha < end), ("", ""))


def in_words(alpha: float) -> str:
    """Return the words about an agreement as the end of a line; the empty text for NaN."""
    words, advice = alpha_words(alpha)
    return f": {words}; {advice}" if words else ""


def gold_agreement(verdicts: Sequence[Verdict], gold: Sequence[Verdict]) -> GoldAgreement:
    """Compare verdicts row by row; ties and failures on either side do not count in the rate."""
    known = [(v.outcome, g.outcome) for v, g in zip(verdicts, gold, strict=True) if g.outcome in DECIDED]
    decided = [pair for pair in known if pair[0] in DECIDED]
    n_agree = sum(ours == theirs for ours, theirs in decided)
    return GoldAgreement.of(len(decided), n_agree, len(known) - len(decided))


def panel_agreement(verdicts: Sequence[Verdict]) -> PanelAgreement | None:
    """Return the agreement among the members of a panel; None for verdicts of other judges."""
    if not verdicts or len(verdicts[0].members) < 2:
        return None
    from trl_real.functional.statistics.rater_agreement import krippendorff_alpha

    votes = np.array([verdict.members for verdict in verdicts], dtype=float).T  # (R, P)
    sides = np.where(np.isnan(votes), np.nan, (np.sign(votes - 0.5) + 1) / 2)
    found = krippendorff_alpha(sides)
    return PanelAgreement(found.alpha, found.ci_low, found.ci_high, found.n_raters, found.n_pairs)
