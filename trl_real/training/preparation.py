"""
TRL's preparation of a dataset: its errors as one line that names the row, and truncated responses without the end that
TRL appends, which would teach the model that they are complete.
"""

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from typing import Any

import pyarrow.compute as pc
from datasets import Dataset, Value
from jinja2 import TemplateError

from trl_real.data.conversation import implied_prompt, is_messages
from trl_real.data.convert import iterate
from trl_real.data.template import end_of_turn
from trl_real.errors import TrlRealError
from trl_real.models.generate import ends_of
from trl_real.models.sequences import tell_plain_prompts


logger = logging.getLogger(__name__)

# Column that says whether the response of a side is complete; `self_annotate` writes it.
FINISHED = {"chosen": "chosen_finished", "rejected": "rejected_finished"}


@contextmanager
def told_by_row(dataset: Any, name: str) -> Iterator[None]:
    """
    Run TRL's preparation of a dataset.

    Raises:
        TrlRealError: If the chat template refuses the messages, or dialogues do not share a prompt.
    """
    try:
        yield
    except TemplateError as error:
        raise TrlRealError(
            f"The model's chat template refuses messages of the set {name!r}: {error}. Rewrite them (a system text "
            "may become the start of the first user message): dataset.map(…), or give another model."
        ) from error
    except (IndexError, ValueError) as error:
        row = next((i for i, row in enumerate(dataset) if _has_no_prompt(row)), None)
        if row is None:
            raise
        raise TrlRealError(
            f"Row {row} of the set {name!r}: 'chosen' and 'rejected' share no prompt before their responses. Remove "
            "such rows with dataset.filter(…), or give the prompt in a column 'prompt'."
        ) from error


def told_preparation(
    prepare: Callable[[], Any], rows: Any, name: str, max_length: int | None, why: str = "prompt fills max_length"
) -> Any:
    """Return what TRL's preparation of a dataset returns, and tell of rows that it cannot read or drops."""
    with told_by_row(rows, name):
        prepared = prepare()
    if isinstance(prepared, Dataset):
        tell_dropped(len(rows), len(prepared), name, max_length, why)
    return prepared


def tell_dropped(n_rows: int, n_left: int, name: str, max_length: int | None, why: str) -> None:
    """
    Warn of the rows that TRL drops because they are too long, which `why` says more exactly.

    Raises:
        TrlRealError: If no row is left.
    """
    if n_rows and not n_left:
        raise TrlRealError(
            f"Nothing is left of the {n_rows} rows of the set {name!r}: every {why}={max_length}. "
            "Give a larger max_length, or shorter prompts."
        )
    if n_left < n_rows:
        logger.warning("%d of %d rows of %r dropped: %s", n_rows - n_left, n_rows, name, why)


def check_ends(model: Any, tokenizer: Any, rows: Any) -> None:
    """
    Warn if `rows` hold messages and the end of the template's turns does not end the model's generations, or if they
    hold texts although the model has a chat template.
    """
    tokenizer = getattr(tokenizer, "tokenizer", tokenizer)
    if isinstance(rows, Dataset):
        tell_plain_prompts(tokenizer, (row.get("prompt") for row in islice(iterate(rows), 100)))
    is_chat = isinstance(rows, Dataset) and not isinstance(rows.features.get("prompt"), Value)
    end = end_of_turn(tokenizer) if is_chat and tokenizer.chat_template else ""
    ends = ends_of(model, tokenizer)
    if end and tokenizer.convert_tokens_to_ids(end) not in ends:
        logger.warning(
            "The chat template ends a turn with %r, but generations only end with %s: replies will run on. Type "
            "--eos_token %r with trl-real sft, or set tokenizer.eos_token.",
            end,
            tokenizer.convert_ids_to_tokens(sorted(ends)),
            end,
        )


def check_vocabulary(model: Any, rows: Any) -> None:
    """Raise `TrlRealError` if a token id of prepared rows is beyond the model's embeddings."""
    known = getattr(model.get_input_embeddings(), "num_embeddings", None)
    names = [name for name in ("prompt_ids", "chosen_ids", "rejected_ids", "input_ids") if name in rows.column_names]
    table = rows.with_format("arrow").select_columns(names)[:] if known and len(rows) else {}
    highest = max((pc.max(pc.list_flatten(table[name])).as_py() or 0 for name in names), default=0) if table else 0
    if known and highest >= known:
        raise TrlRealError(
            f"The tokenizer gives token {highest}, but the model has {known} embeddings. Give the model's own "
            "tokenizer, or add the template's tokens: model.resize_token_embeddings(len(tokenizer))."
        )


def _has_no_prompt(row: dict[str, Any]) -> bool:
    chosen, rejected = row.get("chosen"), row.get("rejected")
    if row.get("prompt") or not is_messages(chosen) or not is_messages(rejected):
        return False
    return not implied_prompt(chosen, rejected)


def without_ends(prepared: Any, tokenizer: Any) -> Any:
    """
    Remove the end from the token ids of truncated responses: the EOS token, or what the chat template appends.

    Args:
        prepared: Dataset that TRL tokenized, with `chosen_ids` and `rejected_ids`; returned unchanged if it has no
            column of `FINISHED`.
        tokenizer: Tokenizer or processor of the model.
    """
    tokenizer = getattr(tokenizer, "tokenizer", tokenizer)
    names = prepared.column_names if isinstance(prepared, Dataset) else ()
    sides = [side for side, column in FINISHED.items() if column in names and f"{side}_ids" in names]
    if not sides:
        return prepared

    def cut(row: Mapping[str, Any]) -> dict[str, list[int]]:
        return {f"{side}_ids": _cut(tokenizer, row, side) for side in sides}

    return prepared.map(cut, desc="Removing ends of truncated responses")


def _cut(tokenizer: Any, row: Mapping[str, Any], side: str) -> list[int]:
    ids = row[f"{side}_ids"]
    if row[FINISHED[side]] is not False:
        return ids
    n = _end_length(tokenizer, row.get("prompt"), row[side])
    return ids[: len(ids) - n] if n < len(ids) else ids


def _end_length(tokenizer: Any, prompt: Any, response: Any) -> int:
    """Return the number of tokens in the end that TRL appended."""
    if isinstance(response, str):
        return 1 if tokenizer.eos_token and response.endswith(tokenizer.eos_token) else 0
    dialogue = [*(prompt or []), *response]
    closed, open_end = (
        tokenizer.apply_chat_template(dialogue, tokenize=True, return_dict=True, continue_final_message=is_open)
        for is_open in (False, True)
    )
    return len(closed["input_ids"]) - len(open_end["input_ids"])
