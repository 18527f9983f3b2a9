"""How far several raters agree on the same pairs, beyond chance."""

from typing import NamedTuple

import numpy as np

from trl_real.errors import MissingExtraError, TrlRealError
from trl_real.functional.statistics.inputs import check_confidence
from trl_real.functional.statistics.resampling import counts, expanded_percentiles, resamples


SIDES = (0.0, 0.5, 1.0)
ROUNDS = 2000


class Alpha(NamedTuple):
    """
    Krippendorff's alpha.

    Args:
        alpha: 1 is perfect agreement, 0 what chance gives, below 0 less; NaN where it is not defined.
        ci_low, ci_high: Bootstrap interval over pairs; NaN with fewer than two pairs, or where alpha is NaN.
        n_raters: Raters with a vote on any of these pairs.
        n_pairs: Pairs with two votes or more; others say nothing about agreement.
    """

    alpha: float
    ci_low: float
    ci_high: float
    n_raters: int
    n_pairs: int


def krippendorff_alpha(votes: np.ndarray, confidence: float = 0.95, seed: int = 42) -> Alpha:
    r"""
    Krippendorff's alpha for nominal votes (`evalica`), `1 - observed / expected disagreement`.

    The interval draws pairs with replacement, since they are what more data would bring. The usual algorithm
    (Hayes's KALPHA, `evalica.alpha_bootstrap`) draws single disagreements as if those of one pair were independent: in
    simulations of three raters on 30 pairs its 95 % interval holds the truth in 83 % of the cases, this one in 95 %.

    Args:
        votes: 1 the first response is better, 0 the second, 0.5 a tie, NaN no vote. Shape `(R, P)`.
        confidence: Level of the interval, in (0, 1).
        seed: Of the draws.

    Returns:
        Alpha is NaN if no pair has two votes, or if all votes on such pairs are the same: agreement cannot then be
        told from chance.

    Raises:
        TrlRealError: If a vote is none of 0, 0.5, 1 and NaN.
        MissingExtraError: If evalica is not installed.
    """
    check_confidence(confidence)
    votes = as_votes(votes)
    votes = votes[:, (~np.isnan(votes)).sum(0) > 1]
    n_raters, n_pairs = int((~np.isnan(votes)).any(1).sum()), votes.shape[1]
    if not n_pairs or np.nanmin(votes) == np.nanmax(votes):
        return Alpha(float("nan"), float("nan"), float("nan"), n_raters, n_pairs)
    low, high = _interval(votes, confidence, seed) if n_pairs > 1 else (float("nan"), float("nan"))
    return Alpha(_alpha(votes), low, high, n_raters, n_pairs)


def as_votes(votes: np.ndarray) -> np.ndarray:
    """
    Votes as float64. Shape `(R, P)`.

    Raises:
        TrlRealError: If they have another shape, or one is none of 0, 0.5, 1 and NaN.
    """
    votes = np.asarray(votes, dtype=np.float64)
    if votes.ndim != 2:
        raise TrlRealError(f"votes have shape {votes.shape}. Give a row a rater and a column a pair.")
    wrong = np.argwhere(~np.isnan(votes) & ~np.isin(votes, SIDES))
    if len(wrong):
        rater, pair = wrong[0]
        raise TrlRealError(
            f"The vote of rater {rater} on pair {pair} is {votes[rater, pair]:g}. "
            "Give 1 (first better), 0 (second better), 0.5 (tie) or NaN (no vote)."
        )
    return votes


def _alpha(votes: np.ndarray) -> float:
    try:
        from evalica import alpha
    except ImportError:
        raise MissingExtraError("evalica", "stats") from None
    from pandas import DataFrame

    return float(alpha(DataFrame(votes)).alpha)


def _interval(votes: np.ndarray, confidence: float, seed: int) -> tuple[float, float]:
    """Alpha of each sample of pairs, from sums over them; of votes with two or more a pair."""
    tallies = np.stack([(votes == side).sum(0) for side in SIDES], axis=1).astype(float)  # (P, 3)
    tallies = tallies[np.lexsort(tallies.T)]  # the draws go by place: the same for any order of the pairs
    m = tallies.sum(1)
    columns = np.column_stack([(m**2 - (tallies**2).sum(1)) / (m - 1), m, tallies])  # (P, 5)
    n_pairs = len(tallies)
    sums = np.concatenate([counts(drawn) @ columns for drawn in resamples(n_pairs, ROUNDS, seed)])  # (rounds, 5)
    observed, n, sides = sums[:, 0], sums[:, 1], sums[:, 2:]
    expected = (n**2 - (sides**2).sum(1)) / (n - 1)
    with np.errstate(invalid="ignore"):
        return expanded_percentiles(1 - observed / expected, n_pairs, confidence)
