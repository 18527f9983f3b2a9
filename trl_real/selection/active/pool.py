"""Pool as one list of candidate pairs, next to the labelled pairs, for selectors that learn from labels."""

import json
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from datasets import Dataset

from trl_real.data.conversation import TEMPLATE_COLUMNS, is_messages, prompts_of, text_of
from trl_real.data.pairs import Candidates, pool_candidates, preference_candidates
from trl_real.errors import TrlRealError, check_columns
from trl_real.selection.annotation import content_key, gather_candidates


LABELLED = "every pair is labelled already"
HISTORY_COLUMNS = ("prompt", "chosen", "rejected")


@dataclass
class History:
    """
    Labelled pairs.

    Args:
        prompts: Texts, messages or None.
        chosen, rejected: Texts of the responses.
        confidences: Probabilities that the labels are right, 1 by default. Shape `(H,)`.
        n_unread: Number of ignored rows, which do not have two different responses.
        places: Indices of the other rows in the history.
    """

    prompts: list[Any]
    chosen: list[str]
    rejected: list[str]
    confidences: np.ndarray
    n_unread: int = 0
    places: list[int] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.prompts)


@dataclass
class ActivePool:
    """
    The `P` pairs of different responses to a prompt, over a list of the `n` different responses of pool and history,
    sorted by content, so that results do not depend on the order of rows.

    Args:
        rows: Candidates of each of `N` rows; `skipped` is the reason why a row has no pair to pick.
        groups: Number of each row's prompt, the same for equal prompts. Shape `(N,)`.
        prompts, texts: Prompt and text of each of the `n` responses.
        members: Numbers of the responses of each row, in their order.
        row: Row of each candidate pair, ascending. Shape `(P,)`.
        pairs: Indices into the row's responses, lower first. Shape `(P, 2)`, int32.
        ends: Numbers of the pair's responses, lower first. Shape `(P, 2)`.
        free: Mask of the pairs that may be picked. Shape `(P,)`, bool.
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
        """Exclude pairs, shape `(P,)`, bool, and mark rows without other pairs as skipped for this reason."""
        self.free &= ~pairs
        left = np.bincount(self.row[self.free], minlength=len(self.rows))
        for row, n in zip(self.rows, left, strict=True):
            if not n and not row.skipped:
                row.skipped = reason

    @property
    def n_open(self) -> int:
        """Number of rows with a pair to pick."""
        return sum(not row.skipped for row in self.rows)

    @property
    def skipped(self) -> dict[str, int]:
        """Number of rows without a pair to pick, by reason."""
        return dict(Counter(row.skipped for row in self.rows if row.skipped))

    def capacity(self, max_per_prompt: int | None) -> int:
        """Return the number of pairs that can be picked."""
        counts = np.bincount(self.groups[self.row[self.free]]) if self.free.any() else np.zeros(1, int)
        return int(counts.sum() if max_per_prompt is None else np.minimum(counts, max_per_prompt).sum())

    def draws(self, pairs: np.ndarray, seed: int) -> np.ndarray:
        """Return a random number for each given pair, from the seed and its content. Shape `(m,)`, uint64."""
        keys = [
            content_key(seed, prompt_key(self.prompts[first]), [self.texts[first], self.texts[second]])
            for first, second in self.ends[pairs].tolist()
        ]
        return np.frombuffer(b"".join(keys), dtype="<u8")

    def lengths(self, picked: np.ndarray) -> dict[str, dict[str, float]]:
        """
        Return mean and median characters of the responses of the picked pairs, and of the rows with a pair to pick, to
        show whether long responses are preferred.
        """
        pool = [len(text) for row in self.rows if not row.skipped for text in row.texts]
        ends = self.ends[picked].flatten().tolist()
        return {"picked": _summary([len(self.texts[i]) for i in ends]), "pool": _summary(pool)}


def read_pool(dataset: Dataset, responses: str, history: History) -> ActivePool:
    """
    Return all candidate pairs of a pool, without those in the history.

    Args:
        dataset: Dataset with the responses and optionally a column `prompt`, as Python values.
        responses: Column with the list of responses.
        history: Labelled pairs; the same two responses to the same prompt, in either order, are not picked again.

    Raises:
        TrlRealError: If a response is neither text nor messages.
    """
    wanted = [name for name in ("prompt", responses, *TEMPLATE_COLUMNS) if name in dataset.column_names]
    rows: list[Candidates] = []
    for batch in dataset.select_columns(wanted).iter(1000) if len(dataset) else ():
        rows += gather_candidates(batch, True, responses)
    keys = [prompt_key(row.prompt) for row in rows]
    in_pool = set(keys)
    old_keys = [_key_in_pool(prompt, in_pool) for prompt in history.prompts]
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
    Read labelled pairs, in any format of `datasets`.

    Args:
        history: Dataset with texts or messages in `prompt`, `chosen`, `rejected`, and optionally `label_confidence`.

    Raises:
        MissingColumnError: If a column is missing.
        TrlRealError: If the history is not a dataset.
    """
    if history is None:
        return History([], [], [], np.zeros(0))
    if not isinstance(history, Dataset):
        raise TrlRealError(f"history is a {type(history).__name__}. Give the Dataset that `annotate` returned.")
    fix = "The history has labelled pairs, as `annotate` returns them: prompt, chosen, rejected."
    check_columns(history.column_names, HISTORY_COLUMNS, fix)
    columns = history.with_format(None)
    rows = [_labelled(*row) for row in zip(*(columns[name][:] for name in HISTORY_COLUMNS), strict=True)]
    given = columns["label_confidence"][:] if "label_confidence" in columns.column_names else [None] * len(rows)
    templates = {name: columns[name][:] for name in TEMPLATE_COLUMNS if name in columns.column_names}
    prompts = prompts_of(templates, [row.prompt for row in rows])
    read = [i for i, row in enumerate(rows) if not row.skipped]
    return History(
        [prompts[i] for i in read],
        [rows[i].texts[0] for i in read],
        [rows[i].texts[1] for i in read],
        np.array([1.0 if given[i] is None else given[i] for i in read], float),
        len(rows) - len(read),
        read,
    )


def _labelled(prompt: Any, chosen: Any, rejected: Any) -> Candidates:
    """Return the candidates of a labelled row; without a prompt no common start of the responses is taken as one."""
    if prompt is None:
        return pool_candidates(None, [chosen, rejected])
    return preference_candidates(prompt, chosen, rejected)


def prompt_key(prompt: Any) -> str:
    """Return a text that identifies a prompt, for messages independent of the order of their fields."""
    if not is_messages(prompt):
        return "text " + prompt if isinstance(prompt, str) else repr(prompt)
    plain = [{name: value for name, value in message.items() if value is not None} for message in prompt]
    return "messages " + json.dumps(plain, sort_keys=True, default=str)


def _key_in_pool(prompt: Any, keys: set[str]) -> str:
    """Return the key of a labelled prompt; a single user message matches the same text in the pool."""
    key = prompt_key(prompt)
    if key in keys or not is_messages(prompt) or [message.get("role") for message in prompt] != ["user"]:
        return key
    as_text = prompt_key(text_of(prompt))
    return as_text if as_text in keys else key


def _groups(keys: list[str], missing: list[bool]) -> np.ndarray:
    """Return equal numbers for equal keys; each row without a prompt has its own number."""
    numbers: dict[Any, int] = {}
    own = [i if none else key for i, (key, none) in enumerate(zip(keys, missing, strict=True))]
    return np.array([numbers.setdefault(key, len(numbers)) for key in own], int)


def _candidates(rows: list[Candidates], members: list[list[int]]) -> dict[str, np.ndarray]:
    """Return all pairs of each row, in the order of their responses' numbers, which depends on content only."""
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
    """Return a mask of the labelled pairs; spaces around a response are ignored. Shape `(P,)`."""
    both = zip(old_keys, pool.history.chosen, pool.history.rejected, strict=True)
    labelled = {(key, frozenset((chosen.strip(), rejected.strip()))) for key, chosen, rejected in both}
    mask = np.zeros(len(pool.row), bool)
    prompts = {key for key, _ in labelled}
    keys = [prompt_key(row.prompt) for row in pool.rows]
    for i in np.flatnonzero(np.array([key in prompts for key in keys], bool)[pool.row]):
        texts = frozenset(pool.texts[end].strip() for end in pool.ends[i])
        mask[i] = (keys[pool.row[i]], texts) in labelled
    return mask


def _summary(lengths: list[int]) -> dict[str, float]:
    """Return mean and median; {} for no lengths."""
    if not lengths:
        return {}
    return {"mean": round(float(np.mean(lengths)), 1), "median": float(np.median(lengths))}
