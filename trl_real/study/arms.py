"""Arms of a study: the pairs that each arm selects, and their labels."""

from functools import cached_property, lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from trl_real.errors import TrlRealError
from trl_real.functional.bayesian_head import ACQUISITIONS, Acquisition, Posterior, fit_head, normal_draws
from trl_real.functional.geometry import GEOMETRIES
from trl_real.functional.similarity import candidate_pairs, pair_similarity
from trl_real.selection.annotation import choose
from trl_real.selection.budget import budget_rows, budget_size, lowest_rows
from trl_real.selection.mixture.parts import Part, is_mixture, parts_of
from trl_real.selection.mixture.shares import Scored, Taken, take_shares
from trl_real.selection.strategies import Strategy, lowest
from trl_real.study.grid import Cell
from trl_real.study.pool import StudyPool, decided, decided_pairs, pair_vectors


PILOT = 0.25  # share of the budget that is random if a head chooses the rest


class ScoredPairs(NamedTuple):
    """
    Pair that an arm picks in each row that a seed may select from, with its score.

    Args:
        places: Indices of the rows in the study's pool. Shape `(n,)`.
        pairs: Two candidates of each row, in the row's order. Shape `(n, 2)`.
        similarity: Similarity of the two candidates in the raw geometry. Shape `(n,)`.
        strategy: Strategy of the arm, or of this part of it.
        scores: Scores of the pairs, lowest first. Shape `(n,)`.
        differences: Differences of the pairs' unit vectors in the arm's geometry, if the strategy's budget needs them;
            `n` arrays.
    """

    places: np.ndarray
    pairs: np.ndarray
    similarity: np.ndarray
    strategy: Strategy
    scores: np.ndarray
    differences: list[np.ndarray]

    def selected(self, budget: float | int) -> np.ndarray:
        """Return the pairs in the budget, as ascending indices into the arrays."""
        return budget_rows(self.strategy, self.scores, self.differences, budget_size(budget, len(self.scores)))[0]

    def bought(self, budget: float | int) -> tuple[np.ndarray, np.ndarray]:
        """Return the rows in the budget, as places in the pool, and the pair of each. Shapes `(k,)`, `(k, 2)`."""
        rows = self.selected(budget)
        return self.places[rows], self.pairs[rows]


class MixedPairs(NamedTuple):
    """
    Pairs that each part of a mixture picks.

    Args:
        mixture: Parts.
        scored: Pairs of each part, of the same rows.
    """

    mixture: tuple[Part, ...]
    scored: list[ScoredPairs]

    @property
    def similarity(self) -> np.ndarray:
        """Similarity of the pairs of the first part."""
        return self.scored[0].similarity

    def taken(self, budget: float | int) -> Taken:
        """Return the rows that each part takes, as ascending indices into the arrays."""
        parts = [Scored(own.scores, own.differences) for own in self.scored]
        return take_shares(self.mixture, parts, budget_size(budget, len(self.scored[0].scores)))

    def selected(self, budget: float | int) -> np.ndarray:
        """Return the rows in the budget, as ascending indices into the arrays."""
        return self.taken(budget).rows

    def bought(self, budget: float | int) -> tuple[np.ndarray, np.ndarray]:
        """Return the rows in the budget, as places in the pool, and the pair of the part that took each."""
        taken = self.taken(budget)
        pairs = np.stack([own.pairs for own in self.scored])
        return self.scored[0].places[taken.rows], pairs[taken.parts, taken.rows]


class Labeled(NamedTuple):
    """
    Labelled pairs of a budget.

    Args:
        places: Indices of the rows with a label. Shape `(m,)`.
        pairs: Candidates of each row, the better one first. Shape `(m, 2)`.
        n_labels: Number of labels paid for, ties included.
    """

    places: np.ndarray
    pairs: np.ndarray
    n_labels: int


class ArmSelector:
    """
    Selects pairs for each arm; with the same seed, all arms select from the same rows.

    Args:
        pool: Rows to select from.
        vectors: Embeddings of the rows, `(K, d)` each.
        pool_share: Share of the rows that each seed may select from. It makes the seeds of a deterministic strategy
            differ, so that the intervals include the choice of the pool.
        min_gap: Minimum difference of scores that decides a label.
    """

    def __init__(self, pool: StudyPool, vectors: list[Tensor], pool_share: float = 0.9, min_gap: float = 0.0):
        if not 0 < pool_share <= 1:
            raise TrlRealError(f"pool_share={pool_share} is not in (0, 1]. Type 0.9, or 1.0 for the whole pool.")
        self.pool, self.vectors, self.pool_share, self.min_gap = pool, vectors, pool_share, min_gap
        self.scored_pairs = lru_cache(maxsize=64)(self._score_pairs)

    def labeled(self, cell: Cell) -> Labeled:
        """Return the labelled pairs of the cell's budget; ties and missing scores count as labels but are left out."""
        bought = self._bought_by_head if cell.arm in ACQUISITIONS else self._bought
        places, pairs = bought(cell.arm, cell.budget, cell.seed)
        return Labeled(*decided(self.pool, places, pairs, self.min_gap), len(places))

    def validation_pairs(self, seed: int, n: int) -> Labeled:
        """Return up to `n` labelled pairs, one per row, from the rows that the seed may not select from."""
        rest = np.setdiff1d(np.arange(len(self.pool)), self._places(seed))
        places, pairs = decided_pairs(self.pool.take(rest), self.min_gap)
        order = np.random.default_rng([seed, n]).permutation(len(places))
        _, first = np.unique(places[order], return_index=True)
        first = order[np.sort(first)[:n]]
        return Labeled(rest[places[first]], pairs[first], len(first))

    def n_pool(self) -> int:
        """Return the number of rows that a seed may select from."""
        return min(len(self.pool), max(2, round(self.pool_share * len(self.pool))))

    def _places(self, seed: int) -> np.ndarray:
        n = len(self.pool)
        return np.sort(np.random.default_rng([seed, n]).permutation(n)[: self.n_pool()])

    @cached_property
    def scale(self) -> Tensor:
        """Spread of each feature within a row of the pool. Shape `(d,)`, float64."""
        within = torch.cat([v.double() - v.double().mean(0) for v in self.vectors])
        return within.square().mean(0).sqrt().clamp_min(1e-12)

    def _bought(self, arm: str, budget: float | int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        return self.scored_pairs(arm, seed).bought(budget)

    def _bought_by_head(self, arm: str, budget: float | int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Return a random quarter of the budget, and the pairs that a head, fitted to its labels, would label next."""
        random = self._of_part(Part("random"), seed)
        size = budget_size(budget, len(random.places))
        pilot = random.selected(max(1, round(PILOT * size)))
        known = decided(self.pool, random.places[pilot], random.pairs[pilot], self.min_gap)
        none = torch.zeros(2, 0, len(self.scale))
        better, worse = pair_vectors(self.vectors, *known) if len(known[0]) else none
        head = fit_head(better.double() / self.scale, worse.double() / self.scale, ridge=None)
        scores, pairs = self._acquired(ACQUISITIONS[arm], head, random.places, seed)
        scores[pilot], pairs[pilot] = np.nan, random.pairs[pilot]
        rows = np.sort(np.concatenate([pilot, lowest_rows(scores, size - len(pilot))]))
        return random.places[rows], pairs[rows]

    def _acquired(
        self, acquire: Acquisition, head: Posterior, places: np.ndarray, seed: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the score and the candidates of each row's best pair. Shapes `(n,)` and `(n, 2)`."""
        scores, pairs = np.zeros(len(places)), np.zeros((len(places), 2), int)
        sizes = np.array([len(self.vectors[place]) for place in places])
        for k in np.unique(sizes).tolist():
            rows = np.flatnonzero(sizes == k)
            features = torch.stack([self.vectors[place] for place in places[rows]]).double() / self.scale
            draws = normal_draws(len(rows), k, torch.Generator().manual_seed(seed))
            found = acquire(*head.utilities(features), draws)
            best = lowest(found)
            scores[rows], pairs[rows] = (
                found.gather(1, best[:, None])[:, 0].numpy(),
                candidate_pairs(k).T[best].numpy(),
            )
        return scores, pairs

    def _score_pairs(self, arm: str, seed: int) -> ScoredPairs | MixedPairs:
        parts = parts_of(arm)
        scored = [self._of_part(part, seed) for part in parts]
        return MixedPairs(parts, scored) if is_mixture(arm) else scored[0]

    def _of_part(self, part: Part, seed: int) -> ScoredPairs:
        places = self._places(seed)
        rows, vectors = [self.pool.rows[i] for i in places], [self.vectors[i] for i in places]
        change = GEOMETRIES[part.geometry](torch.cat(vectors).double())
        choice = choose(rows, [change(v.double()) for v in vectors], part.rule, seed)
        both = zip(rows, choice.pairs.tolist(), strict=True)
        pairs = np.array([[row.indices.index(k) for k in pair] for row, pair in both])
        similarity = pair_similarity(*pair_vectors(self.vectors, places, pairs)).numpy()
        return ScoredPairs(places, pairs, similarity, part.rule, choice.scores, choice.differences)
