"""Continuous batching and sampling with a causal LM of transformers: a finished response is replaced by the next."""

from collections import deque
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from inspect import signature
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from trl_real.models.attention.exactness import gives_the_same, made_up
from trl_real.models.generation.slots import Slots
from trl_real.models.quantization import product_dtype
from trl_real.models.sequences import Ids, pad


REFILL = 8  # new prompts are read when 1 row in 8 is free: reading one costs as much as reading a few
STEPS = 128  # number of cache columns allocated at a time
MOST_LIKELY = 256  # number of tokens tried for a nucleus before the full vocabulary is sorted
PREFILL_TOKENS = {"cpu": 2048, "elsewhere": 16384}  # number of tokens in a forward pass over prompts


class Sampler:
    """
    Samples from `softmax(logits / temperature)` as `argmax(logits / temperature - log E)`, with one `E` per token from
    the standard exponential distribution (the Gumbel-max trick). Logits that differ by rounding give the same token,
    unless the two best are equally close; inverting the cumulative distribution would not guarantee that.

    Args:
        temperature: Divisor of the logits; 0 for greedy decoding.
        top_p: Probability of the nucleus, in (0, 1].
    """

    def __init__(self, temperature: float = 1.0, top_p: float = 1.0):
        self.temperature, self.top_p = temperature, top_p

    def __call__(self, logits: Tensor, states: Sequence[np.random.Generator]) -> list[int]:
        """Sample one token per row of logits, shape `(B, V)`; the random state of each advances by `V` draws."""
        if not self.temperature:
            return logits.argmax(-1).tolist()
        scores = logits.float() / self.temperature
        if self.top_p < 1:
            scores = nucleus(scores, self.top_p)
        noise = torch.empty(scores.shape)
        for row, state in zip(noise, states, strict=True):
            # double precision, in which an exact 0 does not occur; it would win over every other token
            row.copy_(torch.from_numpy(state.standard_exponential(scores.shape[-1])))
        return (scores - noise.log_().to(scores.device)).argmax(-1).tolist()


@dataclass(eq=False)
class Response:
    """
    A response, waiting, in progress or finished.

    Args:
        prompt: Ids of the prompt.
        limit: Maximum number of tokens.
        seed: Seed of its samples.
        label: Identifier for the caller.
        tokens: Ids generated so far, with the EOS token.
        start: Cache column of the prompt's first token.
        state: Random state of its samples.
    """

    prompt: Ids
    limit: int
    seed: int
    label: Any = None
    tokens: list[int] = field(default_factory=list)
    start: int = 0
    state: np.random.Generator | Any = None

    def ended(self, ends: Collection[int]) -> bool:
        """Return whether the last token is an EOS token."""
        return bool(self.tokens) and self.tokens[-1] in ends


class Decoder:
    """
    Generates responses with a causal LM, or a PEFT model of one, at most `batch_size` at a time. A response ends with
    one of the EOS ids `ends`.
    """

    def __init__(self, model: nn.Module, sampler: Sampler, ends: Collection[int], batch_size: int):
        self.model, self.sampler, self.ends, self.batch_size = model, sampler, frozenset(ends), batch_size
        self.device = next(model.parameters()).device
        config: Any = model.config
        causal_lm: Any = model
        causal_lm = causal_lm.get_base_model() if hasattr(model, "get_base_model") else model
        # transformers 5.24 renamed the argument, and warns of the old name.
        self.cache_name = "cache" if "cache" in signature(causal_lm.forward).parameters else "past_key_values"
        self.slots = Slots(config.get_text_config(), batch_size)
        self.prefill_tokens = PREFILL_TOKENS["cpu" if self.device.type == "cpu" else "elsewhere"]
        self.rows: list[Response] = []
        self.next = 0  # the cache column of the next token

    def __call__(self, responses: Sequence[Response]) -> Iterator[Response]:
        """Yield responses when they are finished. They start in this order; adjacent ones to one prompt share it."""
        waiting = deque(responses)
        while waiting or self.rows:
            n_free = self.batch_size - len(self.rows)
            if waiting and (not self.rows or n_free >= min(len(waiting), max(1, self.batch_size // REFILL))):
                group = self._group(waiting, n_free)
                logits, which = self.read(group)
                yield from self._accept(group, logits[which])
            else:
                yield from self._accept(self.rows, self.continue_rows())

    def read(self, group: list[Response]) -> tuple[Tensor, list[int]]:
        """Add responses; return logits after each of `P` distinct prompts, `(P, V)`, and the prompt of each."""
        prompts = {prompt: i for i, prompt in enumerate(dict.fromkeys(response.prompt for response in group))}
        which = [prompts[response.prompt] for response in group]
        width = max(map(len, prompts))
        if self.next < width:
            self._make_room(width)
        first, columns = len(self.rows), slice(self.next - width, self.next)
        ids, mask = pad(prompts, left=True)
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        self.slots.show(slice(first, first + len(prompts)), columns.start, columns.stop, width)
        logits = self._forward(ids, mask, positions)
        self.slots.spread(first, which, columns)
        for response in group:
            response.start = self.next - len(response.prompt)
            response.state = np.random.default_rng(response.seed)
        self.rows += group
        return logits, which

    def continue_rows(self) -> Tensor:
        """Return the logits after the last token of each row. Shape `(B, V)`."""
        if self.next == self.slots.n_columns:
            self._make_room(0)
        starts = torch.tensor([row.start for row in self.rows])[:, None]
        begin = int(starts.min())
        mask = (torch.arange(begin, self.next + 1) >= starts).long()
        ids = torch.tensor([row.tokens[-1:] for row in self.rows])
        self.slots.show(slice(0, len(self.rows)), begin, self.next + 1, 1)
        logits = self._forward(ids, mask, self.next - starts)
        self.next += 1
        return logits

    def _forward(self, ids: Tensor, mask: Tensor, positions: Tensor) -> Tensor:
        inputs = {"input_ids": ids, "attention_mask": mask, "position_ids": positions}
        output = self.model(
            **{name: value.to(self.device) for name, value in inputs.items()},
            **{self.cache_name: self.slots.cache},
            use_cache=True,
            logits_to_keep=1,
        )
        return output.logits[:, -1]

    def _group(self, waiting: deque[Response], n_free: int) -> list[Response]:
        """Take the next responses: as many as rows are free and as one forward pass over their prompts can read."""
        group: list[Response] = []
        prompts: set[Ids] = set()
        width = 0
        while waiting and len(group) < n_free:
            prompt = waiting[0].prompt
            width = max(width, len(prompt))
            if group and len(prompts | {prompt}) * width > self.prefill_tokens:
                break
            prompts.add(prompt)
            group.append(waiting.popleft())
        return group

    def _accept(self, group: list[Response], logits: Tensor) -> list[Response]:
        """Add a sampled token to each row of a group; remove and return finished rows."""
        for row, token in zip(group, self.sampler(logits, [row.state for row in group]), strict=True):
            row.tokens.append(token)
        done = [row for row in group if row.ended(self.ends) or len(row.tokens) >= row.limit]
        if done:
            leaving = set(map(id, done))
            stay = [i for i, row in enumerate(self.rows) if id(row) not in leaving]
            holes = sorted(set(range(len(stay))) - set(stay))
            last = stay[len(stay) - len(holes) :]
            rows = [self.rows[i] for i in range(len(stay))]
            for hole, source in zip(holes, last, strict=True):
                rows[hole] = self.rows[source]
            begin = min((row.start for row in rows), default=self.next)
            self.slots.move(last, holes, slice(begin, self.next))
            self.rows = rows
        return done

    def _make_room(self, width: int) -> None:
        """Allocate cache for more steps, with at least `width` columns before the next one."""
        begin = min((row.start for row in self.rows), default=self.next)
        n_used = self.next - begin
        width = max(width, n_used)
        self.slots.make_room(len(self.rows), slice(begin, self.next), width - n_used, width + STEPS)
        for row in self.rows:
            row.start += width - self.next
        self.next = width


def decodes_well(model: nn.Module) -> bool:
    """Return whether continuous batching is exact on this model; layers with another kind of state break it."""
    whole: Any = model.config
    config = whole.get_text_config()
    if whole.is_encoder_decoder or not hasattr(config, "num_hidden_layers"):
        return False
    a, b, c = (ids + (1,) for ids in made_up(config.vocab_size, (5, 2, 9)))

    def together() -> Tensor:
        decoder = Decoder(model, Sampler(0.0), (), 2)
        rows = [Response(ids[:-1], 9, 0, tokens=[ids[-1]]) for ids in (a, b, c)]
        decoder.read(rows[:2])
        first = decoder.continue_rows()
        decoder.rows.pop()
        decoder.rows[0].tokens.append(3)
        decoder.read(rows[2:])
        return torch.cat([first, decoder.continue_rows()])

    def alone() -> Tensor:
        texts = (a, b, (*a, 3), c)
        ids = [torch.tensor([text], device=next(model.parameters()).device) for text in texts]
        return torch.cat([model(input_ids=one, use_cache=False).logits[:, -1] for one in ids])

    try:
        dtype = product_dtype(model) or next(model.parameters()).dtype
        return gives_the_same(together, alone, dtype == torch.float32)
    except (AttributeError, IndexError):  # layers that look for their own kind of state in the cache
        return False


def nucleus(scores: Tensor, top_p: float) -> Tensor:
    """
    Mask all tokens outside the smallest set with a probability of at least `top_p` (arXiv 1904.09751). Scores are
    log-probabilities up to a constant. Shape `(B, V)`.
    """
    probabilities = scores.softmax(-1)
    ranked, order = probabilities.topk(min(MOST_LIKELY, scores.shape[-1]))
    if bool((ranked.sum(-1) < top_p).any()):
        ranked, order = probabilities.sort(descending=True)
    within = ranked.cumsum(-1) - ranked < top_p
    return scores.masked_fill(~torch.zeros_like(scores, dtype=torch.bool).scatter(1, order, within), -torch.inf)
