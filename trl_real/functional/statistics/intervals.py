"""Confidence intervals of a mean preference, each with the name of its method."""

from typing import NamedTuple

import numpy as np

from trl_real.errors import TrlRealError
from trl_real.functional.statistics.resampling import expanded_percentiles, resamples


NO_VARIANCE = 1e-12
ROUNDS = 5000
# Fewer prompts give too few different samples to estimate a tail.
FEWEST_RESAMPLED = 6


class Interval(NamedTuple):
    """
    Confidence interval of a mean preference.

    Args:
        low, high: Ends of the interval, in [0, 1]; NaN without an interval.
        method: Name of the method, see `mean_interval`.
    """

    low: float
    high: float
    method: str


INTERVALS = ("auto", "wilson", "t", "score", "bootstrap")
UNDEFINED = Interval(float("nan"), float("nan"), "undefined")


def mean_interval(
    scores: np.ndarray, groups: np.ndarray, confidence: float = 0.95, method: str = "auto", seed: int = 42
) -> Interval:
    """
    Compute the confidence interval of a mean preference.

    Args:
        scores: Judged preferences, in [0, 1]. Shape `(n,)`.
        groups: Cluster (prompt) of each score. Shape `(n,)`, int.
        confidence: Confidence level, in (0, 1).
        method: One of `INTERVALS`; `"auto"` is Wilson's interval if it applies, else Student's t.
        seed: Seed of the bootstrap.

    Returns:
        The interval with its `method`:
        `"wilson"`: Wilson's score interval, for wins and losses only and one row per cluster.
        `"t"` and `"clustered t"`: for ties, graded preferences or clusters, see `t_half_width`; cut off at 0 and 1.
        `"score"` and `"clustered score"`: Wilson's formula for any scores, see `score_interval`.
        `"bootstrap"`: 5,000 samples of clusters with replacement; percentiles moved outward as Student's t requires
        for few clusters (Hesterberg 2015, "What teachers should know about the bootstrap", arXiv 1411.5279). With
        fewer than 6 clusters the t interval replaces it.
        `"wilson, no variance"`: Wilson's interval with one trial per cluster, used if the standard error is 0 (all
        ties, or all prompts equal), which the other methods would take for certainty.
        `"undefined"`: no row, one graded row, or several rows of a single cluster.

    Raises:
        TrlRealError: If the method is unknown, or `"wilson"` does not apply to the scores.
    """
    if method not in INTERVALS:
        raise TrlRealError(f"method is {method!r}. Give one of {', '.join(map(repr, INTERVALS))}.")
    if method == "auto":
        method = "wilson" if _is_wilson(scores, groups) else "t"
    if method == "wilson":
        return _wilson(scores, groups, confidence)
    special = _without_variance(scores, groups, confidence)
    if special:
        return special
    if method == "bootstrap" and len(np.unique(groups)) >= FEWEST_RESAMPLED:
        return _bootstrap(scores, groups, confidence, seed)
    clustered = "" if len(scores) == len(np.unique(groups)) else "clustered "
    if method == "score":
        return Interval(*score_interval(scores, groups, confidence), f"{clustered}score")
    return Interval(*_t_interval(scores, groups, confidence), f"{clustered}t")


def standard_error(scores: np.ndarray, groups: np.ndarray) -> float:
    r"""
    Return the cluster-robust standard error, `sqrt(G / (G - 1) * sum_g (sum_{i in g} (y_i - mean))^2) / n`.

    With one row per cluster it is `std(y, ddof=1) / sqrt(n)`; in statsmodels, `cov_type="cluster"` on a constant.

    Args:
        scores: Judged preferences `y`. Shape `(n,)`.
        groups: Cluster of each score. Shape `(n,)`, int.

    Returns:
        Standard error, as a fraction; NaN with fewer than two clusters.
    """
    sums, _ = _residual_sums(scores, groups)
    if len(sums) < 2:
        return float("nan")
    return float(np.sqrt(len(sums) / (len(sums) - 1) * (sums**2).sum()) / len(scores))


def t_half_width(scores: np.ndarray, groups: np.ndarray, confidence: float) -> float:
    r"""
    Return half the width of a t interval for clustered scores, valid for few clusters and for unequal cluster sizes.

    For equal sizes: `standard_error` times Student's t with `G - 1` degrees of freedom. For unequal sizes both would
    be too small; the variance is then Bell and McCaffrey's (2002; "CR2"), `sum_g s_g^2 / (1 - n_g / n) / n^2` with
    `s_g` the sum of residuals of a cluster, with `degrees_of_freedom`. It is too wide if one cluster has most rows.

    Args:
        scores, groups: See `standard_error`; at least two clusters.
        confidence: Confidence level, in (0, 1).
    """
    quantile, error = _quantile_and_error(scores, groups, confidence)
    return quantile * error


def degrees_of_freedom(sizes: np.ndarray) -> float:
    r"""
    Return Satterthwaite's degrees of freedom of the CR2 variance of a mean: `tr(B)^2 / tr(B^2)`, with `B` the
    covariance of `s_g / sqrt(1 - n_g / n) / n` (Imbens and Kolesár 2016, "Robust standard errors in small samples").

    `B = diag(d) - u u^T` if rows are independent; if all rows of a cluster are equal,
    `B = diag(w) (I - 1 p^T)(I - p 1^T) diag(w)` with `p_g = n_g / n`. Both are computed in closed form.

    Args:
        sizes: Number of rows `n_g` of each cluster. Shape `(G,)`.

    Returns:
        The smaller of the two; `G - 1` if all clusters have the same size.
    """
    if np.ptp(sizes) == 0:
        return len(sizes) - 1.0
    n = sizes.sum()
    p = sizes / n
    k = 1 / (n * np.sqrt(1 - p))
    d, u2 = sizes * k**2, (sizes * k) ** 2 / n
    independent = (d.sum() - u2.sum()) ** 2 / ((d**2).sum() - 2 * (d * u2).sum() + u2.sum() ** 2)
    w2, q = (sizes * k) ** 2, (p**2).sum()
    total, first, second = w2.sum(), (w2 * p).sum(), (w2 * p**2).sum()
    trace = (w2 * (1 - 2 * p + q)).sum()
    off_diagonal = (q * total) ** 2 + 2 * total * second - 4 * q * first * total + 2 * first**2
    alike = trace**2 / ((w2**2 * (1 + 2 * (q - 2 * p))).sum() + off_diagonal)
    return float(min(independent, alike))


def score_interval(scores: np.ndarray, groups: np.ndarray, confidence: float) -> tuple[float, float]:
    r"""
    Return Wilson's interval for any scores in [0, 1], with the standard error and quantile of `t_half_width` and the
    effective number of trials `n' = mean (1 - mean) / error^2` (Dean and Pagano 2015, "Evaluating confidence interval
    methods for binomial proportions in clustered surveys").

    It is close to the t interval near 0.5. Near 0 and 1, where scores are skewed, its coverage is better: on
    AlpacaEval's annotations of a model that wins 4 %, samples of 200 prompts, it contains the true rate in 95 % of
    the cases, the t interval in 92 %. With 50 prompts neither is reliable (87 % and 84 %): half of the samples then
    have at most one win.

    Args:
        scores, groups: See `standard_error`; at least two clusters, with some variance between them.
        confidence: Confidence level, in (0, 1).
    """
    quantile, error = _quantile_and_error(scores, groups, confidence)
    return score_ends(float(scores.mean()), quantile * error)


def score_ends(mean: float, half_width: float) -> tuple[float, float]:
    """Return Wilson's interval around a mean in (0, 1), from half the width of its t interval; within [0, 1]."""
    weight = half_width**2 / (mean * (1 - mean))  # q^2 / n'
    centre = (mean + weight / 2) / (1 + weight)
    half = half_width / (1 + weight) * np.sqrt(1 + weight / (4 * mean * (1 - mean)))
    return float(max(centre - half, 0)), float(min(centre + half, 1))


def wilson_interval(wins: float, n: int, confidence: float) -> tuple[float, float]:
    """Return Wilson's score interval; for fractional wins, the lower end of `floor` and the upper end of `ceil`."""
    from scipy.stats import binomtest

    fewest, most = (int(to_whole(round(float(wins), 9))) for to_whole in (np.floor, np.ceil))
    low = high = binomtest(fewest, n).proportion_ci(confidence, method="wilson")
    if most != fewest:
        high = binomtest(most, n).proportion_ci(confidence, method="wilson")
    return float(low.low), float(high.high)


def _wilson(scores: np.ndarray, groups: np.ndarray, confidence: float) -> Interval:
    if not len(scores):
        return UNDEFINED
    if not _is_wilson(scores, groups):
        raise TrlRealError(
            "method='wilson' needs wins and losses with one row a prompt; found ties, graded preferences or several "
            "rows a prompt. Give method='auto'."
        )
    return Interval(*wilson_interval(scores.sum(), len(scores), confidence), "wilson")


def _t_interval(scores: np.ndarray, groups: np.ndarray, confidence: float) -> tuple[float, float]:
    half, mean = t_half_width(scores, groups, confidence), scores.mean()
    return float(max(mean - half, 0)), float(min(mean + half, 1))


def _bootstrap(scores: np.ndarray, groups: np.ndarray, confidence: float, seed: int) -> Interval:
    totals, sizes = _totals(scores, groups)
    # Draws are by position: clusters sorted by content give the same draws for any order of the rows.
    order = np.lexsort((totals.round(9), sizes))
    totals, sizes = totals[order], sizes[order]
    alike = np.ptp(sizes) == 0
    means = [
        totals[drawn].mean(1) / sizes[0] if alike else totals[drawn].sum(1) / sizes[drawn].sum(1)
        for drawn in resamples(len(sizes), ROUNDS, seed)
    ]
    return Interval(*expanded_percentiles(np.concatenate(means), len(sizes), confidence), "bootstrap")


def _quantile_and_error(scores: np.ndarray, groups: np.ndarray, confidence: float) -> tuple[float, float]:
    """Return Student's quantile and the standard error of `t_half_width`."""
    from scipy.stats import t

    sums, sizes = _residual_sums(scores, groups)
    n = len(scores)
    error = np.sqrt((sums**2 / (1 - sizes / n)).sum()) / n
    return float(t.ppf((1 + confidence) / 2, degrees_of_freedom(sizes))), float(error)


def _is_wilson(scores: np.ndarray, groups: np.ndarray) -> bool:
    """Return whether each row is a win or a loss, and its own cluster."""
    return 0 < len(scores) == len(np.unique(groups)) and bool(np.isin(scores, (0, 1)).all())


def _without_variance(scores: np.ndarray, groups: np.ndarray, confidence: float) -> Interval | None:
    """Return the interval for too few or all-equal clusters; None if there is variance to measure."""
    n_clusters = len(np.unique(groups))
    if n_clusters < 2:
        return UNDEFINED
    if standard_error(scores, groups) >= NO_VARIANCE:
        return None
    return Interval(*wilson_interval(scores.mean() * n_clusters, n_clusters, confidence), "wilson, no variance")


def _residual_sums(scores: np.ndarray, groups: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the sum of `y - mean` and the number of rows of each cluster. Shapes `(G,)`."""
    return _totals(scores - scores.mean() if len(scores) else scores, groups)


def _totals(scores: np.ndarray, groups: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the sum of the scores and the number of rows of each cluster. Shapes `(G,)`."""
    _, place, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    return np.bincount(place, weights=scores, minlength=len(sizes)), sizes
