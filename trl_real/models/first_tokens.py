"""Long texts, cut before they are tokenized: a tokenizer needs 300 bytes for each character of what nobody reads."""

from typing import Any


CHARACTERS_PER_TOKEN = 16  # more than in any running text
MARGIN = 64  # tokens; what follows the cut can change only the last few


def readable(tokenizer: Any, text: str, n_tokens: int) -> str:
    """
    Return the beginning of a text that has the same first `n_tokens` tokens, and more than that if the text has.

    A cut text has `MARGIN` tokens more than asked for, however few characters make a token; else more is kept.
    """
    length = CHARACTERS_PER_TOKEN * (n_tokens + MARGIN)
    while len(text) > length:
        if len(tokenizer(text[:length], add_special_tokens=False)["input_ids"]) >= n_tokens + MARGIN:
            return text[:length]
        length *= 2
    return text


def readable_response(tokenizer: Any, response: Any, n_tokens: int) -> Any:
    """Apply `readable` to a response: a text, or messages, of which each content is cut that is a text."""
    if isinstance(response, str):
        return readable(tokenizer, response, n_tokens)
    return [
        {**message, "content": readable(tokenizer, message["content"], n_tokens)}
        if isinstance(message.get("content"), str)
        else message
        for message in response
    ]
