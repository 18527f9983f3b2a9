"""Aggregation of several raters' votes on a pair to one probability."""

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from trl_real.errors import needs_extra
from trl_real.functional.statistics.rater_agreement import as_votes


MAX_STEPS, TOLERANCE = 1000, 1e-10  # crowd-kit stops at 1e-5 by default, long before the fit has converged
ROUNDING = 1e-9

Aggregation = Callable[[np.ndarray], np.ndarray]


def majority(votes: np.ndarray) -> np.ndarray:
    """
    Return the share of votes for the first response; a tie is half a vote, and all raters count the same.

    Args:
        votes: Votes of `R` raters on `P` pairs: 1 if the first response is better, 0 if the second is, 0.5 for a tie,
            NaN for no vote. Shape `(R, P)`.

    Returns:
        Probability that the first response is better, 0.5 where more raters call a tie than either winner; NaN for
        pairs without votes. Shape `(P,)`.

    Raises:
        TrlRealError: If a vote is not 0, 0.5, 1 or NaN.
    """
    votes = as_votes(votes)
    n = (~np.isnan(votes)).sum(0)
    counts = [(votes == value).sum(0) for value in (0, 0.5, 1)]
    with np.errstate(invalid="ignore"):
        return np.where(counts[1] > np.maximum(counts[0], counts[2]), 0.5, np.nansum(votes, axis=0) / n)


def dawid_skene(votes: np.ndarray) -> np.ndarray:
    r"""
    Fit Dawid and Skene's model (1979, "Maximum likelihood estimation of observer error-rates using the EM algorithm"):
    each pair has a true class (first better, tie, second better) and each rater a confusion matrix, both estimated
    together (`crowd-kit`). A rater who always gives the same vote, or guesses, gets almost no weight.

    The model has no prior: with few pairs (under 50) or few votes per pair it is overconfident, and `majority` is the
    better choice.

    Args:
        votes: See `majority`. Shape `(R, P)`.

    Returns:
        0.5 where a tie is the likeliest class, else `P(first better) + P(tie) / 2`; NaN for pairs without votes. Shape
        `(P,)`.

    Raises:
        TrlRealError: If a vote is not 0, 0.5, 1 or NaN.
        MissingExtraError: If crowd-kit is not installed.
    """
    with needs_extra("crowd-kit", "stats"):
        from crowdkit.aggregation import DawidSkene
    from pandas import DataFrame

    votes = as_votes(votes)
    rater, pair = np.nonzero(~np.isnan(votes))
    probability = np.full(votes.shape[1], np.nan)
    if not len(pair):
        return probability
    classes = (2 * votes[rater, pair]).astype(int)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # crowd-kit 1.4 uses keywords that pandas 3 deprecates
        fit = DawidSkene(n_iter=MAX_STEPS, tol=TOLERANCE).fit(
            DataFrame({"task": pair, "worker": rater, "label": classes})
        )
    found: Any = fit.probas_
    values = sum(found[side] * side / 2 for side in found.columns)
    is_tie = (found.idxmax(axis=1) == 1) | ((values - 0.5).abs() < ROUNDING)
    probability[found.index] = values.mask(is_tie, 0.5)
    return probability.clip(0, 1)


AGGREGATIONS: dict[str, Aggregation] = {"majority": majority, "dawid_skene": dawid_skene}
