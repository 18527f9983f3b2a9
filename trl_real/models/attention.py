"""
Attention within segments of a row of tokens: several ways to compute it, which give the same.

`loop` runs one causal attention per group of equally long sequences (views, no copies, no mask): for CPUs, whose calls
cost little. `flex` runs one kernel per layer over the blocks of the row in which somebody attends to somebody.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, flex_attention
from transformers import AttentionInterface
from transformers.integrations.flex_attention import repeat_kv

from trl_real.errors import TrlRealError
from trl_real.models.block_mask import block_mask
from trl_real.models.packing import Segments
from trl_real.runtime.devices import has_kernel_compiler


VARIABLE = "TRL_REAL_ATTENTION"  # environment variable with the name of the one to use
PREFIX = "trl_real_"  # of the names in transformers' attention interface
NOT_SUPPORTED = ("s_aux", "sinks", "position_bias")


def loop(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    segments: Segments | None = None,
    kept: dict[nn.Module, tuple] | None = None,
    dropout: float = 0.0,
    **kwargs,
) -> tuple[Tensor, None]:
    """
    Attention within segments, for the attention interface of transformers, one group of sequences at a time.

    Args:
        module: The attention layer.
        query: Shape `(1, heads, T, d_head)`.
        key: Shape `(1, key heads, T, d_head)`.
        value: Shape `(1, key heads, T, d_head)`.
        attention_mask: Ignored: transformers builds none for an unknown implementation.
        scaling: Factor of the logits, `d_head ** -0.5` where None.
        segments: Segments of the row of tokens.
        kept: Keys and values by layer, with their graph. A pass that gets an empty dict fills it; a pass that gets a
            filled one takes its prefixes from there, not from its own tokens.
        dropout: Probability in [0, 1) of dropping a weight.

    Returns:
        Output, shape `(1, T, heads, d_head)`, and None for the weights.

    Raises:
        ValueError: If the layer needs more, such as a cap; the reader pads instead.
    """
    _check_supported(("softcap", *NOT_SUPPORTED), kwargs)
    assert segments is not None, "a pass without segments"
    grouped = query.shape[1] != key.shape[1]
    # One split and one cat per pass: in the backward pass, each slice or write to a slice would fill a full gradient.
    lengths = [segment.count * segment.length for segment in segments]
    places = {segment.start: i for i, segment in enumerate(segments)}
    dtype = _precision(query, value)
    queries, keys, values = (states[0].to(dtype).split(lengths, dim=1) for states in (query, key, value))
    before = (keys, values, places)
    if kept is not None:
        before = kept.setdefault(module, before)
    outputs = []
    for i, segment in enumerate(segments):
        q, k, v = (states[i].unflatten(1, (segment.count, segment.length)) for states in (queries, keys, values))
        if segment.prefix:
            parts = [before[2][part.start] for part in segment.prefix]
            k, v = (
                torch.cat([*(states[j][:, None] for j in parts), own], dim=2)
                for states, own in zip(before[:2], (k, v), strict=True)
            )
        attended = _attend(q, k, v, _triangle(segments, i, q.device), scaling, grouped, dropout)
        outputs.append(attended.transpose(1, 2).flatten(0, 1))  # (count length, heads, d_head)
    return torch.cat(outputs)[None].to(value.dtype), None


def _check_supported(names: tuple[str, ...], given: dict[str, Any]) -> None:
    found = [name for name in names if given.get(name) is not None]
    if found:
        raise ValueError(f"attention within segments does not support {found}")


def _triangle(segments: Segments, i: int, device: torch.device) -> Tensor | None:
    """Return which tokens the `i`-th segment's attend to, its prefix first; None if plain causal attention does it."""
    segment, masks = segments[i], segments.masks
    if not segment.prefix:
        return None
    if (i, device) not in masks:
        n_before = sum(part.stop - part.start for part in segment.prefix)
        everything = torch.ones(segment.length, n_before + segment.length, dtype=torch.bool, device=device)
        masks[i, device] = everything.tril(n_before)
    return masks[i, device]


def _precision(query: Tensor, value: Tensor) -> torch.dtype:
    """Return the values' precision; float32 for a backward pass on a CPU, where bfloat16 takes twice as long."""
    slow = query.requires_grad and query.device.type == "cpu" and value.dtype == torch.bfloat16
    return torch.float32 if slow else value.dtype


def _attend(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scaling: float | None, grouped: bool, dropout: float
) -> Tensor:
    """Attend. Shape `(heads, count, length, d_head)` to `(count, heads, length, d_head)`."""
    with torch.autocast(q.device.type, enabled=False):  # autocast would choose another precision
        return nn.functional.scaled_dot_product_attention(
            q.transpose(0, 1),
            k.transpose(0, 1),
            v.transpose(0, 1),
            attn_mask=mask,
            dropout_p=dropout,
            is_causal=mask is None,
            scale=scaling,
            enable_gqa=grouped,
        )


def flex(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    segments: Segments | None = None,
    kept: dict[nn.Module, tuple] | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    **kwargs,
) -> tuple[Tensor, None]:
    """
    Attention within segments by one call of torch's flex attention; arguments and errors as in `loop`, but no dropout.

    Args:
        softcap: Bound `c` of the logits, which become `c tanh(logit / c)`.
    """
    _check_supported(NOT_SUPPORTED, kwargs)
    if dropout:
        raise ValueError("flex attention has no dropout")
    assert segments is not None, "a pass without segments"
    dtype, n_before = _precision(query, value), 0
    q, k, v = (states.to(dtype) for states in (query, key, value))
    if kept is not None:
        before = kept.setdefault(module, (k, v))
        if before[0] is not k:
            n_before = before[0].shape[2]
            k, v = (torch.cat(both, dim=2) for both in zip(before, (k, v), strict=True))
    mask = segments.masks.get(("blocks", q.device))
    if mask is None:  # by the first layer of a pass
        mask = segments.masks["blocks", q.device] = block_mask(segments, n_before, q.device)
    groups = q.shape[1] // k.shape[1]
    if q.shape[1] & (q.shape[1] - 1):  # as transformers does: the kernels group heads by powers of 2
        k, v, groups = repeat_kv(k, groups), repeat_kv(v, groups), 1
    with torch.autocast(q.device.type, enabled=False):
        if q.device.type == "cpu":
            output = _materialized(q, k, v, mask, scaling, softcap)
        else:
            options = {"block_mask": mask, "scale": scaling, "enable_gqa": groups > 1}
            output = compiled_flex()(q, k, v, score_mod=capped_by(softcap, q.device), **options)
    return output.transpose(1, 2).to(value.dtype), None


@cache
def compiled_flex() -> Callable[..., Tensor]:
    """Return torch's flex attention, compiled once for passes of any length."""
    return torch.compile(flex_attention, dynamic=True)


def capped_by(softcap: float | None, device: torch.device) -> Callable[..., Tensor] | None:
    """Return the function of a logit that caps it, None without a cap."""
    if softcap is None:
        return None
    cap = torch.tensor(softcap, device=device)  # a number would become a symbol, which inductor does not compile

    def capped(score: Tensor, _batch: Tensor, _head: Tensor, _query: Tensor, _key: Tensor) -> Tensor:
        return cap * torch.tanh(score / cap)

    return capped


def _materialized(
    q: Tensor, k: Tensor, v: Tensor, mask: BlockMask, scaling: float | None, softcap: float | None
) -> Tensor:
    """Attend by the mask's function, with all logits in memory: on a CPU flex attention has no backward pass."""
    k, v = (repeat_kv(states, q.shape[1] // k.shape[1]) for states in (k, v))
    logits = q @ k.mT * (q.shape[-1] ** -0.5 if scaling is None else scaling)
    if softcap:
        logits = softcap * torch.tanh(logits / softcap)
    rows, columns = torch.arange(q.shape[2])[:, None], torch.arange(k.shape[2])
    return logits.masked_fill(~mask.mask_mod(rows, rows, rows, columns), -torch.inf).softmax(-1) @ v


ATTENTIONS: dict[str, Callable[..., tuple[Tensor, None]]] = {"loop": loop, "flex": flex}
for _name, _function in ATTENTIONS.items():
    AttentionInterface.register(PREFIX + _name, _function)


def attentions_for(device: torch.device) -> tuple[str, ...]:
    """
    Return the names in `ATTENTIONS` to try on a device, the best first; the environment variable's alone if it is set.

    Raises:
        TrlRealError: If the environment variable has another value.
    """
    asked = os.environ.get(VARIABLE)
    if asked and asked not in ATTENTIONS:
        raise TrlRealError(
            f"{VARIABLE}={asked!r} is not one of {', '.join(ATTENTIONS)}. Unset it, or give one of them."
        )
    if asked:
        return (asked,)
    return ("flex", "loop") if has_kernel_compiler(device) else ("loop",)


@contextmanager
def packed(backbone: nn.Module, attention: str) -> Iterator[None]:
    """Let the backbone attend within segments, and restore its own attention on leaving."""
    configs = {id(m.config): m.config for m in backbone.modules() if hasattr(m, "config")}.values()
    before = [(config, config._attn_implementation) for config in configs if hasattr(config, "_attn_implementation")]
    try:
        for config, _ in before:
            config._attn_implementation = PREFIX + attention
        yield
    finally:
        for config, implementation in before:
            config._attn_implementation = implementation


def attend_within_given_segments(backbone: nn.Module, attention: str) -> None:
    """
    Let the backbone attend within segments whenever it is called with some, and by its own attention otherwise. It
    stays so: with gradient checkpointing, layers run again in the backward pass, after a `packed` block has ended.
    """
    for module in backbone.modules():
        if hasattr(getattr(module, "config", None), "_attn_implementation"):
            vars(module)["_within_segments"] = PREFIX + attention
            if _switch not in module._forward_pre_hooks.values():
                module.register_forward_pre_hook(_switch, with_kwargs=True)
                module.register_forward_hook(_switch_back, with_kwargs=True, always_call=True)


def _switch(module: Any, _args: tuple, inputs: dict[str, Any]) -> None:
    within = vars(module)["_within_segments"]
    if "segments" in inputs and module.config._attn_implementation != within:
        vars(module)["_own_attention"] = module.config._attn_implementation
        module.config._attn_implementation = within


def _switch_back(module: Any, *_: Any) -> None:
    if own := vars(module).pop("_own_attention", None):
        module.config._attn_implementation = own
