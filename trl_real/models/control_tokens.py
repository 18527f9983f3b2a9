"""Control tokens in data: where a text is judged or scored, they are read as plain text, so that none can act."""

import re
from typing import Any

from datasets import Dataset

from trl_real.data.conversation import text_of
from trl_real.data.convert import iterate


def control_tokens(tokenizer: Any) -> re.Pattern[str]:
    """Return a pattern of the tokenizer's special tokens, such as `<|im_end|>`; it matches nothing without any."""
    special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    return re.compile("|".join(map(re.escape, sorted(special, key=len, reverse=True))) or "(?!)")


def ids_without_control(
    tokenizer: Any, before: str, text: str, end: str, pattern: re.Pattern[str], add_special_tokens: bool = True
) -> tuple[int, ...]:
    """
    Return the ids of `before + text + end` with the control tokens in `text` as plain text.

    Args:
        tokenizer: Tokenizer of the model.
        before: Prompt, in which control tokens count: it may be a chat that was rendered before.
        text: Response.
        end: Text after the response, such as the EOS token.
        pattern: `control_tokens(tokenizer)`.
        add_special_tokens: Whether the tokenizer begins a text with its BOS token.
    """
    pieces = re.split(f"({pattern.pattern})", text)
    ids = list(tokenizer(before + pieces[0], add_special_tokens=add_special_tokens)["input_ids"])
    if ids and ids[-1] == tokenizer.eos_token_id and not (before + pieces[0]).endswith(tokenizer.eos_token):
        ids.pop()  # added by the tokenizer at the end of every text
    for place, piece in enumerate(pieces[1:], 1):
        ids += tokenizer(piece, add_special_tokens=False, split_special_tokens=bool(place % 2))["input_ids"]
    return (*ids, *tokenizer(end, add_special_tokens=False)["input_ids"])


def n_with_control_tokens(tokenizer: Any, preferences: Dataset) -> int:
    """Return the number of rows with a control token in `chosen` or `rejected`, apart from an EOS at the end."""
    pattern, end = control_tokens(getattr(tokenizer, "tokenizer", tokenizer)), tokenizer.eos_token or ""
    rows = iterate(preferences.with_format(None).select_columns(["chosen", "rejected"]))
    return sum(any(pattern.search(text_of(text or "").removesuffix(end)) for text in row.values()) for row in rows)
