"""Bradley-Terry model on fixed features: a fit takes milliseconds instead of the GPU hours of a training."""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid


# From "only the prior" to "almost no prior": the range in which a ridge matters for standardised differences.
RIDGES = tuple(10 ** (k / 4) for k in range(19, -1, -1))

MAX_NEWTON_STEPS = 30
# Newton decrement, in nats per pair, below which a further step changes no printed number.
TOLERANCE = 1e-12
SHRINK = 0.25  # the Hessian is reused while each step shrinks the decrement at least to this share


class Fit(NamedTuple):
    """
    Fitted Bradley-Terry model.

    Args:
        weights: Reward of one unit of each feature, in nats. Shape `(d,)`.
        ridge: Strength of the prior.
        evidence: Log marginal likelihood of the labels (Laplace approximation), in nats.
    """

    weights: Tensor
    ridge: float
    evidence: float


def pair_loss(margins: Tensor) -> Tensor:
    """Return the negative log-likelihood `-log sigmoid(m)` of each label, in nats. Any shape."""
    return -logsigmoid(margins)


def bradley_terry_path(
    differences: Tensor, ridges: Sequence[float] = RIDGES, confidences: Tensor | None = None
) -> Iterator[Fit]:
    r"""
    Fit `P(y_w > y_l) = sigmoid(w^T (f(y_w) - f(y_l)))` (Bradley and Terry 1952) with a Gaussian prior on `w`: minimise

    `sum_i -c_i log sigmoid(w^T x_i) - (1 - c_i) log sigmoid(-w^T x_i) + ridge / 2 ||w||^2`

    by Newton's method for one ridge after the other, each started from the previous solution. The model has no
    intercept, so swapping the two responses of a pair together with its label changes nothing. With fewer pairs than
    features, the computation runs in the span of the pairs, which contains the solution.

    Args:
        differences: Features of the chosen minus the rejected responses, `x_i`. Shape `(n, d)`.
        ridges: Strengths of the prior, largest first so that each start is near the solution.
        confidences: Probabilities `c_i` that the labels are right; None for certain labels. Shape `(n,)`.

    Yields:
        One fit per ridge, in order; without pairs, weights of 0.
    """
    basis, x = span(differences.double())
    confidences = x.new_ones(len(x)) if confidences is None else confidences.double()
    weights = x.new_zeros(x.shape[1])
    information = _information(x, weights)
    for ridge in ridges:
        weights, information = _newton(x, confidences, ridge, weights, information)
        evidence = _evidence(x, confidences, weights, _factor(information, ridge), ridge)
        yield Fit(weights if basis is None else weights @ basis, ridge, evidence)


def tune_bradley_terry(differences: Tensor, ridges: Sequence[float] = RIDGES) -> tuple[Fit, list[Fit]]:
    """
    Choose the ridge with the largest evidence (MacKay 1992), from the labels of the fit alone.

    Leave-one-out loss would tune the ridge for pairs like the selected ones: on the 65 least similar pairs of HH-RLHF
    it takes a ridge far too weak for the test pairs (docs/log.md). The evidence does not depend on how the pairs were
    selected.

    Args:
        differences, ridges: See `bradley_terry_path`; the path stops once the evidence has fallen twice in a row.

    Returns:
        The best fit, and all fits.
    """
    fits: list[Fit] = []
    for fit in bradley_terry_path(differences, ridges):
        fits.append(fit)
        if len(fits) > 2 and fits[-1].evidence < fits[-2].evidence < fits[-3].evidence:
            break
    return max(fits, key=lambda fit: fit.evidence), fits


def left_out_margins(differences: Tensor, fit: Fit) -> Tensor:
    """
    Return the margin of each pair under the model fitted without it, from one factorisation (approximate
    leave-one-out, Rad and Maleki 2020, arXiv 1801.10243): `m_i + g_i l'_i / (1 - g_i l''_i)`, with `l` the loss of
    margin `m_i` and `g_i = x_i^T H^-1 x_i`. The differences are those of the fit. Shape `(n, d)` to `(n,)`, in nats.
    """
    _, x = span(differences.double())
    margins = differences.double() @ fit.weights
    wrong = torch.sigmoid(-margins)  # (n,): -l'
    factor = hessian_factor(x.float(), wrong.float(), fit.ridge)
    leverage = torch.linalg.solve_triangular(factor, x.mT, upper=False).square().sum(0)  # (n,)
    return margins - leverage * wrong / (1 - leverage * wrong * (1 - wrong)).clamp_min(1e-6)


def span(x: Tensor) -> tuple[Tensor | None, Tensor]:
    """Return an orthonormal basis of the pairs' span `(n, d)` and their coordinates `(n, n)`; (None, x) if n >= d."""
    if x.shape[0] >= x.shape[1]:
        return None, x
    q, r = torch.linalg.qr(x.mT)  # (d, n), (n, n)
    return q.mT, r.mT


def _newton(
    x: Tensor, confidences: Tensor, ridge: float, weights: Tensor, information: Tensor
) -> tuple[Tensor, Tensor]:
    """
    Minimise from `weights` on; return the minimiser and the information of the labels there. A Hessian is reused while
    each step shrinks the decrement well: it costs `n d^2`, a step `n d`. Shapes `(d,)`, `(d, d)`.
    """
    factor, before = _factor(information, ridge), math.inf
    for _ in range(MAX_NEWTON_STEPS):
        gradient = ridge * weights - (confidences - torch.sigmoid(x @ weights)) @ x
        step = torch.cholesky_solve(gradient[:, None], factor)[:, 0]
        decrement = float(gradient @ step)
        weights = weights - _damping(x, confidences, weights, step, ridge) * step
        if decrement <= 2 * TOLERANCE * len(x):
            break
        if decrement > SHRINK * before:
            factor, before = _factor(_information(x, weights), ridge), math.inf
        else:
            before = decrement
    return weights, _information(x, weights)


def _information(x: Tensor, weights: Tensor) -> Tensor:
    """Return `sum_i p_i (1 - p_i) x_i x_i^T`, with float32 products: it only sets step directions and the evidence."""
    right = torch.sigmoid(x @ weights)  # (n,)
    scaled = x.float() * (right * (1 - right)).sqrt().float()[:, None]
    return (scaled.mT @ scaled).double()


def _factor(information: Tensor, ridge: float) -> Tensor:
    """Return the Cholesky factor of the objective's Hessian."""
    hessian = information.clone()
    hessian.diagonal().add_(ridge)
    return torch.linalg.cholesky(hessian)


def hessian_factor(x: Tensor, wrong: Tensor, ridge: float) -> Tensor:
    """
    Return the Cholesky factor of the objective's Hessian, the precision of the Laplace posterior, for differences
    `(n, d)` and the probabilities `(n,)` of the opposite labels. Lower triangular, float64. Shape `(d, d)`.
    """
    scaled = x * (wrong * (1 - wrong)).sqrt()[:, None]
    return _factor((scaled.mT @ scaled).double(), ridge)


def _damping(x: Tensor, confidences: Tensor, weights: Tensor, step: Tensor, ridge: float) -> float:
    """Return the largest of 1, 1/2, 1/4, … of the step that does not raise the objective."""
    margins, moved = x @ weights, x @ step

    def objective(share: float) -> Tensor:
        return _objective(margins - share * moved, confidences, weights - share * step, ridge)

    before, share = objective(0.0), 1.0
    while share > 1e-3 and objective(share) > before + 1e-12 * before.abs():
        share /= 2
    return share


def _objective(margins: Tensor, confidences: Tensor, weights: Tensor, ridge: float) -> Tensor:
    """`sum -c log sigmoid(m) - (1 - c) log sigmoid(-m) + ridge / 2 ||w||^2`, in nats."""
    return pair_loss(margins).sum() + (1 - confidences) @ margins + ridge / 2 * weights @ weights


def _evidence(x: Tensor, confidences: Tensor, weights: Tensor, factor: Tensor, ridge: float) -> float:
    """`-objective + d / 2 log ridge - 1 / 2 log det H`; unused dimensions cancel."""
    fit = _objective(x @ weights, confidences, weights, ridge)
    return float(len(weights) / 2 * math.log(ridge) - fit - factor.diagonal().log().sum())
