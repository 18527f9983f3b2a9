r"""
Bayesian Bradley-Terry head on frozen features, and acquisition functions that choose the next pair to label.

It needs no gradient pass: labels sharpen a Gaussian over the head's weights, which gives every response a mean utility
and a variance. An acquisition is a function `(means (N, K), covariances (N, K, K), draws (N, S, K)) -> scores
(N, P)`; as with a strategy, the candidate pair with the lowest score is the row's pair, a budget takes the rows with
the lowest scores, and scores that differ by less than 1e-6 are a tie.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from trl_real.errors import TrlRealError
from trl_real.functional.bradley_terry import bradley_terry_path, hessian_factor, span, tune_bradley_terry
from trl_real.functional.similarity import candidate_pairs


Acquisition = Callable[[Tensor, Tensor, Tensor], Tensor]

# Distance of a picked pair's score below the other scores of its row, which are in (-1, 1).
PICKED = 2.0


class Posterior(NamedTuple):
    """
    Laplace approximation of the posterior: a normal distribution with mean `weights` and the inverse Hessian of the
    objective as covariance. With fewer labels than features, labels give no information outside the pairs' span.

    Args:
        weights: Utility of one unit of each feature, in nats. Shape `(d,)`, float64.
        factor: Cholesky factor of the precision within the span. Shape `(m, m)`, float64, with `m = min(n, d)`.
        basis: Orthonormal rows that span it; None for the full space. Shape `(m, d)`.
        ridge: Strength of the prior, `w ~ N(0, I / ridge)`, which still holds outside the span.
    """

    weights: Tensor
    factor: Tensor
    basis: Tensor | None
    ridge: float

    def utilities(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """
        Return mean and covariance of the utilities of each prompt's responses, up to a constant per prompt.

        Args:
            features: Features of the responses. Shape `(N, K, d)`; products are computed in their precision.

        Returns:
            Means, shape `(N, K)`, and covariances, shape `(N, K, K)`, float64.
        """
        identity = torch.eye(len(self.factor), dtype=torch.float64)
        root = torch.linalg.solve_triangular(self.factor, identity, upper=False)  # a product is faster than a solve
        flat = features.flatten(0, 1)
        inner = features if self.basis is None else (flat @ self.basis.T.to(flat)).view(*features.shape[:2], -1)
        half = (inner.flatten(0, 1) @ root.T.to(features)).view_as(inner)  # (N, K, m)
        covariances = half @ half.mT  # (N, K, K)
        if self.basis is not None:
            outside = features @ features.mT - inner @ inner.mT
            covariances = covariances + outside / self.ridge
        return (features @ self.weights.to(features)).double(), covariances.double()

    def differences(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and variance of `u(first) - u(second)`, in nats. Shapes `(n, d)` to `(n,)` and `(n,)`."""
        mean, covariance = self.utilities(torch.stack([first, second], dim=1))
        return mean[:, 0] - mean[:, 1], _gap_variance(covariance)[:, 0]


def fit_head(
    chosen: Tensor, rejected: Tensor, confidences: Tensor | None = None, ridge: float | None = 1.0
) -> Posterior:
    r"""
    Fit the posterior of `w` to labels: `P(y_w > y_l) = sigmoid(w^T (f(y_w) - f(y_l)))`, `w ~ N(0, I / ridge)`. A label
    of confidence `p` counts as `-p log sigmoid(m) - (1 - p) log sigmoid(-m)`.

    Args:
        chosen: Features of the chosen responses. Shape `(n, d)`; `n` may be 0, which gives the prior.
        rejected: Features of the rejected responses. Shape `(n, d)`.
        confidences: Probabilities that the labels are right. Shape `(n,)`; None for certain labels.
        ridge: Strength of the prior, above 0; None for the value with the largest evidence.

    Raises:
        TrlRealError: If a value is out of range.
    """
    x = chosen.double() - rejected.double()  # (n, d)
    if not torch.isfinite(x).all():
        raise TrlRealError("Features of labelled pairs are NaN or infinite. Remove such pairs from the history.")
    if ridge is not None and not ridge > 0:
        raise TrlRealError(f"ridge={ridge} is not above 0. Type ridge=1.0, or None to tune it.")
    if confidences is not None and not bool(((confidences >= 0) & (confidences <= 1)).all()):
        raise TrlRealError("A confidence is not a probability in [0, 1]. Check the column 'label_confidence'.")
    basis, x = span(x)
    fit = None
    if ridge is None:
        fit = tune_bradley_terry(x)[0]  # soft labels would count as weaker evidence
        ridge = fit.ridge
    if fit is None or (confidences is not None and bool((confidences != 1).any())):
        fit = next(bradley_terry_path(x, [ridge], confidences))
    wrong = torch.sigmoid(-(x @ fit.weights))
    factor = hessian_factor(x.float(), wrong.float(), fit.ridge)  # products in float32
    return Posterior(fit.weights if basis is None else fit.weights @ basis, factor, basis, fit.ridge)


def normal_draws(n_prompts: int, n_responses: int, generator: torch.Generator, n_draws: int = 16) -> Tensor:
    """Draw standard normal numbers for the sampling acquisitions. Shape `(N, S, K)`, float64."""
    return torch.randn(n_prompts, n_draws, n_responses, generator=generator, dtype=torch.float64)


def infomax(means: Tensor, covariances: Tensor, draws: Tensor) -> Tensor:
    """
    Prefer the largest variance of the utility difference: the pair that the model knows least about.
    ActiveUltraFeedback's InfoMax takes the widest interval of the win probability instead: `infomax_interval`.

    Args:
        means: Mean utilities of `N` prompts' `K` responses, in nats. Shape `(N, K)`.
        covariances: Covariances of the utilities. Shape `(N, K, K)`.
        draws: Standard normal numbers, `S` vectors per prompt. Shape `(N, S, K)`.

    Returns:
        Scores, lowest first. Shape `(N, P)`.
    """
    return -_gap_variance(covariances)


def infomax_interval(means: Tensor, covariances: Tensor, draws: Tensor, width: float = 1.0) -> Tensor:
    r"""
    Prefer the widest interval of the win probability, `sigmoid(gap + width sd) - sigmoid(gap - width sd)` with
    `gap = mean_i - mean_j` (InfoMax, arXiv 2603.09692): the pair whose outcome the model knows least about, which
    large gaps make certain. The score is the log of what the interval lacks to 1. Shapes as in `infomax`.
    """
    gap, half = _gap(means), width * _gap_variance(covariances).sqrt()
    return torch.logaddexp(logsigmoid(-gap - half), logsigmoid(gap - half))


def delta_ucb(means: Tensor, covariances: Tensor, draws: Tensor, width: float = 1.0) -> Tensor:
    """
    Prefer the largest optimistic gap, `|mean_i - mean_j| + width sd(u_i - u_j)` (DeltaUCB, arXiv 2603.09692, which
    adds the two standard deviations because it has no covariance). Shapes as in `infomax`.
    """
    return -_gap(means).abs() - width * _gap_variance(covariances).sqrt()


def small_gap(means: Tensor, covariances: Tensor, draws: Tensor) -> Tensor:
    """
    Prefer the smallest predicted gap, the pairs that the model finds hardest (arXiv 2508.04149; APL, arXiv
    2402.08114); before the first label, when all gaps are 0, the largest variance. Shapes as in `infomax`.
    """
    return _gap(means).abs() if means.any() else infomax(means, covariances, draws)


def large_gap(means: Tensor, covariances: Tensor, draws: Tensor) -> Tensor:
    """
    Prefer the largest predicted gap, whose pair is the response with the highest and the one with the lowest utility
    (MaxMin, arXiv 2603.09692); before the first label the largest variance. Shapes as in `infomax`.
    """
    return -_gap(means).abs() if means.any() else infomax(means, covariances, draws)


def fisher(means: Tensor, covariances: Tensor, draws: Tensor) -> Tensor:
    """
    Prefer the label that adds most information to those so far, `log(1 + p (1 - p) var(u_i - u_j))` in nats, with `p`
    the predicted probability (ARM-FI's past-aware D-optimal design, arXiv 2502.04354, without the picks of the same
    round). Shapes as in `infomax`.
    """
    p = torch.sigmoid(_gap(means))
    return -(p * (1 - p) * _gap_variance(covariances)).log1p()


def double_thompson(means: Tensor, covariances: Tensor, draws: Tensor) -> Tensor:
    """
    Pick two responses that may each be the best: the best of one sample of utilities, and the best of the first later
    sample with a different best response (Wu and Liu 2016); without one, the second best of the last sample. A budget
    takes the rows with the largest variance of the pair's difference. Shapes as in `infomax`, `S >= 2`.
    """
    samples = _samples(means, covariances, draws)  # (N, S, K)
    best = samples.argmax(-1)  # (N, S)
    fallback = samples[:, -1].scatter(1, best[:, :1], -torch.inf).argmax(-1)
    return _picked(best[:, 0], best[:, 1:], fallback, _gap_variance(covariances))


def double_reverse_thompson(means: Tensor, covariances: Tensor, draws: Tensor) -> Tensor:
    """
    Pick a probably good and a probably bad response: the best of one sample, and the worst of the first later sample
    in which it differs from the best (DRTS, arXiv 2603.09692). Large gaps that the model is certain of are picked
    often. A budget takes the rows with the largest expected gap minus its standard deviation. Shapes as in `infomax`,
    `S >= 2`.
    """
    samples = _samples(means, covariances, draws)
    first = samples[:, 0].argmax(-1)
    fallback = samples[:, -1].scatter(1, first[:, None], torch.inf).argmin(-1)
    certain = _gap(means).abs() - _gap_variance(covariances).sqrt()
    return _picked(first, samples[:, 1:].argmin(-1), fallback, certain)


ACQUISITIONS: dict[str, Acquisition] = {
    "infomax": infomax,
    "infomax_interval": infomax_interval,
    "dts": double_thompson,
    "delta_ucb": delta_ucb,
    "drts": double_reverse_thompson,
    "small_gap": small_gap,
    "large_gap": large_gap,
    "fisher": fisher,
}
# Those that read no draws; any other function gets some.
WITHOUT_DRAWS: tuple[Acquisition, ...] = (infomax, infomax_interval, delta_ucb, small_gap, large_gap, fisher)


def _gap(means: Tensor) -> Tensor:
    """Return `mean_i - mean_j` of the candidate pairs. Shape `(N, K)` to `(N, P)`."""
    first, second = candidate_pairs(means.shape[1])
    return means[:, first] - means[:, second]


def _gap_variance(covariances: Tensor) -> Tensor:
    """Return the variance of `u_i - u_j` of the candidate pairs. Shape `(N, K, K)` to `(N, P)`."""
    first, second = candidate_pairs(covariances.shape[1])
    own = covariances.diagonal(dim1=1, dim2=2)
    return (own[:, first] + own[:, second] - 2 * covariances[:, first, second]).clamp_min(0)


def _samples(means: Tensor, covariances: Tensor, draws: Tensor) -> Tensor:
    """Turn the draws into samples of the joint posterior of the utilities. Shape `(N, S, K)`."""
    if draws.ndim != 3 or draws.shape[1] < 2:
        raise TrlRealError(
            f"Thompson sampling needs draws of shape (N, S, K) with S >= 2; found {tuple(draws.shape)}."
        )
    values, vectors = torch.linalg.eigh(covariances)  # equal responses make it singular: no Cholesky
    root = vectors * values.clamp_min(0).sqrt()[:, None]
    return means[:, None] + draws.to(means) @ root.mT


def _squash(values: Tensor) -> Tensor:
    """Map numbers to (-1, 1) and keep their order; by logarithms, so that large ones stay distinct."""
    logs = values.sign() * values.abs().log1p()
    return logs / (1 + logs.abs())


def _picked(first: Tensor, later: Tensor, fallback: Tensor, values: Tensor) -> Tensor:
    """
    Return scores that make `first` and the first other response of `later`, else `fallback`, the row's pair, and put
    rows with a large value first. Shapes `(N,)`, `(N, S - 1)`, `(N,)` and `(N, P)` to `(N, P)`.
    """
    differs = later != first[:, None]
    other = later.gather(1, differs.int().argmax(1, keepdim=True))[:, 0]
    second = torch.where(differs.any(1), other, fallback)
    n_responses = round((1 + (1 + 8 * values.shape[1]) ** 0.5) / 2)
    one, two = candidate_pairs(n_responses)
    is_pair = (one == torch.minimum(first, second)[:, None]) & (two == torch.maximum(first, second)[:, None])
    return -_squash(values) - PICKED * is_pair
