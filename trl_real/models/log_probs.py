"""Log-probabilities of responses under a model, many in one forward pass."""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from trl_real.errors import TrlRealError
from trl_real.models.attention.exactness import made_up
from trl_real.models.attention.segments import packed
from trl_real.models.memory import halves_batches
from trl_real.models.packing import Pack, Tree, make_packs
from trl_real.models.passes import LabelLogProbs, Row, padded_passes
from trl_real.models.reader import ModelReader, brought, check_lengths, without_peft
from trl_real.models.sequences import Ids, Sequence, tokenize_pairs
from trl_real.runtime.ahead import picked, read_in_parts
from trl_real.runtime.devices import send


# Maximum number of logits in a pass: a quarter of a gigabyte in float32 on a CPU, a gigabyte elsewhere.
MAX_LOGITS = {"cpu": 2**26, "elsewhere": 2**28}


@dataclass
class LogProbs:
    """
    Args:
        sums: Summed log-probabilities of the responses' tokens, their end included, in nats; 0 for a blank response.
            Shape `(n,)`, float64 on the CPU.
        n_scored: Number of tokens in each sum. Shape `(n,)`.
        truncated: Whether each response was cut. Shape `(n,)`, bool.
        n_tokens: Number of tokens that the model read.
        seconds: Duration.
    """

    sums: Tensor
    n_scored: Tensor
    truncated: Tensor
    n_tokens: int = 0
    seconds: float = 0.0


class ResponseLogProbs(ModelReader):
    r"""
    `log pi(y | x) = sum_t log pi(y_t | x, y_<t)` over the tokens of the response, its end included, as TRL's
    `DPOTrainer` sums them: the policy's or the reference's part of an implicit reward.

    Sequences run packed, without padding, and a prompt is read once for all its responses, if a check on this model
    shows that this equals one response at a time; else padded. Softmax and sums are in float32 or better. Except for
    rounding, a sum does not depend on the rest of the batch.

    Args:
        model: Causal LM, or PEFT model with a LoRA adapter, which may be on or off.
        max_length: Maximum number of tokens: of a response from its start, of a prompt from its end.
        tokenizer, batch_tokens, dtype: As in `ModelReader`.

    Raises:
        TrlRealError: If a value is out of range, or the adapter adds virtual tokens.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        max_length: int = 512,
        batch_tokens: int | None = None,
        dtype: torch.dtype | None = None,
    ):
        check_lengths(max_length, batch_tokens)
        if getattr(getattr(model, "active_peft_config", None), "is_prompt_learning", False):
            raise TrlRealError("The adapter puts virtual tokens before the prompt, which is not supported. Use LoRA.")
        super().__init__(model, tokenizer, without_peft(model), batch_tokens, dtype)
        self.max_length = max_length
        max_logits = MAX_LOGITS["cpu" if self.device.type == "cpu" else "elsewhere"]
        self.batch_tokens = max(1, min(self.batch_tokens, max_logits // self.config.vocab_size))

    def __call__(self, prompts: list[Any], responses: list[Any], progress: bool = True) -> LogProbs:
        """
        Score responses; equal ones to equal prompts run once. Prompts and responses are those of `tokenize_pairs`.

        Raises:
            TrlRealError: If a sequence is longer than the model reads.
        """

        def tokenize(rows: list[int]) -> list[Sequence]:
            read, texts = picked(rows, prompts, responses)
            return tokenize_pairs(self.tokenizer, read, texts, self.max_length)

        return read_in_parts(self.device, tokenize, partial(self.score, progress=progress), prompts)

    @halves_batches
    def score(self, sequences: list[Sequence], progress: bool = True) -> LogProbs:
        """Score responses from `tokenize_pairs`, as `__call__` does."""
        started = time.perf_counter()
        rows = [Row(s.prompt, (s.response,)) for s in sequences]
        distinct = {row: i for i, row in enumerate(dict.fromkeys(row for row in rows if row.n_scored))}
        self.check_length(list(distinct), f"Type max_length={(self.max_tokens or 0) // 2}.")
        with self.passes(list(distinct), len(distinct), progress) as passes:
            sums, n_tokens = _summed(passes, len(distinct) + 1)  # the last one is for blank responses
        return LogProbs(
            sums[[distinct.get(row, -1) for row in rows]],
            torch.tensor([row.n_scored for row in rows], dtype=torch.long),
            torch.tensor([s.truncated for s in sequences], dtype=torch.bool),
            n_tokens,
            time.perf_counter() - started,
        )

    def _run_packed(self, work: list[Row]) -> Iterator[tuple[list[int], Tensor, int]]:
        with packed(self.body, self.attention):
            for pack in make_packs(prompt_trees(work, self.batch_tokens), self.batch_tokens):
                before, labels, ids = scored_places(pack)
                logits = self._logits_at(before, **pack.inputs(self.device))
                yield ids, self._label_log_probs(logits[0], labels), len(pack.tokens)

    def _run_padded(self, work: list[Row], batch_tokens: int | None = None) -> Iterator[tuple]:
        for step in padded_passes(work, batch_tokens or self.batch_tokens):
            logits = self.body(**step.inputs(self.device), use_cache=False).logits
            yield (
                [step.ids[row] for row in step.rows],
                self._label_log_probs(step.scored(logits), step.labels),
                step.n_tokens,
            )

    def _label_log_probs(self, logits: Tensor, labels: list[int]) -> Tensor:
        return LabelLogProbs.apply(logits, send(labels, self.device, dtype=torch.long), self.sum_in)

    def _trial(self) -> tuple[Callable[[], Tensor], Callable[[], Tensor]]:
        a, b, c, d = made_up(self.config.vocab_size, (7, 4, 3, 9))
        rows = [Row(a, (b,)), Row(a, (d,)), Row((), (c + b[::-1],)), Row(c, (d[::-1],))]
        runs = partial(self._run_packed, rows), partial(self._run_padded, rows, 1)
        together, alone = (lambda run=run: _summed(run(), len(rows))[0] for run in runs)
        return together, alone


def _summed(passes: Iterator[tuple], n: int) -> tuple[Tensor, int]:
    """Return the sums of the tokens' log-probabilities for each of `n` responses, and the number of tokens read."""
    sums, n_tokens = torch.zeros(n, dtype=torch.float64), 0
    for ids, values, n_read in brought(passes):
        sums.index_add_(0, torch.tensor(ids), values.double())
        n_tokens += n_read
    return sums, n_tokens


def prompt_trees(rows: list[Row], max_tokens: int) -> list[Tree]:
    """
    Group distinct rows of one response by prompt. A tree of more than `max_tokens` tokens is cut between responses.
    """
    by_prompt: dict[Ids, list[tuple[Ids, int]]] = defaultdict(list)
    for i, row in enumerate(rows):
        by_prompt[row.prompt].append((row.responses[0], i))
    trees: list[Tree] = []
    for prompt, members in by_prompt.items():
        room = 0
        for response, i in sorted(members):
            if not prompt or len(response) > room:
                trees.append(Tree(prompt, [], []))
                room = max_tokens - len(prompt)
            trees[-1].responses.append(response)
            trees[-1].ids.append(i)
            room -= len(response)
    return trees


def scored_places(pack: Pack) -> tuple[list[int], list[int], list[int]]:
    """
    Return the scored tokens of a pack: the index of the token before each, the token, and its response. The first
    token of a response without a prompt is not scored, since it has no token before it.
    """
    before, labels, ids = [], [], []
    prompt_end = last = -1
    for place, owner in enumerate(pack.owners):
        if owner < 0:
            prompt_end = place
        elif pack.positions[place]:
            before.append(place - 1 if owner == last else prompt_end)
            labels.append(pack.tokens[place])
            ids.append(pack.ids[owner])
        last = owner
    return before, labels, ids
