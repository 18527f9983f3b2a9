"""Preference losses and metrics on log-probabilities: DPO (arXiv 2305.18290), REAL Eq. 10-11, SPA Eq. 9-12."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F


QUANTILES = {"p05": 0.05, "p25": 0.25, "median": 0.5, "p75": 0.75, "p95": 0.95}
MAX_ELEMENTS = 2**24


class Head(NamedTuple):
    """Output layer of a language model: `weight` of shape `(V, d)` and optional `bias` of shape `(V,)`."""

    weight: Tensor
    bias: Tensor | None = None


def implicit_margin(chosen: Tensor, rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor, beta: float) -> Tensor:
    r"""
    Return the margin of the implicit rewards,
    `beta ((log pi(y_w) - log ref(y_w)) - (log pi(y_l) - log ref(y_l)))`.

    Args:
        chosen: Log-probabilities of the chosen responses, summed over tokens, in nats. Shape `(B,)`.
        rejected: Log-probabilities of the rejected responses. Shape `(B,)`.
        ref_chosen: Log-probabilities of the chosen responses under the reference model. Shape `(B,)`.
        ref_rejected: Log-probabilities of the rejected responses under the reference model. Shape `(B,)`.
        beta: Weight of the KL term.

    Returns:
        One margin per pair. Shape `(B,)`.
    """
    return beta * ((chosen - ref_chosen) - (rejected - ref_rejected))


def soft_label_loss(margin: Tensor, flip: Tensor | float) -> Tensor:
    r"""
    Return the DPO loss with label noise (cDPO), `-(1 - e) log sigmoid(m) - e log sigmoid(-m)`.

    Computed as `-log sigmoid(m) + e m`, which cannot overflow (`log sigmoid(m) - log sigmoid(-m) = m`).

    Args:
        margin: Implicit reward margins `m`. Shape `(B,)`.
        flip: Probability `e` that a label is wrong, in [0, 1]. Shape `(B,)` or a number.

    Returns:
        One loss per pair, in nats. Shape `(B,)`.
    """
    return flip * margin - F.logsigmoid(margin)


def compose_flips(flip: Tensor, smoothing: Tensor | float) -> Tensor:
    r"""
    Return the flip probability of two independent sources of error in sequence, `e (1 - a) + (1 - e) a`.

    A label that is wrong with probability `e` and then smoothed by `a` passes two binary symmetric channels; a
    probability of 0.5 stays 0.5.

    Args:
        flip: Probability `e` that the label itself is wrong. Shape `(B,)`.
        smoothing: SPA's `a` for doubtful pairs, else 0. Shape `(B,)` or a number.

    Returns:
        Probabilities. Shape `(B,)`.
    """
    return flip * (1 - smoothing) + (1 - flip) * smoothing


def preference_metrics(
    chosen: Tensor,
    rejected: Tensor,
    ref_chosen: Tensor,
    ref_rejected: Tensor,
    beta: float,
    flip: Tensor | float = 0.0,
) -> dict[str, float]:
    r"""
    Compute REAL's evaluation: `M = mean_i m_i` (Eq. 10) and `L = -mean_i log sigmoid(m_i)` (Eq. 11), in float64.

    Each pair counts once. Names and conventions are TRL's (rewards include `beta`, a tie is not accurate); added are
    the margin in units of log-probability, `margin_logratio = M / beta`, and the quantiles of the margin.

    Args:
        chosen, rejected, ref_chosen, ref_rejected: As in `implicit_margin`. Shape `(N,)`, at least one.
        beta: Weight of the KL term, above 0.
        flip: Probability that a label is wrong; the loss is `soft_label_loss`. Shape `(N,)` or a number.

    Returns:
        Metrics by name: `loss`, `rewards/…`, `margin_logratio`, `logps/…`.
    """
    logps = [values.double() for values in (chosen, rejected, ref_chosen, ref_rejected)]
    margin = implicit_margin(logps[0], logps[1], logps[2], logps[3], beta)
    quantiles = torch.quantile(margin, margin.new_tensor(list(QUANTILES.values())))
    means = {
        "loss": soft_label_loss(margin, flip),
        "rewards/chosen": beta * (logps[0] - logps[2]),
        "rewards/rejected": beta * (logps[1] - logps[3]),
        "rewards/accuracies": (margin > 0).double(),
        "rewards/margins": margin,
        "margin_logratio": margin / beta,
        "logps/chosen": logps[0],
        "logps/rejected": logps[1],
    }
    return {name: values.mean().item() for name, values in means.items()} | {
        f"rewards/margins_{name}": value for name, value in zip(QUANTILES, quantiles.tolist(), strict=True)
    }


@torch.no_grad()
def extrapolated_log_probs(
    hidden: Tensor,
    ref_hidden: Tensor,
    labels: Tensor,
    head: Head,
    ref_head: Head,
    strength: float,
    max_elements: int = MAX_ELEMENTS,
) -> Tensor:
    r"""
    Return log-probabilities under `pi_g`, the model with logits `h_g = (1 + lambda) h_theta - lambda h_ref` (SPA,
    Eq. 11-12).

    The result is exact: extrapolated log-probabilities would skip the normalisation, and a quantile of the margins
    would then flag the same pairs as without extrapolation. Logits are linear in the hidden state: if policy and
    reference share one head (LoRA), the states are mixed and the head runs once; otherwise it runs twice.

    Args:
        hidden: Last hidden states of the policy before each label. Shape `(N, d)`, of `N` tokens.
        ref_hidden: Last hidden states of the reference model. Shape `(N, d')`.
        labels: Token ids. Shape `(N,)`.
        head: Output layer of the policy.
        ref_head: Output layer of the reference model; the same tensors if they share it.
        strength: Extrapolation strength `lambda`, at least 0; at 0 the result is that of the policy.
        max_elements: Maximum number of logits in memory, in float32: a chunk of the vocabulary, never `(N, V)`.

    Returns:
        Log-probabilities of the labels, in nats, float32, without gradient. Shape `(N,)`.
    """
    hidden = hidden.float()
    if strength == 0:
        terms = [(1.0, hidden, head)]
    elif ref_head.weight is head.weight and ref_head.bias is head.bias:
        terms = [(1.0, (1 + strength) * hidden - strength * ref_hidden.float(), head)]
    else:
        terms = [(1 + strength, hidden, head), (-strength, ref_hidden.float(), ref_head)]
    return label_log_probs(terms, labels, max_elements)


def label_log_probs(terms: list[tuple[float, Tensor, Head]], labels: Tensor, max_elements: int) -> Tensor:
    """
    Return the log-softmax, at the labels, of the logits `sum_k scale_k (states_k W_k^T + b_k)`, in vocabulary chunks.
    Terms are scales, float32 states of shape `(N, d_k)` and heads. Shape `(N,)`, float32.
    """
    n_words = terms[0][2].weight.shape[0]
    size = max(1, min(n_words, max_elements // max(1, len(labels))))
    total = terms[0][1].new_full((len(labels),), -torch.inf)
    picked = torch.zeros_like(total)
    with torch.autocast(labels.device.type, enabled=False):
        for start in range(0, n_words, size):
            logits = _chunk_of_logits(terms, start, start + size)  # (N, size)
            total = torch.logaddexp(total, logits.logsumexp(1))
            place = labels - start
            inside = (place >= 0) & (place < logits.shape[1])
            at_label = logits.gather(1, place.clamp(0, logits.shape[1] - 1)[:, None])[:, 0]
            picked = torch.where(inside, at_label, picked)
    return picked - total


def _chunk_of_logits(terms: list[tuple[float, Tensor, Head]], start: int, end: int) -> Tensor:
    """Sum the logits of words `start` to `end`, in float32 for weights of any type. Shape `(N, end - start)`."""
    logits: Tensor | None = None
    for scale, states, head in terms:
        bias = None if head.bias is None else head.bias[start:end].float()
        part = F.linear(states, head.weight[start:end].float(), bias)
        part = part if scale == 1 else part.mul_(scale)
        logits = part if logits is None else logits.add_(part)
    assert logits is not None, "no terms"
    return logits
