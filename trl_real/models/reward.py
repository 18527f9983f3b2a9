"""Rewards of responses, computed by a sequence classifier with one output."""

import math
from collections.abc import Generator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from trl_real.data.conversation import as_messages, text_of
from trl_real.data.template import chat_ids, continued
from trl_real.errors import TrlRealError
from trl_real.models.memory import halves_batches
from trl_real.models.reader import ModelReader, brought
from trl_real.models.sequences import (
    Ids,
    check_prompt,
    common_prefix,
    control_tokens,
    ids_without_control,
    length_batches,
    pad,
    readable_prompt,
    readable_response,
)
from trl_real.runtime.ahead import picked, read_in_parts
from trl_real.runtime.devices import send


@dataclass
class Rewards:
    """
    Args:
        scores: Rewards, float32; NaN or infinite if the model returned that. Shape `(N,)`.
        truncated: Whether prompt or response was cut. Shape `(N,)`, bool.
        n_tokens: Number of tokens of each, also of repeated ones. Shape `(N,)`.
    """

    scores: Tensor
    truncated: Tensor
    n_tokens: Tensor


class RewardReader(ModelReader):
    """
    Scores responses to prompts.

    With a chat template, prompt and response go through it as messages. Without one, they are concatenated, with the
    tokenizer's special tokens around them and its EOS token, if any, at the end, as TRL's `RewardTrainer` trains on
    text. Control tokens in messages and responses are read as plain text. Responses are sorted by length and padded
    on the right; a score does not depend on the rest of the batch.

    Args:
        model: Sequence classifier with one output.
        tokenizer, batch_tokens: As in `ModelReader`; padding counts.
        max_length: Maximum number of tokens: the full response if it fits, and the end of the prompt. By default the
            model's limit.

    Raises:
        TrlRealError: If the model does not have one output.
    """

    def __init__(
        self, model: nn.Module, tokenizer: Any, batch_tokens: int | None = None, max_length: int | None = None
    ):
        super().__init__(model, tokenizer, None, batch_tokens)
        config: Any = model.config
        if config.num_labels != 1:
            raise TrlRealError(
                f"The model has {config.num_labels} outputs, but a reward model has 1. "
                "Give one that was trained with num_labels=1."
            )
        self.max_length = min((limit for limit in (max_length, self.max_tokens) if limit), default=None)

    def __call__(self, prompts: list[Any], responses: list[Any], progress: bool = True) -> Rewards:
        """Score `N` responses, as texts or message lists; equal ones to equal prompts run once."""

        def tokenize(rows: list[int]) -> list[tuple[Ids, bool]]:
            both = self._tokenize(*picked(rows, prompts, responses))
            return [self._cut(*ids) for ids in zip(*both, strict=True)]

        return read_in_parts(self.device, tokenize, partial(self._rewards, progress), prompts)

    @halves_batches
    def _rewards(self, progress: bool, read: list[tuple[Ids, bool]]) -> Rewards:
        distinct = {ids: i for i, ids in enumerate(dict.fromkeys(ids for ids, _ in read))}
        found = torch.full((len(distinct),), math.nan)
        with self.passes(list(distinct), len(distinct), progress) as passes:
            for rows, scores, _ in brought(passes):
                found[rows] = scores.float()
        scores = found[[distinct[ids] for ids, _ in read]]
        truncated = torch.tensor([cut for _, cut in read], dtype=torch.bool)
        return Rewards(scores, truncated, torch.tensor([len(ids) for ids, _ in read], dtype=torch.long))

    def _tokenize(self, prompts: list[Any], responses: list[Any]) -> tuple[list[list[int]], list[list[int]]]:
        """Return the ids of each prompt alone, and of prompt and response."""
        if not prompts:
            return [], []
        for prompt in prompts:
            check_prompt(prompt)
        if self.max_length:
            prompts = [readable_prompt(self.tokenizer, prompt, self.max_length) for prompt in prompts]
            responses = [readable_response(self.tokenizer, response, self.max_length) for response in responses]
        if self.tokenizer.chat_template:
            chats = [as_messages(prompt, "user") for prompt in prompts]
            both = [continued(chat, response) for chat, response in zip(chats, responses, strict=True)]
            return chat_ids(self.tokenizer, chats, add_generation_prompt=True), chat_ids(self.tokenizer, both)
        end, control = self.tokenizer.eos_token or "", control_tokens(self.tokenizer)
        alone = [text_of(prompt) for prompt in prompts]
        rows = list(zip(alone, map(text_of, responses), strict=True))
        whole = self.tokenizer([before + text + end for before, text in rows])["input_ids"]
        for i, (before, text) in enumerate(rows):
            if control.search(text):
                whole[i] = list(ids_without_control(self.tokenizer, before, text.removesuffix(end), end, control))
        return self.tokenizer(alone)["input_ids"], whole

    def _cut(self, alone: list[int], whole: list[int]) -> tuple[Ids, bool]:
        """Cut to `max_length` tokens: first the start of the prompt (except a BOS), then the end of the response."""
        excess = 0 if self.max_length is None else len(whole) - self.max_length
        if excess <= 0:
            return tuple(whole), False
        first = int(bool(whole) and whole[0] in (self.tokenizer.bos_token_id, self.tokenizer.cls_token_id))
        n_prompt = max(first, common_prefix(alone, whole))
        kept = whole[:first] + whole[min(first + excess, n_prompt) :]
        return tuple(kept[: self.max_length]), True

    def _run(self, work: list[Ids]) -> Generator[tuple[list[int], Tensor, int], None, None]:
        for ids in length_batches(work, self.batch_tokens):
            texts = [work[i] for i in ids]
            yield ids, self._scores(texts), sum(map(len, texts))

    def _scores(self, texts: list[Ids]) -> Tensor:
        configured = self.config.pad_token_id
        fill = _unused(texts, self.config.vocab_size) if configured is None else configured
        tokens, mask = pad(texts, fill)
        # A decoder scores at the last token that is not the pad token of its config.
        self.config.pad_token_id = fill
        try:
            inputs = {"input_ids": send(tokens, self.device), "attention_mask": send(mask, self.device)}
            return self.model(**inputs).logits[:, 0]
        finally:
            self.config.pad_token_id = configured


def _unused(texts: list[Ids], vocab_size: int) -> int:
    """Return a pad token that no text contains, so that no last token is mistaken for padding."""
    used = set().union(*texts)
    return next((token for token in range(vocab_size) if token not in used), 0)
