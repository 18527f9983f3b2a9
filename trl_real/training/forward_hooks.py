"""Forward hooks that record what TRL's loss computes, so that no forward pass runs twice."""

from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.functional import linear

from trl_real.errors import TrlRealError
from trl_real.functional.preference import Head, extrapolated_log_probs


# Largest relative error in `check_head`. In half precision the order of a sum changes how a logit is rounded.
TOLERANCE, HALF_TOLERANCE = 1e-3, 2e-2
SHARDED_HEAD = (
    "noise_extrapolation applies the language model's head itself, but its weights are sharded over processes. "
    "Type noise_extrapolation=0, or train without sharding."
)
N_CHECKED = 64  # tokens; all their logits are in memory at once


@dataclass
class Call:
    """One forward pass with TRL's fused head: outputs per token, and the inputs of the head."""

    outputs: Any
    states: Tensor | None = None
    head: Head | None = None
    dtype: torch.dtype | None = None  # of the head's products; under autocast it differs from the dtype of the states


@dataclass
class PairLogProbs:
    """Sequence log-probabilities of a batch of pairs, summed as in TRL's loss. Shape `(B,)` each."""

    chosen: Tensor
    rejected: Tensor
    ref_chosen: Tensor
    ref_rejected: Tensor

    def detached(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return all four without gradient."""
        return self.chosen.detach(), self.rejected.detach(), self.ref_chosen.detach(), self.ref_rejected.detach()


class Recorder:
    """
    Context manager that records the forward passes of the policy and of the reference.

    The first call of the policy's model is the policy's pass. The reference's pass is the first call of the reference
    model if there is one, else the second call of the policy's model, with adapters off.

    Args:
        policy: Model to train, unwrapped.
        reference: Reference model, unwrapped; None if it is the policy without adapters, or precomputed.
        with_states: Whether to record last hidden states and heads as well.
    """

    def __init__(self, policy: nn.Module, reference: nn.Module | None, with_states: bool = False):
        self.models = [policy] if reference is None else [policy, reference]
        self.with_states = with_states
        if with_states and any(is_sharded(weight) for model in self.models for weight in model.parameters()):
            raise TrlRealError(SHARDED_HEAD)  # in the forward pass, weights look whole, and are gone after it
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
        """Forward pass of the policy."""
        return self._call(self.models[0], 0)

    @property
    def reference(self) -> Call:
        """Forward pass of the reference."""
        return self._call(self.models[-1], 0 if len(self.models) == 2 else 1)

    def _call(self, model: nn.Module, i: int) -> Call:
        if len(self.calls[model]) <= i:
            raise TrlRealError(
                "The hooks on TRL's forward passes did not run, as with some compiled or wrapped models. Leave "
                "torch_compile out, or drop the column 'label_confidence' and noise_smoothing."
            )
        return self.calls[model][i]

    def _keep_call(self, model: nn.Module, _args: tuple, outputs: Any) -> None:
        if getattr(outputs, "log_probs", None) is not None:  # TRL also calls models without its fused head.
            self.calls[model].append(Call(outputs, *(self._states or ())))
        self._states = None

    def _keep_states(self, causal_lm: Any):
        scale = logit_scale(causal_lm.config)

        def keep(_module: nn.Module, _args: tuple, outputs: Any) -> None:
            # Look up the head here: another adapter may have another head.
            layer, states = causal_lm.get_output_embeddings(), outputs.last_hidden_state.detach()
            bias = layer.bias
            if scale != 1:
                states, bias = states * scale, bias if bias is None else bias * scale
            kind = states.device.type  # read here: the loss is computed outside of autocast
            dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else states.dtype
            self._states = states, Head(layer.weight, bias), dtype

        return keep


def is_sharded(weight: Tensor) -> bool:
    """Return whether a process has only a part of a weight, as under FSDP2, tensor parallelism or DeepSpeed ZeRO-3."""
    return isinstance(weight, DTensor) or hasattr(weight, "ds_id")


def logit_scale(config: Any) -> float:
    """Return the constant that a model multiplies its logits with, by its configuration; 1 if there is none."""
    config = config.get_text_config()
    named = (getattr(config, name, None) for name in ("logit_scale", "output_multiplier", "lm_head_multiplier"))
    scale = next((value for value in named if value is not None), None)
    divisor = getattr(config, "logits_scaling", None)
    if scale is None and divisor is not None:  # Granite and MiniCPM3 divide by it
        scale = divisor if config.model_type == "hyperclovax" else 1 / divisor
    return 1.0 if scale is None else float(scale)


def check_logits(config: Any, fix: str) -> None:
    """
    Check, before anything runs, that a model's logits are linear in its hidden states, as the extrapolation needs.

    Raises:
        TrlRealError: If the model caps them, as Gemma 2 does.
    """
    cap = getattr(config.get_text_config(), "final_logit_softcapping", None)
    if cap:
        raise TrlRealError(
            "noise_extrapolation needs logits that are linear in the hidden states, and this model caps them "
            f"(final_logit_softcapping={cap:g}). {fix}"
        )


def pair_log_probs(
    record: Recorder, inputs: dict[str, Any], ld_alpha: float | None, precomputed: bool
) -> PairLogProbs:
    """Return the four log-probabilities per pair that TRL computed the loss from."""
    mask = inputs["completion_mask"][:, 1:]
    chosen, rejected = sequence_log_probs(record.policy.outputs.log_probs, mask, ld_alpha).chunk(2)
    if precomputed:
        return PairLogProbs(chosen, rejected, inputs["ref_chosen_logps"], inputs["ref_rejected_logps"])
    reference = sequence_log_probs(record.reference.outputs.log_probs, mask, ld_alpha)
    return PairLogProbs(chosen, rejected, *reference.chunk(2))


def sequence_log_probs(per_token: Tensor, mask: Tensor, ld_alpha: float | None) -> Tensor:
    """
    Sum log-probabilities over completions. LD-DPO weights the tokens beyond the length of the pair's shorter response
    by `ld_alpha`.

    Args:
        per_token: Log-probabilities, 0 outside completions; a prompt adapter's virtual tokens come first. Shape
            `(2 B, T')` with `T' >= T`.
        mask: 1 at completion tokens, chosen responses first. Shape `(2 B, T)`.
        ld_alpha: Weight of the tokens beyond that length; None for 1.

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
    """Drop the virtual tokens that prompt-learning adapters put in front. Shape `(2 B, T, …)`."""
    return per_token[:, -mask.shape[1] :]


def extrapolated_pair(
    record: Recorder, inputs: dict[str, Any], strength: float, ld_alpha: float | None
) -> tuple[Tensor, Tensor]:
    """
    Return the log-probabilities of chosen and rejected under SPA's extrapolated policy, without gradient. Shape `(B,)`
    each.

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
    Check that the policy's log-probabilities of some tokens follow from its hidden states and the weights of its head.

    Products are rounded as in TRL: in bfloat16 a logit of 20 is off by .04, which changes the log-probability of a
    confident policy more than a scale of the logits would.

    Raises:
        TrlRealError: If they do not: the model changes its logits in a way that `logit_scale` does not know.
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
            "noise_extrapolation needs logits equal to states times the head's weights, up to a constant scale, but "
            f"they differ by {100 * off:.2g} % in log-probability. Type noise_extrapolation=0."
        )


def _at_completions(record: Recorder, inputs: dict[str, Any], mask: Tensor, with_reference: bool = True):
    """Return the labels at completion tokens, and the states and heads of both models. Shapes `(N,)`, `(N, d)`."""
    calls = [record.policy, record.reference] if with_reference else [record.policy]
    found = []
    for call in calls:
        assert call.head is not None and call.states is not None
        weight = call.head.weight
        if is_sharded(weight) or weight.dim() != 2:
            raise TrlRealError(SHARDED_HEAD)
        read_once = len(call.states) != len(mask)  # then there are only the states before labels. Shape (1, N, d)
        states = call.states[0] if read_once else aligned(call.states[:, :-1], mask)[mask.bool()]
        found.append((states.to(weight.device), call.head))
    labels = inputs["input_ids"][:, 1:][mask.bool()].to(found[0][1].weight.device)
    return labels, found[0], found[-1]
