"""The Bradley-Terry model against scipy, brute-force leave-one-out and a sampled integral."""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from trl_real.functional.bradley_terry import (
    RIDGES,
    bradley_terry_path,
    left_out_margins,
    pair_loss,
    tune_bradley_terry,
)


def differences(n: int, d: int, seed: int = 0, signal: float = 0.4) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    weights = signal * torch.randn(d, generator=generator, dtype=torch.float64)
    x = torch.randn(n, d, generator=generator, dtype=torch.float64)
    wins = torch.rand(n, generator=generator) < torch.sigmoid(x @ weights)
    return torch.where(wins[:, None], x, -x)


@pytest.mark.parametrize("shape", [(60, 20), (30, 50), (1, 3)], ids=str)
@pytest.mark.parametrize("ridge", [10.0, 1.0, 0.1])
def test_weights_are_those_of_a_general_optimizer(shape, ridge):
    x = differences(*shape)

    def objective(w):
        margins = x.numpy() @ w
        return (
            np.logaddexp(0, -margins).sum() + ridge / 2 * w @ w,
            -x.numpy().T @ (1 / (1 + np.exp(margins))) + ridge * w,
        )

    expected = minimize(objective, np.zeros(shape[1]), jac=True, method="L-BFGS-B", options={"ftol": 1e-15}).x
    (fit,) = bradley_terry_path(x, [ridge])
    np.testing.assert_allclose(fit.weights, expected, atol=2e-5)


def test_weights_far_from_zero_are_the_minimum_too():
    # Without damping, Newton's steps leave the minimum here by five orders of magnitude.
    x = 10 * differences(40, 30, signal=2.0)
    (fit,) = bradley_terry_path(x, [1e-3])
    gradient = 1e-3 * fit.weights - torch.sigmoid(-(x @ fit.weights)) @ x
    assert gradient.abs().max() < 1e-2


def test_ridge_path_equals_separate_fits():
    x = differences(40, 10)
    for fit in bradley_terry_path(x, RIDGES):
        (alone,) = bradley_terry_path(x, [fit.ridge])
        assert torch.allclose(fit.weights, alone.weights, atol=1e-6)


def test_swapping_responses_and_label_changes_nothing_and_order_does_not_matter():
    x = differences(50, 8)
    (fit,), (shuffled,) = bradley_terry_path(x, [1.0]), bradley_terry_path(x.flip(0), [1.0])
    (swapped,) = bradley_terry_path(-x, [1.0])
    assert torch.allclose(fit.weights, shuffled.weights, atol=1e-9)
    assert torch.allclose(fit.weights, -swapped.weights, atol=1e-9)


@pytest.mark.parametrize("shape", [(60, 12), (25, 40)], ids=str)
def test_leave_one_out_margins_are_close_to_refitting_without_the_pair(shape):
    x = differences(*shape)
    for ridge, tolerance in ((10.0, 0.01), (1.0, 0.08)):
        (fit,) = bradley_terry_path(x, [ridge])
        rest = [torch.cat([x[:i], x[i + 1 :]]) for i in range(len(x))]
        exact = torch.stack([next(bradley_terry_path(r, [ridge])).weights @ x[i] for i, r in enumerate(rest)])
        found = left_out_margins(x, fit)
        assert (found - exact).abs().mean() < tolerance * (1 + exact.abs().mean())
        assert abs(pair_loss(found).mean() - pair_loss(exact).mean()) < tolerance


def test_the_evidence_is_the_integral_of_the_likelihood_over_the_prior():
    x = differences(6, 2)
    for ridge in (1.0, 5.0):
        (fit,) = bradley_terry_path(x, [ridge])
        prior = torch.randn(400_000, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64) / ridge**0.5
        sampled = torch.logsumexp(-pair_loss(prior @ x.T).sum(1), 0) - np.log(len(prior))
        assert fit.evidence == pytest.approx(float(sampled), abs=0.1)  # Laplace, from six pairs


@pytest.mark.parametrize(("n", "d"), [(20, 50), (200, 50)])
def test_the_evidence_is_the_same_in_the_span_and_in_the_whole_space(n, d):
    x = differences(n, d)
    for fit in bradley_terry_path(x, [30.0, 3.0]):
        margins = x @ fit.weights
        wrong = torch.sigmoid(-margins)
        scaled = x * (wrong * (1 - wrong)).sqrt()[:, None]
        determinant = torch.linalg.slogdet(torch.eye(d) + scaled.T @ scaled / fit.ridge)[1]
        expected = -pair_loss(margins).sum() - fit.ridge / 2 * fit.weights @ fit.weights - determinant / 2
        assert fit.evidence == pytest.approx(float(expected), abs=1e-3)


def test_the_tuned_ridge_has_the_largest_evidence_of_all():
    x = differences(150, 30)
    best, fits = tune_bradley_terry(x)
    everything = list(bradley_terry_path(x))
    assert best.ridge == max(everything, key=lambda fit: fit.evidence).ridge
    assert len(fits) <= len(everything) and any(fit is best for fit in fits)


def test_labels_without_signal_select_a_strong_prior():
    best, _ = tune_bradley_terry(differences(200, 30, signal=0.0))
    strong, _ = tune_bradley_terry(differences(200, 30, signal=1.0))
    assert best.ridge > 30 * strong.ridge


def test_no_pairs_give_zero_weights():
    best, _ = tune_bradley_terry(torch.zeros(0, 5))
    assert best.weights.tolist() == [0.0] * 5
    assert left_out_margins(torch.zeros(0, 5), best).shape == (0,)


def test_separable_pairs_have_finite_weights():
    x = torch.eye(4, dtype=torch.float64) * 1e3
    best, fits = tune_bradley_terry(x)
    assert all(torch.isfinite(fit.weights).all() for fit in fits) and (x @ best.weights > 0).all()
