"""Preference losses and measures, against naive float64 references and real log-probabilities of Pythia-2.8B."""

import math

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from support.shared_data import DATA, needs_data
from trl_real.functional.preference import (
    Head,
    compose_flips,
    extrapolated_log_probs,
    implicit_margin,
    preference_metrics,
    soft_label_loss,
)


BETA = 0.1


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def log_sigmoid(x: float) -> float:
    return -math.log1p(math.exp(-x)) if x > 0 else x - math.log1p(math.exp(x))


# Margins and losses.


def test_three_pairs_worked_out_by_hand():
    chosen, rejected = torch.tensor([-10.0, -42.0, -3.0]), torch.tensor([-12.0, -40.0, -7.0])
    ref_chosen, ref_rejected = torch.tensor([-11.0, -40.0, -3.0]), torch.tensor([-11.0, -41.0, -7.0])
    # Log ratios are 1, -2, 0 and -1, 1, 0, so margins are 0.2, -0.3, 0 at beta 0.1; the last is a tie.
    found = preference_metrics(chosen, rejected, ref_chosen, ref_rejected, BETA)
    assert found["rewards/margins"] == pytest.approx(-0.1 / 3, abs=1e-9)
    assert found["margin_logratio"] == pytest.approx(-1 / 3, abs=1e-9)
    assert found["rewards/margins"] == pytest.approx(BETA * found["margin_logratio"], abs=1e-12)
    assert found["rewards/chosen"] == pytest.approx(-0.1 / 3) and found["rewards/rejected"] == pytest.approx(0.0)
    assert found["rewards/accuracies"] == pytest.approx(1 / 3), "a tie is not accurate"
    expected = -(log_sigmoid(0.2) + log_sigmoid(-0.3) + log_sigmoid(0.0)) / 3
    assert found["loss"] == pytest.approx(expected, abs=1e-9)
    assert found["logps/chosen"] == pytest.approx(-55 / 3) and found["logps/rejected"] == pytest.approx(-59 / 3)
    assert found["rewards/margins_median"] == pytest.approx(0.0, abs=1e-9)
    assert found["rewards/margins_p05"] == pytest.approx(-0.3 + 0.1 * 0.3) and found["rewards/margins_p95"] > 0.17


@pytest.mark.parametrize("flip", [0.0, 0.1, 0.5])
def test_soft_loss_is_the_two_sided_loss(flip):
    margins = torch.linspace(-30, 30, 61, dtype=torch.float64)
    expected = [-(1 - flip) * log_sigmoid(m) - flip * log_sigmoid(-m) for m in margins.tolist()]
    assert torch.allclose(soft_label_loss(margins, flip), torch.tensor(expected, dtype=torch.float64), atol=1e-12)
    assert torch.allclose(soft_label_loss(margins.float(), flip).double(), margins.new_tensor(expected), atol=1e-5)


def test_certain_label_gives_dpo_and_noise_of_one_half_ignores_the_label():
    margins = torch.randn(50, generator=generator(0)) * 5
    assert torch.equal(soft_label_loss(margins, 0.0), -torch.nn.functional.logsigmoid(margins))
    assert torch.allclose(soft_label_loss(margins, 0.5), soft_label_loss(-margins, 0.5), atol=1e-6)


def test_large_margins_do_not_overflow():
    margins = torch.tensor([-1e5, 1e5], requires_grad=True)
    loss = soft_label_loss(margins, torch.tensor([0.1, 0.1]))
    loss.sum().backward()
    assert torch.allclose(loss, torch.tensor([0.9e5, 0.1e5])) and torch.isfinite(margins.grad).all()


def test_two_sources_of_label_error_compose():
    flips, smoothing = torch.rand(20_000, generator=generator(1)) / 2, 0.1
    wrong = torch.rand(20_000, generator=generator(2)) < flips
    flipped = torch.rand(20_000, generator=generator(3)) < smoothing
    assert compose_flips(flips, smoothing).mean().item() == pytest.approx(
        (wrong ^ flipped).double().mean().item(), abs=0.01
    )
    half = torch.tensor([0.5])
    assert compose_flips(half, smoothing) == half and compose_flips(flips, 0.0).equal(flips)
    assert torch.allclose(compose_flips(torch.zeros(3), torch.tensor([0.0, 0.1, 0.4])), torch.tensor([0.0, 0.1, 0.4]))


def test_metrics_do_not_depend_on_order_and_are_weighted_by_rows():
    logps = torch.randn(4, 11, generator=generator(4)) * 20
    whole = preference_metrics(*logps, BETA)
    again = preference_metrics(*logps[:, torch.randperm(11, generator=generator(5))], BETA)
    parts = [preference_metrics(*logps[:, part], BETA) for part in (slice(0, 4), slice(4, 8), slice(8, 11))]
    assert again == pytest.approx(whole)
    for name in ("loss", "rewards/margins", "rewards/accuracies", "margin_logratio"):
        assert whole[name] == pytest.approx((4 * parts[0][name] + 4 * parts[1][name] + 3 * parts[2][name]) / 11)


# SPA's extrapolated policy.


def heads(words: int = 37, width: int = 8, shared: bool = False, bias: bool = False, dtype=torch.float32):
    def head(seed):
        weight = torch.randn(words, width, generator=generator(seed)).to(dtype)
        return Head(weight, torch.randn(words, generator=generator(seed + 1)).to(dtype) if bias else None)

    first = head(10)
    return first, first if shared else head(20)


def states(n: int = 23, width: int = 8):
    both = torch.randn(2, n, width, generator=generator(30))
    return both[0], both[1], torch.randint(0, 37, (n,), generator=generator(31))


def logits(hidden, head):
    """Of the whole vocabulary, float64."""
    bias = 0 if head.bias is None else head.bias.double()
    return hidden.double() @ head.weight.double().T + bias


def naive_extrapolated(hidden, ref_hidden, labels, head, ref_head, strength):
    mixed = (1 + strength) * logits(hidden, head) - strength * logits(ref_hidden, ref_head)
    return mixed.log_softmax(1).gather(1, labels[:, None])[:, 0]


@pytest.mark.parametrize("shared", [False, True], ids=["two heads", "one head"])
@pytest.mark.parametrize("bias", [False, True], ids=["no bias", "bias"])
@pytest.mark.parametrize("max_elements", [1, 23 * 5, 23 * 36, 2**24])
def test_vocabulary_chunks_equal_the_whole_vocabulary(shared, bias, max_elements):
    (head, ref_head), (hidden, ref_hidden, labels) = heads(shared=shared, bias=bias), states()
    found = extrapolated_log_probs(hidden, ref_hidden, labels, head, ref_head, 0.5, max_elements)
    expected = naive_extrapolated(hidden, ref_hidden, labels, head, ref_head, 0.5)
    assert found.dtype == torch.float32 and (found.double() - expected).abs().max() < 1e-5


@pytest.mark.parametrize("shared", [False, True])
def test_weights_in_half_precision_are_multiplied_in_float32(shared):
    (head, ref_head), (hidden, ref_hidden, labels) = heads(shared=shared, dtype=torch.bfloat16), states()
    hidden, ref_hidden = hidden.bfloat16(), ref_hidden.bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        found = extrapolated_log_probs(hidden, ref_hidden, labels, head, ref_head, 0.5)
    expected = naive_extrapolated(hidden, ref_hidden, labels, head, ref_head, 0.5)
    assert found.dtype == torch.float32 and (found.double() - expected).abs().max() < 1e-5


def test_zero_extrapolation_is_the_policy():
    (head, ref_head), (hidden, ref_hidden, labels) = heads(), states()
    found = extrapolated_log_probs(hidden, ref_hidden, labels, head, ref_head, 0.0)
    expected = logits(hidden, head).log_softmax(1).gather(1, labels[:, None])[:, 0]
    assert (found.double() - expected).abs().max() < 1e-5


def test_no_gradient_and_no_token_are_accepted():
    (head, ref_head), (hidden, ref_hidden, labels) = heads(), states()
    hidden.requires_grad_(), head.weight.requires_grad_()
    assert not extrapolated_log_probs(hidden, ref_hidden, labels, head, ref_head, 0.5).requires_grad
    assert extrapolated_log_probs(hidden[:0], ref_hidden[:0], labels[:0], head, ref_head, 0.5).shape == (0,)


def renyi(policy, reference, strength):
    """`D_{1+lambda}(pi || ref)` of next-token laws given by log-probabilities, in float64. Shape `(T,)`."""
    return ((1 + strength) * policy - strength * reference).logsumexp(1) / strength


@pytest.mark.parametrize("shared", [False, True])
def test_the_margin_obeys_the_renyi_identity(shared):
    """`margin_g = (1 + lambda) margin - beta lambda (sum D(chosen) - sum D(rejected))`: methods.md 4.3."""
    strength, (head, ref_head) = 0.5, heads(shared=shared)
    hidden, ref_hidden, labels = states(12)
    chosen = torch.arange(12) < 7  # seven tokens against five
    policy, reference = logits(hidden, head).log_softmax(1), logits(ref_hidden, ref_head).log_softmax(1)

    def margin(per_token):
        own = reference.gather(1, labels[:, None])[:, 0]
        parts = [x[rows].sum() for x in (per_token.double(), own) for rows in (chosen, ~chosen)]
        return implicit_margin(*parts, BETA)

    found = margin(extrapolated_log_probs(hidden, ref_hidden, labels, head, ref_head, strength))
    divergence = renyi(policy, reference, strength)
    plain = margin(policy.gather(1, labels[:, None])[:, 0])
    expected = (1 + strength) * plain - BETA * strength * (divergence[chosen].sum() - divergence[~chosen].sum())
    assert found == pytest.approx(expected.item(), abs=1e-5)
    assert abs(found - (1 + strength) * plain) > 0.01, "the normalisation was forgotten, or makes no difference here"


# Real log-probabilities.


@needs_data("dpo_logps")
@pytest.mark.parametrize("file", ["pythia2.8b_hh", "pythia2.8b_shp"])
@pytest.mark.parametrize("policy", ["dpo", "dpo_alpha005", "dpo_alpha01"])
def test_real_log_probs_give_the_published_rewards(file, policy):
    names = [f"{who}_{which}_logps" for who in (policy, "reference") for which in ("chosen", "rejected")]
    rewards = [f"{policy}_{which}_reward" for which in ("chosen", "rejected")]
    table = pq.read_table(DATA / "dpo_logps" / f"{file}.parquet", columns=names + rewards).to_pydict()
    chosen, rejected, ref_chosen, ref_rejected = (np.array(table[name]) for name in names)
    r_chosen, r_rejected = (np.array(table[name]) for name in rewards)
    logps = [torch.tensor(x) for x in (chosen, rejected, ref_chosen, ref_rejected)]
    found = preference_metrics(*logps, BETA)
    rows = zip(*(x.tolist() for x in logps), strict=True)
    margins = np.array([BETA * ((c - rc) - (r - rr)) for c, r, rc, rr in rows])
    losses = [-log_sigmoid(m) for m in margins]
    assert np.abs(implicit_margin(*logps, BETA).numpy() - (r_chosen - r_rejected)).max() < 1e-5
    assert found["rewards/chosen"] == pytest.approx(r_chosen.mean(), abs=1e-5)
    assert found["rewards/rejected"] == pytest.approx(r_rejected.mean(), abs=1e-5)
    assert found["rewards/margins"] == pytest.approx(margins.mean(), abs=1e-5)
    assert found["margin_logratio"] == pytest.approx(margins.mean() / BETA, abs=1e-4)
    assert found["rewards/accuracies"] == pytest.approx((r_chosen > r_rejected).mean(), abs=1e-9)
    assert found["loss"] == pytest.approx(sum(losses) / len(losses), abs=1e-5)
    single = preference_metrics(*[x.float() for x in logps], BETA)
    assert single["loss"] == pytest.approx(found["loss"], abs=1e-5)
    for name, share in {"p05": 0.05, "p25": 0.25, "median": 0.5, "p75": 0.75, "p95": 0.95}.items():
        assert found[f"rewards/margins_{name}"] == pytest.approx(np.quantile(margins, share), abs=1e-9)
