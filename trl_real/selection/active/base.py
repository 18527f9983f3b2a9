"""What selectors that learn from the labels so far have in common: the pool, the budget, the rows and the record."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from numbers import Integral
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from datasets import Dataset, DatasetInfo, Features, IterableDataset, Value
from torch import Tensor

from trl_real.data.columns import OWN_FEATURES, POOL_COLUMNS, check_own_columns
from trl_real.errors import MissingColumnError, TooFewPairsError, TrlRealError
from trl_real.functional.similarity import pair_similarity
from trl_real.selection.active.pool import ActivePool, read_history, read_pool
from trl_real.selection.budget import budget_size, check_budget
from trl_real.selection.record import SelectionRecord, describe_similarity


BLOCK = 512  # pairs whose vectors exist twice, in float64
UNCERTAINTY = "uncertainty"
ACTIVE_FEATURES = {**{name: OWN_FEATURES[name] for name in POOL_COLUMNS}, UNCERTAINTY: Value("float32")}


@dataclass
class Reading:
    """
    What a selector's model says of a pool.

    Args:
        unusable: Candidate pairs that cannot be ranked. Shape `(P,)`, bool.
        truncated: Responses that were cut. Shape `(n,)`, bool.
        n_tokens: Tokens that went through the model.
        seconds: Time it took.
        similarity: Of the two responses of each candidate pair; empty where nothing was embedded. Shape `(P,)`.
        settings: For the record.
        values: Whatever the selector ranks by.
    """

    unusable: np.ndarray
    truncated: np.ndarray
    n_tokens: int
    seconds: float
    similarity: np.ndarray = field(default_factory=lambda: np.zeros(0))
    settings: dict[str, Any] = field(default_factory=dict)
    values: Any = None


@dataclass
class Picks:
    """
    Args:
        pairs: Picked candidate pairs, in the order of the picks. Shape `(k,)`.
        uncertainty: Of each. Shape `(k,)`.
        settings: For the record.
    """

    pairs: np.ndarray
    uncertainty: np.ndarray
    settings: dict[str, Any] = field(default_factory=dict)


class ActiveSelector(ABC):
    """
    Chooses pairs of a pool given the pairs that are labelled: `select(dataset, budget, history=…)`, round after round.

    All pairs of different, non-blank responses of a row are candidates, except those that the history holds. What is
    chosen does not depend on the order of rows or responses; ties go to the lower row, and within a row to what the
    responses say. Chance is drawn from the seed and the content alone.

    Attributes:
        record (`SelectionRecord`): How the last selection was made. It counts rows, as every record does: a row of
            which two pairs were picked is one that was kept. `settings` has `n_picked`, `n_candidates`, `n_history`,
            `history_unread` (labelled rows that hold no two different responses) and `lengths`: mean and median
            characters of the picked pairs' responses beside the pool's.
    """

    strategy = ""
    unusable = "not finite"  # why a row is skipped that has unusable pairs only
    max_per_prompt: int | None = None

    def __init__(self, responses: str, seed: int):
        self.responses, self.seed = responses, seed
        if isinstance(seed, bool) or not isinstance(seed, Integral) or not -(2**63) <= seed < 2**63:
            raise TrlRealError(f"seed={seed!r} is not a whole number of 64 bits. Type seed=42.")
        self.record: SelectionRecord | Any = None

    def select(self, dataset: Dataset, budget: float | int, *, history: Dataset | None = None) -> Dataset:
        """
        The pairs most worth a label, given those that are labelled.

        Args:
            dataset: A pool: `prompt`, `responses` and whatever else, in any format.
            budget: Pairs: an int for so many, a float in (0, 1] for a share of the number of rows that have one.
            history: Labelled pairs, as `annotate` returns them: `prompt`, `chosen`, `rejected` and perhaps
                `label_confidence`. None in a first round.

        Returns:
            A row a pair, in the order of the picks, with the pool's columns and `pair` (lower index first),
            `response_a`, `response_b`, `similarity` (NaN where nothing was embedded), `skipped` (empty) and
            `uncertainty`. A row of which several pairs were picked comes as often.

        Raises:
            MissingColumnError: If a column is not there.
            TooFewPairsError: If there are fewer pairs.
            TrlRealError: If the budget is out of range, or the dataset is no pool.
        """
        plain = self._checked(dataset)
        if budget is None:
            raise TrlRealError(
                "budget=None says nothing. Give a number of pairs, or a share of the rows such as 0.25."
            )
        check_budget(budget)
        pool = read_pool(plain, self.responses, read_history(history))
        self._size(budget, pool)  # an impossible budget shows before a model runs
        reading = self._read(pool, plain)
        pool.leave_out(reading.unusable, self.unusable)
        picks = self._pick(pool, reading, self._size(budget, pool))
        self.record = self._record(budget, pool, reading, picks)
        return _with_picks(dataset, plain, pool, reading, picks)

    @abstractmethod
    def _read(self, pool: ActivePool, plain: Dataset) -> Reading:
        """Ask the model about the pool's and the history's responses; `plain` has the columns beside the texts."""

    @abstractmethod
    def _pick(self, pool: ActivePool, reading: Reading, k: int) -> Picks:
        """Choose `k` free pairs."""

    @abstractmethod
    def _identity(self) -> dict[str, Any]:
        """The record's `model` and `revision`."""

    def _checked(self, dataset: Any) -> Dataset:
        """The pool without the columns of an earlier selection, in Python values."""
        kind = type(dataset).__name__
        if isinstance(dataset, IterableDataset):
            raise TrlRealError(
                "A budget ranks the whole pool, which a stream does not show. Load it without streaming."
            )
        if not isinstance(dataset, Dataset):
            raise TrlRealError(
                f"select takes one split, a Dataset, not a {kind}. Type: selector.select(dataset['train'], …)"
            )
        columns = dataset.column_names
        if self.responses not in columns:
            likely = [name for name in ("completions", "candidates", "generations", "outputs") if name in columns]
            fix = (
                f"Rename it: dataset.rename_column({likely[0]!r}, {self.responses!r})"
                if likely
                else (f"Name the column that holds the list of responses: {type(self).__name__}(…, responses='…')")
            )
            raise MissingColumnError(self.responses, columns, f"{fix}.")
        check_own_columns(columns, POOL_COLUMNS)
        if UNCERTAINTY in columns and POOL_COLUMNS[0] not in columns:
            raise TrlRealError(
                f"The dataset has a column {UNCERTAINTY!r} of its own, which the selector would overwrite. "
                f"Rename it: dataset.rename_column({UNCERTAINTY!r}, 'my_{UNCERTAINTY}')."
            )
        return dataset.with_format(None).remove_columns([name for name in ACTIVE_FEATURES if name in columns])

    def _size(self, budget: float | int, pool: ActivePool) -> int:
        """Pairs to pick."""
        room = self._room(pool)
        if isinstance(budget, Integral) and not room:
            reasons = ", ".join(f"{n} {reason}" for reason, n in sorted(pool.skipped.items())) or "the pool is empty"
            raise TooFewPairsError(f"budget={budget}, but no row has a pair to pick: {reasons}.", 0)
        size = int(budget) if isinstance(budget, Integral) else budget_size(budget, pool.n_open)
        if size > room:
            limit = "" if self.limit is None else f" with {self.limit} at most"
            wrong = f"{size} pairs are asked for, but {room} can be picked{limit}. Type budget={room}."
            raise TooFewPairsError(wrong, room)
        return size

    @property
    def limit(self) -> str | None:
        """How many pairs of a prompt may be picked at a time, in words."""
        return None if self.max_per_prompt is None else f"{self.max_per_prompt} a prompt"

    def _room(self, pool: ActivePool) -> int:
        """Pairs that can be picked."""
        return pool.capacity(self.max_per_prompt)

    def _record(self, budget: float | int, pool: ActivePool, reading: Reading, picks: Picks) -> SelectionRecord:
        n_kept = len(np.unique(pool.row[picks.pairs]))
        counts = {
            "n_picked": len(picks.pairs),
            "n_candidates": int(pool.free.sum()),
            "n_history": len(pool.history),
            "history_unread": pool.history.n_unread,
            "limit": self.limit,
            "lengths": pool.lengths(picks.pairs),
        }
        truncated = [int(reading.truncated[numbers].sum()) for numbers in pool.members if numbers]
        similar = reading.similarity
        return SelectionRecord(
            strategy=self.strategy,
            budget=budget,
            seed=self.seed,
            **self._identity(),
            settings={**reading.settings, **picks.settings, **counts},
            n_rows=len(pool.rows),
            n_kept=n_kept,
            n_not_chosen=pool.n_open - n_kept,
            skipped=pool.skipped,
            n_responses=sum(len(row.texts) for row in pool.rows),
            n_truncated=sum(truncated),
            tokens=reading.n_tokens,
            seconds=round(reading.seconds, 3),
            **(describe_similarity(similar[pool.free], similar[picks.pairs]) if len(similar) else {}),
        )


def cosines(vectors: Tensor, ends: np.ndarray) -> np.ndarray:
    """Similarity of the two vectors of each pair, a block at a time. Shapes `(n, d)`, `(P, 2)` to `(P,)`."""
    blocks = (block.unbind(1) for block in torch.from_numpy(ends).split(BLOCK))
    found = [pair_similarity(vectors[first], vectors[second]) for first, second in blocks]
    return torch.cat(found).numpy() if found else np.zeros(0)


def checked_cap(max_per_prompt: int | None) -> int | None:
    """
    A number of pairs a prompt, or None.

    Raises:
        TrlRealError: If it is not positive.
    """
    whole = isinstance(max_per_prompt, Integral) and not isinstance(max_per_prompt, bool)
    if max_per_prompt is not None and not (whole and max_per_prompt > 0):
        raise TrlRealError(
            f"max_per_prompt={max_per_prompt!r} is not a positive number. Type 1, or None for no limit."
        )
    return max_per_prompt


def _with_picks(dataset: Dataset, plain: Dataset, pool: ActivePool, reading: Reading, picks: Picks) -> Dataset:
    """The picked rows, in the dataset's own format."""
    pairs, rows = pool.pairs[picks.pairs], pool.row[picks.pairs].tolist()
    texts = [dict(zip(pool.rows[row].indices, pool.rows[row].texts, strict=True)) for row in rows]
    similar = reading.similarity[picks.pairs] if len(reading.similarity) else np.full(len(rows), np.nan)
    added = {
        "pair": list(pairs),
        "response_a": [t[first] for t, first in zip(texts, pairs[:, 0].tolist(), strict=True)],
        "response_b": [t[second] for t, second in zip(texts, pairs[:, 1].tolist(), strict=True)],
        "similarity": similar.astype(np.float32),
        "skipped": [""] * len(rows),
        UNCERTAINTY: picks.uncertainty.astype(np.float32),
    }
    own = Features(ACTIVE_FEATURES)
    table = plain.with_format("arrow")[rows]  # concatenate_datasets would write all of it anew, with a bar
    new = pa.Table.from_pydict(added, schema=own.arrow_schema)
    for field_ in new.schema:
        table = table.append_column(field_, new[field_.name])
    chosen = Dataset(table, info=DatasetInfo(features=Features({**plain.features, **own})))
    if dataset.format["type"]:
        chosen = chosen.with_format(dataset.format["type"], **dataset.format["format_kwargs"])
    return chosen
