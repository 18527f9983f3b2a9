"""
What a response is, and a prompt: text or messages, for people, judges, keys and models; explicit or implicit prompts.

`text_of` is the text for judges and people, and the identity for keys and comparisons. `reply_of` is that text with
the messages that a chat template reads (`as_messages`), and `with_template` a prompt with the row's arguments of the
template. Whatever reads a response asks here.
"""

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any, TypeGuard, TypeVar

from datasets import LargeList, List, Value

from trl_real.data.message import is_message, message_text
from trl_real.errors import TrlRealError


ASSISTANT_TURN, HUMAN_TURN = "\n\nAssistant:", "\n\nHuman:"

Messages = list[dict[str, Any]]
Text = TypeVar("Text", str, Messages)


# Columns with arguments of the chat template, as TRL's trainers read them.
TEMPLATE_COLUMNS = ("tools", "chat_template_kwargs")


class Reply(str):
    """
    Text of a response for judges, people and keys, with the `messages` that a chat template renders.

    It equals its text in every comparison; Arrow and JSON keep the text only.
    """

    messages: Messages

    def __new__(cls, text: str, messages: Messages) -> "Reply":
        """Return the text, with its messages."""
        reply = super().__new__(cls, text)
        reply.messages = messages
        return reply

    def __getnewargs__(self) -> tuple[str, Messages]:  # type: ignore[override]  # more than a plain text has
        return str(self), self.messages


class Chat(list):
    """Messages of a prompt, with the arguments of the chat template in `template`."""

    def __init__(self, messages: Messages, template: dict[str, Any]):
        super().__init__(messages)
        self.template = template


def is_messages(value: Any) -> TypeGuard[Messages]:
    """Return whether `value` is a list of messages (`{"role": …, "content": …}`)."""
    return isinstance(value, list) and bool(value) and all(map(is_message, value))


def text_of(response: str | Messages) -> str:
    """Return the text itself, or the texts of the messages (see `message_text`) joined by line breaks."""
    return response if isinstance(response, str) else "\n".join(map(message_text, response))


def reply_of(response: str | Messages) -> str:
    """Return the text of a response, as a `Reply` unless one assistant message with that content is all there is."""
    if isinstance(response, str):
        return response
    text = text_of(response)
    given = [{name: value for name, value in message.items() if value is not None} for message in response]
    return text if given == [{"role": "assistant", "content": text}] else Reply(text, response)


def replies(batch: Mapping[str, Sequence[Any]]) -> tuple[list[str], list[str]]:
    """
    Return both responses of each pair of a judge's batch; `Reply` where `responses` and `pair` say what it was.

    Args:
        batch: Columns `prompt`, `response_a`, `response_b`, and optionally `responses` and `pair`.
    """
    sides = [list(batch[name]) for name in ("response_a", "response_b")]
    if "responses" in batch and "pair" in batch:
        rows = zip(batch["prompt"], batch["responses"], batch["pair"], strict=True)
        for row, (prompt, responses, pair) in enumerate(rows):
            for texts, place in zip(sides, pair, strict=True):
                whole = after_prompt(responses[place], prompt) if 0 <= place < len(responses) else None
                if is_messages(whole) and (reply := reply_of(whole)) == texts[row]:
                    texts[row] = reply
    return sides[0], sides[1]


def with_template(prompt: Any, tools: Any = None, chat_template_kwargs: Mapping[str, Any] | None = None) -> Any:
    """Return a prompt of messages as `Chat` with a row's arguments of the template, or unchanged without any."""
    tools = json.loads(tools) if isinstance(tools, str) else tools
    template = {**({"tools": tools} if tools else {}), **(chat_template_kwargs or {})}
    return Chat(prompt, template) if template and isinstance(prompt, list) else prompt


def prompts_of(batch: Mapping[str, Sequence[Any]], prompts: Sequence[Any] | None = None) -> list[Any]:
    """Return the prompts of a batch, or those given, with their rows' arguments of the chat template."""
    prompts = list(batch["prompt"] if prompts is None else prompts)
    columns = [batch.get(name) or [None] * len(prompts) for name in TEMPLATE_COLUMNS]
    return [with_template(*row) for row in zip(prompts, *columns, strict=True)]


def template_evidence(batch: Mapping[str, Sequence[Any]]) -> list[dict | None]:
    """Return each row's arguments of the chat template, on which a model's verdict depends; None without any."""
    return [getattr(prompt, "template", None) for prompt in prompts_of(batch)]


def dialogue(prompt: str | Messages) -> str:
    """
    Return a prompt as readable text; several messages get the names of their roles.

    Raises:
        TrlRealError: If the prompt is neither text nor messages.
    """
    if not isinstance(prompt, str) and prompt != [] and not is_messages(prompt):
        raise TrlRealError(
            f"Column 'prompt' holds {type(prompt).__name__} where a text or messages should be. Remove such rows: "
            "dataset.filter(lambda row: row['prompt'] is not None)"
        )
    if isinstance(prompt, str) or len(prompt) == 1:
        return text_of(prompt)
    return "\n\n".join(f"{str(m.get('role')).capitalize()}: {message_text(m, role=False)}" for m in prompt)


def implied_prompt(chosen: Text, rejected: Text) -> Text:
    """
    Return the prompt that two full dialogues share.

    For HH-RLHF markup, the prompt ends with the last `"\\n\\nAssistant:"` of the chosen dialogue, so that responses
    with the same beginning keep it; if they differ from an earlier turn of the assistant on, with that turn's.
    Otherwise it is the one that TRL's trainers extract: the common first messages, or the longest common prefix
    without a last space; if one dialogue begins the other, its last message or character belongs to the responses.

    Returns:
        Prompt in the form of the dialogues. For HH-RLHF markup only `chosen` decides; the caller must check that
        `rejected` begins with the prompt.
    """
    if isinstance(chosen, str) and (end := chosen.rfind(ASSISTANT_TURN)) >= 0:
        whole = chosen[: end + len(ASSISTANT_TURN)]
        return whole if rejected.startswith(whole) else shared_turns(chosen, rejected) or whole
    shared = len(common_start(chosen, rejected))
    if shared and shared == min(len(chosen), len(rejected)) or chosen[max(0, shared - 1) : shared] == " ":
        shared -= 1
    return chosen[:shared]


def shared_turns(one: Text, other: Text) -> Text:
    """
    Return the turns that two dialogues, or answers of several turns, share before an assistant's turn in which they
    begin to differ; empty if they differ elsewhere, or from the start.
    """
    shared = common_start(one, other)
    if isinstance(shared, str):
        end = shared.rfind(ASSISTANT_TURN)
        end = end + len(ASSISTANT_TURN) if end >= 0 and HUMAN_TURN not in shared[end:] else 0
        return one[:end]
    n = min(len(shared), len(one) - 1, len(other) - 1)
    while n > 0 and not all(side[n].get("role") == "assistant" for side in (one, other)):
        n -= 1
    return one[: max(0, n)]


def common_start(one: Text, other: Text) -> Text:
    """Return the longest common prefix of two texts, or the common first messages."""
    if isinstance(one, str):
        return os.path.commonprefix([one, other])
    shared = 0
    while shared < min(len(one), len(other)) and one[shared] == other[shared]:
        shared += 1
    return one[:shared]


def without_prompt(dialogue: Text, prompt: Text) -> Text | None:
    """Return the dialogue after the prompt, or None if it does not begin with the prompt."""
    begins = dialogue.startswith(prompt) if isinstance(dialogue, str) else dialogue[: len(prompt)] == prompt
    return dialogue[len(prompt) :] if begins else None


def as_messages(value: str | Messages, role: str = "assistant") -> Messages:
    """Convert a text to one message with this role; return messages, and those of a `Reply`, unchanged."""
    if isinstance(value, Reply):
        return value.messages
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
