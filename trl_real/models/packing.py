"""
Many short sequences in one forward pass without padding.

Sequences are concatenated into one row of tokens. A registered attention function runs one causal attention per
group of equally long sequences (views, no copies, no mask), so every other layer sees a single dense matrix product.
Responses to the same prompt share it: the prompt is read once and every response attends to it.
"""

from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface


ATTENTION = "trl_real_packed"
NOT_SUPPORTED = ("softcap", "s_aux", "sinks", "position_bias")


@dataclass
class Segment:
    """
    `count` adjacent sequences of `length` tokens each, from index `start` on.

    A segment with a `prefix`, the slices of the tokens that it continues, has one sequence, and `mask` (None: plain
    causal) lets each token attend to the prefix and to earlier tokens. Shape `(length, prefix length + length)`, bool.
    """

    start: int
    count: int
    length: int
    prefix: tuple[slice, ...] = ()
    mask: Tensor | None = None

    @classmethod
    def after(cls, start: int, length: int, prefix: tuple[slice, ...]) -> "Segment":
        """Return one sequence that continues the tokens at `prefix`."""
        n_before = sum(part.stop - part.start for part in prefix)
        mask = torch.ones(length, n_before + length).tril(n_before).bool() if n_before else None
        return cls(start, 1, length, prefix, mask)


@dataclass
class Line:
    """
    Sequences in one row of tokens.

    Args:
        tokens: Token ids. `T` of them.
        positions: Position of each token in its own sequence. `T` of them.
        segments: Segments of the row, for the attention.
    """

    tokens: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    segments: list[Segment] = field(default_factory=list)

    def append(
        self, tokens: tuple[int, ...], position: int = 0, prefix: tuple[slice, ...] = (), merge: bool = False
    ) -> slice:
        """
        Append tokens and return their slice.

        Args:
            tokens: Token ids.
            position: Position of the first one in its sequence.
            prefix: Slices of the tokens that they continue.
            merge: Whether they may join the segment of equally long tokens before them; no others can continue them.
        """
        start, length = len(self.tokens), len(tokens)
        last = self.segments[-1] if self.segments else None
        if merge and last and not prefix and not last.prefix and last.length == length:
            last.count += 1
        elif length:
            self.segments.append(Segment.after(start, length, prefix))
        self.tokens += tokens
        self.positions += range(position, position + length)
        return slice(start, start + length)

    def inputs(self, device: Any) -> dict[str, Any]:
        """Return the inputs of the model."""
        tokens, positions = (torch.tensor([values], device=device) for values in (self.tokens, self.positions))
        return {"input_ids": tokens, "position_ids": positions, "segments": self.segments}


@dataclass
class Tree:
    """Tokens of a prompt (none, if responses are read alone) and of the responses that share it."""

    prompt: tuple[int, ...]
    responses: list[tuple[int, ...]]
    ids: list[int]

    @property
    def n_tokens(self) -> int:
        """Number of tokens, the prompt counted once."""
        return len(self.prompt) + sum(map(len, self.responses))


@dataclass
class Pack(Line):
    """
    One forward pass over trees.

    Args:
        owners: Output row that each token is averaged into, -1 for a prompt's. `T` of them.
        ids: Response of each output row. `R` of them.
    """

    owners: list[int] = field(default_factory=list)
    ids: list[int] = field(default_factory=list)

    def add(self, tree: Tree) -> None:
        """Append a tree's tokens."""
        prefix = (self.append(tree.prompt),) if tree.prompt else ()
        self.owners += [-1] * len(tree.prompt)
        for response, identifier in zip(tree.responses, tree.ids, strict=True):
            self.append(response, len(tree.prompt), prefix, merge=True)
            self.owners += [len(self.ids)] * len(response)
            self.ids.append(identifier)


def make_packs(trees: list[Tree], max_tokens: int) -> list[Pack]:
    """
    Put trees, longest first, into packs of at most `max_tokens` tokens (a longer tree gets its own pack). The packs do
    not depend on the order of the trees, except for the order of equal trees.
    """
    packs: list[Pack] = []
    room = 0
    for tree in sorted(trees, key=lambda t: (-t.n_tokens, t.prompt, t.responses)):
        if tree.n_tokens > room:
            packs.append(Pack())
            room = max_tokens
        packs[-1].add(tree)
        room -= tree.n_tokens
    return packs


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    segments: Sequence[Segment] = (),
    kept: dict[nn.Module, tuple] | None = None,
    dropout: float = 0.0,
    **kwargs,
) -> tuple[Tensor, None]:
    """
    Attention within segments, for the attention interface of transformers.

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
    """
    if any(kwargs.get(name) is not None for name in NOT_SUPPORTED):
        raise ValueError(f"packed_attention supports none of {NOT_SUPPORTED}")  # the reader pads instead
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
        mask = segment.mask = segment.mask if segment.mask is None else segment.mask.to(q.device)  # once per pass
        attended = _attend(q, k, v, mask, scaling, grouped, dropout)
        outputs.append(attended.transpose(1, 2).flatten(0, 1))  # (count length, heads, d_head)
    return torch.cat(outputs)[None].to(value.dtype), None


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


AttentionInterface.register(ATTENTION, packed_attention)


@contextmanager
def packed(backbone: nn.Module):
    """Let the backbone attend within segments, and restore its own attention on leaving."""
    configs = {id(m.config): m.config for m in backbone.modules() if hasattr(m, "config")}.values()
    before = [(config, config._attn_implementation) for config in configs if hasattr(config, "_attn_implementation")]
    try:
        for config, _ in before:
            config._attn_implementation = ATTENTION
        yield
    finally:
        for config, implementation in before:
            config._attn_implementation = implementation


def attend_within_given_segments(backbone: nn.Module) -> None:
    """
    Let the backbone attend within segments whenever it is called with some, and by its own attention otherwise. It
    stays so: with gradient checkpointing, layers run again in the backward pass, after a `packed` block has ended.
    """
    for module in backbone.modules():
        switchable = hasattr(getattr(module, "config", None), "_attn_implementation")
        if switchable and _switch not in module._forward_pre_hooks.values():
            module.register_forward_pre_hook(_switch, with_kwargs=True)
            module.register_forward_hook(_switch_back, with_kwargs=True, always_call=True)


def _switch(module: Any, _args: tuple, inputs: dict[str, Any]) -> None:
    if "segments" in inputs and module.config._attn_implementation != ATTENTION:
        vars(module)["_own_attention"] = module.config._attn_implementation
        module.config._attn_implementation = ATTENTION


def _switch_back(module: Any, *_: Any) -> None:
    if own := vars(module).pop("_own_attention", None):
        module.config._attn_implementation = own


def fits_window(config: Any, longest: int) -> bool:
    """Return whether no layer's window or chunk is shorter than the longest sequence; packing supports neither."""
    limits = (getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size"))
    return all(not limit or limit >= longest for limit in limits)


def made_up(vocab_size: int, lengths: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Make up sequences of tokens, one of each length, to check a model with."""
    return [tuple((7919 * i + 13 * n) % vocab_size for i in range(n)) for n in lengths]


def gives_the_same(
    together: Callable[[], Tensor], alone: Callable[[], Tensor], exact: bool, rough: float = 5e-2
) -> bool:
    """
    Return whether packing equals one sequence at a time. It silently does not if the model's own attention code
    ignores the segments, if it has biases, caps or sinks, or if layers have a state.

    Args:
        together: Function that runs the model on packed sequences; an error means that it cannot.
        alone: Function that returns the expected values.
        exact: Whether the model runs in float32.
        rough: Tolerance for lower precision, relative to the largest value.
    """
    try:
        found = together()
    except (TypeError, ValueError, RuntimeError, IndexError):
        return False
    expected = alone()
    return bool((found - expected).abs().max() <= (1e-3 if exact else rough) * expected.abs().max())
