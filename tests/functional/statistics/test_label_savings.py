"""Label savings: by hand on simple curves, and by simulation where they are random."""

import math

import numpy as np
import pytest

from trl_real import TrlRealError
from trl_real.functional.drift import embedding_drift
from trl_real.functional.statistics.agreement_by_similarity import agreement_by_similarity
from trl_real.functional.statistics.label_savings import label_saving, labels_needed, percentiles, resample_means


N = np.array([0.0, 10.0, 20.0, 40.0])


def needed(curve, target):
    return labels_needed(N, np.array([curve], dtype=float), np.array([target], dtype=float))[0]


@pytest.mark.parametrize(
    ("curve", "target", "labels"),
    [
        ([0, 1, 2, 4], 2.0, 20),
        ([0, 1, 2, 4], 1.5, 15),
        ([0, 1, 2, 4], 3.0, 30),
        ([0, 2, 1, 4], 1.5, 7.5),  # what was reached once counts
        ([0, 2, 1, 4], 3.0, 30),  # from the running maximum of 2 on
        ([0, 1, 1, 1], 1.0, 10),
        ([0, 1, 2, 4], 4.5, math.inf),
        ([0, 1, 2, 4], 0.0, 0),
        ([0, -1, -2, 4], 2.0, 30),
    ],
)
def test_labels_needed_by_hand(curve, target, labels):
    assert needed(curve, target) == labels


def naive_needed(n, values, target):
    """By walking along the polyline of the running maximum in small steps."""
    best = np.maximum.accumulate(values)
    grid = np.linspace(n[0], n[-1], 40_001)
    reached = np.flatnonzero(np.interp(grid, n, best) >= target - 1e-9)
    return grid[reached[0]] if len(reached) else math.inf


def test_labels_needed_equal_a_naive_search_along_the_curve():
    generator = np.random.default_rng(0)
    curves = generator.normal(size=(200, 4)).cumsum(axis=1)
    targets = generator.normal(size=200)
    found = labels_needed(N, curves, targets)
    for curve, target, labels in zip(curves, targets, found, strict=True):
        expected = naive_needed(N, curve, target)
        assert labels == expected or abs(labels - expected) <= (N[-1] - N[0]) / 40_000


def saving(strategy, random, level=1.0):
    return label_saving(N, np.array([strategy], float), np.array([random], float), level)


def test_what_is_reported_was_measured_and_the_resamples_give_the_interval():
    strategy = np.array([[0, 2, 3, 4], [0, 1, 2, 9], [0, 4, 8, 9], [0, 8, 9, 9]], float)
    random = np.array([[0, 1, 2, 4], [0, 1, 2, 5], [0, 1, 2, 6], [0, 1, 2, 7]], float)
    found = label_saving(N, strategy, random, confidence=0.9)
    each = [label_saving(N, s[None], r[None]) for s, r in zip(strategy, random, strict=True)]
    assert (found.target, found.n_labels, found.saving) == (4.0, each[0].n_labels, each[0].saving)
    assert (found.low, found.high) == (min(s.saving for s in each[1:]), max(s.saving for s in each[1:]))
    assert (found.n_random, found.reached) == (N[-1], 1.0)


def test_equal_quality_with_half_the_labels_saves_half():
    found = saving([0, 2, 4, 4], [0, 1, 2, 4])
    assert (found.target, found.n_random, found.n_labels, found.saving) == (4, 40, 20, 0.5)


def test_levels_are_shares_of_the_random_curves_labels():
    found = saving([0, 2, 4, 8], [0, 1, 2, 4], level=0.5)
    assert (found.target, found.n_random, found.n_labels, found.saving) == (2, 20, 10, 0.5)


def test_not_reached_is_minus_infinity_and_slower_is_negative():
    assert saving([0, 1, 1, 1], [0, 1, 2, 4]).saving == -math.inf
    assert saving([0, 1, 2, 4], [0, 2, 4, 4], level=0.5).saving == -1.0


def test_no_saving_where_random_selection_learned_nothing():
    for learned in (-1, 0):
        assert saving([0, 5, 5, 5], [0, learned, learned, learned]).saving == 0.0


def test_interval_keeps_curves_that_do_not_reach_the_target():
    random = np.tile([0.0, 1, 2, 4], (101, 1))
    strategy = np.tile([0.0, 2, 4, 4], (101, 1))
    strategy[1:51] = [0, 1, 1, 1]
    found = label_saving(N, strategy, random)
    assert (found.low, found.high, found.reached) == (-math.inf, 0.5, 0.5)


@pytest.mark.parametrize("level", [0.0, -1, 1.1, float("nan")])
def test_level_out_of_range_gets_a_one_line_error(level):
    with pytest.raises(TrlRealError, match="is not in"):
        saving([0, 1, 2, 3], [0, 1, 2, 3], level)


def test_means_over_seeds_and_pairs_have_a_bootstrap_interval_that_covers():
    generator = np.random.default_rng(0)
    covered = 0
    for _ in range(200):
        prompts = generator.normal(size=40)
        sums = (0.3 + prompts + 0.5 * generator.normal(size=(1, 6, 1, 40))) * 2
        means = resample_means(sums, np.full(40, 2.0), 300, generator)[:, 0, 0]
        assert means[0] == pytest.approx(sums.mean() / 2)
        low, high = percentiles(means[1:], 0.95)
        covered += low <= 0.3 <= high
    assert 0.90 <= covered / 200 <= 0.99


def test_curves_are_resampled_together():
    sums = np.random.default_rng(0).normal(size=(1, 5, 2, 30))
    means = resample_means(np.concatenate([sums, sums + 1]), np.ones(30), 50, np.random.default_rng(1))
    np.testing.assert_allclose(means[:, 1] - means[:, 0], 1.0)


def test_agreement_by_hand():
    similarity = np.array([0.9, 0.1, 0.2, 0.8, 0.5, np.nan])
    verdicts = np.array([0.2, 0.9, 0.5, 0.7, np.nan, 1.0])
    low, high = agreement_by_similarity(similarity, verdicts, n_bins=2)
    assert (low.low, low.high, low.n, low.n_ties, low.agreement) == (0.1, 0.2, 1, 1, 1.0)
    assert (high.low, high.high, high.n, high.n_ties, high.agreement) == (0.8, 0.9, 2, 0, 0.5)
    assert low.ci_low == pytest.approx(0.2065, abs=1e-3) and low.ci_high == 1.0


def test_no_second_opinion_gives_no_agreement_rate():
    (row,) = agreement_by_similarity(np.array([0.1]), np.array([0.5]))
    assert math.isnan(row.agreement) and row.n_ties == 1
    assert agreement_by_similarity(np.zeros(0), np.zeros(0)) == []


def test_drift_is_zero_without_a_change_and_large_after_a_shuffle():
    import torch

    before = torch.randn(60, 2, 8, generator=torch.Generator().manual_seed(0))
    still = embedding_drift(before, before)
    assert still == pytest.approx((0.0, 1.0, 1.0, 1.0))
    assert embedding_drift(before, 3 * before)[1:] == pytest.approx((1.0, 1.0, 1.0))
    moved = embedding_drift(before, before.flip(0))
    assert moved.spearman < 0.5 and moved.jaccard < 0.8 and moved.relative_l2 > 0.5
    half = embedding_drift(before, before.flip(0), budget=1.0)
    assert half.jaccard == 1.0
