"""How likely each of a few labels is as the next token: one forward pass a chat, nothing is generated."""

import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import closing, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from trl_real.errors import TrlRealError
from trl_real.models.embed import evaluating
from trl_real.models.packing import fits_window, gives_the_same, made_up, packed
from trl_real.models.prefixes import LEAST, TreePass, grow, tree_passes
from trl_real.models.sequences import Ids


def label_log_probs(
    model: nn.Module,
    tokenizer: Any,
    chats: Sequence[str],
    labels: Sequence[str],
    *,
    batch_tokens: int | None = None,
    dtype: torch.dtype | None = None,
    progress: bool = False,
) -> Tensor:
    """
    The log-probability of each label as the next token after each chat, over the whole vocabulary.

    Args:
        model: A causal LM, or a PEFT model of one.
        tokenizer: Its tokenizer.
        chats: `N` texts that went through the chat template, up to where the answer begins.
        labels: `L` words that are one token each.
        batch_tokens: Tokens in a forward pass; see `ChoiceReader`.
        dtype: Precision of the matrix products; see `ChoiceReader`.
        progress: Show a bar, from the third second on.

    Returns:
        Natural logarithms, float32 on the CPU. Shape `(N, L)`.

    Raises:
        TrlRealError: If a label is no single token, or a chat is empty or longer than the model reads.
    """
    ids = tokenizer(list(chats), add_special_tokens=False)["input_ids"] if chats else []
    reader = ChoiceReader(model, tokenizer, batch_tokens=batch_tokens, dtype=dtype)
    return reader([tuple(chat) for chat in ids], labels, progress)


class ChoiceReader:
    """
    Reads chats and says how likely labels are as their next token.

    Chats run packed, without padding, and what several have in common (the system prompt; a pair's prompt, in both of
    its orders) is read once, where a check on this very model shows that this gives what one chat at a time gives;
    else they are sorted by length and padded on the right. The logits of the last token alone are computed, and the
    softmax is in float32.

    Args:
        model: A causal LM, or a PEFT model of one.
        tokenizer: Its tokenizer.
        batch_tokens: Tokens in a forward pass; by default 2048 on a CPU and 16384 elsewhere.
        dtype: Precision of the matrix products (autocast); by default the weights'.
    """

    def __init__(
        self, model: nn.Module, tokenizer: Any, batch_tokens: int | None = None, dtype: torch.dtype | None = None
    ):
        self.model, self.tokenizer = model, tokenizer
        weights = next(model.parameters())
        self.device = weights.device
        self.batch_tokens = batch_tokens or (2048 if self.device.type == "cpu" else 16384)
        self.cast_to = dtype if dtype not in (None, weights.dtype) else None
        self.exact = self.cast_to is None and weights.dtype == torch.float32
        self.config = model.config.get_text_config()
        self.packs_well: bool | None = None
        self._tokens: dict[str, list[int]] = {}

    @property
    def max_tokens(self) -> int | None:
        """Tokens that the model reads, None where it does not say."""
        return getattr(self.config, "max_position_embeddings", None)

    def __call__(self, chats: Sequence[Ids], labels: Sequence[str], progress: bool = True) -> Tensor:
        """
        Log-probabilities of the labels; equal chats run once.

        Args:
            chats: Token ids of `N` chats.
            labels: `L` words that are one token each; all tokens that stand for one (`"A"`, `" A"`) add up.
            progress: Show a bar, from the third second on.

        Returns:
            Natural logarithms, float32 on the CPU. Shape `(N, L)`.

        Raises:
            TrlRealError: If a label is no single token, or a chat is empty or longer than the model reads.
        """
        tokens = [self.tokens_of(label) for label in labels]
        self._check(chats)
        distinct = {chat: i for i, chat in enumerate(dict.fromkeys(chats))}
        found = torch.full((len(distinct), len(labels)), torch.nan)
        bar = tqdm(total=len(distinct), unit="chat", desc="Judging", leave=False, delay=2, disable=not progress)
        run = closing(self._run(list(distinct)))  # attention is given back even if the loop is broken off
        with evaluating(self.model), self._precision(), bar, run as passes:
            for ids, logits in passes:
                log_probs = logits.float().log_softmax(-1)
                sums = [log_probs[:, variants].logsumexp(-1) for variants in tokens]
                found[ids] = torch.stack(sums, dim=1).cpu()
                bar.update(len(ids))
        return found[[distinct[chat] for chat in chats]]

    def tokens_of(self, label: str) -> list[int]:
        """
        Every token that reads as the label, without spaces and with full-width letters as plain ones.

        Raises:
            TrlRealError: If there is none.
        """
        if not self._tokens:
            texts = self.tokenizer.batch_decode([[i] for i in range(len(self.tokenizer))])
            for i, text in enumerate(texts):
                self._tokens.setdefault(unicodedata.normalize("NFKC", text).strip(), []).append(i)
        if label not in self._tokens:
            raise TrlRealError(
                f"The label {label!r} is not a single token of this model. Choose labels that are, such as 'A' and "
                "'B': JudgeTemplate(…, first='A', second='B')."
            )
        return self._tokens[label]

    def _check(self, chats: Sequence[Ids]) -> None:
        longest = max(map(len, chats), default=1)
        if self.max_tokens and longest > self.max_tokens:
            raise TrlRealError(f"A chat has {longest} tokens, but the model reads {self.max_tokens}. Shorten it.")
        if not all(chats):
            raise TrlRealError(f"Chat {list(map(bool, chats)).index(False)} is empty. Leave it out.")

    def _run(self, chats: list[Ids]) -> Iterator[tuple[list[int], Tensor]]:
        """Yields the numbers of some chats and their last logits, one forward pass at a time. Shape `(R, V)`."""
        if not chats:
            return
        if self.packs_well is None:
            self.packs_well = self._check_packing()
        if self.packs_well and fits_window(self.config, max(map(len, chats))):
            yield from self._run_trees(chats, self.batch_tokens, LEAST)
        else:
            yield from self._run_padded(chats)

    def _run_trees(self, chats: list[Ids], max_tokens: int, least: int) -> Iterator[tuple[list[int], Tensor]]:
        with packed(self.model):
            for step in tree_passes(grow(chats, least), max_tokens):
                if step.ids:
                    yield step.ids, self._run_pass(step)

    def _run_pass(self, step: TreePass) -> Tensor:
        tokens, positions = (torch.tensor([x], device=self.device) for x in (step.tokens, step.positions))
        return self._logits(step.ends, input_ids=tokens, position_ids=positions, segments=step.segments)[0]

    def _run_padded(self, chats: list[Ids]) -> Iterator[tuple[list[int], Tensor]]:
        """Sorted by length and padded on the right, where nothing that comes later is seen by any model."""
        order = sorted(range(len(chats)), key=lambda i: (-len(chats[i]), chats[i]))
        while order:
            longest = len(chats[order[0]])
            ids, order = _split(order, max(1, self.batch_tokens // 2 // longest))
            tokens, mask = (torch.zeros(len(ids), longest, dtype=torch.long) for _ in range(2))
            for row, i in enumerate(ids):
                tokens[row, : len(chats[i])] = torch.tensor(chats[i])
                mask[row, : len(chats[i])] = 1
            # From the end, since a prompt-tuned model puts tokens of its own before them.
            last = [len(chats[i]) - 1 - longest for i in ids]
            kept = sorted(set(last))
            inputs = {"input_ids": tokens.to(self.device), "attention_mask": mask.to(self.device)}
            logits = self._logits(kept, **inputs)
            yield ids, logits[range(len(ids)), [kept.index(column) for column in last]]

    def _logits(self, kept: list[int], **inputs: Any) -> Tensor:
        """The logits at a few places. Shape `(B, len(kept), V)`."""
        places = torch.tensor(kept, device=self.device)
        logits = self.model(**inputs, use_cache=False, logits_to_keep=places).logits
        return logits if logits.shape[1] == len(kept) else logits[:, places]

    def _check_packing(self) -> bool:
        """Whether packing and shared beginnings are exact on this model."""
        a, b, c, d, e = made_up(self.config.vocab_size, (7, 4, 3, 9, 5))
        chats = [a + b + d, a + b + c, a + d, a + b + e[::-1], a, d[::-1]]

        def together() -> Tensor:
            steps = list(self._run_trees(chats, 10**6, least=1))
            ids, logits = zip(*steps, strict=True)
            return torch.cat(logits)[torch.tensor(sum(ids, [])).argsort()].float()

        def alone() -> Tensor:
            return torch.cat([self._logits([-1], input_ids=self._row(chat))[:, 0] for chat in chats]).float()

        return gives_the_same(together, alone, self.exact)

    def _row(self, chat: Ids) -> Tensor:
        return torch.tensor([chat], device=self.device)

    def _precision(self) -> Any:
        return torch.autocast(self.device.type, self.cast_to) if self.cast_to else nullcontext()


def _split(items: list, n: int) -> tuple[list, list]:
    return items[:n], items[n:]
