"""Cells of a study on frozen embeddings: a Bradley-Terry model replaces the policy and trains in seconds."""

from functools import lru_cache

import numpy as np
from torch import Tensor

from trl_real.functional.bradley_terry import Fit, pair_loss, tune_bradley_terry
from trl_real.study.arms import ArmSelector
from trl_real.study.grid import Cell, Result
from trl_real.study.pool import StudyPool, pairs_to_test
from trl_real.study.trained import cell_result, metric_sums


class FrozenCells:
    """
    Runs cells on embeddings that are computed once. All arms use the same features, in units of their spread within a
    row of the pool, and the same test pairs; the ridge of each cell is tuned on its own labels.

    Args:
        selector: Selector of labelled pairs.
        test: Test rows.
        test_vectors: Embeddings of the test rows, `(K, d)` each.

    Raises:
        TrlRealError: If no test pair has a label.
    """

    def __init__(self, selector: ArmSelector, test: StudyPool, test_vectors: list[Tensor]):
        self.selector, self.test = selector, test
        places, pairs, self.test_prompts = pairs_to_test(test, selector.min_gap)
        self.test_differences, self.n_test = selector.differences(places, pairs, test_vectors), len(pairs)
        # With two responses per row, the whole pool is the same set for every arm.
        self.fit = lru_cache(maxsize=2)(self._fit)

    def __call__(self, cell: Cell) -> Result:
        """Train and test one cell; `arrays` holds sums of metrics over the test pairs of each prompt, and counts."""
        labeled = self.selector.labeled(cell)
        best, fits = self.fit(labeled.places.tobytes(), labeled.pairs.tobytes())
        losses = {f"{fit.ridge:g}": float(pair_loss(self.test_differences @ fit.weights).mean()) for fit in fits}
        arrays = metric_sums(self.test_differences @ best.weights, self.test_prompts)
        return cell_result(cell, labeled, arrays, ridge=best.ridge, losses=losses, best_loss=min(losses.values()))

    def _fit(self, places: bytes, pairs: bytes) -> tuple[Fit, list[Fit]]:
        where, which = np.frombuffer(places, dtype=int), np.frombuffer(pairs, dtype=int).reshape(-1, 2)
        return tune_bradley_terry(self.selector.differences(where, which))
