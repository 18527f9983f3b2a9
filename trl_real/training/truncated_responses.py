"""Responses that were cut: TRL ends every text, and so would teach that they are complete."""

from collections.abc import Mapping
from typing import Any

from datasets import Dataset


# Whether each side came to its end, as `self_annotate` tells it.
FINISHED = {"chosen": "chosen_finished", "rejected": "rejected_finished"}


def without_ends(prepared: Any, tokenizer: Any) -> Any:
    """
    Take the end off the ids of responses that were cut: the EOS token, or what the chat template puts there.

    Args:
        prepared: What TRL has tokenized, with `chosen_ids` and `rejected_ids`; as it comes, where no column tells
            what was cut.
        tokenizer: Of the model.
    """
    tokenizer = getattr(tokenizer, "tokenizer", tokenizer)
    names = prepared.column_names if isinstance(prepared, Dataset) else ()
    told = [side for side, column in FINISHED.items() if column in names and f"{side}_ids" in names]
    if not told:
        return prepared

    def cut(row: Mapping[str, Any]) -> dict[str, list[int]]:
        return {f"{side}_ids": _cut(tokenizer, row, side) for side in told}

    return prepared.map(cut, desc="Taking ends off responses that were cut")


def _cut(tokenizer: Any, row: Mapping[str, Any], side: str) -> list[int]:
    ids = row[f"{side}_ids"]
    if row[FINISHED[side]] is not False:
        return ids
    n = _end_length(tokenizer, row.get("prompt"), row[side])
    return ids[: len(ids) - n] if n < len(ids) else ids


def _end_length(tokenizer: Any, prompt: Any, response: Any) -> int:
    """Tokens of the end that TRL wrote."""
    if isinstance(response, str):
        return 1 if tokenizer.eos_token and response.endswith(tokenizer.eos_token) else 0
    dialogue = [*(prompt or []), *response]
    whole, open_end = (
        tokenizer.apply_chat_template(dialogue, tokenize=True, return_dict=True, continue_final_message=cut)
        for cut in (False, True)
    )
    return len(whole["input_ids"]) - len(open_end["input_ids"])
