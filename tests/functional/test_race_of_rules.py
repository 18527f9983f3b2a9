"""The race: its estimates are unbiased, a worse rule leaves, and random keeps its share where nothing differs."""

import numpy as np
import pytest
import torch

from trl_real.functional.bradley_terry import bradley_terry_path, pair_loss, tune_bradley_terry
from trl_real.functional.race import Labels, PoolMeans, RoundSample, losses_of_heads, pool_means, race, standing


SHARES = np.full(4, 0.25)


def draws(rng, population: np.ndarray, n_known: int, m: int) -> RoundSample:
    """A round: pairs with a label that were chosen by their values, and a random draw from the rest."""
    known = population[:n_known]  # the largest first: far from random
    rest = population[n_known:]
    return RoundSample(known, rest[rng.permutation(len(rest))[:m]], len(population))


@pytest.mark.parametrize("n_known", [0, 15])
def test_the_estimate_of_the_pool_is_unbiased_and_its_variance_is_right(n_known):
    """Over 4,000 draws; picks that are the extremes of the pool move neither, and rounds count by their draws."""
    rng = np.random.default_rng(0)
    pools = [np.sort(rng.gamma(1.0, size=(60, 1)), axis=0)[::-1] + shift for shift in (0.0, 3.0)]
    found = [pool_means([draws(rng, pools[0], n_known, 6), draws(rng, pools[1], n_known, 12)]) for _ in range(4000)]
    values = np.array([e.values[0] for e in found])
    truth = (6 * pools[0].mean() + 12 * pools[1].mean()) / 18
    assert abs(values.mean() - truth) < 4 * values.std() / np.sqrt(len(values))
    assert np.mean([e.covariance[0, 0] for e in found]) == pytest.approx(values.var(), rel=0.1)
    assert {(e.n_fresh, e.freedom) for e in found} == {(18, 16)}


def test_intervals_cover_the_pools_mean():
    rng = np.random.default_rng(1)
    pool = rng.normal(size=(200, 2)) @ np.array([[1.0, 0.5], [0.0, 1.0]])
    inside, contrast = 0, np.array([1.0, -1.0])
    for _ in range(1000):
        found = pool_means([draws(rng, pool, 20, 10), draws(rng, pool, 40, 10)])
        inside += abs(contrast @ (found.values - pool.mean(0))) <= found.half_width(contrast)
    assert 0.93 < inside / 1000 < 0.975


def simulated(rng, gaps, rounds=4, m=10) -> PoolMeans:
    """Losses minus random's of four rules, with these means and much noise that the rules share."""
    each = []
    for _ in range(rounds):
        own = rng.normal(size=(m, 4)) * 0.5 + np.array([0.0, *gaps])
        each.append(RoundSample(np.zeros((0, 4)), own - own[:, :1], 500))
    return pool_means(each)


def test_a_worse_rule_leaves_and_random_does_not():
    rng = np.random.default_rng(2)
    found = [standing(simulated(rng, (0.0, 0.0, 0.6)), SHARES) for _ in range(200)]
    assert np.mean([s.out[3] for s in found]) > 0.95 and all(s.shares[3] == 0 for s in found if s.out[3])
    worst = [standing(simulated(rng, (-0.6, -0.6, -0.6)), SHARES) for _ in range(200)]
    assert not any(s.out[0] for s in worst) and all(s.shares[0] >= 0.25 for s in worst)
    assert np.mean([s.shares[0] for s in worst]) == pytest.approx(0.25)
    alone = standing(simulated(rng, (2.0, 2.0, 2.0)), SHARES)
    assert alone.out.tolist() == [False, True, True, True] and alone.shares.tolist() == [1, 0, 0, 0]


def test_without_a_difference_random_keeps_its_share_and_rules_seldom_leave():
    rng = np.random.default_rng(3)
    found = [standing(simulated(rng, (0.0, 0.0, 0.0)), SHARES) for _ in range(300)]
    shares = np.mean([s.shares for s in found], axis=0)
    assert shares[0] == pytest.approx(0.33, abs=0.05) and shares[1:] == pytest.approx([0.22] * 3, abs=0.03)
    assert all(s.shares.sum() == pytest.approx(1) and s.shares[0] >= 0.25 for s in found)
    assert np.mean([s.out for s in found]) < 0.06


@pytest.mark.parametrize("own", [0.1, 0.4, 0.7])
def test_random_keeps_a_share_of_any_size(own):
    shares = np.array([own, *(1 - own) * np.array([0.5, 0.3, 0.2])])
    rng = np.random.default_rng(5)
    alike = [standing(simulated(rng, (0.0, 0.0, 0.0)), shares).shares for _ in range(100)]
    assert min(found[0] for found in alike) >= own - 1e-12 and np.allclose([found.sum() for found in alike], 1)
    ahead = standing(simulated(rng, (0.3, 0.3, 0.3)), shares)
    assert ahead.leader == 0 and ahead.shares[0] > own


def test_a_leader_gains_labels_and_too_few_tests_change_nothing():
    rng = np.random.default_rng(4)
    led = standing(simulated(rng, (-0.3, 0.0, 0.0)), SHARES)
    assert led.leader == 1 and led.shares[1] > 0.35
    few = standing(simulated(rng, (-9.0, 9.0, 0.0), rounds=1, m=4), SHARES)
    assert few.shares.tolist() == SHARES.tolist() and not few.out.any()
    assert standing(None, SHARES).shares.tolist() == SHARES.tolist()


def labels(rng, n=40, d=3) -> Labels:
    x = torch.from_numpy(rng.normal(size=(n, d)) + 0.4)
    return Labels(x, np.ones(n), np.arange(n) % 2, 1 + np.arange(n) // 20)


@pytest.mark.parametrize("n_random", [12, 8])
def test_heads_are_tested_on_later_random_labels_and_without_their_own_pairs(n_random):
    """Against a naive reference: the heads compared have equally many labels, and own pairs are left out."""
    given = labels(np.random.default_rng(5))
    given.rules[:20] = [0] * n_random + [1] * (20 - n_random)
    found = losses_of_heads(given, 2, 2, 100)
    x, before = given.differences, given.rounds == 1
    rows = np.flatnonzero(before | ((given.rounds == 2) & (given.rules == 0)))
    assert len(found.fresh) == 10 and len(found.known) == 20 and found.n_pool == 100

    def losses(learned):
        fit = tune_bradley_terry(x[learned])[0]
        each = []
        for i in rows:
            weights = fit.weights
            if i in learned:
                weights = next(bradley_terry_path(x[[j for j in learned if j != i]], [fit.ridge])).weights
            each.append(float(pair_loss(x[i] @ weights)))
        return np.array(each)

    random, few = losses(list(range(n_random))), losses(list(range(8)))
    rule, few_of_rule = losses(list(range(n_random, 20))), losses(list(range(n_random, n_random + 8)))
    both = np.concatenate([found.known, found.fresh])
    np.testing.assert_allclose(both[:, 0], random, atol=0.02)  # left-out margins are approximate
    np.testing.assert_allclose(both[:, 1], rule, atol=0.02)
    np.testing.assert_allclose(both[:, 3], few_of_rule - few, atol=0.03)
    np.testing.assert_allclose(both[:, 4], both[:, 3] * (20 - n_random) / 20)
    assert not both[:, 2].any()


def test_a_tie_teaches_nothing_and_tests_with_both_answers():
    given = labels(np.random.default_rng(6))
    tied = given._replace(confidences=np.where(np.arange(40) == 21, 1.0, np.where(np.arange(40) == 22, 0.5, 1.0)))
    margins = (
        given.differences @ tune_bradley_terry(given.differences[(given.rounds == 1) & (given.rules == 0)])[0].weights
    )
    row = int(np.flatnonzero(np.flatnonzero((given.rounds == 2) & (given.rules == 0)) == 22)[0])
    expected = float(pair_loss(margins[22]) + pair_loss(-margins[22])) / 2
    assert losses_of_heads(tied, 2, 2, 100).fresh[row, 0] == pytest.approx(expected)
    first = given._replace(confidences=np.where(np.arange(40) == 2, 0.5, 1.0))
    assert losses_of_heads(first, 2, 2, 100).fresh[0, 0] != losses_of_heads(given, 2, 2, 100).fresh[0, 0]


def test_the_race_tells_values_with_intervals_and_nothing_before_a_test():
    given = labels(np.random.default_rng(7))
    assert race([], SHARES[:2] * 2)[1] is None
    assert race([losses_of_heads(given._replace(rules=np.ones(40, int)), 2, 2, 100)], SHARES[:2] * 2)[1] is None
    now, told = race([losses_of_heads(given, 2, 2, 100)], SHARES[:2] * 2)
    assert told["n_tests"] == 10 and [len(told[name]) for name in ("loss", "difference")] == [2, 2]
    assert all(low <= value <= high for value, low, high in (*told["loss"], *told["difference"], told["regret"]))
    assert told["difference"][0] == [0, 0, 0] and now.shares.sum() == pytest.approx(1)
