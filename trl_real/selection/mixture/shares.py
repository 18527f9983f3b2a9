"""Rows that the parts of a mixture take, from the scores of each part."""

from collections import Counter
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
        responses: Keys of the pairs' responses, which parts with `once` read; None to not tell them apart. Shape
            `(N, 2)`, int64.
    """

    scores: np.ndarray
    differences: Sequence[np.ndarray]
    responses: np.ndarray | None = None


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
    uses: Counter[int] = Counter()
    if before is not None:
        free &= ~before
        uses.update(_keys(scored[0], before))
    n_rows = int(free.sum())
    owner, probability = np.full(len(free), -1), np.full(len(free), np.nan)
    for j, (part, own) in enumerate(zip(parts, sizes_of(parts, size), strict=True)):
        spread = part.once and scored[j].responses is not None
        rows = _least_used(part.rule, scored[j], free, own, uses) if spread else _best(part.rule, scored[j], free, own)
        owner[rows], free[rows] = j, False
        uses.update(_keys(scored[j], rows))
        if is_chance(part):
            # Rows of an earlier random part are taken, and the draws are the same: both together are one draw.
            probability[rows] = own / n_rows
    rows = np.flatnonzero(owner >= 0)
    return Taken(rows, owner[rows], probability[rows])


def _keys(scored: Scored, rows: np.ndarray) -> list[int]:
    return [] if scored.responses is None else scored.responses[rows].ravel().tolist()


def _least_used(rule: Strategy, scored: Scored, free: np.ndarray, size: int, uses: Counter[int]) -> np.ndarray:
    """Return the best free rows by a rule, such that a response waits while rows with less used ones are left."""
    assert scored.responses is not None
    both, found, limit = scored.responses.tolist(), np.zeros(0, int), 0
    uses, left, most = uses.copy(), free.copy(), size
    order = _ranked(rule, scored, left, most)
    while len(found) < size:
        taken = []
        for row in order.tolist():
            if left[row] and len(found) + len(taken) < size and max(uses[key] for key in both[row]) <= limit:
                taken.append(row)
                left[row] = False
                uses.update(both[row])
        found = np.concatenate([found, np.array(taken, int)])
        if len(order) < free.sum():  # a longer ranking may have unused ones
            most = 4 * most
            order = _ranked(rule, scored, free, most)
        else:
            limit += 1
    return np.sort(found)


def _ranked(rule: Strategy, scored: Scored, free: np.ndarray, most: int) -> np.ndarray:
    """Return at least `most` free rows, or all, the best first."""
    if rule.budget is None:
        left = np.flatnonzero(free)
        return left[np.argsort(scored.scores[left], kind="stable")]
    return _taken_as_set(rule, scored, free, most)


def _best(rule: Strategy, scored: Scored, free: np.ndarray, size: int) -> np.ndarray:
    """Return the best `size` free rows by a rule."""
    left = np.flatnonzero(free)
    if size >= len(left):
        return left[:size]
    if rule.budget is None or not size:
        return lowest_rows(np.where(free, scored.scores, np.nan), size)
    return _taken_as_set(rule, scored, free, size)[:size]


def _taken_as_set(rule: Strategy, scored: Scored, free: np.ndarray, size: int) -> np.ndarray:
    """Return the free rows among those that a set budget takes first, `size` of them or more, or all."""
    assert rule.budget is not None
    with_pair = np.flatnonzero(np.isfinite(scored.scores))
    vectors = torch.from_numpy(np.stack([scored.differences[row] for row in with_pair.tolist()]))
    n_taken = len(with_pair) - int(free.sum())
    order = with_pair[rule.budget(vectors, min(len(with_pair), n_taken + size)).indices.numpy()]
    return order[free[order]]
