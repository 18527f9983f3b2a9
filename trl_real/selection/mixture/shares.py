"""Rows that the parts of a mixture take, from the scores of each part."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from trl_real.selection.budget import lowest_rows
from trl_real.selection.mixture.parts import Part, is_chance
from trl_real.selection.strategies import Strategy


class Taken(NamedTuple):
    """
    Rows that a mixture takes.

    Args:
        rows: Row indices, ascending. Shape `(k,)`.
        parts: Index of the part that took each row. Shape `(k,)`.
        probabilities: Probability with which that part took it; NaN where it is unknown. Shape `(k,)`.
    """

    rows: np.ndarray
    parts: np.ndarray
    probabilities: np.ndarray


class Scored(NamedTuple):
    """
    Scores of a part's pair in each row.

    Args:
        scores: Scores, lowest first; NaN without a pair. Shape `(N,)`.
        differences: Differences of the pairs' unit vectors, if the part's budget reads them; `N` arrays.
    """

    scores: np.ndarray
    differences: Sequence[np.ndarray]


def sizes_of(parts: Sequence[Part], size: int) -> list[int]:
    """Return the rows of each part, by largest remainder: shares of `size` that add up to it."""
    exact = [part.share * size for part in parts]
    sizes = [int(number + 1e-9) for number in exact]
    order = sorted(range(len(parts)), key=lambda j: sizes[j] - exact[j])
    for j in order[: size - sum(sizes)]:
        sizes[j] += 1
    return sizes


def take_shares(parts: Sequence[Part], scored: Sequence[Scored], size: int, before: np.ndarray | None = None) -> Taken:
    """
    Take `size` rows with a pair: each part its share, in turn, the best of the rows that are left.

    Args:
        parts: Parts of the mixture, those that draw first.
        scored: Scores of each part; the same rows have a pair in all.
        size: Number of rows, at most those that are free.
        before: Mask of rows that earlier rounds took. Shape `(N,)`, bool.
    """
    free = np.isfinite(scored[0].scores)
    if before is not None:
        free &= ~before
    n_rows = int(free.sum())
    owner, probability = np.full(len(free), -1), np.full(len(free), np.nan)
    for j, (part, own) in enumerate(zip(parts, sizes_of(parts, size), strict=True)):
        rows = _best(part.rule, scored[j], free, own)
        owner[rows], free[rows] = j, False
        if is_chance(part):
            # Rows of an earlier random part are taken, and the draws are the same: both together are one draw.
            probability[rows] = own / n_rows
    rows = np.flatnonzero(owner >= 0)
    return Taken(rows, owner[rows], probability[rows])


def _best(rule: Strategy, scored: Scored, free: np.ndarray, size: int) -> np.ndarray:
    """Return the best `size` free rows by a rule."""
    left = np.flatnonzero(free)
    if size >= len(left):
        return left[:size]
    if rule.budget is None or not size:
        return lowest_rows(np.where(free, scored.scores, np.nan), size)
    with_pair = np.flatnonzero(np.isfinite(scored.scores))
    vectors = torch.from_numpy(np.stack([scored.differences[row] for row in with_pair.tolist()]))
    n_taken = len(with_pair) - len(left)
    order = with_pair[rule.budget(vectors, min(len(with_pair), n_taken + size)).indices.numpy()]
    return order[free[order]][:size]
