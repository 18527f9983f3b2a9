"""Conversations as a model's chat template writes them."""

import json
from collections import defaultdict
from typing import Any

from jinja2 import TemplateError

from trl_real.data.conversation import Chat, as_messages
from trl_real.errors import TrlRealError


def end_of_turn(tokenizer: Any) -> str:
    """Return the special token that the chat template writes after a response; empty if there is none."""
    said = "0817"
    turns = [{"role": role, "content": said} for role in ("user", "assistant")]
    text = templated(tokenizer, [turns], tokenize=False)[0]
    ids = tokenizer(text[text.rindex(said) + len(said) :], add_special_tokens=False)["input_ids"]
    return next((tokenizer.decode([i]) for i in ids if i in tokenizer.added_tokens_decoder), "")


def continued(prompt: list[dict], response: Any) -> list[dict]:
    """Return a prompt of messages with the response after it, and the prompt's arguments of the template."""
    chat = [*prompt, *as_messages(response)]
    return Chat(chat, prompt.template) if isinstance(prompt, Chat) else chat


def templated(tokenizer: Any, chats: list[list[dict]], tokenize: bool = True, **options: Any) -> list[Any]:
    """
    Apply the chat template to conversations, each with the arguments of its `Chat`; return ids, or texts.

    Raises:
        TrlRealError: If there is no template, or it refuses a conversation.
    """
    if chats and not tokenizer.chat_template:
        raise TrlRealError(
            "The prompts are messages, and the model's tokenizer has no chat template: it is a base model. Give texts "
            "as prompts (leave --chat out), a model for chats, or set tokenizer.chat_template."
        )
    groups: dict[str, list[int]] = defaultdict(list)
    for i, chat in enumerate(chats):
        groups[json.dumps(getattr(chat, "template", {}), sort_keys=True, default=str)].append(i)
    found: dict[int, Any] = {}
    for places in groups.values():
        own = {**options, **getattr(chats[places[0]], "template", {})}
        try:
            done = tokenizer.apply_chat_template(
                [list(chats[i]) for i in places], tokenize=tokenize, return_dict=tokenize, **own
            )
        except (TemplateError, TypeError, KeyError, IndexError) as error:
            raise TrlRealError(_refused([chats[i] for i in places], error)) from error
        found.update(zip(places, done["input_ids"] if tokenize else done, strict=True))
    return [found[i] for i in range(len(chats))]


def _refused(chats: list[list[dict]], error: Exception) -> str:
    roles = sorted({str([message.get("role") for message in chat]) for chat in chats}, key=len)[-1]
    fix = "Rewrite such messages (a system text may become the start of the first user message): dataset.map(…)"
    return f"The model's chat template refuses messages with the roles {roles}: {error}. {fix}, or give another model."


def chat_ids(tokenizer: Any, chats: list[list[dict]], **template: Any) -> list[list[int]]:
    """Return the ids of conversations by the chat template, with control tokens in the messages as plain text."""
    return templated(tokenizer, chats, sanitize_control_tokens=True, **template)
