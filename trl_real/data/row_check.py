"""Rows that no later step can read are found at the door, all at once, with counts and reasons."""

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

from datasets import Dataset

from trl_real.data.convert import iterate
from trl_real.errors import TrlRealError, check_columns


def check_texts(dataset: Dataset, columns: Iterable[str], optional: Iterable[str] = (), alike: bool = False) -> None:
    """
    Check that columns hold texts or messages in every row.

    Args:
        dataset: Rows to check.
        columns: Columns in which every row needs a text or messages; those that the dataset lacks are left out.
        optional: Columns that may also hold None.
        alike: Whether the columns of a row are either all texts or all messages.

    Raises:
        TrlRealError: If a row holds something else; counts such rows by reason, and names the first of each.
    """
    allowed = {name: name in optional for name in (*columns, *optional) if name in dataset.column_names}

    def mistake(row: dict[str, Any]) -> str | None:
        bad = (name for name, none in allowed.items() if not (is_readable(row[name]) or none and not row[name]))
        if (name := next(bad, None)) is not None:
            return f"{name!r} holds {_kind(row[name])} instead of a text or messages"
        kinds = {name: isinstance(value, str) for name, value in row.items() if value}
        mixed = alike and len(set(kinds.values())) > 1
        return f"{min(kinds, key=kinds.__getitem__)!r} holds messages, and another column a text" if mixed else None

    if not all(_holds_texts(dataset, name, none) for name, none in allowed.items()):
        refuse_rows(dataset.with_format(None).select_columns(list(allowed)), mistake, "Nothing was done.")


def check_pool(dataset: Dataset, responses: str | None) -> None:
    """
    Check that each row has a prompt and a list of responses, which are texts, messages or None; or None for the list.

    Args:
        dataset: Rows to check.
        responses: Column with the list of responses; None if there is none yet.

    Raises:
        MissingColumnError: If the column of prompts or responses is missing.
        TrlRealError: If a row holds something else; counts such rows by reason, and names the first of each.
    """
    names = ["prompt", *filter(None, [responses])]
    check_columns(dataset.column_names, names, "Rename your column: dataset.rename_column('…', 'responses')")
    check_texts(dataset, ("prompt",))

    def mistake(row: dict[str, Any]) -> str | None:
        (given,) = row.values()
        if given is not None and not isinstance(given, list):
            return f"{responses!r} holds {_kind(given)} instead of a list of responses"
        bad = [one for one in given or () if one is not None and one != [] and not is_readable(one)]
        return f"one of the {responses!r} is {_kind(bad[0])} instead of a text or messages" if bad else None

    if responses is not None:
        refuse_rows(dataset.with_format(None).select_columns([responses]), mistake, "Nothing was done.")


def _holds_texts(dataset: Dataset, name: str, none: bool) -> bool:
    """Return whether the type of a column says that every row is fine, so that none has to be read."""
    is_text = getattr(dataset.features[name], "dtype", "") in ("string", "large_string")
    return is_text and (none or not dataset.data.column(name).null_count)


def refuse_rows(rows: Dataset, mistake: Callable[[dict[str, Any]], str | None], fix: str) -> None:
    """Raise `TrlRealError` with the reasons that `mistake` finds in rows, their counts and first rows, and a fix."""
    counts: Counter[str] = Counter()
    first: dict[str, int] = {}
    for number, row in enumerate(iterate(rows)):
        if reason := mistake(row):
            counts[reason] += 1
            first.setdefault(reason, number)
    if counts:
        found = "; ".join(f"{count} where {why} (first: row {first[why]})" for why, count in counts.most_common())
        raise TrlRealError(
            f"{counts.total()} of {len(rows)} rows cannot be used: {found}. {fix} "
            "Mend these rows, or remove them: dataset.filter(…)"
        )


def is_readable(value: Any) -> bool:
    """Return whether a value is a text, or a list of messages with roles and contents."""
    if isinstance(value, str):
        return True
    return isinstance(value, list) and bool(value) and all(map(_is_message, value))


def _is_message(value: Any) -> bool:
    if not isinstance(value, dict) or not isinstance(value.get("role"), str):
        return False
    return isinstance(value.get("content"), str | list) or bool(value.get("tool_calls"))


def _kind(value: Any) -> str:
    """Name what is there: a type, or the part of a message that is missing."""
    if isinstance(value, list) and value and all(isinstance(part, dict) for part in value):
        return "messages without a role or a content"
    return "nothing" if value is None or value == [] else f"a {type(value).__name__}"
