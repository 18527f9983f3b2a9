"""Arms of a study: the pairs that each arm selects, and their labels."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from trl_real.errors import TrlRealError
from trl_real.functional.design import Design
from trl_real.functional.geometry import GEOMETRIES
from trl_real.functional.similarity import pair_similarity
from trl_real.selection.annotation import choose, response_keys
from trl_real.selection.budget import budget_rows, budget_size
from trl_real.selection.mixture.parts import Part, is_mixture, parts_of
from trl_real.selection.mixture.shares import Scored, Taken, take_shares
from trl_real.selection.strategies import SetBudget, Strategy
from trl_real.study.grid import Cell
from trl_real.study.pool import StudyPool, decided, decided_pairs, pair_vectors


AHEAD = 4  # a longer sequence of picks is computed this many times as long, for the next budgets


class KeptPicks:
    """
    Set budget that keeps its picks: a greedy set of a smaller size is the beginning of a larger one, so that the
    budgets of an arm, and all mixtures with it, share them.

    Args:
        budget: Set budget of a strategy. It is called with the same differences each time.
    """

    def __init__(self, budget: SetBudget):
        self.budget = budget
        self.found: Design | None = None

    def __call__(self, differences: Tensor, size: int) -> Design:
        """Return the first `size` picks; `log_det` is that of the longer sequence."""
        if self.found is None or len(self.found.indices) < size:
            known = 0 if self.found is None else len(self.found.indices)
            self.found = self.budget(differences, min(len(differences), max(size, AHEAD * known)))
        return Design(self.found.indices[:size], self.found.scores[:size], self.found.log_det)


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
        responses: Keys of the two responses. Shape `(n, 2)`.
    """

    places: np.ndarray
    pairs: np.ndarray
    similarity: np.ndarray
    strategy: Strategy
    scores: np.ndarray
    differences: list[np.ndarray]
    responses: np.ndarray

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

    def taken(self, size: int, shares: Sequence[float] | None = None, before: np.ndarray | None = None) -> Taken:
        """
        Return the rows that each part takes, as ascending indices into the arrays.

        Args:
            size: Number of rows.
            shares: Shares of the parts instead of the mixture's own.
            before: Mask of rows that earlier rounds took.
        """
        shares = [part.share for part in self.mixture] if shares is None else shares
        each = zip(self.mixture, self.scored, shares, strict=True)
        parts = [replace(part, strategy=own.strategy, share=float(share)) for part, own, share in each]
        return take_shares(
            parts, [Scored(own.scores, own.differences, own.responses) for own in self.scored], size, before
        )

    def selected(self, budget: float | int) -> np.ndarray:
        """Return the rows in the budget, as ascending indices into the arrays."""
        return self.taken(budget_size(budget, len(self.similarity))).rows

    def bought(self, budget: float | int) -> tuple[np.ndarray, np.ndarray]:
        """Return the rows in the budget, as places in the pool, and the pair of the part that took each."""
        return self.rows_of(self.taken(budget_size(budget, len(self.similarity))))

    def rows_of(self, taken: Taken) -> tuple[np.ndarray, np.ndarray]:
        """Return taken rows as places in the pool, and the pair of the part that took each."""
        pairs = np.stack([own.pairs for own in self.scored])
        return self.scored[0].places[taken.rows], pairs[taken.parts, taken.rows]


class Labeled(NamedTuple):
    """
    Labelled pairs of a budget.

    Args:
        places: Indices of the rows with a label. Shape `(m,)`.
        pairs: Candidates of each row, the better one first. Shape `(m, 2)`.
        n_labels: Number of labels paid for, ties included.
        notes: What the arm decided on the way.
    """

    places: np.ndarray
    pairs: np.ndarray
    n_labels: int
    notes: dict[str, Any] = {}


class Bought(NamedTuple):
    """Rows of the pool that an arm labels, shape `(k,)`, their pairs, shape `(k, 2)`, and what it decided."""

    places: np.ndarray
    pairs: np.ndarray
    notes: dict[str, Any] = {}


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
        self.of_part = lru_cache(maxsize=16)(self._of_part)

    def labeled(self, cell: Cell) -> Labeled:
        """Return the labelled pairs of the cell's budget; ties and missing scores count as labels but are left out."""
        places, pairs, notes = self.bought(cell.arm, cell.budget, cell.seed)
        return Labeled(*decided(self.pool, places, pairs, self.min_gap), len(places), notes)

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

    def differences(self, places: np.ndarray, pairs: np.ndarray, vectors: list[Tensor] | None = None) -> Tensor:
        """
        Return the first minus the second response of pairs, in units of the features' spread. Shape `(n, d)`, float64.

        Args:
            places, pairs: Pairs, as in `decided`.
            vectors: Embeddings of other rows than the pool's.
        """
        if not len(places):
            return torch.zeros(0, len(self.scale), dtype=torch.float64)
        better, worse = pair_vectors(self.vectors if vectors is None else vectors, places, pairs)
        return (better.double() - worse.double()) / self.scale

    def bought(self, arm: str, budget: float | int, seed: int) -> Bought:
        """Return the rows that an arm labels, and the pair of each."""
        return Bought(*self.scored_pairs(arm, seed).bought(budget))

    def scored_pairs(self, arm: str, seed: int) -> ScoredPairs | MixedPairs:
        """Return the pair of each row that the arm picks, with its score; of a mixture those of each part."""
        parts = parts_of(arm)
        scored = [self.of_part(replace(part, share=1.0), seed) for part in parts]
        return MixedPairs(parts, scored) if is_mixture(arm) else scored[0]

    def _of_part(self, part: Part, seed: int) -> ScoredPairs:
        places = self._places(seed)
        rows, vectors = [self.pool.rows[i] for i in places], [self.vectors[i] for i in places]
        change = GEOMETRIES[part.geometry](torch.cat(vectors).double())
        choice = choose(rows, [change(v.double()) for v in vectors], part.rule, seed)
        both = zip(rows, choice.pairs.tolist(), strict=True)
        pairs = np.array([[row.indices.index(k) for k in pair] for row, pair in both])
        similarity = pair_similarity(*pair_vectors(self.vectors, places, pairs)).numpy()
        rule = replace(part.rule, budget=KeptPicks(part.rule.budget)) if part.rule.budget else part.rule
        responses = response_keys(rows, choice.pairs)
        return ScoredPairs(places, pairs, similarity, rule, choice.scores, choice.differences, responses)
