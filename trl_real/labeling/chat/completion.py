"""Parts of a chat completion: text, thoughts, refusal and tokens, in the forms in which servers write them."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from trl_real.data.thoughts import CLOSING
from trl_real.labeling.chat.question import CHARACTERS_PER_TOKEN
from trl_real.labeling.chat.reading import Place, bare
from trl_real.runtime.openai_client import NotAnswered
from trl_real.runtime.server_words import printable, reported_tokens, text_and_thoughts


THOUGHT_FIELDS = ("reasoning_content", "reasoning", "thinking")  # vLLM and DeepSeek, OpenRouter and Groq, Ollama
MOST_PLACES = 2048


class Message(NamedTuple):
    """
    Message of a completion.

    Args:
        text: Visible text; empty if there is none.
        reasoning: Thoughts outside the text.
        refusal: Refusal in the model's words; empty if it did not refuse.
        finish_reason: Why the generation ended.
        places: Tokens of the text, with alternatives where they are known.
    """

    text: str
    reasoning: str
    refusal: str
    finish_reason: str
    places: tuple[Place, ...]


def message_of(completion: dict[str, Any], labels: Sequence[str] = ()) -> Message:
    """
    Return the first message of a completion; parts of an unknown form are left out.

    Args:
        completion: JSON of the server.
        labels: Labels that the answer may name: alternatives are kept only where the token is one; if empty,
            everywhere.
    """
    choices = completion.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else {}
    message = choice["message"] if isinstance(choice.get("message"), dict) else {}
    text, thoughts = text_and_thoughts(message.get("content"))
    fields = [text_and_thoughts(message[name]) for name in THOUGHT_FIELDS if message.get(name)]
    if fields and not thoughts:
        thoughts = "".join(fields[0])
    return Message(
        text,
        thoughts,
        text_and_thoughts(message.get("refusal"))[0],
        str(choice.get("finish_reason") or ""),
        _places(choice.get("logprobs"), labels),
    )


def tokens_of(completion: dict[str, Any]) -> tuple[int, int]:
    """
    Return the tokens read and generated, as the server reports them; 0, and an estimate from the text, if it does not.

    Raises:
        NotAnswered: If an answer cannot have so many.
    """
    message = message_of(completion)
    estimate = round(len(message.text + message.reasoning) / CHARACTERS_PER_TOKEN)
    return _reported(completion, "prompt_tokens"), _reported(completion, "completion_tokens") or estimate


def _reported(completion: dict[str, Any], name: str) -> int:
    found = reported_tokens(completion, name)
    if found is None:
        raise NotAnswered(f"an answer that reports {printable(str(completion['usage'][name]), 20)} tokens")
    return found


def _places(log_probabilities: Any, labels: Sequence[str]) -> tuple[Place, ...]:
    """Return the tokens after the thoughts."""
    if not isinstance(log_probabilities, dict):
        return ()
    told = log_probabilities.get("content")
    if isinstance(told, list):
        found = [_place(each, each.get("top_logprobs")) for each in told if isinstance(each, dict)]
    else:  # the older form: parallel lists, with a dictionary of alternatives for each token
        tokens, tops = (_list(log_probabilities.get(name)) for name in ("tokens", "top_logprobs"))
        found = [_place({"token": token}, top) for token, top in zip(tokens, tops, strict=False)]
    closed = [number for number, place in enumerate(found) if CLOSING.search(place.token)]
    found = found[closed[-1] + 1 if closed else 0 :][-MOST_PLACES:]
    return tuple(place if not labels or bare(place.token, labels) in labels else Place(place.token) for place in found)


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _place(told: dict[str, Any], top: Any) -> Place:
    token = str(told.get("token", ""))
    if isinstance(top, dict):
        top = [{"token": name, "logprob": value} for name, value in top.items()]
    pairs = [(str(each.get("token")), each.get("logprob")) for each in _list(top) if isinstance(each, dict)]
    known = {name: float(value) for name, value in pairs if isinstance(value, int | float) and not math.isnan(value)}
    own = told.get("logprob")
    if known and token not in known and isinstance(own, int | float):
        known[token] = float(own)
    return Place(token, tuple(known.items()))
