"""Samples of clusters, and the percentiles that make an interval of them."""

import numpy as np
import pytest
from scipy.stats import norm, t

from trl_real.functional.statistics.resampling import DRAWS_A_BLOCK, counts, expanded_percentiles, resamples


@pytest.mark.parametrize("confidence", [0.8, 0.95])
@pytest.mark.parametrize("n_clusters", [2, 8, 50, 10_000])
def test_percentiles_of_normal_draws_are_student_s_interval(n_clusters, confidence):
    # The bootstrap of a mean has a standard deviation of s sqrt((G - 1) / G) / sqrt(G).
    shrunk = np.sqrt((n_clusters - 1) / n_clusters)
    draws = norm.ppf((np.arange(400_000) + 0.5) / 400_000) * shrunk
    half = t.ppf((1 + confidence) / 2, n_clusters - 1)
    if norm.sf(half / shrunk) > 1e-4:  # further out there are too few draws
        assert expanded_percentiles(draws, n_clusters, confidence) == pytest.approx((-half, half), abs=0.01)


def test_infinite_draws_count_and_missing_ones_do_not():
    draws = np.array([-np.inf] * 500 + [0.0] * 500)
    assert expanded_percentiles(draws, 100, 0.95) == (-np.inf, 0.0)
    assert expanded_percentiles(np.append(draws, [np.nan] * 9000), 100, 0.95) == (-np.inf, 0.0)
    assert np.isnan(expanded_percentiles(np.full(5, np.nan), 100, 0.95)).all()


@pytest.mark.parametrize("n_clusters", [1, 7, 600])
def test_every_cluster_is_drawn_equally_often(n_clusters):
    drawn = np.concatenate(list(resamples(n_clusters, 2000, 0, DRAWS_A_BLOCK // 3000)))
    assert drawn.shape == (2000, n_clusters)
    times = counts(drawn)
    assert (times.sum(1) == n_clusters).all()
    assert times.mean(0) == pytest.approx(1, abs=6 / 2000**0.5)
    assert times.var() == pytest.approx(1 - 1 / n_clusters, abs=0.1)
