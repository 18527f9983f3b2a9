"""A 95 % interval of two identical policies contains 0.5 in 95 ± 2 % of the repeats, for every judge."""

import math
from collections.abc import Callable
from functools import partial
from itertools import product
from typing import NamedTuple

import numpy as np
import pytest
from scipy.stats import binom

from trl_real.functional.statistics.paired import paired_comparison
from trl_real.functional.statistics.win_rate import win_rate


REPEATS = 1000


class Setting(NamedTuple):
    """How the verdicts come about: `(generator, prompts) -> (preferences, clusters)`, and what they are rated by."""

    simulate: Callable
    n_prompts: int
    method: str = "auto"


def one_order(rng, n, bias=0.9, ties=0.0):
    """A judge that takes the first response in 90 % of the cases; which one is first is drawn at random."""
    model_first, takes_first = rng.random(n) < 0.5, rng.random(n) < bias
    return np.where(rng.random(n) < ties, 0.5, model_first == takes_first), None


def both_orders(rng, n, bias=2.0, soft=True):
    """Each prompt judged in both orders, two rows; the judge adds `bias`, in nats, to the response shown first."""
    quality = rng.normal(scale=2, size=n)
    logits = quality[:, None] + np.array([bias, -bias]) + rng.normal(size=(n, 2))  # (n, 2)
    p = 1 / (1 + np.exp(-logits))
    return (p if soft else np.where(p > 0.5, 1.0, 0.0)).ravel(), np.repeat(np.arange(n), 2)


def both_orders_averaged(rng, n, bias=2.0):
    """The same as one verdict a prompt: 1, 0, or 0.5 where the orders disagree."""
    preferences, _ = both_orders(rng, n, bias, soft=False)
    return preferences.reshape(n, 2).mean(1), None


def crowded(rng, n, rows=4):
    """Four hard verdicts a prompt, which nearly always agree."""
    p = rng.beta(0.3, 0.3, size=n)
    return (rng.random((n, rows)) < p[:, None]).astype(float).ravel(), np.repeat(np.arange(n), rows)


def unequal(rng, n):
    """One to eight graded verdicts a prompt that lean the same way."""
    groups = np.repeat(np.arange(n), rng.integers(1, 9, n))
    logits = rng.normal(size=n)[groups] + rng.normal(size=len(groups))
    return 1 / (1 + np.exp(-logits)), groups


def soft_one_order(rng, n, bias=2.0):
    """Graded verdicts in one random order: a heap near each end."""
    logits = rng.choice([bias, -bias], size=n) + rng.normal(size=n)
    return 1 / (1 + np.exp(-logits)), None


POLICIES = {
    "hard, one order": one_order,
    "hard, one order, no bias": partial(one_order, bias=0.5),
    "hard, one order, 30 % ties": partial(one_order, ties=0.3),
    "soft, one order": soft_one_order,
    "soft, both orders": both_orders,
    "hard, both orders as rows": partial(both_orders, soft=False),
    "hard, both orders averaged": both_orders_averaged,
    "four rows a prompt": crowded,
    "one to eight rows a prompt": unequal,
}
ALL = {
    f"{name}, {n} prompts, {method}": Setting(simulate, n, method)
    for name, simulate in POLICIES.items()
    for n, method in [*product((20, 50, 200), ("auto", "score")), (20, "bootstrap"), (50, "bootstrap")]
}
FAST = [name for name in ALL if name.endswith(("20 prompts, auto", "50 prompts, auto"))] + [
    "hard, one order, 200 prompts, auto",
    "hard, one order, 30 % ties, 20 prompts, score",
    "hard, both orders as rows, 20 prompts, score",
    "soft, one order, 50 prompts, score",
    "four rows a prompt, 20 prompts, score",
    "one to eight rows a prompt, 20 prompts, score",
    "soft, both orders, 20 prompts, bootstrap",
    "four rows a prompt, 20 prompts, bootstrap",
    "one to eight rows a prompt, 20 prompts, bootstrap",
]


def coverage(setting: Setting, repeats: int = REPEATS, seed: int = 0) -> float:
    rng = np.random.default_rng(seed)
    covered = 0
    for _ in range(repeats):
        preferences, clusters = setting.simulate(rng, setting.n_prompts)
        rates = win_rate(preferences, clusters=clusters, method=setting.method)
        covered += rates["ci_low"] - 1e-9 <= 0.5 <= rates["ci_high"] + 1e-9
    return covered / repeats


def assert_covers(covered: float, repeats: int = REPEATS):
    """95 % give or take 2, plus what chance does to the count of the repeats (two standard errors)."""
    assert 0.93 - 2 * math.sqrt(0.93 * 0.07 / repeats) <= covered <= 0.97 + 2 * math.sqrt(0.97 * 0.03 / repeats)


@pytest.mark.parametrize("name", FAST)
def test_interval_covers_one_half_at_the_stated_confidence(name):
    assert_covers(coverage(ALL[name]))


@pytest.mark.slow
@pytest.mark.parametrize("name", ALL)
def test_interval_covers_one_half_at_the_stated_confidence_in_4000_repeats(name):
    assert_covers(coverage(ALL[name], repeats=4000, seed=1), repeats=4000)


@pytest.mark.parametrize("n", [20, *range(32, 56), 100, 200])
def test_wilson_coverage_of_one_half_equals_the_exact_binomial_sum(n):
    wins = np.arange(n + 1)
    ends = [(rates["ci_low"], rates["ci_high"]) for rates in (win_rate([1] * k + [0] * (n - k)) for k in wins)]
    covers = [low <= 0.5 <= high for low, high in ends]
    assert 0.93 <= binom.pmf(wins, n, 0.5)[covers].sum() <= 0.97


def test_near_0_the_score_interval_covers_closer_to_its_confidence_than_t():
    rng = np.random.default_rng(0)
    population = np.where(rng.random(20_000) < 0.06, rng.beta(2, 1, 20_000), rng.beta(1, 60, 20_000))
    covered = dict.fromkeys(("t", "score"), 0)
    for _ in range(500):
        preferences = rng.choice(population, 200)
        for method in covered:
            rates = win_rate(preferences, method=method)
            covered[method] += rates["ci_low"] <= population.mean() <= rates["ci_high"]
    assert_covers(covered["score"] / 500, repeats=500)
    assert covered["score"] >= covered["t"]


def test_ignoring_prompt_clusters_lowers_coverage():
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(200):
        rates = win_rate(crowded(rng, 50)[0])
        covered += rates["ci_low"] <= 0.5 <= rates["ci_high"]
    assert covered / 200 < 0.85


def test_interval_covers_when_one_prompt_has_half_of_the_rows():
    def simulate(rng, n):
        groups = np.concatenate([np.zeros(n, dtype=int), np.arange(1, n)])
        return 1 / (1 + np.exp(-rng.normal(size=n)[groups] - rng.normal(size=len(groups)))), groups

    assert coverage(Setting(simulate, 20), repeats=300) >= 0.93
    assert coverage(Setting(simulate, 20, "bootstrap"), repeats=300) >= 0.90


def test_equal_models_differ_significantly_in_one_of_twenty_repeats():
    rng = np.random.default_rng(0)
    covered, small = 0, np.zeros(3)
    for _ in range(200):
        first, second = rng.uniform(size=(2, 11))
        found = paired_comparison(first, second)
        covered += found.ci_low <= 0 <= found.ci_high
        small += np.array([found.sign_p, found.permutation_p, found.wilcoxon_p]) < 0.05
    assert_covers(covered / 200, repeats=200)
    assert (small / 200 < 0.08).all(), "tests of 5 %, exact ones below it"


@pytest.mark.slow
def test_equal_length_interval_covers_the_rate_without_length_bias():
    rng = np.random.default_rng(0)
    covered, repeats, n = 0, 500, 100
    for _ in range(repeats):
        lengths, baseline_lengths = rng.uniform(500, 1500, n), rng.uniform(300, 1000, n)
        difference = lengths - baseline_lengths
        wins = rng.random(n) < 1 / (1 + np.exp(-2 * np.tanh(difference / 350)))
        rates = win_rate(wins, lengths=lengths, baseline_lengths=baseline_lengths)
        covered += rates["equal_length_ci_low"] <= 0.5 <= rates["equal_length_ci_high"]
    assert_covers(covered / repeats, repeats)
