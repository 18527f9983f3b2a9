"""What TRL's loss computes on its way and keeps to itself, overheard by forward hooks: no forward is run twice."""

from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.functional import linear

from trl_real.errors import TrlRealError
from trl_real.functional.preference import Head, extrapolated_log_probs


# Half precision sums up in another order here and there, which rounds a logit the other way.
TOLERANCE, HALF_TOLERANCE = 1e-3, 2e-2
N_CHECKED = 64  # tokens, whose logits are held whole


@dataclass
class Call:
    """One forward of a model with TRL's fused head: its per-token outputs, and what its head was applied to."""

    outputs: Any
    states: Tensor | None = None
    head: Head | None = None
    dtype: torch.dtype | None = None  # of the head's products: under autocast not that of the states


@dataclass
class PairLogProbs:
    """Sequence log-probabilities of a batch of pairs, as TRL's loss sums them. Each of shape `(B,)`."""

    chosen: Tensor
    rejected: Tensor
    ref_chosen: Tensor
    ref_rejected: Tensor

    def detached(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The four of them without gradient."""
        return self.chosen.detach(), self.rejected.detach(), self.ref_chosen.detach(), self.ref_rejected.detach()


class Recorder:
    """
    Keeps the outputs of the policy's and the reference's forwards while it is entered.

    The first call of the policy is the policy's. The reference's is the first of the reference model, where there is
    one, and otherwise the policy's second, with its adapters off.

    Args:
        policy: The model that is trained, unwrapped.
        reference: The reference model, unwrapped; None if it is the policy without its adapters, or precomputed.
        with_states: Whether last hidden states and heads are wanted, too.
    """

    def __init__(self, policy: nn.Module, reference: nn.Module | None, with_states: bool = False):
        self.models = [policy] if reference is None else [policy, reference]
        self.with_states = with_states
        self.calls: dict[nn.Module, list[Call]] = {model: [] for model in self.models}
        self._states: tuple[Tensor, Head, torch.dtype] | None = None
        self._handles: list[Any] = []

    def __enter__(self):
        for model in self.models:
            if self.with_states:
                causal_lm: Any = model.get_base_model() if isinstance(model, PeftModel) else model
                self._handles.append(causal_lm.base_model.register_forward_hook(self._keep_states(causal_lm)))
            self._handles.append(model.register_forward_hook(self._keep_call))
        return self

    def __exit__(self, *_):
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    @property
    def policy(self) -> Call:
        """The policy's forward."""
        return self._call(self.models[0], 0)

    @property
    def reference(self) -> Call:
        """The reference's forward."""
        return self._call(self.models[-1], 0 if len(self.models) == 2 else 1)

    def _call(self, model: nn.Module, i: int) -> Call:
        if len(self.calls[model]) <= i:
            raise TrlRealError(
                "The forwards of TRL's loss ran without their hooks, as some compiled or wrapped models do. Leave "
                "torch_compile out, or drop the column 'label_confidence' and noise_smoothing."
            )
        return self.calls[model][i]

    def _keep_call(self, model: nn.Module, _args: tuple, outputs: Any) -> None:
        if getattr(outputs, "log_probs", None) is not None:  # TRL also calls models without its fused head.
            self.calls[model].append(Call(outputs, *(self._states or ())))
        self._states = None

    def _keep_states(self, causal_lm: Any):
        def keep(_module: nn.Module, _args: tuple, outputs: Any) -> None:
            # The head is looked up now: with another adapter it may be another one.
            layer, states = causal_lm.get_output_embeddings(), outputs.last_hidden_state.detach()
            kind = states.device.type  # by now, since the loss is computed outside of autocast
            dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else states.dtype
            self._states = states, Head(layer.weight, layer.bias), dtype

        return keep


def pair_log_probs(
    record: Recorder, inputs: dict[str, Any], ld_alpha: float | None, precomputed: bool
) -> PairLogProbs:
    """The four log-probabilities of each pair that TRL's loss was computed from."""
    mask = inputs["completion_mask"][:, 1:]
    chosen, rejected = sequence_log_probs(record.policy.outputs.log_probs, mask, ld_alpha).chunk(2)
    if precomputed:
        return PairLogProbs(chosen, rejected, inputs["ref_chosen_logps"], inputs["ref_rejected_logps"])
    reference = sequence_log_probs(record.reference.outputs.log_probs, mask, ld_alpha)
    return PairLogProbs(chosen, rejected, *reference.chunk(2))


def sequence_log_probs(per_token: Tensor, mask: Tensor, ld_alpha: float | None) -> Tensor:
    """
    Sums over completions, in which LD-DPO weights what is longer than the pair's shorter response by `ld_alpha`.

    Args:
        per_token: Log-probabilities, 0 outside completions, after those of a prompt adapter's virtual tokens if there
            are any. Shape `(2 B, T')` with `T' >= T`.
        mask: 1 at completion tokens, chosen responses first. Shape `(2 B, T)`.
        ld_alpha: Weight of the tail; None for 1.

    Returns:
        Log-probabilities in nats. Shape `(2 B,)`.
    """
    per_token = aligned(per_token, mask)
    if ld_alpha is None:
        return per_token.sum(1)
    shared = mask.sum(1).view(2, -1).amin(0).repeat(2)
    tail = mask.cumsum(1) > shared[:, None]
    return (per_token * torch.where(tail, ld_alpha, 1.0)).sum(1)


def aligned(per_token: Tensor, mask: Tensor) -> Tensor:
    """The positions of real tokens: prompt-learning adapters put virtual ones in front. Shape `(2 B, T, …)`."""
    return per_token[:, -mask.shape[1] :]


def extrapolated_pair(
    record: Recorder, inputs: dict[str, Any], strength: float, ld_alpha: float | None
) -> tuple[Tensor, Tensor]:
    """
    Log-probabilities of chosen and rejected under SPA's extrapolated policy. Two of shape `(B,)`, without gradient.

    Raises:
        TrlRealError: If a head is sharded.
    """
    mask = inputs["completion_mask"][:, 1:]
    per_token = torch.zeros(mask.shape, device=mask.device)
    labels, policy, reference = _at_completions(record, inputs, mask)
    per_token[mask.bool()] = extrapolated_log_probs(
        policy[0], reference[0], labels, policy[1], reference[1], strength
    ).to(mask.device)
    chosen, rejected = sequence_log_probs(per_token, mask, ld_alpha).chunk(2)
    return chosen, rejected


def check_head(record: Recorder, inputs: dict[str, Any]) -> None:
    """
    Compare the policy's own log-probabilities of some tokens with those from its hidden states and the weights of its
    head, rounded as TRL rounds them: in bfloat16 a logit of 20 is off by .04, and a sure policy's log-probability by
    more than a scale would move it.

    Raises:
        TrlRealError: If they differ, as where a model scales or caps its logits, which extrapolation does not.
    """
    mask = inputs["completion_mask"][:, 1:]
    labels, (states, head), _ = _at_completions(record, inputs, mask, with_reference=False)
    labels, states, dtype = labels[:N_CHECKED, None], states[:N_CHECKED], record.policy.dtype
    theirs = aligned(record.policy.outputs.log_probs.detach(), mask)[mask.bool()][:N_CHECKED].to(states.device)
    bias = None if head.bias is None else head.bias.to(dtype)
    with torch.autocast(states.device.type, enabled=False):
        logits = linear(states.to(dtype), head.weight.to(dtype), bias)
    ours = logits.float().log_softmax(-1).gather(1, labels).squeeze(1)
    off = (ours - theirs).abs().mean() / theirs.abs().mean().clamp_min(1e-6)
    tolerance = TOLERANCE if dtype in (torch.float32, torch.float64) else HALF_TOLERANCE
    if not off <= tolerance and len(labels):
        raise TrlRealError(
            f"noise_extrapolation needs logits that are hidden states times the head's weights; this model's differ "
            f"(by {100 * off:.2g} % in log-probability, as with scaled or capped logits). Type noise_extrapolation=0."
        )


def _at_completions(record: Recorder, inputs: dict[str, Any], mask: Tensor, with_reference: bool = True):
    """Labels, and states with heads of the policy and the reference, at completion tokens. Shapes `(N,)`, `(N, d)`."""
    calls = [record.policy, record.reference] if with_reference else [record.policy]
    found = []
    for call in calls:
        assert call.head is not None and call.states is not None
        weight = call.head.weight
        if isinstance(weight, DTensor) or hasattr(weight, "ds_id") or weight.dim() != 2:
            raise TrlRealError(
                "noise_extrapolation applies the language model's head itself, but its weights are spread over "
                "processes. Type noise_extrapolation=0, or train without sharding."
            )
        states = aligned(call.states[:, :-1], mask)[mask.bool()].to(weight.device)
        found.append((states, call.head))
    labels = inputs["input_ids"][:, 1:][mask.bool()].to(found[0][1].weight.device)
    return labels, found[0], found[-1]
