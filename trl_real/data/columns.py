"""What comes through `datasets.map`, in whatever format, as plain columns; and one row or a batch told apart."""

from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow as pa
from datasets import Features, List, Value
from datasets.formatting.formatting import LazyBatch, LazyRow

from trl_real.errors import MissingColumnError, TrlRealError


EMBEDDINGS = "embeddings"

# What the selector adds: to a pool, and to rows that are labelled already.
POOL_COLUMNS = ("pair", "response_a", "response_b", "similarity", "skipped")
PREFERENCE_COLUMNS = ("similarity", "skipped")

OWN_FEATURES = {
    "pair": List(Value("int32")),
    "response_a": Value("string"),
    "response_b": Value("string"),
    "similarity": Value("float32"),
    "skipped": Value("string"),
}


def to_columns(rows: Any) -> dict[str, Any]:
    """
    A row or a batch in any of the formats of `datasets` as a dict of Python values.

    Args:
        rows: A mapping (Python, NumPy or Torch values), a `pandas.DataFrame` or a `pyarrow.Table`.

    Returns:
        Column name to value (a row) or list of values (a batch). Embeddings are left as they are.
    """
    if hasattr(rows, "to_pydict"):
        return rows.to_pydict()
    columns = {name: rows[name] for name in rows.keys()}
    if not isinstance(rows, Mapping):  # pandas says NaN where a text is missing
        columns = {name: series.astype(object).where(series.notna(), None) for name, series in columns.items()}
    return {name: value if name == EMBEDDINGS else to_python(value) for name, value in columns.items()}


def to_python(value: Any) -> Any:
    """Arrays, tensors and series as lists, at every depth."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {name: to_python(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return value if all(isinstance(item, str) for item in value) else [to_python(item) for item in value]
    return value


def is_pool(columns: Iterable[str], responses: str) -> bool:
    """
    Whether the rows are a pool of responses (else: labelled pairs).

    Raises:
        MissingColumnError: If the rows are neither.
    """
    columns = list(columns)
    if responses in columns:
        return True
    if "chosen" in columns and "rejected" in columns:
        return False
    fix = "Name the column that holds the list of responses: EmbeddingPairSelector(responses='…')"
    for likely in ("completions", "candidates", "generations", "outputs"):
        if likely in columns:
            fix = f"Rename it: dataset.rename_column({likely!r}, {responses!r})"
    raise MissingColumnError(responses, columns, f"{fix}; or bring labelled pairs in 'chosen' and 'rejected'.")


def is_batch(rows: Any, columns: dict[str, Any], depths: dict[str, int]) -> bool:
    """
    Whether a batch came in, told by how deep the texts lie: a plain dict looks alike for rows and batches.

    Args:
        rows: What came in. Tables are batches, of one row or more.
        columns: The same as Python values.
        depths: Columns to look at, until one has a text, and the lists around a text in one row: 1 for a list of
            responses, 0 for a single one. Messages count as a text. The first one must be there.
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
    Columns that the selector writes must be absent or its own, from an earlier run.

    Raises:
        TrlRealError: If some, but not all of them are there, so that one must be the user's.
    """
    columns = list(columns)
    present = [name for name in own if name in columns]
    if present and len(present) < len(own):
        raise TrlRealError(
            f"The dataset has a column {present[0]!r} of its own, which the selector would overwrite. "
            f"Rename it: dataset.rename_column({present[0]!r}, 'my_{present[0]}')."
        )


def _depth(value: Any) -> int | None:
    """Number of lists around the first text found; a list of messages counts as one text. None if there is none."""
    if isinstance(value, str):
        return 0
    if not isinstance(value, list):
        return None
    if any(isinstance(item, dict) for item in value):
        return 0
    return next((1 + depth for depth in map(_depth, value) if depth is not None), None)


def extended(rows: Any, added: dict[str, list]) -> pa.Table:
    """
    A table with the selector's columns added, or put in place of older ones.

    Args:
        rows: A `pandas.DataFrame` or a `pyarrow.Table`.
        added: Columns by name, of those in `OWN_FEATURES`.
    """
    table = rows if isinstance(rows, pa.Table) else _from_pandas(rows)
    table = table.drop_columns([name for name in added if name in table.column_names])
    new = pa.Table.from_pydict(added, schema=Features({name: OWN_FEATURES[name] for name in added}).arrow_schema)
    for name in new.column_names:
        table = table.append_column(name, new[name])
    return table


def _from_pandas(rows: Any) -> pa.Table:
    """A table with the types that `datasets` has: pandas 3 makes large strings of its texts."""
    table = pa.Table.from_pandas(rows, preserve_index=False).replace_schema_metadata(None)
    for i, field in enumerate(table.schema):
        if field.type == pa.large_string():
            table = table.set_column(i, field.name, table[i].cast(pa.string()))
    return table
