"""Curves of a study by hand: arm minus random, with the sign and the labels that a reader expects."""

import math

import numpy as np
import pytest

from trl_real.study.results import METRICS
from trl_real.study.summarize import Curves


N_LABELS, N_PROMPTS, COUNTS = np.array([100.0, 200.0, 400.0]), 30, np.array([1, 2] * 15)
# Metric -> value of random selection at each point; `easy` has twice the labels' effect.
RANDOM = {"loss": [0.6, 0.5, 0.4], "margin": [1.0, 2.0, 4.0], "accuracy": [0.6, 0.7, 0.8]}
EASY = {"loss": [0.5, 0.4, 0.3], "margin": [2.0, 4.0, 8.0], "accuracy": [0.7, 0.8, 0.9]}


def curves(**changes) -> Curves:
    """Return curves of two seeds in which every prompt's mean is the arm's value, and so has every resample."""
    sums = {
        name: np.stack([np.stack([np.outer(arm[name], COUNTS)] * 2) for arm in (EASY, RANDOM)]) for name in METRICS
    }  # (A, S, B, C)
    return Curves(N_LABELS, sums, COUNTS, ["easy", "random"], **changes)


@pytest.mark.parametrize("name", METRICS)
def test_a_curve_has_the_arms_values_and_a_difference_is_arm_minus_random(name):
    found = curves()
    for arm, values in (("easy", EASY), ("random", RANDOM)):
        curve = found.curves()[name][arm]
        assert curve.n_labels == N_LABELS.tolist()
        assert [point[0] for point in curve.points] == pytest.approx(values[name])
    assert found.differences()[name].keys() == {"easy"}
    for point, easy, random in zip(found.differences()[name]["easy"], EASY[name], RANDOM[name], strict=True):
        assert point == pytest.approx((easy - random,) * 3)


@pytest.mark.parametrize("name", METRICS)
def test_a_target_is_randoms_value_and_easy_needs_the_labels_at_which_it_gets_there(name):
    metric = METRICS[name]
    savings = {saving.level: saving for saving in curves().savings((0.5, 1.0))[name]["easy"]}
    for level, point in ((0.5, 1), (1.0, 2)):
        saving = savings[level]
        assert saving.n_random == level * 400 and saving.target == pytest.approx(RANDOM[name][point])
        values = [metric.untrained, *EASY[name]]
        needed = np.interp(metric.sign * saving.target, metric.sign * np.array(values), [0, *N_LABELS])
        assert saving.n_labels == pytest.approx(needed) and saving.saving == pytest.approx(1 - needed / (level * 400))
        assert (saving.low, saving.high, saving.reached) == pytest.approx((saving.saving, saving.saving, 1.0))


def test_a_level_at_which_random_learned_nothing_has_no_saving():
    untrained = {name: [metric.untrained] * 3 for name, metric in METRICS.items()}
    sums = {name: np.stack([[np.outer(arm[name], COUNTS)] for arm in (EASY, untrained)]) for name in METRICS}
    found = Curves(N_LABELS, sums, COUNTS, ["easy", "random"])
    assert all(not rows for arms in found.savings().values() for rows in arms.values())
    assert found.unlearned((0.5, 1.0)) == {name: [0.5, 1.0] for name in METRICS} and curves().unlearned() == {
        name: [] for name in METRICS
    }


def test_intervals_are_percentiles_of_draws_of_prompts():
    """Half of the prompts at 0, half at 1: the mean of 30 has a standard deviation of 0.09 or, by 400, of 0.025."""
    widths = []
    for n in (30, 400):
        values = np.arange(n) % 2.0
        sums = {name: np.broadcast_to(values, (2, 1, 3, n)) for name in METRICS}
        found = Curves(N_LABELS, sums, np.ones(n), ["easy", "random"])
        middle, low, high = found.curves()["margin"]["easy"].points[0]
        assert middle == 0.5 and low < 0.5 < high
        widths.append((high - low) / (2 * 1.96 * 0.5 / math.sqrt(n)))
        assert found.differences()["margin"]["easy"][0] == (0.0, 0.0, 0.0)  # the same draws for both arms
    assert widths == pytest.approx([1.0, 1.0], abs=0.1)
