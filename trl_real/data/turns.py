"""Dialogues with a preference at more than one turn: one row a turn."""

from collections import Counter
from typing import Any

from datasets import Dataset, Features, Value

from trl_real.data.conversation import Messages, is_messages
from trl_real.data.convert import from_rows, iterate, report, require_columns
from trl_real.data.pairs import EMPTY, IDENTICAL, MISSING, PROMPT_MISMATCH
from trl_real.errors import TrlRealError


def split_turns(dataset: Dataset, *, counts: Counter | None = None) -> Dataset:
    """
    Split dialogues in which people preferred one answer at several turns: one row per turn in which the answers
    differ, with the history as prompt.

    `chosen` and `rejected` are message lists with the same turns of the user, with or without a column `prompt` before
    them. A turn is what follows a message of the user, calls and answers of tools included. The history is that of
    `chosen`, the dialogue that went on. Where the users' turns differ, the rest of the dialogue is left out.

    Args:
        dataset: Dataset with columns `chosen` and `rejected` (messages), and optionally `prompt` (text or messages).
            Other columns are kept; a list that has one value a turn, such as `label_confidence`, is split as well.
        counts: Counter that receives the number of skipped dialogues per reason.

    Returns:
        Dataset with `prompt`, `chosen`, `rejected`, `turn` (number of the turn from 0) and the other columns.

    Raises:
        MissingColumnError: If `chosen` or `rejected` is missing.
        TrlRealError: If they hold texts.
    """
    require_columns(dataset, "split_turns", ("chosen", "rejected"))
    message = dataset.features["chosen"]
    if isinstance(message, Value):
        raise TrlRealError(
            "split_turns reads messages, and 'chosen' holds texts. Convert them: dataset.map(…), with messages "
            "such as {'role': 'user', 'content': '…'}."
        )
    skipped: Counter = Counter()
    rows = [turn for row in iterate(dataset) for turn in _turns_of(row, skipped)]
    others = {n: f for n, f in dataset.features.items() if n not in ("prompt", "chosen", "rejected", "turn")}
    by_turn = {n for n, f in others.items() if hasattr(f, "feature") and all(not _is_list(row[n]) for row in rows)}
    kept = {name: feature.feature if name in by_turn else feature for name, feature in others.items()}
    own = {"prompt": message, "chosen": message, "rejected": message, "turn": Value("int32")}
    return report("split_turns", len(dataset), from_rows(rows, Features({**own, **kept})), skipped, counts)


def _is_list(value: Any) -> bool:
    return isinstance(value, list)


def _turns_of(row: dict[str, Any], skipped: Counter) -> list[dict[str, Any]]:
    """Return the rows of a dialogue, or count why it has none."""
    given, sides = row.get("prompt"), [row["chosen"], row["rejected"]]
    if not all(map(is_messages, sides)):
        skipped[MISSING] += 1
        return []
    before: Messages = [{"role": "user", "content": given}] if isinstance(given, str) else list(given or [])
    sides = [side if side[: len(before)] == before else [*before, *side] for side in sides]
    turns = [_by_user(side) for side in sides]
    found, history = [], []  # type: ignore[var-annotated]
    for number, (mine, other) in enumerate(zip(*turns, strict=False)):
        if mine[0] != other[0]:
            break
        history = [*history, *mine[0]]
        if mine[1] != other[1] and mine[1] and other[1]:
            found.append({"prompt": history, "chosen": mine[1], "rejected": other[1], "turn": number})
        history = [*history, *mine[1]]
    if not found:
        same = turns[0][0][0] == turns[1][0][0]
        skipped[PROMPT_MISMATCH if not same else IDENTICAL if sides[0] == sides[1] else EMPTY] += 1
    return [
        {**{n: _at(v, i, len(turns[0])) for n, v in row.items()}, **turn} for turn in found for i in [turn["turn"]]
    ]


def _by_user(dialogue: Messages) -> list[tuple[Messages, Messages]]:
    """Return each turn as the messages of user and system, and the answer to them."""
    turns: list[tuple[Messages, Messages]] = []
    for message in dialogue:
        asks = message.get("role") in ("user", "system", "developer")
        if asks and (not turns or turns[-1][1]) or not turns:
            turns.append(([], []))
        turns[-1][not asks].append(message)
    return turns


def _at(value: Any, turn: int, n_turns: int) -> Any:
    """Return the value of a turn, of a list that has one for each."""
    return value[turn] if isinstance(value, list) and len(value) == n_turns and not is_messages(value) else value
