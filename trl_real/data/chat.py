"""Texts of a chat model as messages: a prompt becomes a turn of the user, a response one of the assistant."""

import re
from typing import Any

from datasets import Dataset, Features, IterableDataset, List, Value

from trl_real.data.conversation import ASSISTANT_TURN, Messages, as_messages
from trl_real.errors import check_columns


MESSAGES = List({"role": Value("string"), "content": Value("string")})
SIDES = ("chosen", "rejected")
HUMAN_TURN = "\n\nHuman:"
TURN = re.compile(r"\n\n(Human|Assistant): ?")
ROLE_OF = {"Human": "user", "Assistant": "assistant"}

PLAIN_PROMPTS = (
    "The prompts are texts, and the model has a chat template: it reads them without the template, as texts to "
    "continue. If they are what a user says, type --chat, in Python as_messages=True (or trl_real.as_chat(dataset)): "
    "each prompt becomes a message of the user, each response one of the assistant."
)


def prompt_messages(prompt: Any) -> Any:
    """Convert a text to one message of the user, dialogues with HH-RLHF's marks to their turns; keep messages."""
    if not isinstance(prompt, str):
        return prompt
    if not (prompt.startswith(HUMAN_TURN) and prompt.endswith(ASSISTANT_TURN)):
        return as_messages(prompt, "user")
    _, *marked = TURN.split(prompt.removesuffix(ASSISTANT_TURN))
    turns = zip(marked[::2], marked[1::2], strict=True)
    return [{"role": ROLE_OF[speaker], "content": text} for speaker, text in turns]


def as_chat(dataset: Any, prompt: str = "prompt", responses: str = "responses") -> Any:
    """
    Return a dataset with its texts as messages: `prompt` as a message of the user, and `responses`, `chosen` and
    `rejected` (or ready pairs, `response_a` and `response_b`) as messages of the assistant.

    Contents stay as they are, and so do columns of messages. A prompt with the marks of HH-RLHF becomes its turns.

    Args:
        dataset: Pool, pairs or preferences: `Dataset`, `IterableDataset`, or a dict of them.
        prompt: Column of the prompts.
        responses: Column with the list of responses.

    Raises:
        MissingColumnError: If `chosen` and `rejected` are texts without a column of prompts.
    """
    if isinstance(dataset, dict):
        return type(dataset)({name: as_chat(split, prompt, responses) for name, split in dataset.items()})
    if not isinstance(dataset, Dataset | IterableDataset):
        return dataset
    features = dataset.features or dataset._resolve_features().features
    ready = () if responses in features or "pair" in features else ("response_a", "response_b")
    texts = [name for name in (prompt, *SIDES, *ready) if _holds_texts(features.get(name))]
    if _holds_texts(getattr(features.get(responses), "feature", None)):
        texts.append(responses)
    if set(texts) & set(SIDES):
        fix = "Convert whole dialogues first: trl_real.from_hh_rlhf(dataset), or trl-real select --source hh_rlhf"
        check_columns(list(features), [prompt], fix)
    if not texts:
        return dataset

    def wrapped(row: dict[str, Any]) -> dict[str, Any]:
        return {name: _wrapped(row[name], name == prompt) for name in texts}

    types = {name: List(MESSAGES) if name == responses else MESSAGES for name in texts}
    settings = {"features": Features({**features, **types})}
    if isinstance(dataset, IterableDataset):
        return dataset.map(wrapped, **settings)
    plain = dataset.with_format(None)
    chats = plain.map(wrapped, **settings, desc="Wrapping texts as messages", load_from_cache_file=False)
    form = dataset.format
    return chats.with_format(form["type"], **form["format_kwargs"]) if form["type"] else chats


def _holds_texts(feature: Any) -> bool:
    return getattr(feature, "dtype", None) in ("string", "large_string")


def _wrapped(value: Any, is_prompt: bool) -> Messages | list[Messages] | None:
    if value is None:
        return None
    if is_prompt:
        return prompt_messages(value)
    return [as_messages(text) for text in value] if isinstance(value, list) else as_messages(value)
