"""Files written in one step: after a crash, a file is complete, unchanged, or absent."""

import json
import math
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trl_real.errors import TrlRealError


def owner_only(path: str, flags: int) -> int:
    """Open a file, for `open(opener=…)`; if it is new, only its owner can read it: it holds the user's texts."""
    return os.open(path, flags, 0o600)


def write_atomic(file: Path, content: bytes) -> None:
    """Write a file in one step: after a crash it is complete, unchanged, or absent."""
    partial = file.with_name(f"{file.name}.{os.getpid()}-{threading.get_ident():x}.partial")
    try:
        with open(partial, "wb") as target:
            target.write(content)
            target.flush()
            os.fsync(target.fileno())
        os.replace(partial, file)
    except OSError:
        partial.unlink(missing_ok=True)  # a full disk needs the room
        raise


def without_nan(value: Any) -> Any:
    """Replace NaN and infinity, which JSON does not have, by None, in mappings and lists at every depth."""
    if isinstance(value, Mapping):
        return {name: without_nan(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_json(file: Path, values: Mapping[str, Any] | list[Any]) -> None:
    """Write plain values as JSON, in one step."""
    write_atomic(file, json.dumps(values, ensure_ascii=False, indent=1).encode("utf-8", "surrogatepass"))


def read_json(file: Path, kind: type = dict) -> Any:
    """
    Read what `write_json` wrote: a mapping, or a value of another kind.

    Raises:
        TrlRealError: If the file cannot be read, or holds a value of another kind.
    """
    try:
        value = json.loads(file.read_bytes().decode("utf-8", "surrogatepass"))
    except (OSError, ValueError, RecursionError) as error:
        raise TrlRealError(f"{str(file)!r} cannot be read as JSON. Remove it and run again.") from error
    if not isinstance(value, kind):
        raise TrlRealError(
            f"{str(file)!r} holds a {type(value).__name__}, not a {kind.__name__}. Remove it and run again."
        )
    return value
