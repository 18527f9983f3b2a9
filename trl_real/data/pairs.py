"""Responses of a row that can form a pair, or the reason why the row has none."""

import math
from dataclasses import dataclass, field
from typing import Any

from datasets import Dataset, Features, IterableDataset, List

from trl_real.data.columns import OWN_FEATURES, is_ready
from trl_real.data.conversation import (
    after_prompt,
    implied_prompt,
    is_messages,
    reply_of,
    shared_turns,
    without_prompt,
)
from trl_real.errors import TrlRealError


TOO_FEW = "fewer than two responses"
EMPTY = "empty response"
IDENTICAL = "identical responses"
SAME_AS_TRAINED = "identical responses as the model is trained on them"
MISSING = "missing response"
PROMPT_MISMATCH = "chosen and rejected do not share their prompt"


@dataclass
class Candidates:
    """
    Row that is ready for embedding.

    Args:
        prompt: Prompt as text or messages; None if the row has no prompt.
        texts: Texts of the eligible responses (`reply_of`), distinct and not blank.
        indices: Index of each text in the row's responses, ascending.
        skipped: Reason why the row cannot have a pair; empty if it can.
    """

    prompt: Any = None
    texts: list[str] = field(default_factory=list)
    indices: list[int] = field(default_factory=list)
    skipped: str = ""


def pool_candidates(prompt: Any, responses: list | None, column: str = "responses") -> Candidates:
    """
    Return the candidates of a pool row: its distinct responses, without blank ones.

    Of responses that differ only in the spaces around them, the first counts.

    Args:
        prompt: Prompt as text or messages, or None.
        responses: Responses as texts or messages, which may repeat the prompt; None entries are missing responses.
        column: Name of the column with the responses, for the error.

    Raises:
        TrlRealError: If a response is neither text nor messages.
    """
    if isinstance(responses, str) or not isinstance(responses, list | tuple | None):
        raise TrlRealError(
            f"Column {column!r} holds one {type(responses).__name__} a row where a list of responses should be. "
            "Group the rows by prompt first, or name the column with the lists: responses='…'."
        )
    _check_prompt(prompt)
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
    Return the candidates of a labelled row: its two responses without their explicit or implicit prompt.

    Args:
        prompt: Prompt as text or messages, or None if `chosen` and `rejected` are full dialogues.
        chosen: Better response, as text or messages.
        rejected: Worse response, as text or messages.

    Raises:
        TrlRealError: If a response is neither text nor messages.
    """
    if chosen is None or rejected is None:
        return Candidates(prompt, skipped=MISSING)
    for name, value in (("chosen", chosen), ("rejected", rejected)):
        _checked_text(value, name)
    if isinstance(chosen, str) != isinstance(rejected, str):
        raise TrlRealError(
            "One of 'chosen' and 'rejected' holds texts and the other messages. Convert one: dataset.map(…)."
        )
    _check_prompt(prompt)
    if prompt is None:
        if chosen == rejected:
            return Candidates(skipped=IDENTICAL)
        if is_messages(shorter := min(chosen, rejected, key=len)) and shorter[-1].get("role") == "user":
            return Candidates(skipped=EMPTY)
        prompt = implied_prompt(chosen, rejected)
        if prompt != implied_prompt(rejected, chosen):  # the label must not decide whether the row has a pair
            return Candidates(skipped=PROMPT_MISMATCH)
        chosen, rejected = without_prompt(chosen, prompt), without_prompt(rejected, prompt)
    if chosen is None or rejected is None:
        return Candidates(prompt, skipped=PROMPT_MISMATCH)
    chosen, rejected = (after_prompt(side, prompt) for side in (chosen, rejected))
    if shared := shared_turns(chosen, rejected) if chosen and rejected else None:
        whole = isinstance(shared, str) == isinstance(prompt, str)
        prompt = prompt + shared if whole else [{"role": "user", "content": prompt}, *shared]
        chosen, rejected = chosen[len(shared) :], rejected[len(shared) :]
    return pool_candidates(prompt, [chosen, rejected])


def ready_pairs(dataset: Any, responses: str = "responses") -> Any:
    """
    Return ready pairs (`prompt`, `response_a`, `response_b`, as texts or messages; also a stream of them) with the
    columns of a selection; anything else unchanged.
    """
    given = set(getattr(dataset, "column_names", None) or ())
    if not isinstance(dataset, Dataset | IterableDataset) or not is_ready(given, responses):
        return dataset
    sides = dataset.features["response_a"], dataset.features["response_b"]
    if sides[0] != sides[1]:
        raise TrlRealError(
            f"Column 'response_a' holds {sides[0]} and 'response_b' {sides[1]}. Cast one: dataset.cast_column(…)"
        )

    def selected(row: dict[str, Any]) -> dict[str, Any]:
        both = [row["response_a"], row["response_b"]]
        found = pool_candidates(row.get("prompt"), both)
        texts, pair = (found.texts, found.indices) if found.texts else (["", ""], [-1, -1])
        shown = dict(zip(("response_a", "response_b"), texts, strict=True))
        return {responses: both, "pair": pair, **shown, "similarity": math.nan, "skipped": found.skipped}

    features = Features({**dataset.features, responses: List(sides[0]), **OWN_FEATURES})
    plain = dataset.with_format(None)
    if isinstance(plain, IterableDataset):
        return plain.map(selected, features=features)
    return plain.map(selected, features=features, desc="Reading pairs", load_from_cache_file=False)


def drop_copies(row: Candidates, read: list[str]) -> None:
    """Leave out the texts of which `read`, what a model reads of each, is that of an earlier text; skip a lone one."""
    first = [i for i, text in enumerate(read) if text not in read[:i]]
    row.texts, row.indices = [row.texts[i] for i in first], [row.indices[i] for i in first]
    if len(first) == 1:
        row.texts, row.indices, row.skipped = [], [], SAME_AS_TRAINED


def _check_prompt(prompt: Any) -> None:
    if prompt and not isinstance(prompt, str) and not is_messages(prompt):
        raise TrlRealError(
            "Column 'prompt' holds something else than a text or messages. Correct such rows, or remove them: "
            "dataset.filter(…)"
        )


def _checked_text(response: Any, column: str) -> str | None:
    if response is None or isinstance(response, str):
        return response
    if is_messages(response):
        return reply_of(response)
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
