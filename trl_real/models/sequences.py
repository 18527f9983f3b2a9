"""Prompts and responses as token ids, the way DPO scores them: the prompt is context, the response is scored."""

import logging
import re
from collections.abc import Collection, Iterable, Iterator
from functools import cache
from typing import Any, NamedTuple

import torch
from datasets import Dataset
from torch import Tensor

from trl_real.data.chat import PLAIN_PROMPTS
from trl_real.data.conversation import Chat, Reply, as_messages, text_of
from trl_real.data.convert import iterate
from trl_real.data.message import is_plain
from trl_real.data.template import chat_ids, continued, templated
from trl_real.errors import TrlRealError


logger = logging.getLogger(__name__)

Ids = tuple[int, ...]
CHARACTERS_PER_TOKEN = 16  # more than in any running text
MARGIN = 64  # tokens; what follows the cut can change only the last few
TRAINED_ON = ("chosen", "rejected", "completion")
BETWEEN_WORDS = re.compile(r"(?<=[a-z]) (?=[a-z])")


class Sequence(NamedTuple):
    """Ids of a prompt and of a response to score (none for a blank one), and whether the response was cut."""

    prompt: Ids
    response: Ids
    truncated: bool


def tokenize_pairs(
    tokenizer: Any, prompts: list[Any], responses: list[Any], max_length: int, ended: list[bool] | None = None
) -> list[Sequence]:
    """
    Tokenize each prompt and response together, as TRL's `DPOTrainer` does: the response begins where the ids of the
    prompt alone and of both diverge, and a text ends with the EOS token (messages end as their template says).
    Unlike there, control tokens in messages and in responses are read as plain text; text prompts may hold some.

    Args:
        tokenizer: Tokenizer of the model.
        prompts: One per response: text, messages or None. Messages go through the chat template.
        responses: Texts or messages.
        max_length: Maximum number of tokens: of a response from its start, of a prompt from its end.
        ended: Whether each response is complete; by default all are. A response that was cut, such as a generation
            at its token limit, gets no end: neither the EOS token nor the end of its template.

    Raises:
        TrlRealError: If a prompt is neither text nor messages.
    """
    tell_plain_prompts(tokenizer, prompts)
    ended = [True] * len(responses) if ended is None else ended
    responses = [readable_response(tokenizer, response, max_length) for response in responses]
    prompts = [readable_prompt(tokenizer, prompt, max_length) for prompt in prompts]
    control = control_tokens(tokenizer)
    whole = [_whole(tokenizer, *row, control) for row in zip(prompts, responses, ended, strict=True)]
    alone = _ids(tokenizer, [prompt or "" for prompt in prompts], add_generation_prompt=True)
    found: list[list[int]] = [[]] * len(whole)
    for end in set(ended):
        places = [i for i, whether in enumerate(ended) if whether == end]
        ids = _ids(tokenizer, [whole[i] for i in places], continue_final_message=not end)
        for i, one in zip(places, ids, strict=True):
            found[i] = one
    return [
        Sequence((), (), False) if not text_of(response).strip() else _split(ids, before, max_length)
        for ids, before, response in zip(found, alone, responses, strict=True)
    ]


def check_prompt(prompt: Any) -> None:
    """Raise `TrlRealError` if a prompt is neither text nor messages."""
    if not isinstance(prompt, str | list):
        raise TrlRealError(f"Column 'prompt' holds {type(prompt).__name__} instead of a text or messages.")


def tell_plain_prompts(tokenizer: Any, prompts: Iterable[Any]) -> None:
    """
    Warn, once in a process, if a prompt is a text although the model has a chat template.

    Blank prompts do not count, nor do chats that were rendered before: texts with control tokens.
    """
    if not getattr(tokenizer, "chat_template", None) or _tell_plain.cache_info().currsize:
        return
    rendered = control_tokens(tokenizer)
    if any(isinstance(prompt, str) and prompt.strip() and not rendered.search(prompt) for prompt in prompts):
        _tell_plain()


@cache
def _tell_plain() -> None:
    logger.warning(PLAIN_PROMPTS)


def prompt_text(tokenizer: Any, prompt: Any) -> str:
    """Return the text of a prompt: messages go through the chat template, with the generation prompt."""
    if isinstance(prompt, str):
        return prompt
    return templated(tokenizer, [prompt], add_generation_prompt=True, tokenize=False)[0]


def response_texts(tokenizer: Any, prompts: list[Any], responses: list[str]) -> list[str]:
    """
    Return what a model reads of responses without their prompts: their text, or what the chat template writes of a
    `Reply` with more than plain texts, such as calls of tools.
    """
    texts = [str(response) for response in responses]
    by_template = [i for i, r in enumerate(responses) if isinstance(r, Reply) and not all(map(is_plain, r.messages))]
    if by_template and tokenizer.chat_template:
        chats = [as_messages(prompts[i] or "", "user") for i in by_template]
        alone = templated(tokenizer, chats, add_generation_prompt=True, tokenize=False)
        both = [continued(chat, responses[i]) for chat, i in zip(chats, by_template, strict=True)]
        for i, before, text in zip(by_template, alone, templated(tokenizer, both, tokenize=False), strict=True):
            texts[i] = text[common_prefix(before, text) :]
    return texts


def common_prefix(first: Iterable[int], second: Iterable[int]) -> int:
    """Return the length of the common prefix."""
    n = 0
    for a, b in zip(first, second, strict=False):
        if a != b:
            break
        n += 1
    return n


def length_batches(sequences: list[Ids], batch_tokens: int) -> Iterator[list[int]]:
    """
    Yield the numbers of sequences in batches of at most `batch_tokens` tokens, padding included, longest first. A
    longer sequence gets its own batch.
    """
    order = sorted(range(len(sequences)), key=lambda i: (-len(sequences[i]), sequences[i]))
    while order:
        size = max(1, batch_tokens // max(1, len(sequences[order[0]])))
        yield order[:size]
        order = order[size:]


def pad(sequences: Collection[Ids], fill: int = 0, left: bool = False) -> tuple[Tensor, Tensor]:
    """Return tokens and attention mask of sequences, padded on the right (or on the left). Both of shape `(B, L)`."""
    longest = max(1, *map(len, sequences))
    tokens = torch.full((len(sequences), longest), fill)
    mask = torch.zeros(len(sequences), longest, dtype=torch.long)
    for row, sequence in enumerate(sequences):
        start = longest - len(sequence) if left else 0
        tokens[row, start : start + len(sequence)] = torch.tensor(sequence)
        mask[row, start : start + len(sequence)] = 1
    return tokens, mask


def _split(ids: list[int], before: list[int], max_length: int) -> Sequence:
    n = common_prefix(before, ids)
    response = tuple(ids[n:])
    return Sequence(tuple(ids[max(0, n - max_length) : n]), response[:max_length], len(response) > max_length)


def _whole(
    tokenizer: Any, prompt: Any, response: Any, ended: bool, control: re.Pattern[str]
) -> str | list[dict] | Ids:
    if prompt is not None:
        check_prompt(prompt)
    if isinstance(prompt, list):
        return continued(prompt, response)
    text, end = text_of(response), tokenizer.eos_token if ended and tokenizer.eos_token else ""
    text = text.removesuffix(end) if end else text
    if control.search(text):
        return ids_without_control(tokenizer, prompt or "", text, end, control)
    return (prompt or "") + text + end


def _ids(tokenizer: Any, items: list[str | list[dict] | Ids], **template: Any) -> list[list[int]]:
    """Return the ids of texts and conversations, in any mix; ids stay as they are."""
    texts = {i: item for i, item in enumerate(items) if isinstance(item, str)}
    found = {i: list(item) for i, item in enumerate(items) if isinstance(item, tuple)}
    chats = {i: item for i, item in enumerate(items) if isinstance(item, list)}
    if texts:
        found.update(zip(texts, tokenizer(list(texts.values()))["input_ids"], strict=True))
    if chats:
        found.update(zip(chats, chat_ids(tokenizer, list(chats.values()), **template), strict=True))
    return [found[i] for i in range(len(items))]


# Control tokens in data: where a text is judged or scored, they are read as plain text, so that none can act.


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
    """Return the number of rows with a control token in what is trained on, apart from an EOS at the end."""
    tokenizer = getattr(tokenizer, "tokenizer", tokenizer)
    pattern, end = control_tokens(tokenizer), tokenizer.eos_token or ""
    rows = iterate(
        preferences.with_format(None).select_columns([name for name in TRAINED_ON if name in preferences.column_names])
    )
    return sum(any(pattern.search(text_of(text or "").removesuffix(end)) for text in row.values()) for row in rows)


# Long texts, cut first: a tokenizer needs 300 bytes for each character of what nobody reads.


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


def readable_end(tokenizer: Any, text: str, n_tokens: int) -> str:
    """
    Return the end of a text that has the same last `n_tokens` tokens, and more than that if the text has.

    The cut is before a word that follows a word, where every tokenizer begins a token; without such a place, nothing
    is cut.
    """
    length = CHARACTERS_PER_TOKEN * (n_tokens + MARGIN)
    while len(text) > 2 * length:
        place = BETWEEN_WORDS.search(text, len(text) - 2 * length, len(text) - length)
        if place and len(tokenizer(text[place.start() :], add_special_tokens=False)["input_ids"]) >= n_tokens + MARGIN:
            return text[place.start() :]
        length *= 2
    return text


def readable_prompt(tokenizer: Any, prompt: Any, n_tokens: int) -> Any:
    """Apply `readable_end` to a prompt: a text, or messages, of which each content is cut that is a text."""
    if isinstance(prompt, str):
        return readable_end(tokenizer, prompt, n_tokens)
    if not isinstance(prompt, list):
        return prompt
    cut = [
        {**message, "content": readable_end(tokenizer, message["content"], n_tokens)}
        if isinstance(message.get("content"), str)
        else message
        for message in prompt
    ]
    return Chat(cut, prompt.template) if isinstance(prompt, Chat) else cut


def readable_response(tokenizer: Any, response: Any, n_tokens: int) -> Any:
    """Apply `readable` to a response: a text, or messages, of which each content is cut that is a text."""
    if isinstance(response, Reply):
        messages = readable_response(tokenizer, response.messages, n_tokens)
        return Reply(readable(tokenizer, response, n_tokens), messages)
    if isinstance(response, str):
        return readable(tokenizer, response, n_tokens)
    return [
        {**message, "content": readable(tokenizer, message["content"], n_tokens)}
        if isinstance(message.get("content"), str)
        else message
        for message in response
    ]
