"""The run folder of a study: each cell of the grid is done once, however often the study is killed and started."""

import io
import json
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm.auto import tqdm

from trl_real.errors import TrlRealError


SETTINGS_FILE, CELLS = "study.json", "cells"


class Result(NamedTuple):
    """What a cell gave: plain values, and arrays by name."""

    values: dict[str, Any]
    arrays: dict[str, np.ndarray]


@dataclass(frozen=True)
class Cell:
    """
    One model of the study.

    Args:
        arm: Strategy, or strategy and geometry (`"easy@centered"`).
        budget: Share in (0, 1], or number of pairs.
        seed: Of the pool's sample, of random choices and of training.
    """

    arm: str
    budget: float | int
    seed: int

    @property
    def key(self) -> str:
        """Name of its files."""
        return f"{self.arm}-{self.budget:g}-{self.seed}"


class RunFolder:
    """
    Settings and finished cells on disk. A cell's values are written last and in one step, so that what is there is
    whole.

    Args:
        folder: New, empty, or of a study with the same settings.
        settings: What all cells share, None to take what the folder has; the grid's own sides are no part of it and
            may grow.

    Raises:
        TrlRealError: If the folder holds something else, or a study with other settings.
    """

    def __init__(self, folder: str | Path, settings: Mapping[str, Any] | None):
        self.folder = Path(folder)
        self.cells = self.folder / CELLS
        if self.folder.exists() and not self.folder.is_dir():
            raise TrlRealError(f"{str(folder)!r} is a file. Give a folder.")
        file = self.folder / SETTINGS_FILE
        if settings is None:
            settings = read_json(file)
        settings = json.loads(json.dumps(settings))
        if file.exists():
            _check_settings(read_json(file), settings, folder)
        elif self.folder.exists() and any(self.folder.iterdir()):
            raise TrlRealError(f"The folder {str(folder)!r} holds something that is no study. Give a new one.")
        self.cells.mkdir(parents=True, exist_ok=True)
        if not file.exists():
            write_json(file, settings)
        self.settings = settings

    def result(self, cell: Cell) -> Result | None:
        """What the cell gave, or None if it is not done."""
        file = self.cells / f"{cell.key}.json"
        if not file.exists():
            return None
        with np.load(file.with_suffix(".npz")) as arrays:
            return Result(read_json(file), dict(arrays))

    def save(self, cell: Cell, result: Result) -> None:
        """Keep what the cell gave."""
        file = self.cells / f"{cell.key}.json"
        write_arrays(file.with_suffix(".npz"), result.arrays)
        write_json(file, result.values)


def run_cells(folder: RunFolder, cells: Iterable[Cell], run: Callable[[Cell], Result], desc: str) -> int:
    """
    Run the cells that are not done, with a bar that tells the time left.

    Args:
        folder: Where they are kept.
        cells: In the order in which they are run.
        run: Runs one.
        desc: Of the bar.

    Returns:
        How many were run.
    """
    cells = list(cells)
    missing = [cell for cell in cells if not (folder.cells / f"{cell.key}.json").exists()]
    with tqdm(missing, initial=len(cells) - len(missing), total=len(cells), desc=desc, unit="cell") as bar:
        for cell in bar:
            bar.set_postfix_str(cell.key)
            folder.save(cell, run(cell))
    return len(missing)


def write_arrays(file: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write arrays by name as `.npz`, in one step as `write_whole` does."""
    content = io.BytesIO()
    np.savez_compressed(content, **arrays)
    write_whole(file, content.getvalue())


def write_whole(file: Path, content: bytes) -> None:
    """Write a file in one step: after a crash it is there whole, as it was, or not at all."""
    partial = file.with_name(file.name + ".partial")
    with open(partial, "wb") as target:
        target.write(content)
        target.flush()
        os.fsync(target.fileno())
    os.replace(partial, file)


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


def _check_settings(found: dict[str, Any], wanted: dict[str, Any], folder: str | Path) -> None:
    for name in sorted(found.keys() | wanted.keys()):
        if found.get(name) != wanted.get(name):
            raise TrlRealError(
                f"The folder {str(folder)!r} holds a study with {name}={found.get(name)!r}, not {wanted.get(name)!r}. "
                "Give another output_dir, or the settings it was begun with."
            )
