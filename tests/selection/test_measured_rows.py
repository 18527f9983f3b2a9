"""The rows on which the error of half precision is measured."""

import numpy as np
import pytest

from trl_real.selection.half_precision import MEASURED_ROWS, Decision, _nearest_to_cut


@pytest.mark.parametrize("n_bad", [0, 5])
@pytest.mark.parametrize("n", [3, 8, 20, 1000])
def test_they_are_a_full_window_around_the_end_of_the_budget(n, n_bad):
    scores = np.random.default_rng(n).permutation(n + n_bad).astype(float)
    scores[scores >= n] = np.nan
    ranks = {row: int(score) for row, score in enumerate(scores) if np.isfinite(score)}
    size = min(n, max(MEASURED_ROWS, n // 50))
    for n_kept in range(0, n + 1, max(1, n // 20)):
        found = _nearest_to_cut(Decision(np.arange(n_kept), scores, np.zeros((2, n + n_bad))))
        places = sorted(ranks[row] for row in found)
        assert (np.diff(found) > 0).all() and places == list(range(places[0], places[0] + size))
        centre = (places[0] + places[-1] + 1) / 2
        assert abs(centre - n_kept) <= 1 or places[0] == 0 or places[-1] == n - 1
