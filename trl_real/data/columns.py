"""Rows and batches from `datasets.map`, in any format, as plain columns."""

from collections.abc import Collection, Iterable, Mapping
from typing import Any

import pyarrow as pa
from datasets import Features, List, Value
from datasets.formatting.formatting import LazyBatch, LazyRow

from trl_real.errors import MissingColumnError, TrlRealError


EMBEDDINGS = "embeddings"

# Columns that the selector adds to a pool, and to labelled pairs.
POOL_COLUMNS = ("pair", "response_a", "response_b", "similarity", "skipped")
PREFERENCE_COLUMNS = ("similarity", "skipped")
# Columns that a mixture adds to the rows it keeps: the part that took a row, and with what probability.
MIXTURE_COLUMNS = ("selected_by", "selection_probability")

OWN_FEATURES = {
    "pair": List(Value("int32")),
    "response_a": Value("string"),
    "response_b": Value("string"),
    "similarity": Value("float32"),
    "skipped": Value("string"),
    "selected_by": Value("string"),
    "selection_probability": Value("float32"),
}


def to_columns(rows: Any, unread: Collection[str] = ()) -> dict[str, Any]:
    """
    Convert a row or a batch in any format of `datasets` (mapping, `pandas.DataFrame` or `pyarrow.Table`) to a dict of
    Python values, or lists of them for a batch. Embeddings are not converted, and the columns `unread` are left out.
    """
    if hasattr(rows, "to_pydict"):
        return rows.drop_columns([name for name in unread if name in rows.column_names]).to_pydict()
    columns = {name: rows[name] for name in rows.keys() if name not in unread}
    if not isinstance(rows, Mapping):  # pandas has NaN for a missing text
        columns = {name: series.astype(object).where(series.notna(), None) for name, series in columns.items()}
    return {name: value if name == EMBEDDINGS else to_python(value) for name, value in columns.items()}


def to_python(value: Any) -> Any:
    """Convert arrays, tensors and series to lists, at every depth."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {name: to_python(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return value if all(isinstance(item, str) for item in value) else [to_python(item) for item in value]
    return value


def is_ready(columns: Collection[str], responses: str) -> bool:
    """Return whether the columns are those of ready pairs: two responses and no selection."""
    return {"response_a", "response_b"} <= set(columns) and responses not in columns and "pair" not in columns


def is_pool(columns: Iterable[str], responses: str) -> bool:
    """
    Return True for a pool, which has a column `responses` with lists of responses; False for labelled pairs.

    Raises:
        MissingColumnError: If the rows are neither.
    """
    columns = list(columns)
    if responses in columns:
        return True
    if "chosen" in columns and "rejected" in columns:
        return False
    if is_ready(columns, responses):
        fix = "These are ready pairs, which select and annotate take as they are: selector.select(dataset)."
        raise MissingColumnError(responses, columns, fix)
    fix = "Name the column with the list of responses: EmbeddingPairSelector(responses='…')"
    for likely in ("completions", "candidates", "generations", "outputs"):
        if likely in columns:
            fix = f"Rename it: dataset.rename_column({likely!r}, {responses!r})"
    raise MissingColumnError(responses, columns, f"{fix}; or give labelled pairs in 'chosen' and 'rejected'.")


def is_batch(rows: Any, columns: dict[str, Any], depths: dict[str, int]) -> bool:
    """
    Return whether the input is a batch. For a plain dict, the nesting depth of the texts decides.

    Args:
        rows: Input of the map. A table is always a batch.
        columns: Input as Python values, from `to_columns`.
        depths: Column name to the number of lists around a text in one row: 1 for a list of responses, 0 for a single
            response. Messages count as a text. The first column with a text decides; the first column must exist.
    """
    if isinstance(rows, LazyRow):
        return False
    if isinstance(rows, LazyBatch) or not isinstance(rows, Mapping):
        return True
    for name, depth in depths.items():
        deepest = _depth(columns.get(name))
        if deepest is not None:
            return deepest > depth
    key = next(iter(depths))
    if depths[key] == 0:
        return isinstance(columns[key], list) and bool(columns[key])
    return any(isinstance(value, list) for value in columns[key] or [])


def check_own_columns(columns: Iterable[str], own: tuple[str, ...]) -> None:
    """
    Check that the columns which the selector writes, `own`, are absent, or come from an earlier selection.

    Raises:
        TrlRealError: If only some of them exist: then they are not from the selector.
    """
    columns = list(columns)
    present = [name for name in own if name in columns]
    if {"pair", "label_source"} <= set(columns):  # labels of a selection, from which a push leaves out some columns
        return
    if present and len(present) < len(own):
        raise TrlRealError(
            f"The dataset already has a column {present[0]!r}, which the selector would overwrite. "
            f"Rename it: dataset.rename_column({present[0]!r}, 'my_{present[0]}')."
        )


def _depth(value: Any) -> int | None:
    """Return the number of lists around the first text, or None without a text. Messages count as one text."""
    if isinstance(value, str):
        return 0
    if not isinstance(value, list):
        return None
    if any(isinstance(item, dict) for item in value):
        return 0
    return next((1 + depth for depth in map(_depth, value) if depth is not None), None)


def extended(rows: Any, added: dict[str, list]) -> pa.Table:
    """Add columns of `OWN_FEATURES` to a `pandas.DataFrame` or `pyarrow.Table`, or replace earlier ones."""
    table = rows if isinstance(rows, pa.Table) else _from_pandas(rows)
    table = table.drop_columns([name for name in added if name in table.column_names])
    new = pa.Table.from_pydict(added, schema=Features({name: OWN_FEATURES[name] for name in added}).arrow_schema)
    for name in new.column_names:
        table = table.append_column(name, new[name])
    return table


def _from_pandas(rows: Any) -> pa.Table:
    """Convert to a table with the types of `datasets`: texts from pandas 3 are large strings."""
    table = pa.Table.from_pandas(rows, preserve_index=False).replace_schema_metadata(None)
    for i, field in enumerate(table.schema):
        if field.type == pa.large_string():
            table = table.set_column(i, field.name, table[i].cast(pa.string()))
    return table
