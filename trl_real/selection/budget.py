"""Number of rows that a budget keeps, and which rows."""

import math
from collections.abc import Sequence
from numbers import Integral

import numpy as np
import torch

from trl_real.errors import TooFewPairsError, TrlRealError, check_budget
from trl_real.selection.strategies import TIE_TOLERANCE, Score, Strategy, as_strategy


def budget_size(budget: float | int | None, n_pairs: int) -> int:
    """
    Return the number of rows to keep of `n_pairs` rows with a pair: `round(budget * n_pairs)` for a share.

    Raises:
        TooFewPairsError: If the budget is more than `n_pairs`.
        TrlRealError: If the budget is out of range, or keeps no row.
    """
    check_budget(budget)
    if budget is None:
        return n_pairs
    if isinstance(budget, Integral):
        if not n_pairs:
            raise TooFewPairsError(
                f"budget={budget}, but no row has a pair. Type budget=None and read the reasons in `record.skipped`.",
                0,
            )
        if budget > n_pairs:
            raise TooFewPairsError(
                f"budget={budget}, but only {n_pairs} rows have a pair. Type budget={n_pairs} or None.", n_pairs
            )
        return int(budget)
    size = round(budget * n_pairs)
    if n_pairs and not size:
        raise TrlRealError(f"budget={budget} of {n_pairs} rows with a pair is 0 rows. Type budget=1 for one row.")
    return size


def lowest_rows(scores: np.ndarray, size: int) -> np.ndarray:
    """
    Return the rows with the lowest scores, never those without a score.

    Rows within 1e-6 of the score at the cut (relative, if it is beyond 1) are ties, and the first ones win: equal rows
    differ by rounding if different batches embedded them.

    Args:
        scores: Score of each row; NaN without a pair. Shape `(N,)`.
        size: Number of rows to take, at most the number of scores.

    Returns:
        Row indices, ascending. Shape `(size,)`.
    """
    if not size:
        return np.zeros(0, dtype=np.int64)
    cut = np.partition(scores, size - 1)[size - 1]
    tolerance = TIE_TOLERANCE * max(1.0, abs(cut))
    sure = np.flatnonzero(scores < cut - tolerance)
    tied = np.flatnonzero(np.abs(scores - cut) <= tolerance)
    return np.sort(np.concatenate([sure, tied[: size - len(sure)]]))


def budget_rows(
    strategy: Strategy | Score, scores: np.ndarray, differences: Sequence[np.ndarray], size: int, margins: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """
    Return the rows with the lowest scores, or those that the strategy's set budget takes (`Strategy.budget`).

    Args:
        strategy: Record or function that gave the scores.
        scores: Scores as in `lowest_rows`. Shape `(N,)`.
        differences: Difference of the unit vectors of each row's pair, shape `(d,)`, for a set budget.
        size: Number of rows to take.
        margins: Whether to replace the scores by the margins of a set budget, which take long to compute.

    Returns:
        Row indices, ascending, shape `(size,)`; and the scores, shape `(N,)`.
    """
    rule = as_strategy(strategy)
    rows = np.flatnonzero(np.isfinite(scores))
    if rule.budget is None or not len(rows):
        return lowest_rows(scores, size), scores
    vectors = torch.from_numpy(np.stack([differences[row] for row in rows.tolist()]))
    found = rule.budget(vectors, size)
    if margins and rule.margins:
        scores = np.full(len(scores), np.nan)
        scores[rows] = rule.margins(vectors, found).numpy()
    return np.sort(rows[found.indices.numpy()]), scores


def rows_in_doubt(
    scores: np.ndarray, gaps: np.ndarray, kept: np.ndarray, band: float, gap_band: float, jumps: bool = False
) -> np.ndarray:
    """
    Return the rows, ascending, with a decision that could change if every score moved by up to `band`.

    Args:
        scores: Score of each row; NaN without a pair. Shape `(N,)`.
        gaps: Lead of the row's best pair over the second-best; infinite for a single pair. Shape `(N,)`.
        kept: Rows that the budget takes. Shape `(k,)`.
        band: Largest error of a score.
        gap_band: Largest error of the score of a single pair.
        jumps: Whether a row with another pair may have any score.
    """
    cut = math.inf
    outside = np.isfinite(scores)
    outside[kept] = False
    if len(kept) and outside.any():
        cut = (scores[kept].max() + scores[outside].min()) / 2
    near_cut = np.abs(scores - cut) <= band
    other_pair = (gaps <= 2 * gap_band) & (jumps | (scores <= cut + 2 * band))
    return np.flatnonzero((near_cut | other_pair) & np.isfinite(scores))
