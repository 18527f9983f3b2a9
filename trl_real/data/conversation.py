"""Prompts and responses, as text or as messages, with the prompt explicit or implied."""

import os
from typing import Any, TypeGuard, TypeVar

from datasets import LargeList, List, Value

from trl_real.errors import TrlRealError


ASSISTANT_TURN = "\n\nAssistant:"

Messages = list[dict[str, Any]]
Text = TypeVar("Text", str, Messages)


def is_messages(value: Any) -> TypeGuard[Messages]:
    """Whether `value` is a list of messages (`{"role": …, "content": …}`)."""
    return isinstance(value, list) and bool(value) and all(isinstance(m, dict) and "content" in m for m in value)


def text_of(response: str | Messages) -> str:
    """What was said: the text itself, or the contents of the messages, a line break between them."""
    if isinstance(response, str):
        return response
    return "\n".join(_content(message["content"]) for message in response)


def dialogue(prompt: str | Messages) -> str:
    """
    A prompt as text for a reader: messages with their speakers, a single message or a text as it is.

    Raises:
        TrlRealError: If it is neither.
    """
    if not isinstance(prompt, str | list):
        raise TrlRealError(
            f"Column 'prompt' holds {type(prompt).__name__} where a text or messages should be. Leave such rows out: "
            "dataset.filter(lambda row: row['prompt'] is not None)"
        )
    if isinstance(prompt, str) or len(prompt) == 1:
        return text_of(prompt)
    return "\n\n".join(f"{message['role'].capitalize()}: {text_of([message])}" for message in prompt)


def implied_prompt(chosen: Text, rejected: Text) -> Text:
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


def without_prompt(dialogue: Text, prompt: Text) -> Text | None:
    """What follows the prompt, or None if the dialogue does not begin with it."""
    begins = dialogue.startswith(prompt) if isinstance(dialogue, str) else dialogue[: len(prompt)] == prompt
    return dialogue[len(prompt) :] if begins else None


def as_messages(response: str | Messages) -> Messages:
    """A text as one assistant message; messages as they are."""
    return [{"role": "assistant", "content": response}] if isinstance(response, str) else response


def after_prompt(response: Any, prompt: Any) -> Any:
    """A response without the prompt, where its messages repeat it (the binarized UltraFeedback's layout); else as it
    is."""
    if not is_messages(response):
        return response
    if isinstance(prompt, str):
        repeated = response[0].get("role") == "user" and text_of(response[:1]) == prompt
        return response[1:] if repeated else response
    rest = without_prompt(response, prompt) if isinstance(prompt, list) else None
    return response if rest is None else rest


def label_features(prompt: Any, response: Any) -> tuple[Any, Any]:
    """Features of a label's prompt and of its responses, of those in the pool: where one of the two is a text and the
    other messages, both are messages, since TRL takes no mixture."""
    texts = isinstance(prompt, Value), isinstance(response, Value)
    return response if texts == (True, False) else prompt, prompt if texts == (False, True) else response


def in_form(feature: Any, said: str | Messages | None, role: str = "assistant") -> str | Messages | None:
    """What was said as a column of `feature` holds it: where that holds messages, a text is one message of `role`."""
    if isinstance(feature, Value) or not isinstance(said, str):
        return said
    return [{"role": role, "content": [{"type": "text", "text": said}] if _holds_parts(feature) else said}]


def _holds_parts(feature: Any) -> bool:
    """Whether the contents of a column's messages are lists of parts, and no texts."""
    message = getattr(feature, "feature", None)
    return isinstance(message, dict) and isinstance(message.get("content"), List | LargeList)


def _content(content: Any) -> str:
    if isinstance(content, str):
        return content
    return "".join(part.get("text") or "" for part in content or [] if isinstance(part, dict))
