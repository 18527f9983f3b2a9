"""Chat model in this process: the probabilities of the labels as its next token."""

import math
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from trl_real.errors import TrlRealError
from trl_real.labeling.chat.question import Answer, Question


if TYPE_CHECKING:
    import torch


PART = 128  # chats that are tokenized together for an accelerator, a few passes


class LocalChat:
    """
    Chat model that answers with the probabilities of the labels as the next token: one forward pass per chat.

    Texts cannot pose as the judge's instructions: control tokens in them are read as plain text. If the chat template
    has no system role, the system text goes to the start of the first user turn. Thinking is switched off.

    Args:
        model: Hub id or path, loaded on first use, once per process. Or a loaded model, also a PEFT model.
        tokenizer: Tokenizer of a loaded model; for a model given by name, one with another chat template.
        revision: Branch, tag or commit on the Hub.
        dtype: Precision of the weights of a model given by name, float32 by default. For a loaded model, precision of
            the matrix products. `"bfloat16"` and `"float16"` make probabilities coarse.
        device: Device of the model; the accelerator by default, else the CPU. A loaded model stays where it is.
        batch_tokens: Number of tokens in a forward pass. See `trl_real.models.choice.ChoiceReader`.

    Raises:
        TrlRealError: If a loaded model has no tokenizer, or the dtype is unknown.
    """

    def __init__(
        self,
        model: Any,
        *,
        tokenizer: Any = None,
        revision: str | None = None,
        dtype: "str | torch.dtype | None" = None,
        device: str | None = None,
        batch_tokens: int | None = None,
    ):
        from trl_real.models.lazy_model import LazyModel

        if batch_tokens is not None and batch_tokens < 1:
            raise TrlRealError(f"batch_tokens={batch_tokens} is too small. Give at least 1, or leave it out.")
        self.model, self.batch_tokens = LazyModel(model, tokenizer, revision, dtype, device), batch_tokens
        self.name = self.model.label

    @property
    def identity(self) -> dict[str, str]:
        """Everything that the answers depend on: model, weights, tokenizer, chat template and precision."""
        return self.model.identity

    def answers(self, questions: Sequence[Question]) -> list[Answer]:
        """
        Answer each question, in order, with the log-probability of each label. A chat that is longer than the model's
        context is a failure.

        Raises:
            TrlRealError: If the model has no chat template, or a label is more than one token.
        """
        if not questions:
            return []
        from trl_real.runtime.ahead import made_ahead

        def tokenize(rows: list[int]) -> list[tuple[int, ...]]:
            return self._tokenize([questions[i].messages for i in rows])

        device, found = self._reader.device, []
        for rows, chats in made_ahead(device, tokenize, [None] * len(questions), PART):
            found += self._answers([questions[i] for i in rows], chats)
        return found

    def _answers(self, questions: list[Question], chats: list[tuple[int, ...]]) -> list[Answer]:
        """Answer questions, given as token ids."""
        limit = self._reader.max_tokens or math.inf
        found = [Answer(failure=f"longer than the model reads ({len(chat)} tokens)") for chat in chats]
        for labels in dict.fromkeys(question.labels for question in questions):
            rows = [i for i, chat in enumerate(chats) if questions[i].labels == labels and len(chat) <= limit]
            log_probs = self._reader([chats[i] for i in rows], labels)
            for i, values in zip(rows, log_probs.tolist(), strict=True):
                found[i] = _answer(labels, values, len(chats[i]))
        return found

    @cached_property
    def _reader(self) -> Any:
        from trl_real.models.choice import ChoiceReader

        model, tokenizer = self.model.load()
        if not tokenizer.chat_template:
            raise TrlRealError(
                f"{self.name} has no chat template: it is a base model. Give an instruct model, or a tokenizer with "
                "a template: tokenizer=…."
            )
        return ChoiceReader(model, tokenizer, self.batch_tokens, self.model.cast_to)

    def _tokenize(self, chats: list[list[dict[str, str]]]) -> list[tuple[int, ...]]:
        from jinja2 import TemplateError

        if not self._keeps_system:
            chats = [_folded(chat) for chat in chats]
        try:
            ids = self._template(chats, tokenize=True, return_dict=True, sanitize_control_tokens=True)["input_ids"]
        except TemplateError as error:
            raise TrlRealError(f"The chat template of {self.name} does not accept the question: {error}.") from error
        return [tuple(chat) for chat in ids]

    @cached_property
    def _keeps_system(self) -> bool:
        """Whether the chat template keeps a system text; some templates raise, others drop it silently."""
        from jinja2 import TemplateError

        mark = "system 7919"
        try:
            chat = [{"role": "system", "content": mark}, {"role": "user", "content": "?"}]
            return mark in self._template(chat, tokenize=False)
        except TemplateError:
            return False

    def _template(self, chats: list, **how: Any) -> Any:
        apply = self._reader.tokenizer.apply_chat_template
        return apply(chats, add_generation_prompt=True, enable_thinking=False, **how)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_reader"}


def _folded(chat: list[dict[str, str]]) -> list[dict[str, str]]:
    """Move the system text to the start of the first user turn."""
    system, *rest = chat
    if system["role"] != "system" or not rest:
        return chat
    return [{**rest[0], "content": f"{system['content']}\n\n{rest[0]['content']}"}, *rest[1:]]


def _answer(labels: tuple[str, ...], log_probs: list[float], n_tokens: int) -> Answer:
    if any(map(math.isnan, log_probs)):
        return Answer(failure="a probability that is no number", input_tokens=n_tokens)
    return Answer(top=tuple(zip(labels, log_probs, strict=True)), input_tokens=n_tokens)
