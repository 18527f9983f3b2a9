"""A pool as one list of candidate pairs beside the pairs that are labelled, for selectors that learn from labels."""

import json
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
from datasets import Dataset

from trl_real.data.conversation import is_messages, text_of
from trl_real.data.pairs import Candidates, pool_candidates, preference_candidates
from trl_real.errors import MissingColumnError, TrlRealError
from trl_real.selection.annotation import content_key


LABELLED = "every pair is labelled already"
HISTORY_COLUMNS = ("prompt", "chosen", "rejected")


@dataclass
class History:
    """
    Labelled pairs.

    Args:
        prompts: Texts, messages or None.
        chosen, rejected: What the responses say.
        confidences: Probabilities that the labels are right, 1 where nothing is said. Shape `(H,)`.
        n_unread: Labelled rows that hold no two different responses; they are passed over.
    """

    prompts: list[Any]
    chosen: list[str]
    rejected: list[str]
    confidences: np.ndarray
    n_unread: int = 0

    def __len__(self) -> int:
        return len(self.prompts)


@dataclass
class ActivePool:
    """
    Every pair of different responses to a prompt (`P` of them), over a list of the `n` different responses that pool
    and history hold. That list is sorted by content, so that nothing computed on it depends on the order of rows.

    Args:
        rows: Candidates of each row; `skipped` says why a row has no pair to pick. `N` of them.
        groups: Equal numbers for equal prompts. Shape `(N,)`.
        prompts, texts: Of each response. `n` of them.
        members: For each row the numbers of its responses, in their order.
        row: Row of each candidate pair, ascending. Shape `(P,)`.
        pairs: Indices into the row's responses, lower first. Shape `(P, 2)`, int32.
        ends: Numbers of the pair's responses, lower first. Shape `(P, 2)`.
        free: Pairs that may be picked. Shape `(P,)`, bool.
        labelled: Numbers of the chosen and the rejected responses of the history. Shape `(H, 2)`.
        history: The labelled pairs.
    """

    rows: list[Candidates]
    groups: np.ndarray
    prompts: list[Any]
    texts: list[str]
    members: list[list[int]]
    row: np.ndarray
    pairs: np.ndarray
    ends: np.ndarray
    free: np.ndarray
    labelled: np.ndarray
    history: History

    def leave_out(self, pairs: np.ndarray, reason: str) -> None:
        """Pairs that may not be picked, shape `(P,)`, bool; rows that have no other are skipped for this reason."""
        self.free &= ~pairs
        left = np.bincount(self.row[self.free], minlength=len(self.rows))
        for row, n in zip(self.rows, left, strict=True):
            if not n and not row.skipped:
                row.skipped = reason

    @property
    def n_open(self) -> int:
        """Rows that have a pair to pick."""
        return sum(not row.skipped for row in self.rows)

    @property
    def skipped(self) -> dict[str, int]:
        """Rows without one, by reason."""
        return dict(Counter(row.skipped for row in self.rows if row.skipped))

    def capacity(self, max_per_prompt: int | None) -> int:
        """Pairs that can be picked."""
        counts = np.bincount(self.groups[self.row[self.free]]) if self.free.any() else np.zeros(1, int)
        return int(counts.sum() if max_per_prompt is None else np.minimum(counts, max_per_prompt).sum())

    def draws(self, pairs: np.ndarray, seed: int) -> np.ndarray:
        """A number for each of some candidate pairs, from the seed and their content. Shape `(m,)`, uint64."""
        keys = [
            content_key(seed, prompt_key(self.prompts[first]), [self.texts[first], self.texts[second]])
            for first, second in self.ends[pairs].tolist()
        ]
        return np.frombuffer(b"".join(keys), dtype="<u8")

    def lengths(self, picked: np.ndarray) -> dict[str, dict[str, float]]:
        """
        Characters of the responses of the picked pairs, and of all responses of rows that had a pair to pick: vectors
        that grow with length pick what is long.
        """
        pool = [len(text) for row in self.rows if not row.skipped for text in row.texts]
        ends = self.ends[picked].flatten().tolist()
        return {"picked": _summary([len(self.texts[i]) for i in ends]), "pool": _summary(pool)}


def read_pool(dataset: Dataset, responses: str, history: History) -> ActivePool:
    """
    All candidate pairs of a pool, those in the history left out.

    Args:
        dataset: Columns `prompt`, if there is one, and responses, as Python values.
        responses: Column that holds the list of responses.
        history: Labelled pairs; the same two responses to the same prompt, in either order, are not picked again.

    Raises:
        TrlRealError: If a response is neither text nor messages.
    """
    wanted = [name for name in ("prompt", responses) if name in dataset.column_names]
    rows: list[Candidates] = []
    for batch in dataset.select_columns(wanted).iter(1000) if len(dataset) else ():
        prompts = batch.get("prompt") or [None] * len(batch[responses])
        rows += [pool_candidates(*both, responses) for both in zip(prompts, batch[responses], strict=True)]
    keys = [prompt_key(row.prompt) for row in rows]
    known = set(keys)
    old_keys = [_known_key(prompt, known) for prompt in history.prompts]
    found = {(key, text): row.prompt for key, row in zip(keys, rows, strict=True) for text in row.texts}
    for key, prompt, *both in zip(old_keys, history.prompts, history.chosen, history.rejected, strict=True):
        for text in both:
            found.setdefault((key, text), prompt)
    numbers = {response: i for i, response in enumerate(sorted(found))}
    members = [[numbers[key, text] for text in row.texts] for key, row in zip(keys, rows, strict=True)]
    sides = zip(old_keys, history.chosen, history.rejected, strict=True)
    labelled = [[numbers[key, chosen], numbers[key, rejected]] for key, chosen, rejected in sides]
    pool = ActivePool(
        rows=rows,
        groups=_groups(keys, [row.prompt is None for row in rows]),
        prompts=[found[response] for response in numbers],
        texts=[text for _, text in numbers],
        members=members,
        **_candidates(rows, members),
        labelled=np.array(labelled, int).reshape(-1, 2),
        history=history,
    )
    pool.leave_out(_in_history(pool, old_keys), LABELLED)
    return pool


def read_history(history: Dataset | None) -> History:
    """
    Labelled pairs, in any format of `datasets`.

    Args:
        history: Columns `prompt`, `chosen`, `rejected`, texts or messages, and perhaps `label_confidence`.

    Raises:
        MissingColumnError: If a column is not there.
        TrlRealError: If it is no dataset.
    """
    if history is None:
        return History([], [], [], np.zeros(0))
    if not isinstance(history, Dataset):
        raise TrlRealError(f"history is a {type(history).__name__}. Give the Dataset that `annotate` returned.")
    for name in HISTORY_COLUMNS:
        if name not in history.column_names:
            fix = "The history are labelled pairs, as `annotate` returns them: prompt, chosen, rejected."
            raise MissingColumnError(name, history.column_names, fix)
    columns = history.with_format(None)
    rows = [_labelled(*row) for row in zip(*(columns[name][:] for name in HISTORY_COLUMNS), strict=True)]
    given = columns["label_confidence"][:] if "label_confidence" in columns.column_names else [None] * len(rows)
    read = [i for i, row in enumerate(rows) if not row.skipped]
    return History(
        [rows[i].prompt for i in read],
        [rows[i].texts[0] for i in read],
        [rows[i].texts[1] for i in read],
        np.array([1.0 if given[i] is None else given[i] for i in read], float),
        len(rows) - len(read),
    )


def _labelled(prompt: Any, chosen: Any, rejected: Any) -> Candidates:
    """A labelled row as the pool's are read: without a prompt the responses are whole, none is implied."""
    return (
        pool_candidates(None, [chosen, rejected])
        if prompt is None
        else preference_candidates(prompt, chosen, rejected)
    )


def prompt_key(prompt: Any) -> str:
    """A text that tells prompts apart: messages by what they hold, whatever the order of their fields."""
    if not is_messages(prompt):
        return "text " + prompt if isinstance(prompt, str) else repr(prompt)
    plain = [{name: value for name, value in message.items() if value is not None} for message in prompt]
    return "messages " + json.dumps(plain, sort_keys=True, default=str)


def _known_key(prompt: Any, keys: set[str]) -> str:
    """The key of a labelled prompt in the pool: labels of messages have a text prompt as a user's message."""
    key = prompt_key(prompt)
    if key in keys or not is_messages(prompt) or [message.get("role") for message in prompt] != ["user"]:
        return key
    as_text = prompt_key(text_of(prompt))
    return as_text if as_text in keys else key


def _groups(keys: list[str], missing: list[bool]) -> np.ndarray:
    """Equal numbers for equal keys; rows without a prompt are each their own."""
    known: dict[Any, int] = {}
    own = [i if none else key for i, (key, none) in enumerate(zip(keys, missing, strict=True))]
    return np.array([known.setdefault(key, len(known)) for key in own], int)


def _candidates(rows: list[Candidates], members: list[list[int]]) -> dict[str, np.ndarray]:
    """All pairs of each row, in the order of their responses' numbers: it hangs on content alone."""
    row, pairs, ends = [np.zeros(0, int)], [np.zeros((0, 2), int)], [np.zeros((0, 2), int)]
    for i, (candidates, numbers) in enumerate(zip(rows, members, strict=True)):
        if candidates.skipped:
            continue
        places = np.argsort(numbers)
        both = places[np.stack(np.triu_indices(len(places), 1), axis=1)]  # (P_i, 2)
        row.append(np.full(len(both), i))
        pairs.append(np.sort(np.array(candidates.indices)[both], axis=1))
        ends.append(np.array(numbers)[both])
    return {
        "row": np.concatenate(row),
        "pairs": np.concatenate(pairs).astype(np.int32),
        "ends": np.concatenate(ends),
        "free": np.ones(sum(map(len, row)), bool),
    }


def _in_history(pool: ActivePool, old_keys: list[str]) -> np.ndarray:
    """Which pairs are labelled; spaces around a response do not make it another. Shape `(P,)`."""
    both = zip(old_keys, pool.history.chosen, pool.history.rejected, strict=True)
    known = {(key, frozenset((chosen.strip(), rejected.strip()))) for key, chosen, rejected in both}
    mask = np.zeros(len(pool.row), bool)
    if not known:
        return mask
    prompts = {key for key, _ in known}
    keys = [prompt_key(row.prompt) for row in pool.rows]
    for i in np.flatnonzero(np.array([key in prompts for key in keys], bool)[pool.row]):
        texts = frozenset(pool.texts[end].strip() for end in pool.ends[i])
        mask[i] = (keys[pool.row[i]], texts) in known
    return mask


def _summary(lengths: list[int]) -> dict[str, float]:
    """Mean and median, NaN-free."""
    if not lengths:
        return {}
    return {"mean": round(float(np.mean(lengths)), 1), "median": float(np.median(lengths))}
