"""Files that are there whole, as they were, or not at all, whatever happens while they are written."""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trl_real.errors import TrlRealError


def write_whole(file: Path, content: bytes) -> None:
    """Write a file in one step: after a crash it is there whole, as it was, or not at all."""
    partial = file.with_name(file.name + ".partial")
    with open(partial, "wb") as target:
        target.write(content)
        target.flush()
        os.fsync(target.fileno())
    os.replace(partial, file)


def without_nan(value: Any) -> Any:
    """Values as JSON knows them: NaN becomes None, in mappings at every depth."""
    if isinstance(value, Mapping):
        return {name: without_nan(item) for name, item in value.items()}
    return None if isinstance(value, float) and math.isnan(value) else value


def write_json(file: Path, values: Mapping[str, Any]) -> None:
    """Write plain values as JSON, in one step."""
    write_whole(file, json.dumps(values, ensure_ascii=False, indent=1).encode("utf-8", "surrogatepass"))


def read_json(file: Path) -> dict[str, Any]:
    """
    The inverse of `write_json`.

    Raises:
        TrlRealError: If the file cannot be read.
    """
    try:
        return json.loads(file.read_bytes().decode("utf-8", "surrogatepass"))
    except (OSError, ValueError) as error:
        raise TrlRealError(f"{str(file)!r} cannot be read as JSON. Remove it to have it made again.") from error


def check_settings(found: dict[str, Any], wanted: dict[str, Any], folder: str | Path, what: str) -> None:
    """
    Refuse to go on with other settings than those that a folder was begun with.

    Raises:
        TrlRealError: Naming the first one that differs.
    """
    for name in sorted(found.keys() | wanted.keys()):
        if found.get(name) != wanted.get(name):
            raise TrlRealError(
                f"The folder {str(folder)!r} holds a {what} with {name}={found.get(name)!r}, not "
                f"{wanted.get(name)!r}. Give another output_dir, or the settings it was begun with."
            )
