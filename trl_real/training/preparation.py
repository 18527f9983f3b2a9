"""Errors of TRL's preparation of a dataset as one line that names the row."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from jinja2 import TemplateError

from trl_real.data.conversation import implied_prompt, is_messages
from trl_real.errors import TrlRealError


logger = logging.getLogger(__name__)


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


def tell_dropped(n_rows: int, n_left: int, name: str, max_length: int | None) -> None:
    """
    Warn of the rows that TRL drops because their prompt fills `max_length`.

    Raises:
        TrlRealError: If no row is left.
    """
    if n_rows and not n_left:
        raise TrlRealError(
            f"Nothing is left of the {n_rows} rows of the set {name!r}: every prompt fills max_length={max_length}. "
            "Give a larger max_length, or shorter prompts."
        )
    if n_left < n_rows:
        logger.warning("%d of %d rows of %r dropped: prompt fills max_length", n_rows - n_left, n_rows, name)


def _has_no_prompt(row: dict[str, Any]) -> bool:
    sides = row.get("chosen"), row.get("rejected")
    return not row.get("prompt") and all(map(is_messages, sides)) and not implied_prompt(*sides)
