"""Many raters' votes on a pair as one probability."""

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from trl_real.errors import MissingExtraError
from trl_real.functional.statistics.rater_agreement import as_votes


MAX_STEPS = 200

Aggregation = Callable[[np.ndarray], np.ndarray]


def majority(votes: np.ndarray) -> np.ndarray:
    """
    Share of the votes, a tie as half of one: each rater counts the same.

    Args:
        votes: 1 the first response is better, 0 the second, 0.5 a tie, NaN no vote. Shape `(R, P)`.

    Returns:
        Probability that the first response is better; NaN where nobody voted. Shape `(P,)`.

    Raises:
        TrlRealError: If a vote is none of 0, 0.5, 1 and NaN.
    """
    votes = as_votes(votes)
    n = (~np.isnan(votes)).sum(0)
    with np.errstate(invalid="ignore"):
        return np.nansum(votes, axis=0) / n


def dawid_skene(votes: np.ndarray) -> np.ndarray:
    r"""
    Dawid and Skene's model (1979, "Maximum likelihood estimation of observer error-rates using the EM algorithm"):
    each pair has a true class (first better, tie, second better) and each rater a confusion matrix, both estimated
    together (`crowd-kit`). A rater who always says the same, or guesses, ends up with hardly any weight.

    There is no prior: with few pairs (say under 50), or few votes a pair, the answers are surer than they should be,
    and `majority` is the better choice.

    Args:
        votes: As in `majority`. Shape `(R, P)`.

    Returns:
        `P(first better) + P(tie) / 2`; NaN where nobody voted. Shape `(P,)`.

    Raises:
        TrlRealError: If a vote is none of 0, 0.5, 1 and NaN.
        MissingExtraError: If crowd-kit is not installed.
    """
    try:
        from crowdkit.aggregation import DawidSkene
    except ImportError:
        raise MissingExtraError("crowd-kit", "stats") from None
    from pandas import DataFrame

    votes = as_votes(votes)
    rater, pair = np.nonzero(~np.isnan(votes))
    probability = np.full(votes.shape[1], np.nan)
    if not len(pair):
        return probability
    classes = (2 * votes[rater, pair]).astype(int)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # crowd-kit 1.4 still uses keywords that pandas 3 frowns at
        fit = DawidSkene(n_iter=MAX_STEPS).fit(DataFrame({"task": pair, "worker": rater, "label": classes}))
    found: Any = fit.probas_
    probability[found.index] = sum(found[side] * side / 2 for side in found.columns)
    return probability.clip(0, 1)


AGGREGATIONS: dict[str, Aggregation] = {"majority": majority, "dawid_skene": dawid_skene}
