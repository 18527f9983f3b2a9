"""Base of the selectors that learn from labels: pool, budget, kept rows and record."""

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
from trl_real.data.pairs import ready_pairs
from trl_real.errors import MissingColumnError, TooFewPairsError, TrlRealError
from trl_real.functional.similarity import pair_similarity
from trl_real.selection.active.pool import ActivePool, read_history, read_pool
from trl_real.selection.annotation import check_seed, to_own_columns
from trl_real.selection.budget import budget_size, check_budget
from trl_real.selection.record import SelectionRecord, describe_similarity


BLOCK = 512  # pairs per block of float64 copies
UNCERTAINTY = "uncertainty"
ACTIVE_FEATURES = {**{name: OWN_FEATURES[name] for name in POOL_COLUMNS}, UNCERTAINTY: Value("float32")}


@dataclass
class Reading:
    """
    Output of a selector's model on a pool.

    Args:
        unusable: Mask of the candidate pairs that cannot be ranked. Shape `(P,)`, bool.
        truncated: Mask of the truncated responses. Shape `(n,)`, bool.
        n_tokens: Number of tokens that the model read.
        seconds: Time of the model.
        similarity: Similarity of the responses of each candidate pair, or empty. Shape `(P,)`.
        settings: Settings for the record.
        values: Values that the selector ranks by.
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
    Picked pairs.

    Args:
        pairs: Numbers of the candidate pairs, in the order of the picks. Shape `(k,)`.
        uncertainty: Uncertainty of each. Shape `(k,)`.
        settings: Settings for the record.
    """

    pairs: np.ndarray
    uncertainty: np.ndarray
    settings: dict[str, Any] = field(default_factory=dict)


class ActiveSelector(ABC):
    """
    Selector of pairs of a pool, given the labelled pairs: `select(dataset, budget, history=…)`, round after round.

    All pairs of different, non-blank responses of a row are candidates, except the pairs in the history. The choice
    does not depend on the order of rows or responses; ties go to the lower row, and within a row to the texts that
    sort first. Random numbers depend on the seed and the content only.

    Args:
        responses: Column with the list of responses.
        seed: Seed of the draws.
        max_per_prompt: Maximum number of pairs per prompt in one selection; None for no limit.

    Attributes:
        record (`SelectionRecord`): Record of the last selection. Its counts are of rows: a row with two picked pairs
            is one kept row. `settings` has `n_picked`, `n_candidates`, `n_history`, `history_unread` (labelled rows
            without two different responses) and `lengths`: mean and median characters of the responses, picked and
            in the pool.
    """

    strategy = ""
    unusable = "not finite"  # reason to skip a row with unusable pairs only

    def __init__(self, responses: str, seed: int, max_per_prompt: int | None = None):
        self.responses, self.seed, self.max_per_prompt = responses, seed, max_per_prompt
        check_seed(seed)
        count = isinstance(max_per_prompt, Integral) and not isinstance(max_per_prompt, bool)
        if max_per_prompt is not None and not (count and max_per_prompt > 0):
            raise TrlRealError(
                f"max_per_prompt={max_per_prompt!r} is not a positive number. Type 1, or None for no limit."
            )
        self.record: SelectionRecord | Any = None

    def select(self, dataset: Dataset, budget: float | int, *, history: Dataset | None = None) -> Dataset:
        """
        Select the pairs most worth a label, given the labelled pairs.

        Args:
            dataset: Pool with `prompt`, `responses` and any other columns, in any format.
            budget: Number of pairs (int), or share of the number of rows with a pair (float in (0, 1]).
            history: Labelled pairs, as `annotate` returns them: `prompt`, `chosen`, `rejected` and optionally
                `label_confidence`. None in a first round.

        Returns:
            One row per pair, in the order of the picks, with the pool's columns and `pair` (lower index first),
            `response_a`, `response_b`, `similarity` (NaN without vectors), `skipped` (empty) and `uncertainty`.

        Raises:
            MissingColumnError: If a column is missing.
            TooFewPairsError: If the pool has fewer pairs.
            TrlRealError: If the budget is out of range, or the dataset is not a pool.
        """
        plain = self._checked(dataset)
        if budget is None:
            raise TrlRealError(
                "budget=None sets no number of pairs. Give a number, or a share of the rows such as 0.25."
            )
        check_budget(budget)
        pool = read_pool(plain, self.responses, read_history(history))
        self._size(budget, pool)  # check the budget before a model runs
        reading = self._read(pool, plain)
        pool.leave_out(reading.unusable, self.unusable)
        picks = self._pick(pool, reading, self._size(budget, pool))
        self.record = self._record(budget, pool, reading, picks)
        return _with_picks(dataset, plain, pool, reading, picks)

    @abstractmethod
    def _read(self, pool: ActivePool, plain: Dataset) -> Reading:
        """Run the model on the responses of pool and history; `plain` has the pool's columns."""

    @abstractmethod
    def _pick(self, pool: ActivePool, reading: Reading, k: int) -> Picks:
        """Pick `k` free pairs."""

    @abstractmethod
    def _identity(self) -> dict[str, Any]:
        """Return the record's `model` and `revision`."""

    def _checked(self, dataset: Any) -> Dataset:
        """Return the pool as Python values, without the columns of an earlier selection."""
        dataset = ready_pairs(dataset, self.responses)
        kind = type(dataset).__name__
        if isinstance(dataset, IterableDataset):
            raise TrlRealError(
                "A budget ranks the whole pool, and a stream gives one row at a time. Load it without streaming."
            )
        if not isinstance(dataset, Dataset):
            raise TrlRealError(
                f"select takes one split, a Dataset, not a {kind}. Type: selector.select(dataset['train'], …)"
            )
        columns = dataset.column_names
        if self.responses not in columns:
            likely = [name for name in ("completions", "candidates", "generations", "outputs") if name in columns]
            fix = f"Name the column with the list of responses: {type(self).__name__}(…, responses='…')."
            if likely:
                fix = f"Rename it: dataset.rename_column({likely[0]!r}, {self.responses!r})."
            raise MissingColumnError(self.responses, columns, fix)
        check_own_columns(columns, POOL_COLUMNS)
        if UNCERTAINTY in columns and POOL_COLUMNS[0] not in columns:
            raise TrlRealError(
                f"The dataset has a column {UNCERTAINTY!r}, which the selector would overwrite. "
                f"Rename it: dataset.rename_column({UNCERTAINTY!r}, 'my_{UNCERTAINTY}')."
            )
        return dataset.with_format(None).remove_columns([name for name in ACTIVE_FEATURES if name in columns])

    def _size(self, budget: float | int, pool: ActivePool) -> int:
        """Return the number of pairs to pick."""
        room = self._room(pool)
        if isinstance(budget, Integral) and not room:
            reasons = ", ".join(f"{n} {reason}" for reason, n in sorted(pool.skipped.items())) or "the pool is empty"
            raise TooFewPairsError(f"budget={budget}, but no row has a pair to pick: {reasons}.", 0)
        size = int(budget) if isinstance(budget, Integral) else budget_size(budget, pool.n_open)
        if size > room:
            limit = "" if self.limit is None else f" with {self.limit} at most"
            message = f"The budget is {size} pairs, but {room} can be picked{limit}. Type budget={room}."
            raise TooFewPairsError(message, room)
        return size

    @property
    def limit(self) -> str | None:
        """Maximum number of pairs per prompt in one selection, in words."""
        return None if self.max_per_prompt is None else f"{self.max_per_prompt} a prompt"

    def _room(self, pool: ActivePool) -> int:
        """Return the number of pairs that can be picked."""
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
    """Return the similarity of the two vectors of each pair. Shapes `(n, d)`, `(P, 2)` to `(P,)`."""
    blocks = (block.unbind(1) for block in torch.from_numpy(ends).split(BLOCK))
    found = [pair_similarity(vectors[first], vectors[second]) for first, second in blocks]
    return torch.cat(found).numpy() if found else np.zeros(0)


def _with_picks(dataset: Dataset, plain: Dataset, pool: ActivePool, reading: Reading, picks: Picks) -> Dataset:
    """Return the picked rows, in the dataset's format."""
    pairs, rows = pool.pairs[picks.pairs], pool.row[picks.pairs].tolist()
    similar = reading.similarity[picks.pairs] if len(reading.similarity) else np.full(len(rows), np.nan)
    added = {
        **to_own_columns([pool.rows[row] for row in rows], pairs, similar.astype(np.float32)),
        UNCERTAINTY: picks.uncertainty.astype(np.float32),
    }
    own = Features(ACTIVE_FEATURES)
    table = plain.with_format("arrow")[rows]  # concatenate_datasets would copy it, with a progress bar
    new = pa.Table.from_pydict(added, schema=own.arrow_schema)
    for field_ in new.schema:
        table = table.append_column(field_, new[field_.name])
    chosen = Dataset(table, info=DatasetInfo(features=Features({**plain.features, **own})))
    if dataset.format["type"]:
        chosen = chosen.with_format(dataset.format["type"], **dataset.format["format_kwargs"])
    return chosen
