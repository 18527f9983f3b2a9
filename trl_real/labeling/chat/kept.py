"""Answers as the cache keeps them."""

from dataclasses import asdict, replace
from typing import Any, TypeGuard

from trl_real.labeling.chat.completion import Message
from trl_real.labeling.chat.purse import Bill
from trl_real.labeling.chat.question import Answer
from trl_real.labeling.chat.reading import Place
from trl_real.runtime.server_words import MOST_TOKENS, text_and_thoughts


REFUSAL = 80  # characters of a refusal in the reason of a failure


def is_entry(kept: Any) -> TypeGuard[dict[str, Any]]:
    """Return whether a value of the cache can be read as an answer; any other counts as absent."""
    if not isinstance(kept, dict) or not isinstance(kept.get("text"), str | list):
        return False
    counts = [kept.get(name, 0) for name in ("input_tokens", "output_tokens", "cost")]
    return all(isinstance(n, int | float) and 0 <= n <= MOST_TOKENS for n in counts) and _tokens(kept) is not None


def _tokens(kept: dict[str, Any]) -> tuple[tuple[Place, ...], tuple[tuple[str, float], ...] | None] | None:
    """Return the places of an entry and, of older ones, the likely first tokens; None if they cannot be read."""
    try:
        places = tuple(
            Place(str(token), tuple((str(t), float(p)) for t, p in top)) for token, top in kept.get("places") or ()
        )
        return places, tuple((str(token), float(value)) for token, value in kept.get("top") or ()) or None
    except (TypeError, ValueError):
        return None


def read_answer(kept: dict[str, Any], cached: bool) -> Answer:
    """Return the answer of a cache entry; what is not of the form of one is a failure."""
    places, top = _tokens(kept) or ((), None)
    text, thoughts = text_and_thoughts(kept.get("text"))
    reasoning = thoughts or str(kept.get("reasoning") or "")
    message = Message(text, reasoning, str(kept.get("refusal") or ""), str(kept.get("finish_reason") or ""), places)
    return replace(answer_of(message), top=top, cached=cached, **asdict(bill_of(kept)))


def answer_of(message: Message) -> Answer:
    """Return the answer that a message gives."""
    refused = f"the model refused: {' '.join(message.refusal.split())[:REFUSAL]}" if message.refusal else ""
    return Answer(
        text=message.text,
        places=message.places,
        reasoning=message.reasoning,
        finish_reason=message.finish_reason,
        failure=refused,
    )


def bill_of(kept: dict[str, Any]) -> Bill:
    """Return what a cached answer has cost."""
    read, written = (int(number(kept.get(name))) for name in ("input_tokens", "output_tokens"))
    return Bill(read, written, number(kept.get("cost")))


def number(value: Any) -> float:
    """Return a number of a server or of the cache; 0 for anything else, and for numbers that cannot be right."""
    return float(value) if isinstance(value, int | float) and 0 <= value <= MOST_TOKENS else 0.0
