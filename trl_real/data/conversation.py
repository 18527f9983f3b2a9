"""Prompts and responses, as text or as messages, with the prompt explicit or implied."""

import os
from typing import Any

from datasets import Value


ASSISTANT_TURN = "\n\nAssistant:"

Messages = list[dict[str, Any]]


def is_messages(value: Any) -> bool:
    """Whether `value` is a list of messages (`{"role": …, "content": …}`)."""
    return isinstance(value, list) and bool(value) and all(isinstance(m, dict) and "content" in m for m in value)


def text_of(response: str | Messages) -> str:
    """What was said: the text itself, or the contents of the messages, a line break between them."""
    if isinstance(response, str):
        return response
    return "\n".join(_content(message["content"]) for message in response)


def dialogue(prompt: str | Messages) -> str:
    """A prompt as text for a reader: messages with their speakers, a single message or a text as it is."""
    if isinstance(prompt, str) or len(prompt) == 1:
        return text_of(prompt)
    return "\n\n".join(f"{message['role'].capitalize()}: {text_of([message])}" for message in prompt)


def implied_prompt(chosen: str | Messages, rejected: str | Messages) -> str | Messages:
    """
    The prompt that two full dialogues share.

    For HH-RLHF markup it is everything up to and including the last `"\\n\\nAssistant:"` of the chosen dialogue, so
    that responses which begin alike keep their beginnings; for other text it is the longest common beginning, and
    for messages the messages they have in common.

    Args:
        chosen: A dialogue, as text or messages.
        rejected: The same dialogue with another last response.

    Returns:
        The prompt, in the form of the dialogues. HH-RLHF markup is cut by `chosen` alone: whether `rejected` begins
        with the prompt is for the caller to check.
    """
    if isinstance(chosen, str):
        end = chosen.rfind(ASSISTANT_TURN)
        return chosen[: end + len(ASSISTANT_TURN)] if end >= 0 else os.path.commonprefix([chosen, rejected])
    shared = 0
    while shared < min(len(chosen), len(rejected)) and chosen[shared] == rejected[shared]:
        shared += 1
    return chosen[:shared]


def without_prompt(dialogue: str | Messages, prompt: str | Messages) -> str | Messages | None:
    """What follows the prompt, or None if the dialogue does not begin with it."""
    begins = dialogue.startswith(prompt) if isinstance(dialogue, str) else dialogue[: len(prompt)] == prompt
    return dialogue[len(prompt) :] if begins else None


def as_messages(response: str | Messages) -> Messages:
    """A text as one assistant message; messages as they are."""
    return [{"role": "assistant", "content": response}] if isinstance(response, str) else response


def response_feature(prompt: Any, response: Any) -> Any:
    """Feature of a labelled response, of those of prompts and responses: as in the pool, messages beside messages."""
    return prompt if isinstance(response, Value) and not isinstance(prompt, Value) else response


def in_form(feature: Any, response: str | Messages) -> str | Messages:
    """A response as a column of `feature` holds it: a text, or messages."""
    return response if isinstance(feature, Value) else as_messages(response)


def _content(content: Any) -> str:
    if isinstance(content, str):
        return content
    return "".join(part.get("text") or "" for part in content or [] if isinstance(part, dict))
