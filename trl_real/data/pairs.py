"""The responses of a row that can stand in a pair, or the reason why there are none."""

from dataclasses import dataclass, field
from typing import Any

from trl_real.data.conversation import after_prompt, implied_prompt, is_messages, text_of, without_prompt
from trl_real.errors import TrlRealError


TOO_FEW = "fewer than two responses"
EMPTY = "empty response"
IDENTICAL = "identical responses"
MISSING = "missing response"
PROMPT_MISMATCH = "chosen and rejected do not share their prompt"


@dataclass
class Candidates:
    """
    One row, ready for embedding.

    Args:
        prompt: Text or messages; None if the row has none.
        texts: What each eligible response says, distinct and not blank.
        indices: Where each of `texts` stands in the row's responses, ascending.
        skipped: Why the row can have no pair; empty if it can.
    """

    prompt: Any = None
    texts: list[str] = field(default_factory=list)
    indices: list[int] = field(default_factory=list)
    skipped: str = ""


def pool_candidates(prompt: Any, responses: list | None, column: str = "responses") -> Candidates:
    """
    Candidates of a pool row: the first of each set of equal responses (spaces around them aside), blank ones left out.

    Args:
        prompt: Text, messages or None.
        responses: Texts or message lists, which may repeat the prompt; None entries are missing responses.
        column: Where they come from, for the error.

    Raises:
        TrlRealError: If a response is neither text nor messages.
    """
    if isinstance(responses, str) or not isinstance(responses, list | tuple | None):
        raise TrlRealError(
            f"Column {column!r} holds one {type(responses).__name__} a row where a list of responses should be. "
            "Group the rows of a prompt first, or name the column that has the lists: responses='…'."
        )
    texts = [_checked_text(after_prompt(response, prompt), column) for response in responses or []]
    seen: dict[str, int] = {}
    for index, text in enumerate(texts):
        if text is not None and text.strip():
            seen.setdefault(text.strip(), index)
    indices = list(seen.values())
    if len(indices) >= 2:
        return Candidates(prompt, [text for i in indices if (text := texts[i]) is not None], indices)
    return Candidates(prompt, skipped=_reason(texts))


def preference_candidates(prompt: Any, chosen: Any, rejected: Any) -> Candidates:
    """
    Candidates of a labelled row: its two responses without their prompt, which may be explicit or implied.

    Args:
        prompt: Text, messages, or None where `chosen` and `rejected` are full dialogues.
        chosen: Text or messages.
        rejected: Text or messages.

    Raises:
        TrlRealError: If a response is neither text nor messages.
    """
    if chosen is None or rejected is None:
        return Candidates(prompt, skipped=MISSING)
    for name, value in (("chosen", chosen), ("rejected", rejected)):
        _checked_text(value, name)
    if isinstance(chosen, str) != isinstance(rejected, str):
        raise TrlRealError(
            "Of 'chosen' and 'rejected' one holds texts and the other messages. Convert one: dataset.map(…)."
        )
    if prompt is None:
        if chosen == rejected:
            return Candidates(skipped=IDENTICAL)
        prompt = implied_prompt(chosen, rejected)
        if prompt != implied_prompt(rejected, chosen):  # else the label would decide whether the row has a pair
            return Candidates(skipped=PROMPT_MISMATCH)
        chosen, rejected = without_prompt(chosen, prompt), without_prompt(rejected, prompt)
    if chosen is None or rejected is None:
        return Candidates(prompt, skipped=PROMPT_MISMATCH)
    return pool_candidates(prompt, [chosen, rejected])


def _checked_text(response: Any, column: str) -> str | None:
    if response is None or isinstance(response, str):
        return response
    if is_messages(response):
        return text_of(response)
    if response == []:
        return ""
    raise TrlRealError(
        f"Column {column!r} holds {type(response).__name__} where a text or a list of messages should be. "
        f"Convert it: dataset.cast_column({column!r}, …) or dataset.map(…)."
    )


def _reason(texts: list[str | None]) -> str:
    if len(texts) < 2:
        return TOO_FEW
    if any(text is None for text in texts):
        return MISSING
    return EMPTY if any(not (text or "").strip() for text in texts) else IDENTICAL
