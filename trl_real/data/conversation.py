"""Prompts and responses as text or as messages, with an explicit or implicit prompt."""

import os
from typing import Any, TypeGuard, TypeVar

from datasets import LargeList, List, Value

from trl_real.errors import TrlRealError


ASSISTANT_TURN = "\n\nAssistant:"

Messages = list[dict[str, Any]]
Text = TypeVar("Text", str, Messages)


def is_messages(value: Any) -> TypeGuard[Messages]:
    """Return whether `value` is a list of messages (`{"role": …, "content": …}`)."""
    return isinstance(value, list) and bool(value) and all(isinstance(m, dict) and "content" in m for m in value)


def text_of(response: str | Messages) -> str:
    """Return the text itself, or the contents of the messages joined by line breaks."""
    if isinstance(response, str):
        return response
    return "\n".join(_content(message["content"]) for message in response)


def dialogue(prompt: str | Messages) -> str:
    """
    Return a prompt as readable text; several messages get the names of their roles.

    Raises:
        TrlRealError: If the prompt is neither text nor messages.
    """
    if not isinstance(prompt, str | list):
        raise TrlRealError(
            f"Column 'prompt' holds {type(prompt).__name__} where a text or messages should be. Remove such rows: "
            "dataset.filter(lambda row: row['prompt'] is not None)"
        )
    if isinstance(prompt, str) or len(prompt) == 1:
        return text_of(prompt)
    return "\n\n".join(f"{message['role'].capitalize()}: {text_of([message])}" for message in prompt)


def implied_prompt(chosen: Text, rejected: Text) -> Text:
    """
    Return the prompt that two full dialogues share.

    For HH-RLHF markup, the prompt ends with the last `"\\n\\nAssistant:"` of the chosen dialogue, so that responses
    with the same beginning keep it. For other text it is the longest common prefix; for messages, the common first
    messages.

    Returns:
        Prompt in the form of the dialogues. For HH-RLHF markup only `chosen` decides; the caller must check that
        `rejected` begins with the prompt.
    """
    if isinstance(chosen, str):
        end = chosen.rfind(ASSISTANT_TURN)
        return chosen[: end + len(ASSISTANT_TURN)] if end >= 0 else os.path.commonprefix([chosen, rejected])
    shared = 0
    while shared < min(len(chosen), len(rejected)) and chosen[shared] == rejected[shared]:
        shared += 1
    return chosen[:shared]


def without_prompt(dialogue: Text, prompt: Text) -> Text | None:
    """Return the dialogue after the prompt, or None if it does not begin with the prompt."""
    begins = dialogue.startswith(prompt) if isinstance(dialogue, str) else dialogue[: len(prompt)] == prompt
    return dialogue[len(prompt) :] if begins else None


def as_messages(value: str | Messages, role: str = "assistant") -> Messages:
    """Convert a text to one message with this role; return messages unchanged."""
    return [{"role": role, "content": value}] if isinstance(value, str) else value


def after_prompt(response: Any, prompt: Any) -> Any:
    """Remove the prompt from a response with messages that repeat it (the layout of the binarized UltraFeedback)."""
    if not is_messages(response):
        return response
    if isinstance(prompt, str):
        repeated = response[0].get("role") == "user" and text_of(response[:1]) == prompt
        return response[1:] if repeated else response
    rest = without_prompt(response, prompt) if isinstance(prompt, list) else None
    return response if rest is None else rest


def label_features(prompt: Any, response: Any) -> tuple[Any, Any]:
    """Return the features of a label's prompt and responses, given those of the pool. If one is text and the other
    messages, both become messages, because TRL does not accept a mixture."""
    texts = isinstance(prompt, Value), isinstance(response, Value)
    return response if texts == (True, False) else prompt, prompt if texts == (False, True) else response


def in_form(feature: Any, value: str | Messages | None, role: str = "assistant") -> str | Messages | None:
    """Convert to the form of a column: if `feature` holds messages, a text becomes one message with `role`."""
    if isinstance(feature, Value) or not isinstance(value, str):
        return value
    return [{"role": role, "content": [{"type": "text", "text": value}] if _holds_parts(feature) else value}]


def _holds_parts(feature: Any) -> bool:
    """Return whether the contents of a column's messages are lists of parts instead of texts."""
    message = getattr(feature, "feature", None)
    return isinstance(message, dict) and isinstance(message.get("content"), List | LargeList)


def _content(content: Any) -> str:
    if isinstance(content, str):
        return content
    return "".join(part.get("text") or "" for part in content or [] if isinstance(part, dict))
