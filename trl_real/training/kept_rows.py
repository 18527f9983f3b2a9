"""Rows selected for training: checks before the selection, files with rows and record, model card section."""

import io
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, IterableDataset
from torch import nn

from trl_real.data.pairs import preference_candidates
from trl_real.errors import TrlRealError, check_columns
from trl_real.runtime.atomic_files import write_atomic
from trl_real.selection.record import RECORD_FILE, SelectionRecord
from trl_real.training.config import REALDPOConfig
from trl_real.training.forward_hooks import is_sharded


ROWS_FILE = "selected_rows.npy"
PROMPT_TOO_LONG = "prompt fills max_length"


@dataclass
class KeptRows:
    """Rows selected for training, by their numbers in the given training set, and the record of the selection."""

    rows: np.ndarray  # ascending; shape `(k,)`, int64
    record: SelectionRecord

    def save(self, folder: str | Path) -> None:
        """Write both files into `folder`; the file of row numbers is complete or absent."""
        path = Path(folder) / ROWS_FILE
        self.record.save(folder)
        content = io.BytesIO()
        np.save(content, self.rows)
        write_atomic(path, content.getvalue())

    @classmethod
    def load(cls, folder: str | Path | None) -> "KeptRows | None":
        """Read what `save` wrote; return None if nothing was selected."""
        if folder is None or not (Path(folder) / ROWS_FILE).exists():
            return None
        return cls(np.load(Path(folder) / ROWS_FILE, allow_pickle=False), SelectionRecord.load(folder))

    def check(self, folder: str | Path, n_rows: int, prepared: np.ndarray) -> None:
        """
        Check that these rows, saved in `folder`, belong to a training set of `n_rows`, of which TRL kept `prepared`.

        Raises:
            TrlRealError: If the training set has another number of rows, or TRL dropped a row that was trained on.
        """
        if n_rows != self.record.n_rows:
            raise TrlRealError(
                f"{folder} was trained on {len(self.rows)} rows of a training set of {self.record.n_rows}, but this "
                f"one has {n_rows} rows. Give the training set of that run, or leave resume_from_checkpoint out."
            )
        if missing := np.setdiff1d(self.rows, prepared).tolist():
            raise TrlRealError(
                f"{folder} was trained on row {missing[0]} of the training set, but its prompt now fills max_length. "
                "Give the max_length and the tokenizer of that run."
            )


def check_selectable(dataset: Any, args: REALDPOConfig) -> None:
    """
    Check, before a model is loaded, that rows can be selected from a dataset; TRL reports types it does not accept.

    Raises:
        MissingColumnError: If `chosen` or `rejected` is missing.
        TrlRealError: If the dataset is a stream, or if the budget exceeds its rows.
    """
    strategy, budget = args.selection_strategy, args.selection_budget
    if isinstance(dataset, IterableDataset):
        raise TrlRealError(
            f"selection_strategy={strategy!r} ranks all rows of the training set, but this one is a stream. "
            "Load it without streaming=True, or leave selection_strategy out."
        )
    if not isinstance(dataset, Dataset):
        return
    check_columns(dataset.column_names, ("chosen", "rejected"), "Label the pairs first, or rename the column.")
    if budget is not None and budget > max(1, len(dataset)):
        raise TrlRealError(
            f"selection_budget={budget}, but the training set has {len(dataset)} rows. "
            "Type selection_budget=0.25 for a quarter of them."
        )


def trained_alike(prepared: Dataset, given: Dataset, numbers: np.ndarray, args: REALDPOConfig) -> np.ndarray:
    """
    Return which prepared pairs have two responses as given but the same ids as cut for training. Shape `(N,)`, bool.

    Args:
        prepared: `N` rows that TRL tokenized.
        given: Training set.
        numbers: Row of each in `given`. Shape `(N,)`.
        args: Settings of the training.
    """
    end = args.truncation_mode == "keep_end"
    cut = slice(-args.max_length, None) if args.max_length and end else slice(args.max_length)
    ids = prepared.with_format(None).select_columns(["prompt_ids", "chosen_ids", "rejected_ids"])
    alike = [
        (prompt + chosen)[cut] == (prompt + rejected)[cut]
        for batch in (ids.iter(1000) if len(ids) else ())
        for prompt, chosen, rejected in zip(*batch.values(), strict=True)
    ]
    mask = np.array(alike, dtype=bool)
    for i in np.flatnonzero(mask):
        row = given[int(numbers[i])]
        mask[i] = not preference_candidates(row.get("prompt"), row["chosen"], row["rejected"]).skipped
    return mask


def check_unsharded(model: nn.Module) -> None:
    """
    Check that a single process can run the model, unlike under ZeRO-3 or tensor parallelism.

    Raises:
        TrlRealError: If a weight is sharded over processes.
    """
    for name, weight in model.named_parameters():
        if is_sharded(weight):
            raise TrlRealError(
                f"Weight {name!r} is sharded over processes, so the main one cannot select with it. Select "
                "beforehand, in one process, with EmbeddingPairSelector(model).select(dataset, budget), and leave "
                "selection_strategy out."
            )


def complete_record(record: SelectionRecord, dropped: dict[str, int]) -> SelectionRecord:
    """
    Return the selector's record for the whole training set, with the rows that were dropped before the selection, by
    reason, and without local paths, so that it can be published.
    """
    counts = Counter(record.skipped) + Counter(dropped)
    model = Path(record.model).name if record.model and Path(record.model).exists() else record.model
    return replace(record, model=model, n_rows=record.n_rows + sum(dropped.values()), skipped=dict(counts))


def named_strategy(record: SelectionRecord) -> str:
    """Return the strategy of a record with its geometry, such as `"easy@centered"`."""
    geometry = record.settings.get("geometry", "raw")
    return record.strategy if geometry == "raw" else f"{record.strategy}@{geometry}"


def selection_section(record: SelectionRecord, earlier: bool = False) -> str:
    """
    Return the model card's section about the selection; it quotes nothing from the data.

    Args:
        record: Record of the selection.
        earlier: Whether the rows were selected before they were labelled, by another model perhaps.
    """
    budget = f"{record.budget:g} of the pairs" if isinstance(record.budget, float) else f"{record.budget} pairs"
    basis = (
        "the similarity of their responses' embeddings in this model, before training" if record.model else "chance"
    )
    if earlier and record.model:
        name = Path(record.model).name if Path(record.model).is_absolute() else record.model
        basis = f"their responses as the model `{name}` reads them, before they were labelled"
    title, rows = ("Selection before labelling", "pool") if earlier else ("Selection", "training set")
    skipped = "".join(f"| skipped: {reason} | {count} |\n" for reason, count in sorted(record.skipped.items()))
    return (
        f"\n\n## {title}\n\nThe training pairs were chosen by strategy `{named_strategy(record)}`, budget {budget}, "
        f"seed {record.seed}, from {basis}; their labels were not read. Details are in `{RECORD_FILE}`.\n\n"
        f"| {rows} | rows |\n|---|---|\n| all | {record.n_rows} |\n| kept | {record.n_kept} |\n"
        f"| not chosen | {record.n_not_chosen} |\n{skipped}"
    )
