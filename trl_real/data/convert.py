"""Base of the converters: check columns, convert row by row, and count skipped rows."""

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

from datasets import Dataset, Features, Value, concatenate_datasets

from trl_real.errors import TrlRealError, check_columns


logger = logging.getLogger(__name__)

# Part of every conversion's hash: `datasets` hashes a module's functions by name and would not notice new code.
VERSION = 1
REASON = "_trl_real_reason"
CHUNK = 10_000


def require_columns(dataset: Any, source: str, columns: Sequence[str], text: Sequence[str] = ()) -> None:
    """
    Check that `dataset` is one split with the columns that the converter `source` needs, and text in those of `text`.

    Raises:
        MissingColumnError: If a column is missing.
        TrlRealError: If `dataset` is not a `Dataset`, or a column of `text` holds something else.
    """
    if not isinstance(dataset, Dataset):
        fix = f"{source}(dataset['train'])" if isinstance(dataset, dict) else "load_dataset(…, split='train')"
        raise TrlRealError(f"{source} takes one split, a Dataset; found {type(dataset).__name__}. Type: {fix}")
    for name in columns:
        fix = f"{source} needs it; if yours has another name, type: dataset.rename_column('…', {name!r})"
        check_columns(dataset.column_names, [name], fix)
    for name in text:
        found = getattr(dataset.features[name], "dtype", dataset.features[name])
        if found not in ("string", "large_string", "null"):
            raise TrlRealError(
                f"Column {name!r} holds {found} where {source} needs text. "
                f"Convert it: dataset.map(lambda row: {{{name!r}: …}}), or choose another source."
            )


def iterate(dataset: Dataset) -> Iterator[dict]:
    """Iterate over the rows as dicts of Python values, independent of the dataset's format."""
    dataset = dataset.with_format(None)
    for batch in dataset.iter(batch_size=1000):
        yield from (dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True))


def from_rows(rows: Iterable[dict], features: dict) -> Dataset:
    """Build a dataset from rows, in chunks: one Arrow text array is limited to 2 GB."""
    rows = iter(rows)
    chunks: list[Dataset] = []
    while (chunk := list(islice(rows, CHUNK))) or not chunks:
        columns = {name: [row[name] for row in chunk] for name in features}
        chunks.append(Dataset.from_dict(columns, features=Features(features)))
    return concatenate_datasets(chunks)


class _ByRow:
    """Batched map of a function of one row, with a column of reasons for rows it cannot convert."""

    def __init__(self, convert: Callable[..., dict], columns: Sequence[str], outputs: Sequence[str], settings: dict):
        self.convert, self.columns, self.outputs, self.settings = convert, columns, outputs, settings
        self.version = VERSION

    def __call__(self, *columns: list) -> dict[str, list]:
        named = (dict(zip(self.columns, values, strict=True)) for values in zip(*columns, strict=True))
        rows = [self.convert(**values, **self.settings) for values in named]
        converted = {name: [row.get(name) for row in rows] for name in self.outputs}
        return {**converted, REASON: [row.get(REASON, "") for row in rows]}


def convert_rows(
    dataset: Dataset,
    source: str,
    convert: Callable,
    columns: Sequence[str],
    outputs: dict,
    counts: Counter | None,
    **settings,
) -> Dataset:
    """
    Convert row by row, and skip the rows for which `convert` returns a reason.

    Args:
        dataset: Dataset to convert, one split.
        source: Name of the converter, for logs and the progress bar.
        convert: Function that takes the values of `columns` and `settings` by name and returns the values of
            `outputs`, or `{REASON: "why the row is skipped"}`.
        columns: Names of the columns that `convert` reads.
        outputs: Names and features of the columns that `convert` writes; other columns are kept.
        counts: Counter that receives the number of skipped rows per reason.
        **settings: Further arguments of `convert`.
    """
    others = {name: feature for name, feature in dataset.features.items() if name not in (*columns, *outputs)}
    if not len(dataset):
        return report(source, 0, from_rows([], {**outputs, **others}), Counter(), counts)
    converted = dataset.with_format(None).map(
        _ByRow(convert, columns, list(outputs), settings),
        batched=True,
        input_columns=list(columns),
        remove_columns=[name for name in columns if name not in outputs],
        features=Features({**others, **outputs, REASON: Value("string")}),
        desc=source,
    )
    reasons = converted[REASON][:]
    converted = converted.select_columns([*outputs, *others])
    valid = [index for index, reason in enumerate(reasons) if not reason]
    if len(valid) < len(reasons):
        converted = converted.select(valid)
    return report(source, len(reasons), converted, Counter(filter(None, reasons)), counts)


def report(source: str, n_rows: int, converted: Dataset, skipped: Counter, counts: Counter | None) -> Dataset:
    """Report the skipped rows in the log and in `counts`, and return `converted`."""
    skipped = +skipped
    if counts is not None:
        counts.update(skipped)
    reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(skipped.items())) or "none"
    logger.info("%s: %d rows in, %d out; skipped: %s", source, n_rows, len(converted), reasons)
    return converted
