"""Win rate at equal length: a logistic model of length and quality, its fit and its bootstrap interval."""

import numpy as np

from trl_real.functional.statistics.intervals import mean_interval
from trl_real.functional.statistics.resampling import counts, expanded_percentiles, resamples


ROUNDS = 2000
# Largest share of resamples without a finite rate; above it, an interval of the others would mislead.
MOST_UNDEFINED = 0.05
NEWTON_STEPS, TOLERANCE, LARGEST = 30, 1e-7, 30.0


def equal_length_rate(scores: np.ndarray, difference: np.ndarray) -> float:
    """
    Win rate that a logistic model predicts for responses as long as the baseline's: `sigmoid(theta)` of

    `P(win) = sigmoid(phi * tanh((length - baseline_length) / s) + theta)`

    with `s` the standard deviation of the length differences. Plain maximum likelihood with soft targets.

    **Not comparable with the AlpacaEval leaderboard**, which also models the difficulty of each instruction: for 20
    models of AlpacaEval 2 this rate is 5 points too high on average, and up to 15. Compare its values only with each
    other, on the same prompts. For the leaderboard's figure see `length_controlled_win_rate`.

    Args:
        scores: Judged preferences, in [0, 1]. Shape `(n,)`.
        difference: Characters of the model's response minus those of the baseline's. Shape `(n,)`.

    Returns:
        A fraction. 1 or 0 if the model won, or lost, every row; the plain win rate if both responses have the same
        length in every row. NaN if length and quality cannot be separated: no row, the same difference (other than 0)
        in all rows, or a difference that separates all wins from all losses.
    """
    if not len(scores):
        return float("nan")
    if is_plain(scores, difference):
        return float(scores.mean())
    if np.ptp(difference) == 0 or _separated(difference, scores):
        return float("nan")
    return float(_expit(_fit(_squashed(difference), scores)[1]))


def equal_length_interval(
    scores: np.ndarray, difference: np.ndarray, groups: np.ndarray, confidence: float, seed: int
) -> tuple[float, float]:
    """
    Return the bootstrap interval of `equal_length_rate`: draw prompts (`groups`, int, shape `(n,)`) with replacement,
    fit the model to each of 2,000 samples (the scale of the length difference stays fixed), and move the percentiles
    outward as in `expanded_percentiles`.

    Returns:
        Both ends. The interval of the plain rate if the rate is the plain one; NaN if the rate is NaN, for a single
        prompt, or if more than 5 % of the samples have no finite fit.
    """
    if len(scores) and is_plain(scores, difference):
        return mean_interval(scores, groups, confidence)[:2]
    if np.isnan(equal_length_rate(scores, difference)) or len(np.unique(groups)) < 2:
        return float("nan"), float("nan")
    x = _squashed(difference)
    groups = _canonical(groups, scores, x)
    n_clusters, start = groups.max() + 1, _fit(x, scores)
    a_block = max(1, len(x) // n_clusters)
    samples = (counts(drawn)[:, groups] for drawn in resamples(n_clusters, ROUNDS, seed, 4 * a_block))
    theta = np.concatenate([_fit_many(x, scores, weights, start) for weights in samples])
    if np.isnan(theta).mean() > MOST_UNDEFINED:
        return float("nan"), float("nan")
    return expanded_percentiles(_expit(theta), n_clusters, confidence)


def is_plain(scores: np.ndarray, difference: np.ndarray) -> bool:
    """Return whether the plain rate applies: equal lengths in every row, or every row won, or lost. Needs a row."""
    return not difference.any() or scores.min() == 1 or scores.max() == 0


def _squashed(difference: np.ndarray) -> np.ndarray:
    return np.tanh(difference / difference.std(ddof=1))


def _separated(difference: np.ndarray, scores: np.ndarray) -> bool:
    """Return whether a threshold separates all wins from all losses (graded rows are both): no finite fit exists."""
    wins, losses = difference[scores > 0], difference[scores < 1]
    return wins.min() >= losses.max() or wins.max() <= losses.min()


def _fit(x: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Fit `sigmoid(phi * x + theta)` to soft targets, both of shape `(n,)`; return `(phi, theta)`."""
    from scipy.optimize import minimize

    design = np.stack([x, np.ones_like(x)], axis=1)  # (n, 2)

    def loss(weights):
        logits = design @ weights
        return (np.logaddexp(0, logits) - scores * logits).mean(), design.T @ (_expit(logits) - scores) / len(x)

    def hessian(weights):
        p = _expit(design @ weights)
        return (design.T * (p * (1 - p))) @ design / len(x)

    return minimize(loss, np.zeros(2), jac=True, hess=hessian, method="trust-exact", options={"gtol": 1e-10}).x


def _fit_many(x: np.ndarray, scores: np.ndarray, weights: np.ndarray, start: np.ndarray) -> np.ndarray:
    """
    Return `theta` of the fit for each weighting of the rows, shape `(b, n)`, by Newton's method from `start`; NaN if
    it does not converge.
    """
    phi, theta = (np.full(len(weights), value) for value in start)
    weights = weights.astype(float)
    powers = np.stack([x * x, x, np.ones_like(x)], axis=1)  # (n, 3)
    for _ in range(NEWTON_STEPS):
        p = _expit(phi[:, None] * x + theta[:, None])  # (b, n)
        slope = (weights * (scores - p)) @ powers[:, 1:]  # (b, 2)
        xx, x1, one = ((weights * (p * (1 - p))) @ powers).T
        with np.errstate(divide="ignore", invalid="ignore"):
            step = np.stack([one * slope[:, 0] - x1 * slope[:, 1], xx * slope[:, 1] - x1 * slope[:, 0]]) / (
                xx * one - x1**2
            )
        phi, theta = phi + step[0], theta + step[1]
        lost = ~((np.abs(phi) < LARGEST) & (np.abs(theta) < LARGEST))
        phi[lost] = theta[lost] = np.nan
        if not (np.abs(step[:, ~lost]) > TOLERANCE).any():
            break
    return theta


def _canonical(groups: np.ndarray, scores: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Number clusters by their content, so that the draws are the same for any order of the rows. Shape `(n,)`."""
    _, place, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    keys = [np.bincount(place, weights=values).round(9) for values in (scores, x, scores * x)]
    number = np.empty(len(sizes), dtype=int)
    number[np.lexsort((*keys, sizes))] = np.arange(len(sizes))
    return number[place]


def _expit(logits: np.ndarray) -> np.ndarray:
    from scipy.special import expit

    return expit(logits)
