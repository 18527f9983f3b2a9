"""Rewards of responses, from a sequence classifier with one output."""

import math
from collections.abc import Iterator
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from trl_real.data.conversation import as_messages, text_of
from trl_real.errors import TrlRealError
from trl_real.models.embed import evaluating
from trl_real.models.sequences import Ids, common_prefix


class Rewards(NamedTuple):
    """
    Args:
        scores: Of the responses, float32; NaN or infinite where the model gave that. Shape `(N,)`.
        truncated: Whether something was cut. Shape `(N,)`, bool.
        n_tokens: Read of each, whether or not an equal one was read already. Shape `(N,)`.
    """

    scores: Tensor
    truncated: Tensor
    n_tokens: Tensor


@lru_cache(maxsize=1)
def load_reward_model(model: str, revision: str, dtype: str | None, device: str) -> tuple[Any, Any]:
    """
    A sequence classifier with its tokenizer, kept for the process (one at a time).

    Args:
        model: Hub id or path.
        revision: From `trl_real.models.load.resolve_revision`.
        dtype: Precision of the weights, float32 where None.
        device: Where to put it.
    """
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    pinned = {} if revision.startswith("sha256:") else {"revision": revision}
    loaded = AutoModelForSequenceClassification.from_pretrained(model, dtype=dtype or "float32", **pinned)
    return loaded.to(device).eval(), AutoTokenizer.from_pretrained(model, **pinned)


class RewardReader:
    """
    Scores responses to prompts.

    With a chat template, prompt and response go through it as messages; without one, they are read one after the
    other, with the tokenizer's special tokens around them and the EOS token at the end where it has one, as TRL's
    `RewardTrainer` trains on text. Responses are sorted by length and padded on the right; a score does not depend on
    what else is in the batch.

    Args:
        model: A sequence classifier with one output.
        tokenizer: Its tokenizer.
        batch_tokens: Tokens in a forward pass, padding included; by default 1024 on a CPU and 16384 elsewhere.
        max_length: Tokens that are read: the response whole if it fits, and the end of the prompt. By default what
            the model reads.

    Raises:
        TrlRealError: If the model does not have one output.
    """

    def __init__(
        self, model: nn.Module, tokenizer: Any, batch_tokens: int | None = None, max_length: int | None = None
    ):
        self.model, self.tokenizer = model, tokenizer
        self.config = model.config.get_text_config()
        if model.config.num_labels != 1:
            raise TrlRealError(
                f"The model has {model.config.num_labels} outputs where a reward model has 1. "
                "Give one that was trained with num_labels=1."
            )
        self.device = next(model.parameters()).device
        self.batch_tokens = batch_tokens or (1024 if self.device.type == "cpu" else 16384)
        limits = (max_length, getattr(self.config, "max_position_embeddings", None))
        self.max_length = min((limit for limit in limits if limit), default=None)

    def __call__(self, prompts: list[Any], responses: list[Any], progress: bool = True) -> Rewards:
        """
        Score responses; equal ones to equal prompts run once.

        Args:
            prompts: `N` texts or message lists.
            responses: `N` texts or message lists.
            progress: Show a bar, from the third second on.
        """
        read = [self._cut(*both) for both in zip(*self._tokenize(prompts, responses), strict=True)]
        distinct = {ids: i for i, ids in enumerate(dict.fromkeys(ids for ids, _ in read))}
        found = torch.full((len(distinct),), math.nan)
        bar = tqdm(total=len(distinct), unit="text", desc="Scoring", leave=False, delay=2, disable=not progress)
        with evaluating(self.model), bar:
            for rows, scores in self._run(list(distinct)):
                found[rows] = scores.float().cpu()
                bar.update(len(rows))
        scores = found[[distinct[ids] for ids, _ in read]]
        truncated = torch.tensor([cut for _, cut in read], dtype=torch.bool)
        return Rewards(scores, truncated, torch.tensor([len(ids) for ids, _ in read], dtype=torch.long))

    def _tokenize(self, prompts: list[Any], responses: list[Any]) -> tuple[list[list[int]], list[list[int]]]:
        """The ids of each prompt alone, and of prompt and response."""
        if not prompts:
            return [], []
        if self.tokenizer.chat_template:
            apply = self.tokenizer.apply_chat_template
            chats = [_as_prompt(prompt) for prompt in prompts]
            alone = apply(chats, tokenize=False, add_generation_prompt=True)
            whole = apply([chat + as_messages(r) for chat, r in zip(chats, responses, strict=True)], tokenize=False)
        else:
            end = self.tokenizer.eos_token or ""
            alone = [text_of(_as_prompt(prompt)) for prompt in prompts]
            whole = [before + text_of(response) + end for before, response in zip(alone, responses, strict=True)]
        special = not self.tokenizer.chat_template
        return tuple(self.tokenizer(texts, add_special_tokens=special)["input_ids"] for texts in (alone, whole))

    def _cut(self, alone: list[int], whole: list[int]) -> tuple[Ids, bool]:
        """At most `max_length` tokens: first the prompt loses its beginning (not a BOS), then the response its end."""
        excess = 0 if self.max_length is None else len(whole) - self.max_length
        if excess <= 0:
            return tuple(whole), False
        first = int(bool(whole) and whole[0] in (self.tokenizer.bos_token_id, self.tokenizer.cls_token_id))
        n_prompt = max(first, common_prefix(alone, whole))
        kept = whole[:first] + whole[min(first + excess, n_prompt) :]
        return tuple(kept[: self.max_length]), True

    def _run(self, texts: list[Ids]) -> Iterator[tuple[list[int], Tensor]]:
        """Yields the numbers of some texts and their scores, one forward pass at a time. Shape `(R,)`."""
        order = sorted(range(len(texts)), key=lambda i: (-len(texts[i]), texts[i]))
        while order:
            longest = max(1, len(texts[order[0]]))
            size = max(1, self.batch_tokens // longest)
            ids, order = order[:size], order[size:]
            yield ids, self._scores([texts[i] for i in ids], longest)

    def _scores(self, texts: list[Ids], longest: int) -> Tensor:
        known = self.config.pad_token_id
        pad = _unused(texts, self.config.vocab_size) if known is None else known
        tokens = torch.full((len(texts), longest), pad)
        mask = torch.zeros(len(texts), longest, dtype=torch.long)
        for row, text in enumerate(texts):
            tokens[row, : len(text)] = torch.tensor(text)
            mask[row, : len(text)] = 1
        # A decoder scores at the last token that is no padding, which it knows by the id in its configuration.
        self.config.pad_token_id = pad
        try:
            inputs = {"input_ids": tokens.to(self.device), "attention_mask": mask.to(self.device)}
            return self.model(**inputs).logits[:, 0]
        finally:
            self.config.pad_token_id = known


def _as_prompt(prompt: Any) -> list[dict[str, Any]]:
    if isinstance(prompt, str):
        return [{"role": "user", "content": prompt}]
    if not isinstance(prompt, list):
        raise TrlRealError(f"Column 'prompt' holds {type(prompt).__name__} where a text or messages should be.")
    return prompt


def _unused(texts: list[Ids], vocab_size: int) -> int:
    """A token to pad with that none of the texts holds, so that no end is taken for padding."""
    used = set().union(*texts)
    return next((token for token in range(vocab_size) if token not in used), 0)
