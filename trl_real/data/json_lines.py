"""What is wrong in a JSONL file, told by column and line: columns whose type changes, and lines that are no JSON."""

import codecs
import gzip
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, IterableDataset
from datasets.exceptions import DatasetsError
from datasets.table import CastError

from trl_real.errors import TrlRealError


# Files up to this size are read at once if a column's type shows late.
WHOLE = 2**30
KINDS = {type(None): "null", bool: "true or false", int: "a number", float: "a number", str: "text", list: "a list"}


def type_change(path: str | Path) -> str:
    """
    Return, in words, the first line of a JSONL file that does not fit those before, and a fix; else the last line in
    which a type shows for the first time, which a stream cannot know at its start; empty if all types show at once.
    """
    seen: dict[str, tuple[str, int]] = {}
    shown: dict[tuple[str, str], int] = {}
    number = 0
    try:
        with gzip.open(path, "rt") if str(path).endswith(".gz") else open(path, encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                row = json.loads(line) if line.strip() else {}
                if not isinstance(row, dict):
                    return f"line {number} is not an object with columns. Correct or remove it"
                for name, value in row.items():
                    kind = KINDS.get(type(value), "an object")
                    shown.setdefault((name, _first_type(value)), number)
                    before, first = seen.setdefault(name, (kind, number)) if kind != "null" else (kind, number)
                    if kind != before:
                        change = f"column {name!r} holds {before} in line {first} and {kind} in line {number}"
                        return f"{change}. Write one type a column, messages as lists in every line"
    except (ValueError, OSError, RecursionError) as error:
        return f"line {number} is not JSON ({getattr(error, 'msg', error)}). Correct or remove it"
    return _late(shown)


def _late(shown: dict[tuple[str, str], int]) -> str:
    (name, kind), line = max(shown.items(), key=lambda item: item[1], default=(("", ""), 1))
    if line == 1:
        return ""
    return (
        f"column {name!r} holds {kind} for the first time in line {line}, and a stream takes its types from its "
        "start. Put such a line first, or read the whole file (without streaming)"
    )


def _first_type(value: Any) -> str:
    """Return the type of a JSON value in words; of a list that of its first element, too."""
    if isinstance(value, list):
        return f"a list with {_first_type(value[0])}" if value else "an empty list"
    if isinstance(value, float):
        return "a fraction"
    return "a whole number" if type(value) is int else KINDS.get(type(value), "an object")


class ReadRows:
    """Rows of a stream of a JSONL file, read as in `reading`; a function for `IterableDataset.from_generator`."""

    def __init__(self, stream: IterableDataset, path: str):
        self.stream, self.path = stream, path

    def __call__(self) -> Iterator[dict[str, Any]]:
        with reading(self.path):
            yield from self.stream


def check_encoding(path: Path, whole: bool = True) -> None:
    """
    Raise `TrlRealError` for what pyarrow does not report of a JSON file: a start with neither an object nor a list
    (null ends the process) and, if the file is read to its end (`whole`), bytes that are not UTF-8.
    """
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        start = file.read(4096).removeprefix(codecs.BOM_UTF8).lstrip()
        file.seek(0)
        for number, line in enumerate(file if whole else (), 1):
            try:
                line.decode()
            except UnicodeDecodeError as error:
                raise TrlRealError(
                    f"Cannot read {str(path)!r}: line {number} is not UTF-8 (byte 0x{line[error.start]:02x}). "
                    f"Convert it: iconv -f latin1 -t utf-8 {path.name}"
                ) from error
    if start and start[:1] not in b"{[":
        raise TrlRealError(
            f"Cannot read {str(path)!r}: it begins with neither an object nor a list of JSON in UTF-8. Write one "
            'object with columns a line: {"prompt": "…", …}'
        )


@contextmanager
def reading(path: str | Path) -> Iterator[None]:
    """Read a JSONL file, or a stream of one; an error of its types becomes one that names the column and the line."""
    try:
        yield
    except TrlRealError:
        raise
    except (DatasetsError, CastError, pa.ArrowInvalid, TypeError, ValueError, RecursionError) as error:
        is_lines = Path(path).is_file() and str(path).removesuffix(".gz").endswith(".jsonl")
        found = type_change(path) if is_lines else ""
        if not found and is_lines and isinstance(error, DatasetsError | CastError | pa.ArrowInvalid):
            found = " ".join(str(error.__cause__ or error).split())[:300].rstrip(".")
        if not found:
            raise
        raise TrlRealError(f"Cannot read {str(path)!r}: {found}.") from error


def check_texts(rows: Dataset, path: str | Path, columns: tuple[str, ...]) -> None:
    """Raise `TrlRealError` if a column of texts holds messages in some lines, which `datasets` reads as JSON text."""
    for name in columns:
        if getattr(rows.features.get(name), "dtype", "") not in ("string", "large_string"):
            continue
        column: Any = rows.with_format("arrow").select_columns(name)[:][name] if len(rows) else pa.array([], "string")
        is_json = pc.match_substring_regex(column, r'^\[\{"(role|content)"')
        n = pc.sum(is_json).as_py() or 0
        if 0 < n < len(rows):
            line = pc.index(is_json, True).as_py() + 1
            raise TrlRealError(
                f"Column {name!r} of {str(path)!r} holds messages in {n} of {len(rows)} lines, first in line {line}, "
                'and texts in the others. Write messages in every line: [{"role": "user", "content": "…"}]'
            )
