"""Forward and backward passes over many responses: their tokens, scored tokens, and gradients per response."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, NamedTuple

import torch
from torch import Tensor

from trl_real.models.packing import Line
from trl_real.models.sequences import length_batches, pad
from trl_real.runtime.devices import send


# Number of logits processed together: they should fit into a core's cache.
CHUNK = 2**19


class LabelLogProbs(torch.autograd.Function):
    """
    Log-probabilities of labels, with backward pass `one_hot - softmax`, by chunks of rows that fit into the cache:
    computed in float32 for any precision of the logits, of which no full float32 copy is made. (In float32,
    `log_softmax` over 49,152 words puts SmolLM2-135M's gradients off by 3e-5 to 1e-4, relative; with `logsumexp` by
    4e-6.)

    Args:
        logits: Logits. Shape `(T, V)`.
        labels: Token ids. Shape `(T,)`.
        dtype: Precision of the sums.

    Returns:
        Log-probabilities in nats. Shape `(T,)`.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor, dtype: torch.dtype) -> Tensor:
        size = max(1, CHUNK // logits.shape[1])
        totals = torch.cat([chunk.to(dtype).logsumexp(1) for chunk in logits.split(size)])
        ctx.save_for_backward(logits, labels, totals)
        ctx.size = size
        return logits.gather(1, labels[:, None])[:, 0].to(dtype) - totals

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        logits, labels, totals = ctx.saved_tensors
        found = torch.empty_like(logits)
        parts = (x.split(ctx.size) for x in (found, logits, labels, totals[:, None], gradient[:, None]))
        for out, chunk, label, total, factor in zip(*parts, strict=True):
            # In place: malloc does not reuse two buffers of this size at a time, and page faults triple the time.
            shares = chunk.to(total.dtype, copy=True).sub_(total).exp_().mul_(-factor)
            out.copy_(shares.scatter_add_(1, label[:, None], factor))
        return found, None, None


class Row(NamedTuple):
    """
    One response, scored by its summed log-probabilities, or two: the score of the first minus that of the second.

    Args:
        prompt: Ids of the context.
        responses: Ids of the one or two responses.
    """

    prompt: tuple[int, ...]
    responses: tuple[tuple[int, ...], ...]

    @property
    def n_tokens(self) -> int:
        """Number of tokens, the prompt counted once."""
        return len(self.prompt) + sum(map(len, self.responses))

    @property
    def n_scored(self) -> int:
        """Number of response tokens with a token before them, on which their probability depends."""
        return sum(len(response) - (not self.prompt) for response in self.responses if response)


@dataclass
class Pass:
    """
    One forward and backward pass; `B` rows.

    Args:
        ids: Number of each row in the caller's list. `B` of them.
        tokens: Token ids. Shape `(b, L)`.
        before: Index (if padded: column) of the token before each scored token. `T` of them.
        labels: Scored tokens. `T` of them.
        signs: Sign of each scored token: 1.0, or -1.0 in a second response. `T` of them.
        n_tokens: Number of tokens, without padding.
        spans: Packed: start and end of each row, with `b` = 1. `B` of them.
        rows: Padded: row of each scored token. `T` of them.
        extra: Further inputs of the model.
        context: Packed: pass over the prompts that the rows continue. Its forward pass runs once, its backward pass
            with each pass that shares it.
        context_spans: Packed: start and end of each row's prompt in the context. `B` of them.
        last: Whether this is the last pass that shares the context.
    """

    ids: list[int]
    tokens: Tensor
    before: list[int] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    signs: list[float] = field(default_factory=list)
    n_tokens: int = 0
    spans: list[tuple[int, int]] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)
    extra: dict[str, Any] = field(default_factory=dict)
    context: "Pass | None" = None
    context_spans: list[tuple[int, int]] = field(default_factory=list)
    last: bool = True

    def read(self, line: Line, **extra: Any) -> None:
        """Set the tokens to packed sequences."""
        self.tokens, self.n_tokens = torch.tensor([line.tokens]), len(line.tokens)
        self.extra = {"position_ids": torch.tensor([line.positions]), "segments": line.segments, **extra}

    def inputs(self, device: Any) -> dict[str, Any]:
        """Return the inputs of the model; logits are computed only before scored tokens."""
        moved = {name: send(x, device) if isinstance(x, Tensor) else x for name, x in self.extra.items()}
        return {
            "input_ids": send(self.tokens, device),
            "logits_to_keep": send(self._kept(), device, dtype=torch.long),
            **moved,
        }

    def scored(self, logits: Tensor) -> Tensor:
        """Return the logits before each scored token. Shape `(b, kept, V)` to `(T, V)`."""
        kept = self._kept()
        if logits.shape[1] == self.tokens.shape[1]:  # the model ignores logits_to_keep
            logits = logits[:, kept]
        if self.spans:
            return logits[0]
        place = {column: i for i, column in enumerate(kept)}
        return logits[self.rows, [place[column] for column in self.before]]

    def _kept(self) -> list[int]:
        return self.before if self.spans else sorted(set(self.before))

    def products(self, left: Tensor, right: Tensor, of_context: bool = False) -> Tensor:
        """Return `sum_t left_t right_t^T` per row. Shapes `(b, L, m)`, `(b, L, n)` to `(B, m, n)`."""
        seen, spans = (self.context, self.context_spans) if of_context else (self, self.spans)
        assert seen is not None, "a pass without a context"
        if left.shape[:2] != seen.tokens.shape or right.shape[:2] != seen.tokens.shape:
            raise RuntimeError(f"a layer sees {tuple(left.shape[:2])} tokens, not {tuple(seen.tokens.shape)}")
        if not spans:
            return left.mT @ right
        products = left.new_empty(len(spans), left.shape[2], right.shape[2])
        for product, (start, end) in zip(products, spans, strict=True):
            torch.mm(left[0, start:end].T, right[0, start:end], out=product)
        return products

    def score(self, prompt_end: int, start: int, response: tuple[int, ...], sign: float, row: int) -> None:
        """Score a response at `start`, after a prompt that ends at `prompt_end` (0: no prompt)."""
        before = [prompt_end - 1, *range(start, start + len(response) - 1)]
        skip = 0 if prompt_end else 1
        self.before += before[skip:]
        self.labels += response[skip:]
        self.signs += [sign] * (len(response) - skip)
        self.rows += [row] * (len(response) - skip)


class Group(NamedTuple):
    """Rows that continue the same tokens (none, if a row is read alone), and the number of tokens to read."""

    shared: tuple[int, ...]
    ids: tuple[int, ...]
    n_tokens: int


def packed_passes(rows: list[Row], batch_tokens: int, share: bool = True) -> Iterator[Pass]:
    """
    Concatenate rows into one sequence per pass. A prompt that responses share, except its last token, is read once,
    in a context pass. Each response needs its own gradient in the prompt, so there is one backward pass per response
    of a prompt. The two responses of a row share a gradient, and a backward pass.

    Args:
        rows: Rows of one or two responses.
        batch_tokens: Number of tokens of a pass with its context, unless one row has more.
        share: Whether to read prompts once. Gradient checkpointing does not support two backward passes.
    """
    groups = sorted(_groups(rows, share), key=lambda group: (-len(group.ids), -group.n_tokens, group.shared))
    for _, alike in groupby(groups, key=lambda group: len(group.ids)):
        pack: list[Group] = []
        room = batch_tokens
        for group in alike:
            if pack and group.n_tokens > room:
                yield from _turns(pack, rows)
                pack, room = [], batch_tokens
            pack.append(group)
            room -= group.n_tokens
        yield from _turns(pack, rows)


def _groups(rows: list[Row], share: bool) -> Iterator[Group]:
    by_prompt: dict[tuple[int, ...], list[int]] = {}
    for i, row in enumerate(rows):
        by_prompt.setdefault(row.prompt, []).append(i)
    for prompt, ids in by_prompt.items():
        if share and len(prompt) > 1 and sum(len(rows[i].responses) for i in ids) > 1:
            longest = max(sum(len(response) + 1 for response in rows[i].responses) for i in ids)
            yield Group(prompt[:-1], tuple(ids), len(prompt) - 1 + longest)
        else:
            for i in ids:
                yield Group((), (i,), sum(len(prompt + response) for response in rows[i].responses))


def _turns(groups: list[Group], rows: list[Row]) -> Iterator[Pass]:
    """Yield a pass for the first row of each group, one for the second, and so on."""
    n_turns, line = len(groups[0].ids), Line()
    places = [line.append(group.shared) for group in groups]
    context: Pass | None = None
    kept: dict[str, dict] = {}  # further input of the context and of all its passes
    if line.tokens:
        context, kept = Pass([], torch.empty(0)), {"kept": {}}
        context.read(line, **kept)
    for turn in range(n_turns):
        line, own = Line(), Pass([], torch.empty(0), context=context, last=turn + 1 == n_turns)
        for group, place in zip(groups, places, strict=True):
            i = group.ids[turn]
            prompt, responses = rows[i]
            own.ids.append(i)
            start = len(line.tokens)
            rest = prompt[len(group.shared) :]
            for response, sign in zip(responses, (1.0, -1.0), strict=False):
                prefix = (place,) if group.shared else ()
                end = line.append(rest + response, len(group.shared), prefix, merge=True).start + len(rest)
                own.score(end if rest else 0, end, response, sign, 0)
            own.spans.append((start, len(line.tokens)))
            own.context_spans.append((place.start, place.stop))
        own.read(line, **kept)
        own.n_tokens += context.n_tokens if context and not turn else 0
        yield own


def padded_passes(rows: list[Row], batch_tokens: int) -> Iterator[Pass]:
    """
    Run responses side by side, longest first, padded on the right; half the budget per pass.

    Args:
        rows: Rows to run. The two responses of a pair come apart, with the same id and opposite signs: their vectors
            are to be added up.
        batch_tokens: Number of tokens that packing would take; 1 for one response per pass.
    """
    flat = [
        (i, prompt, response, sign)
        for i, (prompt, responses) in enumerate(rows)
        for response, sign in zip(responses, (1.0, -1.0), strict=False)
    ]
    sequences = [prompt + response for _, prompt, response, _ in flat]
    for batch in length_batches(sequences, batch_tokens // 2):
        tokens, mask = pad([sequences[i] for i in batch])
        step = Pass([flat[i][0] for i in batch], tokens, n_tokens=int(mask.sum()), extra={"attention_mask": mask})
        for row, i in enumerate(batch):
            _, prompt, response, sign = flat[i]
            step.score(len(prompt), len(prompt), response, sign, row)
        yield step
