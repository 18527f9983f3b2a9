"""Agreement of a second opinion with the labels, in bins of similarity of the two responses."""

from typing import NamedTuple

import numpy as np

from trl_real.functional.statistics.intervals import wilson_interval


class AgreementBin(NamedTuple):
    """
    Bin of pairs with similar similarity.

    Args:
        low, high: Lowest and highest similarity in the bin.
        n: Number of pairs that the second opinion decides.
        n_ties: Number of pairs that it does not decide; they do not count in the rate.
        agreement: Share of the decided pairs in which it agrees with the label; NaN without decided pairs.
        ci_low, ci_high: Wilson interval of the agreement.
    """

    low: float
    high: float
    n: int
    n_ties: int
    agreement: float
    ci_low: float
    ci_high: float


def agreement_by_similarity(
    similarity: np.ndarray, verdicts: np.ndarray, n_bins: int = 5, confidence: float = 0.95
) -> list[AgreementBin]:
    """
    Compute the agreement of a second opinion with the labels in equal-sized bins, least similar first (REAL, Fig. 3).

    Args:
        similarity: Similarity of the two responses. Shape `(P,)`.
        verdicts: Probability that the second opinion gives to the chosen response; 0.5 is a tie, NaN no verdict.
            Shape `(P,)`.
        n_bins: Maximum number of bins.
        confidence: Confidence level of the intervals.
    """
    known = np.isfinite(similarity) & np.isfinite(verdicts)
    order = np.argsort(similarity[known], kind="stable")
    similarity, verdicts = similarity[known][order], verdicts[known][order]
    rows = []
    for part in np.array_split(np.arange(len(order)), n_bins):
        if not len(part):
            continue
        decided = verdicts[part][verdicts[part] != 0.5]
        n, agree = len(decided), int((decided > 0.5).sum())
        low, high = wilson_interval(agree, n, confidence) if n else (float("nan"), float("nan"))
        rate = agree / n if n else float("nan")
        ends = float(similarity[part[0]]), float(similarity[part[-1]])
        rows.append(AgreementBin(*ends, n, len(part) - n, rate, low, high))
    return rows
