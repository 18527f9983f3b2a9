"""The Bayesian head against a numerical posterior, and the picks of its acquisitions."""

import pytest
import torch
from scipy.optimize import minimize

from trl_real.errors import TrlRealError
from trl_real.functional.bayesian_head import ACQUISITIONS, double_reverse_thompson, fit_head, normal_draws
from trl_real.functional.similarity import candidate_pairs
from trl_real.selection.budget import lowest_rows
from trl_real.selection.strategies import lowest


pytestmark = pytest.mark.usefixtures("one_thread")


def labelled(n, d, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(n, d, generator=generator, dtype=torch.float64) for _ in range(2)]


def posterior_by_hand(chosen, rejected, confidences, ridge):
    """Mode by a general optimiser and the inverse of the Hessian that autograd gives there."""
    x = chosen - rejected

    def objective(w):
        m = x @ w
        losses = torch.nn.functional.softplus(-m) * confidences + torch.nn.functional.softplus(m) * (1 - confidences)
        return losses.sum() + ridge / 2 * w @ w

    def both(w):
        w = torch.from_numpy(w).requires_grad_()
        value = objective(w)
        return value.item(), torch.autograd.grad(value, w)[0].numpy()

    options = {"ftol": 1e-16, "gtol": 1e-12, "maxiter": 2000}
    mode = minimize(both, torch.zeros(x.shape[1]).double().numpy(), jac=True, method="L-BFGS-B", options=options).x
    mode = torch.from_numpy(mode)
    return mode, torch.linalg.inv(torch.autograd.functional.hessian(objective, mode))


@pytest.mark.parametrize("shape", [(40, 6), (5, 12), (1, 3)], ids=str)
@pytest.mark.parametrize("soft", [False, True])
def test_mean_and_variance_equal_the_laplace_approximation(shape, soft):
    chosen, rejected = labelled(*shape)
    confidences = torch.linspace(0.55, 1, shape[0]).double() if soft else None
    head = fit_head(chosen, rejected, confidences, ridge=0.7)
    certain = torch.ones(shape[0]).double()
    mode, covariance = posterior_by_hand(chosen, rejected, certain if confidences is None else confidences, 0.7)
    features = labelled(7 * 3, shape[1], 1)[0].view(7, 3, -1)
    means, covariances = head.utilities(features)
    torch.testing.assert_close(means, features @ mode, atol=2e-4, rtol=1e-3)
    torch.testing.assert_close(covariances, features @ covariance @ features.mT, atol=2e-4, rtol=1e-3)
    gap, variance = head.differences(features[:, 0], features[:, 2])
    phi = features[:, 0] - features[:, 2]
    torch.testing.assert_close(gap, phi @ mode, atol=2e-4, rtol=1e-3)
    torch.testing.assert_close(variance, ((phi @ covariance) * phi).sum(1), atol=2e-4, rtol=1e-3)


def test_no_labels_give_the_prior_and_labels_lower_every_variance():
    features = labelled(30, 8, 2)[0].view(10, 3, 8)
    prior = fit_head(torch.zeros(0, 8), torch.zeros(0, 8), ridge=2.0)
    means, covariances = prior.utilities(features)
    assert (means == 0).all()
    torch.testing.assert_close(covariances, features @ features.mT / 2)
    before = covariances
    for n in (1, 4, 20, 60):
        after = fit_head(*[side[:n] for side in labelled(60, 8)], ridge=2.0).utilities(features)[1]
        assert (after.diagonal(dim1=1, dim2=2) <= before.diagonal(dim1=1, dim2=2) + 1e-6).all()


def test_swapping_label_and_responses_changes_nothing():
    chosen, rejected = labelled(30, 5)
    flipped = fit_head(rejected, chosen, torch.zeros(30).double(), ridge=1.0)
    torch.testing.assert_close(flipped.weights, fit_head(chosen, rejected).weights, atol=1e-4, rtol=1e-3)
    coin = fit_head(chosen, rejected, torch.full((30,), 0.5).double())
    assert coin.weights.abs().max() < 1e-4


def test_the_ridge_can_be_tuned_on_the_labels():
    chosen, rejected = labelled(50, 4)
    truth = torch.tensor([3.0, -2.0, 0.0, 1.0]).double()
    wins = ((chosen - rejected) @ truth > 0)[:, None]
    head = fit_head(torch.where(wins, chosen, rejected), torch.where(wins, rejected, chosen), ridge=None)
    assert torch.cosine_similarity(head.weights, truth, dim=0) > 0.95


def made_up(n=200, k=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    root = torch.randn(n, k, k, generator=generator, dtype=torch.float64) / 2
    means = torch.randn(n, k, generator=generator, dtype=torch.float64)
    return means, root @ root.mT, normal_draws(n, k, generator)


def pairs_of(name, means, covariances, draws):
    return candidate_pairs(means.shape[1]).T[lowest(ACQUISITIONS[name](means, covariances, draws))]


@pytest.mark.parametrize("name", ACQUISITIONS)
def test_acquisitions_are_finite_equivariant_and_do_not_depend_on_the_batch(name):
    means, covariances, draws = made_up()
    scores = ACQUISITIONS[name](means, covariances, draws)
    assert scores.shape == (200, 6) and scores.isfinite().all()
    alone = torch.cat(
        [ACQUISITIONS[name](means[i : i + 1], covariances[i : i + 1], draws[i : i + 1]) for i in range(200)]
    )
    torch.testing.assert_close(scores, alone, atol=1e-9, rtol=0)
    shifted = ACQUISITIONS[name](means + 5, covariances, draws)  # utilities are known up to a constant
    torch.testing.assert_close(scores, shifted, atol=1e-9, rtol=0)


@pytest.mark.parametrize("name", ACQUISITIONS)
def test_equal_responses_and_certain_models_stay_finite(name):
    for covariances in (torch.ones(5, 3, 3).double(), torch.zeros(5, 3, 3).double()):
        pairs = pairs_of(name, torch.zeros(5, 3).double(), covariances, made_up(5, 3)[2])
        assert (pairs[:, 0] < pairs[:, 1]).all()


@pytest.mark.parametrize("name", ACQUISITIONS)
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4, 1e6])
def test_utilities_of_any_scale_create_no_ties(name, scale):
    draws = made_up(40, 2)[2]
    variances = scale * torch.linspace(1, 2, 40).double()  # of u_1 - u_2
    means = torch.zeros(40, 2).double() if name != "drts" else scale * torch.eye(2)[[0] * 40].double()
    if name in ("small_gap", "large_gap"):  # which do not look at variances
        means[:, 0] = variances if name == "large_gap" else -variances.flip(0)
    covariances = torch.eye(2).double() * variances[:, None, None] / 2
    scores = ACQUISITIONS[name](means, covariances, draws)[:, 0].numpy()
    expected = range(35, 40) if name != "drts" else range(5)  # which takes what is certain
    assert lowest_rows(scores, 5).tolist() == list(expected)


def test_infomax_interval_takes_the_widest_interval_of_the_win_probability():
    means, covariances, draws = made_up()
    rows = zip(pairs_of("infomax_interval", means, covariances, draws).tolist(), means, covariances, strict=True)
    for (i, j), m, c in rows:
        widths = {}
        for a, b in candidate_pairs(4).T.tolist():
            half = (c[a, a] + c[b, b] - 2 * c[a, b]).sqrt()
            widths[a, b] = torch.sigmoid(m[a] - m[b] + half) - torch.sigmoid(m[a] - m[b] - half)
        assert max(widths, key=widths.get) == (i, j)


def test_infomax_takes_the_largest_variance_of_a_difference():
    means, covariances, draws = made_up()
    for (i, j), c in zip(pairs_of("infomax", means, covariances, draws).tolist(), covariances, strict=True):
        variances = {(a, b): c[a, a] + c[b, b] - 2 * c[a, b] for a in range(4) for b in range(a + 1, 4)}
        assert max(variances, key=variances.get) == (i, j)


def test_delta_ucb_takes_the_largest_optimistic_gap():
    means, covariances, draws = made_up()
    rows = zip(pairs_of("delta_ucb", means, covariances, draws).tolist(), means, covariances, strict=True)
    for (i, j), m, c in rows:
        upper = {
            (a, b): (m[a] - m[b]).abs() + (c[a, a] + c[b, b] - 2 * c[a, b]).sqrt()
            for a in range(4)
            for b in range(a + 1, 4)
        }
        assert max(upper, key=upper.get) == (i, j)


def test_certain_models_compare_the_two_best_or_the_best_and_the_worst():
    means = torch.tensor([[0.0, 3.0, 1.0, 2.0]]).double().repeat(20, 1)
    covariances = (1e-6 * torch.eye(4)).double().repeat(20, 1, 1)
    draws = made_up(20)[2]
    assert (pairs_of("dts", means, covariances, draws) == torch.tensor([1, 3])).all()
    assert (pairs_of("drts", means, covariances, draws) == torch.tensor([0, 1])).all()


@pytest.mark.parametrize("covariance", [0.5 * torch.eye(3), [[1.0, 0.9, 0], [0.9, 1.0, 0], [0, 0, 0.2]]], ids=str)
def test_double_thompson_picks_a_response_as_often_as_it_is_likely_to_be_the_best(covariance):
    means = torch.tensor([[0.0, 0.3, -0.2]]).double().repeat(20_000, 1)
    covariance = torch.as_tensor(covariance).double()
    covariances = covariance.repeat(20_000, 1, 1)
    draws = normal_draws(20_000, 3, torch.Generator().manual_seed(0), 40)
    others = normal_draws(20_000, 3, torch.Generator().manual_seed(1), 1) @ torch.linalg.cholesky(covariance).mT
    best = (means[:, None] + others).argmax(-1)
    p = best.flatten().bincount(minlength=3) / 20_000
    # The first is i with probability p_i, the second j with p_j / (1 - p_i).
    expected = [p[i] * p[j] / (1 - p[i]) + p[j] * p[i] / (1 - p[j]) for i, j in ((0, 1), (0, 2), (1, 2))]
    found = lowest(ACQUISITIONS["dts"](means, covariances, draws)).bincount(minlength=3) / 20_000
    torch.testing.assert_close(found, torch.stack(expected), atol=0.02, rtol=0)


def test_drts_compares_the_best_of_a_sample_with_the_worst_of_another():
    means, _, draws = made_up(300, 4)
    found = pairs_of("drts", means, torch.eye(4).double().repeat(300, 1, 1), draws)
    samples = means[:, None] + draws  # the root of an identity is an identity
    for pair, sample in zip(found.tolist(), samples, strict=True):
        first = int(sample[0].argmax())
        worst = [int(later.argmin()) for later in sample[1:]]
        second = next(i for i in worst if i != first)
        assert pair == sorted((first, second))


@pytest.mark.parametrize(("name", "sign"), [("dts", 1.0), ("drts", -1.0)])
def test_samples_that_agree_leave_the_second_response_to_the_last_one(name, sign):
    later = [[3.0, 2.0, 1.0], [3.0, 1.0, 2.0]]  # of the last sample, 2 comes after 0
    draws = torch.tensor([[[3.0, 0.0, 0.0], *(sign * torch.tensor(later)).tolist()]]).double()
    found = pairs_of(name, torch.zeros(1, 3).double(), torch.eye(3).double()[None], draws)
    assert found.tolist() == [[0, 2]]


def test_drts_budget_takes_large_certain_gaps_first():
    means = torch.tensor([[0.0, 4.0], [0.0, 4.0], [0.0, 1.0]]).double()
    covariances = torch.stack([torch.eye(2) * s for s in (1e-4, 4.0, 1e-4)]).double()
    scores = double_reverse_thompson(means, covariances, made_up(3, 2)[2]).amin(1)
    assert scores.argsort().tolist() == [0, 1, 2]


def test_invalid_arguments_are_refused():
    chosen, rejected = labelled(3, 2)
    with pytest.raises(TrlRealError, match="ridge"):
        fit_head(chosen, rejected, ridge=0.0)
    with pytest.raises(TrlRealError, match="confidence"):
        fit_head(chosen, rejected, torch.tensor([0.5, 1.2, 1.0]))
    with pytest.raises(TrlRealError, match="NaN"):
        fit_head(chosen * torch.nan, rejected)
    with pytest.raises(TrlRealError, match="draws"):
        ACQUISITIONS["dts"](*made_up()[:2], torch.zeros(200, 1, 4))


def test_gaps_and_fisher_information_by_hand():
    """Three responses at utilities 0, 1 and 4; the least certain pair is the one whose label says most."""
    means = torch.tensor([[0.0, 1.0, 4.0]], dtype=torch.float64)
    covariances = torch.diag(torch.tensor([1.0, 1.0, 3.0], dtype=torch.float64))[None]
    found = {name: ACQUISITIONS[name](means, covariances, None)[0] for name in ("small_gap", "large_gap", "fisher")}
    assert found["small_gap"].tolist() == [1, 4, 3] and found["large_gap"].tolist() == [-1, -4, -3]
    for name in ("small_gap", "large_gap"):  # without labels every gap is 0, and the first rows would always win
        assert ACQUISITIONS[name](0 * means, covariances, None)[0].tolist() == [-2, -4, -4]
    p = torch.sigmoid(torch.tensor([-1.0, -4.0, -3.0], dtype=torch.float64))
    torch.testing.assert_close(found["fisher"], -torch.log(1 + p * (1 - p) * torch.tensor([2.0, 4.0, 4.0]).double()))
    assert candidate_pairs(3).T[lowest(found["fisher"][None])].tolist() == [[0, 1]]
