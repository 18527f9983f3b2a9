"""Alternative annotator test: may a judge replace the people who labelled some pairs?"""

import math
from dataclasses import dataclass, field

import numpy as np

from trl_real.errors import TrlRealError
from trl_real.functional.statistics.rater_agreement import as_votes


LEVEL = 0.05  # of false discoveries, over all annotators
FEWEST_ANNOTATORS, FEWEST_PAIRS = 3, 30


@dataclass
class AnnotatorTest:
    """
    Result of the alternative annotator test.

    Args:
        winning_rate: Share of the tested annotators whom the judge is shown to replace, with `epsilon` in its favour;
            NaN if none could be tested.
        advantage: Average advantage probability: chance that the judge agrees with the other annotators at least as
            well as the annotator whom it replaces; the mean over annotators.
        losing_rate: Share of the annotators whom the judge is shown to fall short of by more than `epsilon`.
        epsilon: Advantage that the judge is granted because it is cheaper.
        n_annotators: Number of annotators who were tested: those with 30 pairs or more that others decided, too.
        n_pairs: Number of pairs with a verdict of the judge and two annotators or more.
        p_values: p-value for each tested annotator, before correction.
        verdict: `"may"`, `"may not"` or `"is not shown to"` replace the annotators.
    """

    winning_rate: float
    advantage: float
    losing_rate: float
    epsilon: float
    n_annotators: int
    n_pairs: int
    p_values: list[float] = field(default_factory=list)
    verdict: str = "is not shown to"

    def words(self) -> str:
        """Return the result in one sentence, with the numbers."""
        if self.n_annotators < FEWEST_ANNOTATORS:
            return (
                f"with these annotators, on this data, this judge is not shown to replace them: the test needs "
                f"{FEWEST_ANNOTATORS} annotators with {FEWEST_PAIRS} shared pairs each, and found {self.n_annotators}"
            )
        return (
            f"with these {self.n_annotators} annotators, on this data, this judge {self.verdict} replace them "
            f"(winning rate {self.winning_rate:.2f}, 0.5 is enough; advantage probability {self.advantage:.2f}; "
            f"epsilon {self.epsilon:g}: the judge may win that much less often than a person, who costs more)"
        )


def alternative_annotator_test(judge: np.ndarray, votes: np.ndarray, epsilon: float = 0.1) -> AnnotatorTest:
    r"""
    Test whether a judge agrees with the annotators about as well as each of them agrees with the others (Calderon,
    Reichart and Dror 2025, "The alternative annotator test for LLM-as-a-judge", ACL, arXiv 2501.10970).

    For each annotator `j` and pair `i`, the judge and `j` are scored by the share of the other annotators with the
    same verdict. With `d_i` = (`j` scores at least as well as the judge) - (the judge at least as well as `j`), a
    one-sided t-test asks whether the mean of `d` is below `epsilon`; the p-values are corrected together (Benjamini
    and Yekutieli). The judge may replace the annotators if it wins against half of them or more. It may not if, in the
    same way, the mean of `d` is shown to be above `epsilon` for half of them or more; else nothing is shown.

    Args:
        judge: Judge's probability that the first response is better; read as 1, 0.5 or 0; NaN without a verdict.
            Shape `(P,)`.
        votes: Votes of `R` annotators: 1, 0, 0.5 for a tie, NaN for no vote. Shape `(R, P)`.
        epsilon: The authors advise 0.2 against experts, 0.15 against skilled annotators and 0.1 against crowd workers.

    Raises:
        TrlRealError: If a vote is not 0, 0.5, 1 or NaN, the shapes do not match, or `epsilon` is not in [0, 1).
    """
    votes, judge = as_votes(votes), np.asarray(judge, dtype=float)
    if judge.shape != votes.shape[1:]:
        raise TrlRealError(f"The judge has verdicts on {judge.shape} pairs, the annotators on {votes.shape[1:]}.")
    if not 0 <= epsilon < 1:
        raise TrlRealError(f"epsilon={epsilon} is not in [0, 1). Give 0.1 for crowd workers, up to 0.2 for experts.")
    sides = (np.sign(judge - 0.5) + 1) / 2
    shared = ((~np.isnan(votes)).sum(0) > 1) & ~np.isnan(sides)  # (P,)
    lower, upper, advantages = [], [], []
    for rater in range(len(votes)):
        differences, advantage = _differences(sides[shared], votes[:, shared], rater)
        if len(differences) >= FEWEST_PAIRS:
            lower.append(_p_below(differences, epsilon))
            upper.append(_p_below(-differences, -epsilon))
            advantages.append(advantage)
    won, lost = _rejected(lower), _rejected(upper)
    found = AnnotatorTest(
        winning_rate=won,
        advantage=float(np.mean(advantages)) if advantages else math.nan,
        losing_rate=lost,
        epsilon=epsilon,
        n_annotators=len(lower),
        n_pairs=int(shared.sum()),
        p_values=lower,
    )
    if found.n_annotators >= FEWEST_ANNOTATORS:
        found.verdict = "may" if won >= 0.5 else "may not" if lost >= 0.5 else found.verdict
    return found


def _differences(sides: np.ndarray, votes: np.ndarray, rater: int) -> tuple[np.ndarray, float]:
    """Return `d` for the pairs that an annotator and another one decided, and the judge's advantage probability."""
    others = np.delete(votes, rater, axis=0)
    kept = ~np.isnan(votes[rater]) & ~np.isnan(others).all(0)
    own, others, sides = votes[rater, kept], others[:, kept], sides[kept]
    n_others = (~np.isnan(others)).sum(0)
    judge, person = ((others == side).sum(0) / n_others for side in (sides, own))
    return (person >= judge) * 1.0 - (judge >= person), float((judge >= person).mean()) if kept.any() else math.nan


def _p_below(differences: np.ndarray, epsilon: float) -> float:
    """Return the p-value of the one-sided t-test that the mean is below `epsilon`."""
    from scipy.stats import ttest_1samp

    if np.ptp(differences) == 0:  # no variance to measure: all pairs say the same
        return float(differences[0] >= epsilon)
    return float(ttest_1samp(differences, epsilon, alternative="less").pvalue)


def _rejected(p_values: list[float]) -> float:
    """Return the share of hypotheses that are rejected after Benjamini and Yekutieli's correction."""
    from scipy.stats import false_discovery_control

    return float((false_discovery_control(p_values, method="by") <= LEVEL).mean()) if p_values else math.nan
