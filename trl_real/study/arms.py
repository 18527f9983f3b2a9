"""Which pairs an arm of a study takes, and what their labels say."""

from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from trl_real.errors import TrlRealError
from trl_real.functional.geometry import GEOMETRIES
from trl_real.functional.similarity import pair_similarity
from trl_real.selection.annotation import choose
from trl_real.selection.budget import budget_rows, budget_size
from trl_real.selection.strategies import Strategy, as_strategy, split_geometry
from trl_real.study.grid import Cell
from trl_real.study.pool import StudyPool, decided_pairs, verdicts


class Arm(NamedTuple):
    """A strategy, and the geometry in which it measures similarity."""

    strategy: Strategy
    geometry: str


class ScoredPairs(NamedTuple):
    """
    An arm's pair in each row that a seed may choose from.

    Args:
        places: The rows, in the study's pool. Shape `(n,)`.
        pairs: Two candidates of each, in the row's order. Shape `(n, 2)`.
        similarity: Of the two, in the raw geometry. Shape `(n,)`.
        strategy: The arm's.
        scores: Its scores, lowest first. Shape `(n,)`.
        differences: Of the pair's unit vectors in the arm's geometry, where its budget looks at them. `n` of them.
    """

    places: np.ndarray
    pairs: np.ndarray
    similarity: np.ndarray
    strategy: Strategy
    scores: np.ndarray
    differences: list[np.ndarray]

    def selected(self, budget: float | int) -> np.ndarray:
        """What the budget buys, as indices into the arrays, ascending."""
        return budget_rows(self.strategy, self.scores, self.differences, budget_size(budget, len(self.scores)))


class Labeled(NamedTuple):
    """
    What a budget buys.

    Args:
        places: Rows with a label. Shape `(m,)`.
        pairs: Their candidates, the better one first. Shape `(m, 2)`.
        n_labels: Labels that were paid for, ties included.
    """

    places: np.ndarray
    pairs: np.ndarray
    n_labels: int


def parse_arm(name: str) -> Arm:
    """
    `"easy"` or `"easy@centered"`.

    Raises:
        TrlRealError: If there is no such strategy or geometry.
    """
    strategy, geometry = split_geometry(name)
    return Arm(as_strategy(strategy), geometry or "raw")


class ArmSelector:
    """
    Lets each arm choose from the same rows, seed by seed.

    Args:
        pool: Rows to choose from.
        vectors: Their embeddings, `(K, d)` each.
        pool_share: Share of the rows that each seed may choose from: what makes the seeds of a strategy without
            chance differ, and the intervals honest about the pool.
        min_gap: Least difference of scores that decides a label.
    """

    def __init__(self, pool: StudyPool, vectors: list[Tensor], pool_share: float = 0.9, min_gap: float = 0.0):
        if not 0 < pool_share <= 1:
            raise TrlRealError(f"pool_share={pool_share} is no share in (0, 1]. Type 0.9, or 1.0 for the whole pool.")
        self.pool, self.vectors, self.pool_share, self.min_gap = pool, vectors, pool_share, min_gap
        self.scored_pairs = lru_cache(maxsize=64)(self._score_pairs)

    def labeled(self, cell: Cell) -> Labeled:
        """The pairs that the cell's budget buys, labelled; ties and missing scores are paid for and left out."""
        scored = self.scored_pairs(cell.arm, cell.seed)
        bought = scored.selected(cell.budget)
        places, pairs = scored.places[bought], scored.pairs[bought]
        said = verdicts(self.pool, places, pairs, self.min_gap)
        better_first = np.where((said == 0)[:, None], pairs[:, ::-1], pairs)
        decided = (said == 1) | (said == 0)
        return Labeled(places[decided], better_first[decided], len(bought))

    def validation_pairs(self, seed: int, n: int) -> Labeled:
        """Up to `n` labelled pairs, one a row, from the rows that the seed may not choose from."""
        rest = np.setdiff1d(np.arange(len(self.pool)), self._places(seed))
        places, pairs = decided_pairs(self.pool.take(rest), self.min_gap)
        order = np.random.default_rng([seed, n]).permutation(len(places))
        _, first = np.unique(places[order], return_index=True)
        first = order[np.sort(first)[:n]]
        return Labeled(rest[places[first]], pairs[first], len(first))

    def n_pool(self) -> int:
        """Rows that a seed may choose from."""
        return min(len(self.pool), max(2, round(self.pool_share * len(self.pool))))

    def _places(self, seed: int) -> np.ndarray:
        n = len(self.pool)
        return np.sort(np.random.default_rng([seed, n]).permutation(n)[: self.n_pool()])

    def _score_pairs(self, arm: str, seed: int) -> ScoredPairs:
        strategy, geometry = parse_arm(arm)
        places = self._places(seed)
        rows, vectors = [self.pool.rows[i] for i in places], [self.vectors[i] for i in places]
        change = GEOMETRIES[geometry](torch.cat(vectors).double())
        choice = choose(rows, [change(v.double()) for v in vectors], strategy, seed)
        both = zip(rows, choice.pairs.tolist(), strict=True)
        pairs = np.array([[row.indices.index(k) for k in pair] for row, pair in both])
        first, second = (torch.stack([v[k] for v, k in zip(vectors, side, strict=True)]) for side in pairs.T)
        similarity = pair_similarity(first, second).numpy()
        return ScoredPairs(places, pairs, similarity, strategy, choice.scores, choice.differences)
