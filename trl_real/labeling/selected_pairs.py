"""Rows that a judge may be asked about: each is checked before anything is asked or paid."""

from typing import Any

from datasets import Dataset

from trl_real.data.checks.row_check import is_readable, refuse_rows
from trl_real.data.conversation import after_prompt, text_of
from trl_real.errors import MissingColumnError, check_columns


FIX = "Nothing was asked. Select the pairs again after every step that changes the responses."


def check_pairs(dataset: Dataset, responses: str = "responses") -> None:
    """Raise `MissingColumnError` if the column of prompts, pairs or responses is missing."""
    if "pair" not in dataset.column_names:
        fix = "Select pairs first: EmbeddingPairSelector(…).select(dataset)"
        if "chosen" in dataset.column_names:
            fix = "These rows already have labels; train on them directly."
        raise MissingColumnError("pair", dataset.column_names, fix)
    for name in ("prompt", responses):
        fix = f"Preferences need it. Rename your column: dataset.rename_column('…', {name!r})"
        check_columns(dataset.column_names, [name], fix)
    check_columns(dataset.column_names, ("response_a", "response_b"), "The selection adds it: select the pairs again.")


def paired_rows(dataset: Dataset, responses: str = "responses") -> Dataset:
    """
    Return the rows that have a pair, after a check of all of them.

    The texts of `responses` that `pair` names must be `response_a` and `response_b`: labels go on what was judged.

    Args:
        dataset: Output of a selector, also after other steps.
        responses: Column with the list of responses.

    Raises:
        MissingColumnError: If a column is missing.
        TrlRealError: If rows are invalid; counts them by reason, and names the first one.
    """
    check_pairs(dataset, responses)
    plain = dataset.with_format(None)
    has_prompts = any(prompt is not None for prompt in plain["prompt"])  # a pool may have none at all
    refuse_rows(plain.select_columns(_read(responses)), lambda row: _mistake(row, responses, has_prompts), FIX)
    paired = [i for i, pair in enumerate(plain["pair"]) if not _has_no_pair(pair)]
    return plain if len(paired) == len(plain) else plain.select(paired)


def _read(responses: str) -> list[str]:
    return list(dict.fromkeys(["prompt", responses, "pair", "response_a", "response_b"]))


def _has_no_pair(pair: Any) -> bool:
    return isinstance(pair, list) and len(pair) == 2 and pair[0] is not None and pair[0] < 0


def _mistake(row: dict[str, Any], responses: str, has_prompts: bool) -> str | None:
    """Return the reason why a row with a pair cannot be judged, or None."""
    given, pair = row[responses], row["pair"]
    if _has_no_pair(pair):
        return None
    if has_prompts and not is_readable(row["prompt"]):
        return "'prompt' is neither a text nor messages"
    if not isinstance(given, list):
        return f"{responses!r} is not a list"
    if not (isinstance(pair, list) and len(pair) == 2 and all(isinstance(i, int) for i in pair)):
        return "'pair' is not two numbers"
    if pair[0] == pair[1] or not all(0 <= i < len(given) for i in pair):
        return f"'pair' does not name two of the {responses!r}"
    for place, side in zip(pair, ("response_a", "response_b"), strict=True):
        response = after_prompt(given[place], row["prompt"])
        if not is_readable(response):
            return f"one of the {responses!r} is neither a text nor messages"
        if text_of(response) != row[side]:
            return f"{side!r} is not the response that 'pair' names"
    return None
