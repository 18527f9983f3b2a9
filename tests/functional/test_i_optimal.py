"""I-optimal design: equal to brute force and to a naive reference, and right about what it claims."""

from itertools import combinations

import pytest
import torch

from trl_real import TrlRealError
from trl_real.functional import i_optimal
from trl_real.functional.i_optimal import greedy_i_optimal, i_optimal_set, pool_moment


def made_up(seed: int, n: int, d: int) -> torch.Tensor:
    """Return features with a spectrum that falls. Shape `(n, d)`, float32."""
    spread = torch.arange(1, d + 1) ** -0.5
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed)) * spread


def variance(x: torch.Tensor, picks, ridge: float) -> float:
    """Return `tr(F M^-1)` by its definition."""
    x = x.double()
    m = ridge * torch.eye(x.shape[1]).double() + 0.25 * x[list(picks)].mT @ x[list(picks)]
    return float(torch.trace(x.mT @ x / len(x) @ torch.linalg.inv(m)))


def naive(x: torch.Tensor, k: int, ridge: float) -> tuple[list[int], list[float]]:
    """Return the picks and their gains, each from a new inverse."""
    picks, gains = [], []
    for _ in range(k):
        before = variance(x, picks, ridge)
        fall = [-1.0 if i in picks else before - variance(x, [*picks, i], ridge) for i in range(len(x))]
        best = next(i for i, gain in enumerate(fall) if gain >= max(fall) * (1 - 1e-6))
        picks.append(best)
        gains.append(fall[best])
    return picks, gains


@pytest.mark.parametrize("ahead", [1, 5, 32])
@pytest.mark.parametrize("ridge", [0.1, 1.0, 30.0])
def test_equals_a_naive_reference_however_far_it_looks_ahead(ahead, ridge, monkeypatch):
    """With 24 candidates ahead of 120, picks from outside them must undo what was looked ahead."""
    monkeypatch.setattr(i_optimal, "AHEAD", ahead)
    monkeypatch.setattr(i_optimal, "BEST", 24)
    x = made_up(0, 120, 7)
    design = greedy_i_optimal(x, 40, ridge=ridge)
    picks, gains = naive(x, 40, ridge)
    assert design.indices.tolist() == picks
    torch.testing.assert_close(design.scores, torch.tensor(gains, dtype=torch.float64), rtol=1e-4, atol=0)


@pytest.mark.parametrize("seed", range(4))
def test_single_picks_and_small_sets_against_brute_force(seed):
    """The first pick is the best set of one; three greedy picks are within a few percent of the best three of 12."""
    x = made_up(seed, 12, 4)
    assert greedy_i_optimal(x, 1, ridge=1.0).indices.tolist() == [min(range(12), key=lambda i: variance(x, [i], 1.0))]
    greedy = variance(x, greedy_i_optimal(x, 3, ridge=1.0).indices.tolist(), 1.0)
    best = min(variance(x, three, 1.0) for three in combinations(range(12), 3))
    assert best - 1e-9 <= greedy <= best * 1.05


def test_gains_add_up_to_the_fall_of_the_variance_and_log_det_to_the_information():
    x = made_up(1, 60, 5)
    design = greedy_i_optimal(x, 20, ridge=0.5)
    fall = variance(x, [], 0.5) - variance(x, design.indices.tolist(), 0.5)
    assert float(design.scores.sum()) == pytest.approx(fall, rel=1e-5)
    rows = x[design.indices].double()
    assert design.log_det == pytest.approx(float(torch.logdet(torch.eye(5).double() + rows.mT @ rows / 2)), rel=1e-5)


def test_does_not_chase_an_outlier():
    """One long pair in a direction that no other pair has teaches nothing about the pool."""
    x = torch.cat([made_up(2, 200, 3), torch.zeros(200, 1)], dim=1)
    x[7] = torch.tensor([0.0, 0, 0, 3.0])
    assert 7 not in greedy_i_optimal(x, 5, ridge=1.0).indices.tolist()


def test_signs_and_ties_and_zeros():
    x = made_up(3, 30, 4)
    flipped = x * torch.where(torch.arange(30) % 2 == 0, 1.0, -1.0)[:, None]
    assert greedy_i_optimal(x, 12).indices.tolist() == greedy_i_optimal(flipped, 12).indices.tolist()
    same = torch.ones(6, 2)
    same[:2] = 0
    assert greedy_i_optimal(same, 6).indices.tolist() == [2, 3, 4, 5, 0, 1]
    assert greedy_i_optimal(torch.zeros(3, 2), 3).indices.tolist() == [0, 1, 2]
    assert greedy_i_optimal(torch.zeros(0, 2), 0).indices.tolist() == []


def test_units_of_a_coordinate_do_not_matter_for_the_set():
    x = made_up(4, 80, 6)
    units = torch.tensor([1e-3, 1, 50, 1, 1e3, 7])
    assert i_optimal_set(x, 20).indices.tolist() == i_optimal_set(x * units, 20).indices.tolist()


def test_the_moment_of_many_rows_is_that_of_all():
    x = made_up(5, 5000, 3)
    torch.testing.assert_close(pool_moment(x), x.double().mT @ x.double() / 5000)


@pytest.mark.parametrize(
    ("change", "message"),
    [({"ridge": 0.0}, "ridge=0.0 is not above 0"), ({"k": 4}, "The budget is 4 pairs"), ({"bad": True}, "NaN")],
)
def test_mistakes(change, message):
    x = torch.full((3, 2), torch.nan) if change.pop("bad", False) else torch.ones(3, 2)
    with pytest.raises(TrlRealError, match=message):
        greedy_i_optimal(x, change.pop("k", 1), **change)
