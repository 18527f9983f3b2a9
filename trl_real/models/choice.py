"""Probabilities of a few labels as the next token: one forward pass per chat, without generation."""

import unicodedata
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from trl_real.errors import TrlRealError
from trl_real.models.attention.exactness import made_up
from trl_real.models.attention.segments import packed
from trl_real.models.memory import halves_batches
from trl_real.models.prefixes import LEAST, grow, tree_passes
from trl_real.models.reader import ModelReader, brought
from trl_real.models.sequences import Ids, length_batches, pad
from trl_real.runtime.devices import send


class ChoiceReader(ModelReader):
    """
    Reads chats and returns the log-probabilities of labels as their next token.

    Chats run packed, without padding, and common beginnings (the system prompt; a pair's prompt, in both of its
    orders) are read once, if a check on this model shows that this equals one chat at a time; else they are sorted by
    length and padded on the right. Only the last token's logits are computed, and the softmax is in float32.

    Args:
        model: Causal LM, or a PEFT model of one.
        tokenizer, batch_tokens, dtype: As in `ModelReader`, with `cpu_tokens` of 2048.
    """

    desc, item = "Judging", "chat"

    def __init__(
        self, model: nn.Module, tokenizer: Any, batch_tokens: int | None = None, dtype: torch.dtype | None = None
    ):
        super().__init__(model, tokenizer, None, batch_tokens, dtype, cpu_tokens=2048)
        self._tokens: dict[str, list[int]] = {}

    @halves_batches
    def __call__(self, chats: Sequence[Ids], labels: Sequence[str], progress: bool = True) -> Tensor:
        """
        Return the log-probabilities of the labels; equal chats run once.

        Args:
            chats: Token ids of `N` chats.
            labels: `L` words that are one token each; the probabilities of its variants (`"A"`, `" A"`) are summed.

        Returns:
            Natural logarithms, float32 on the CPU. Shape `(N, L)`.

        Raises:
            TrlRealError: If a label is not a single token, or a chat is empty or longer than the model reads.
        """
        tokens = [self.tokens_of(label) for label in labels]
        self.check_length(list(chats), "Shorten it.")
        if not all(chats):
            raise TrlRealError(f"Chat {list(map(bool, chats)).index(False)} is empty. Remove it.")
        distinct = {chat: i for i, chat in enumerate(dict.fromkeys(chats))}
        found = torch.full((len(distinct), len(labels)), torch.nan)
        with self.passes(list(distinct), len(distinct), progress) as passes:
            for ids, sums, _ in brought((ids, _sums(logits, tokens), n) for ids, logits, n in passes):
                found[ids] = sums
        return found[[distinct[chat] for chat in chats]]

    def tokens_of(self, label: str) -> list[int]:
        """
        Return every token that decodes to the label, ignoring spaces and the width of letters.

        Raises:
            TrlRealError: If there is none.
        """
        if not self._tokens:
            texts = self.tokenizer.batch_decode([[i] for i in range(len(self.tokenizer))])
            for i, text in enumerate(texts):
                self._tokens.setdefault(unicodedata.normalize("NFKC", text).strip(), []).append(i)
        if label not in self._tokens:
            raise TrlRealError(
                f"The label {label!r} is not a single token of this model. Choose labels that are single tokens, such "
                "as 'A' and 'B': JudgeTemplate(…, first='A', second='B')."
            )
        return self._tokens[label]

    def _longest(self, work: list[Ids]) -> int:
        return max(map(len, work))

    def _run_packed(self, work: list[Ids], max_tokens: int | None = None, least: int = LEAST) -> Iterator[tuple]:
        with packed(self.model, self.attention):
            for step in tree_passes(grow(work, least), max_tokens or self.batch_tokens):
                if step.ids:
                    yield step.ids, self._logits_at(step.ends, **step.inputs(self.device))[0], len(step.tokens)

    def _run_padded(self, work: list[Ids]) -> Iterator[tuple]:
        for ids in length_batches(work, self.batch_tokens // 2):
            tokens, mask = pad([work[i] for i in ids])
            # Counted from the end, since a prompt-tuned model adds virtual tokens at the start.
            last = [len(work[i]) - 1 - tokens.shape[1] for i in ids]
            kept = sorted(set(last))
            inputs = {"input_ids": send(tokens, self.device), "attention_mask": send(mask, self.device)}
            logits = self._logits_at(kept, **inputs)
            yield ids, logits[range(len(ids)), [kept.index(column) for column in last]], int(mask.sum())

    def _trial(self) -> tuple[Callable[[], Tensor], Callable[[], Tensor]]:
        a, b, c, d, e = made_up(self.config.vocab_size, (7, 4, 3, 9, 5))
        chats = [a + b + d, a + b + c, a + d, a + b + e[::-1], a, d[::-1]]

        def together() -> Tensor:
            ids, logits, _ = zip(*self._run_packed(chats, 10**6, least=1), strict=True)
            return torch.cat(logits)[torch.tensor(sum(ids, [])).argsort()].float()

        def alone() -> Tensor:
            ids = [torch.tensor([chat], device=self.device) for chat in chats]
            return torch.cat([self._logits_at([-1], input_ids=one)[:, 0] for one in ids]).float()

        return together, alone


def _sums(logits: Tensor, tokens: list[list[int]]) -> Tensor:
    """Return the log-probability of any of a label's tokens. Shape `(B, V)` to `(B, L)`."""
    log_probs = logits.float().log_softmax(-1)
    return torch.stack([log_probs[:, variants].logsumexp(-1) for variants in tokens], dim=1)
