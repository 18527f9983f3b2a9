"""Which rows run through a model together, which of their tokens are scored, and whose gradient a token's part is."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, NamedTuple

import torch
from torch import Tensor

from trl_real.models.packing import Pack, Tree, make_packs


# Logits that are looked at together: they should stay in a core's cache.
CHUNK = 2**19


class LabelLogProbs(torch.autograd.Function):
    """
    Log-probabilities of labels, and `one_hot - softmax` on the way back, by chunks of rows that stay in the cache: in
    float32 whatever the logits are, which are never held in it as a whole. (In float32, `log_softmax` over 49,152
    words puts SmolLM2-135M's gradients off by 3e-5 to 1e-4, relative; with `logsumexp` they are off by 4e-6.)

    Args:
        logits: Shape `(T, V)`.
        labels: Shape `(T,)`.
        dtype: Of the sums.

    Returns:
        In nats. Shape `(T,)`.
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
            shares = (chunk.to(total.dtype) - total).exp_().mul_(-factor)
            out.copy_(shares.scatter_add_(1, label[:, None], factor))
        return found, None, None


class Row(NamedTuple):
    """
    A sum of log-probabilities: of one response, or of the first of two less that of the second.

    Args:
        prompt: Ids of the context.
        responses: Ids of the one or two responses.
    """

    prompt: tuple[int, ...]
    responses: tuple[tuple[int, ...], ...]

    @property
    def n_tokens(self) -> int:
        """Tokens, the prompt counted once."""
        return len(self.prompt) + sum(map(len, self.responses))

    @property
    def n_scored(self) -> int:
        """Tokens that have another before them, without which there is no probability."""
        return sum(len(response) - (not self.prompt) for response in self.responses if response)


@dataclass
class Pass:
    """
    One forward and backward pass; `B` rows.

    Args:
        ids: Which row of the caller's each of them is. `B` of them.
        tokens: Token ids. Shape `(b, L)`.
        before: For each scored token the place (or, if padded, the column) of the token before it. `T` of them.
        labels: The scored tokens. `T` of them.
        signs: 1.0, or -1.0 for those of a second response. `T` of them.
        n_tokens: Real tokens, without padding.
        spans: Packed: first and last token of each row, so that `b` is 1. `B` of them.
        rows: Padded: the row of each scored token. `T` of them.
        extra: Further inputs of the model.
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

    def inputs(self, device: Any) -> dict[str, Any]:
        """What the model is called with; logits are asked for only where a token is scored."""
        moved = {name: x.to(device) if isinstance(x, Tensor) else x for name, x in self.extra.items()}
        return {
            "input_ids": self.tokens.to(device),
            "logits_to_keep": torch.tensor(self._kept(), device=device),
            **moved,
        }

    def scored(self, logits: Tensor) -> Tensor:
        """The logits before each scored token. Shape `(b, kept, V)` to `(T, V)`."""
        kept = self._kept()
        if logits.shape[1] == self.tokens.shape[1]:  # a model without logits_to_keep; it would be fewer
            logits = logits[:, kept]
        if self.spans:
            return logits[0]
        place = {column: i for i, column in enumerate(kept)}
        return logits[self.rows, [place[column] for column in self.before]]

    def _kept(self) -> list[int]:
        return self.before if self.spans else sorted(set(self.before))

    def products(self, left: Tensor, right: Tensor) -> Tensor:
        """Each row's own `sum_t left_t right_t^T`. Shapes `(b, L, m)`, `(b, L, n)` to `(B, m, n)`."""
        if left.shape[:2] != self.tokens.shape or right.shape[:2] != self.tokens.shape:
            raise RuntimeError(f"a layer sees {tuple(left.shape[:2])} tokens, not {tuple(self.tokens.shape)}")
        if not self.spans:
            return left.mT @ right
        products = left.new_empty(len(self.spans), left.shape[2], right.shape[2])
        for product, (start, end) in zip(products, self.spans, strict=True):
            torch.mm(left[0, start:end].T, right[0, start:end], out=product)
        return products

    def score(self, prompt_end: int, start: int, response: tuple[int, ...], sign: float, row: int) -> None:
        """Score a response that lies at `start`, after a prompt that ends at `prompt_end` (0: there is none)."""
        before = [prompt_end - 1, *range(start, start + len(response) - 1)]
        skip = 0 if prompt_end else 1
        self.before += before[skip:]
        self.labels += response[skip:]
        self.signs += [sign] * (len(response) - skip)
        self.rows += [row] * (len(response) - skip)


def packed_passes(rows: list[Row], batch_tokens: int) -> Iterator[Pass]:
    """Rows end to end in one sequence, longest first. A pair reads its prompt once, so the two share its gradient."""
    trees = []
    for i, (prompt, responses) in enumerate(rows):
        shared = prompt if len(responses) > 1 else ()
        texts = responses if shared or len(responses) > 1 else (prompt + responses[0],)
        trees.append(Tree(shared, list(texts), [2 * i + k for k in range(len(texts))]))
    for pack in make_packs(trees, batch_tokens):
        yield _packed(pack, rows)


def _packed(pack: Pack, rows: list[Row]) -> Pass:
    owners = _owners(pack)  # of each token, as ids of responses
    step = Pass([], torch.tensor([pack.tokens]), n_tokens=len(pack.tokens))
    step.extra = {"position_ids": torch.tensor([pack.positions]), "segments": pack.segments}
    end = 0
    for i, run in groupby(owners, key=lambda owner: owner // 2):
        start, end = end, end + len(list(run))
        prompt, responses = rows[i]
        step.ids.append(i)
        step.spans.append((start, end))
        place = start + len(prompt)
        for response, sign in zip(responses, (1.0, -1.0), strict=False):
            step.score(start + len(prompt) if prompt else 0, place, response, sign, 0)
            place += len(response)
    return step


def _owners(pack: Pack) -> list[int]:
    """The response of each token, the following one for a prompt's."""
    owners, last = [], 0
    for owner in reversed(pack.owners):
        last = pack.ids[owner] if owner >= 0 else last
        owners.append(last)
    return owners[::-1]


def padded_passes(rows: list[Row], batch_tokens: int, left: bool = False) -> Iterator[Pass]:
    """
    Responses beside each other, longest first, padded; half the budget a pass.

    Args:
        rows: The two responses of a pair come apart, with the same id and opposite signs: their vectors are to be
            added up.
        batch_tokens: Tokens that packing would take; 1 for one response a pass.
        left: Pad on the left.
    """
    flat = [
        (i, prompt, response, sign)
        for i, (prompt, responses) in enumerate(rows)
        for response, sign in zip(responses, (1.0, -1.0), strict=False)
    ]
    flat.sort(key=lambda one: -len(one[1]) - len(one[2]))
    while flat:
        longest = len(flat[0][1]) + len(flat[0][2])
        size = max(1, batch_tokens // 2 // longest)
        yield _padded(flat[:size], longest, left)
        flat = flat[size:]


def _padded(batch: list[tuple], longest: int, left: bool) -> Pass:
    tokens, mask = (torch.zeros(len(batch), longest, dtype=torch.long) for _ in range(2))
    step = Pass([i for i, *_ in batch], tokens, extra={"attention_mask": mask})
    for row, (_, prompt, response, sign) in enumerate(batch):
        n = len(prompt) + len(response)
        start = longest - n if left else 0
        tokens[row, start : start + n] = torch.tensor(prompt + response)
        mask[row, start : start + n] = 1
        place = start + len(prompt)
        step.score(place if prompt else 0, place, response, sign, row)
        step.n_tokens += n
    if left:
        step.extra["position_ids"] = (mask.cumsum(1) - 1).clamp_min(0)
    return step
