"""Columns that the scoring pass reads and adds."""

from typing import Any, TypeVar

import numpy as np
from datasets import Dataset, Features, IterableDataset, List, Value

from trl_real.data.columns import (
    EMBEDDINGS,
    MIXTURE_COLUMNS,
    OWN_FEATURES,
    POOL_COLUMNS,
    PREFERENCE_COLUMNS,
    check_own_columns,
    is_pool,
    to_columns,
)
from trl_real.data.conversation import TEMPLATE_COLUMNS
from trl_real.data.images import IMAGE_COLUMNS
from trl_real.selection.annotation import response_keys, to_own_columns
from trl_real.selection.scorer import PairScorer


Rows = TypeVar("Rows", Dataset, IterableDataset)

# Columns for the budget and the record; the first row of a batch has the cost of the batch.
SCORING_FEATURES = {
    "_score": Value("float64"),
    "_gap": Value("float64"),
    "_difference": List(Value("float32")),
    "_responses": List(Value("int64")),
    "_n_responses": Value("int32"),
    "_n_truncated": Value("int32"),
    "_n_tokens": Value("int64"),
    "_seconds": Value("float64"),
    "_batch_tokens": Value("int32"),  # of the pass that read the row; 0 without a model of this process
}


class ScoringPass:
    """Map behind `select`, which adds the selector's columns and `SCORING_FEATURES`."""

    def __init__(self, selector: PairScorer, pool: bool):
        self.selector, self.pool = selector, pool

    def __call__(self, rows, row_ids: list[int], rank: int | None = None) -> dict[str, list]:
        """Score a batch; `row_ids` are the rows' numbers in the dataset."""
        rows_, choices, cost = self.selector.annotate(to_columns(rows), self.pool, rank, row_ids)
        once = [1] + [0] * (len(rows_) - 1)
        found: dict[str, Any] = {}
        for j, choice in enumerate(choices):
            own: dict[str, Any] = {"_score": choice.scores, "_gap": choice.gaps, "_difference": choice.differences}
            own |= to_own_columns(rows_, choice.pairs, choice.similarity)
            own["_responses"] = (
                response_keys(rows_, choice.pairs) if self.selector.parts[j].once else [[]] * len(rows_)
            )
            found |= {part_column(name, j): own[name] for name in part_columns(self.pool)}
        return {
            **found,
            "_n_responses": [len(row.texts) for row in rows_],
            "_n_truncated": cost["truncated"],
            "_n_tokens": [cost["n_tokens"] * first for first in once],
            "_seconds": [cost["seconds"] * first for first in once],
            "_batch_tokens": [cost["batch_tokens"]] * len(rows_),
        }


def plain_rows(selector: PairScorer, dataset: Rows) -> tuple[Rows, bool]:
    """Return the rows as Python values without the columns of an earlier selection, and whether they are a pool."""
    pool = is_pool(dataset.column_names, selector.responses)
    own: tuple[str, ...] = POOL_COLUMNS if pool else PREFERENCE_COLUMNS
    check_own_columns(dataset.column_names, own)
    if selector.mixed:
        check_own_columns(dataset.column_names, MIXTURE_COLUMNS)
    if set(MIXTURE_COLUMNS) <= set(dataset.column_names):
        own += MIXTURE_COLUMNS
    return dataset.with_format(None).remove_columns([name for name in own if name in dataset.column_names]), pool


def columns_read(selector: PairScorer, columns: list[str], pool: bool) -> tuple[list[str], list[str]]:
    """Return the columns of a pool that a selector reads, and those among them that it reads as arrays."""
    read = [selector.responses] if pool else ["chosen", "rejected"]
    images = IMAGE_COLUMNS if selector.reads_images else ()
    read = [column for column in ("prompt", *read, *TEMPLATE_COLUMNS, *images, EMBEDDINGS) if column in columns]
    given = EMBEDDINGS in read and selector.encoder is None and selector.embeds
    return read, [EMBEDDINGS] if given else []


def part_columns(pool: bool) -> list[str]:
    """Return the columns that every part of a mixture has."""
    return [*(POOL_COLUMNS if pool else PREFERENCE_COLUMNS), "_score", "_gap", "_difference", "_responses"]


def part_column(name: str, part: int) -> str:
    """Return the name of a column of a part; that of the first part, or of a plain strategy, has no addition."""
    return f"_part_{part}_{name.lstrip('_')}" if part else name


def scoring_features(pool: bool, n_parts: int = 1) -> Features:
    """Return the features of the output of a `ScoringPass`."""
    types = {**OWN_FEATURES, **SCORING_FEATURES}
    parts = {part_column(name, j): types[name] for j in range(n_parts) for name in part_columns(pool)}
    return Features({**parts, **SCORING_FEATURES})


def of_part(scored: Dataset, part: int, names: list[str]) -> Dataset:
    """Return the columns of a part under their own names."""
    mine = {part_column(name, part): name for name in names}
    return scored.select_columns(list(mine)).rename_columns({old: new for old, new in mine.items() if old != new})


def numbers(dataset: Dataset, column: str) -> np.ndarray:
    """Return a numeric column as one array, without a pass through Python."""
    if not len(dataset):
        return np.zeros(0)
    return dataset.select_columns(column).with_format("arrow")[:][column].to_numpy()


def vectors(dataset: Dataset, column: str) -> list[np.ndarray]:
    """Return a column of lists as views of the Arrow file."""
    if not len(dataset):
        return []
    chunks = dataset.select_columns(column).with_format("arrow")[:][column].chunks
    return [
        vector
        for lists in chunks
        for vector in np.split(lists.flatten().to_numpy(), np.diff(lists.offsets.to_numpy()).cumsum()[:-1])
    ]
