"""Draw of the rows for people, with known inclusion probabilities: uniform, by uncertainty, or by stratum."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from trl_real.errors import TrlRealError
from trl_real.functional.statistics.inputs import Numbers, as_groups, as_preferences, as_vector, check_count


# With half of the draw uniform, no row's probability is below half of the uniform one, so no weight above twice it.
UNIFORM_SHARE = 0.5
# A verdict of 0 or 1 is no certainty: with hard verdicts, half of the draw would go to the ties.
SUREST = 0.95


class Drawn(NamedTuple):
    """
    Rows drawn for people.

    Args:
        rows: Numbers of the drawn rows, in the order in which a growing draw takes them. Shape `(n,)`.
        inclusion_probabilities: Probability in (0, 1] of every row. Shape `(N,)`.
    """

    rows: np.ndarray
    inclusion_probabilities: np.ndarray


def uncertainty(preferences: Numbers, temperature: float = 1.0) -> np.ndarray:
    r"""
    Return the standard deviation `sqrt(p (1 - p))` of a verdict with the calibrated probability
    `p = sigmoid(logit(preference) / temperature)`, cut off at 0.05 and 0.95: the best size of an inclusion probability
    if `p` is right (Zrnic and Candès 2024, arXiv 2403.03208).

    Args:
        preferences: Judge's probabilities in [0, 1]; NaN or None, a row without a verdict, is as uncertain as a tie.
            Shape `(N,)`.
        temperature: Temperature from `trl_real.functional.statistics.calibration.calibration_temperature`.

    Returns:
        Values in [0.218, 0.5]. Shape `(N,)`.
    """
    from scipy.special import expit, logit

    p = expit(logit(as_preferences(preferences)) / temperature).clip(1 - SUREST, SUREST)
    return np.where(np.isnan(p), 0.5, np.sqrt(p * (1 - p)))


def draw_rows(
    scores: Numbers,
    draws: Numbers,
    n: int,
    *,
    uniform_share: float = UNIFORM_SHARE,
    strata: Sequence[Any] | None = None,
) -> Drawn:
    r"""
    Draw `n` rows without replacement, with probabilities proportional to size: priority sampling (Duffield, Lund and
    Thorup 2007, "Priority sampling for estimation of arbitrary subset sums").

    Row `i` has the size `q_i = (1 - s) u_i / sum(u) + s / N` and the priority `draws_i / q_i`; the `n` lowest ones are
    drawn. Given the next priority `tau`, row `i` is drawn with probability `min(1, q_i tau)`, independently of the
    others, which is its inclusion probability. A larger `n` keeps all rows that a smaller one drew.

    Args:
        scores: Scores `u`, at least 0, such as `uncertainty`; all 0 means uniform. Shape `(N,)`.
        draws: One uniform number in (0, 1) per row, such as a hash of its content. Shape `(N,)`.
        n: Number of rows; at most `N` are drawn.
        uniform_share: Share `s` of the draw that is uniform, in [0, 1]; 1 draws uniformly.
        strata: Group of each row; each gets its share of `n` (Sainte-Laguë's rule, one row at least) and is drawn from
            separately. Shape `(N,)`.

    Raises:
        TrlRealError: If inputs differ in length, a value is out of range, or there are more strata than rows to draw.
    """
    scores, draws = as_vector(scores, "scores"), as_vector(draws, "draws")
    check_count(draws, len(scores), "draws", "scores")
    if n < 1:
        raise TrlRealError(f"n={n} rows cannot be drawn. Give 1 or more.")
    if not 0 <= uniform_share <= 1:
        raise TrlRealError(f"uniform_share={uniform_share} is not a share. Give a number in [0, 1].")
    if not (scores >= 0).all() or not ((draws > 0) & (draws < 1)).all():
        raise TrlRealError("scores must be 0 or more, and draws between 0 and 1, without NaN.")
    groups = np.zeros(len(scores), int) if strata is None else as_groups(strata, len(scores), "strata")
    seats = _seats(np.bincount(groups), min(n, len(scores)))
    nth, probabilities = np.empty(len(scores), int), np.empty(len(scores))
    for stratum, seat in enumerate(seats):
        rows = np.flatnonzero(groups == stratum)
        total = scores[rows].sum()
        sizes = np.full(len(rows), 1 / len(rows))
        if total > 0 and uniform_share < 1:
            sizes = (1 - uniform_share) * scores[rows] / total + uniform_share * sizes
        with np.errstate(divide="ignore"):
            priority = draws[rows] / sizes
        place = np.argsort(priority, kind="stable")
        nth[rows[place]] = np.arange(len(rows))
        probabilities[rows] = _probabilities(sizes, priority[place], seat)
    drawn = np.flatnonzero(nth < seats[groups])
    turn = _turn(nth[drawn], np.bincount(groups)[groups[drawn]])
    return Drawn(drawn[np.argsort(turn, kind="stable")], probabilities)


def _probabilities(sizes: np.ndarray, priorities: np.ndarray, seat: int) -> np.ndarray:
    """Return the inclusion probabilities of a stratum's rows, given its priorities in order."""
    if seat >= len(sizes):
        return np.ones(len(sizes))
    if np.ptp(sizes) == 0:
        return np.full(len(sizes), seat / len(sizes))
    return np.minimum(1.0, sizes * priorities[seat])


def _seats(sizes: np.ndarray, n: int) -> np.ndarray:
    """Return how many rows to draw from each stratum, one at least; no stratum loses one if `n` grows."""
    if len(sizes) > n:
        raise TrlRealError(f"{n} rows cannot be drawn from {len(sizes)} strata. Draw more, or merge strata.")
    number = np.repeat(np.arange(len(sizes)), sizes)
    nth = np.arange(len(number)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    turns = np.argsort(_turn(nth, sizes[number]), kind="stable")
    return np.bincount(number[turns[:n]], minlength=len(sizes))


def _turn(nth: np.ndarray, size: np.ndarray) -> np.ndarray:
    """Return when the `nth` row of a stratum of this size has its turn: lower is earlier, first rows before all."""
    return np.where(nth == 0, -1.0, (nth + 0.5) / size)
