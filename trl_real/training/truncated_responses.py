"""Truncated responses: remove the end that TRL appends, which would teach the model that they are complete."""

from collections.abc import Mapping
from typing import Any

from datasets import Dataset


# Column that says whether the response of a side is complete; `self_annotate` writes it.
FINISHED = {"chosen": "chosen_finished", "rejected": "rejected_finished"}


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
