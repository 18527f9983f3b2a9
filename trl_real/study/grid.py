"""Run folder of a study: each cell of the grid runs once, even if the study is killed and restarted."""

import io
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm.auto import tqdm

from trl_real.errors import TrlRealError
from trl_real.runtime.atomic_files import check_settings, read_json, write_json, write_whole


SETTINGS_FILE, CELLS = "study.json", "cells"


class Result(NamedTuple):
    """Result of a cell: plain values, and arrays by name."""

    values: dict[str, Any]
    arrays: dict[str, np.ndarray]


@dataclass(frozen=True)
class Cell:
    """
    Cell of the grid: one trained model.

    Args:
        arm: Strategy, or strategy and geometry (`"easy@centered"`).
        budget: Share in (0, 1], or number of pairs.
        seed: Seed of the pool's sample, of random selection and of training.
    """

    arm: str
    budget: float | int
    seed: int

    @property
    def key(self) -> str:
        """File name of the cell, without extension."""
        return f"{self.arm}-{self.budget:g}-{self.seed}"


class RunFolder:
    """
    Settings and finished cells on disk. A cell's values are written last and in one step, so that cells on disk are
    complete.

    Args:
        folder: Path of a new or empty folder, or of a study with the same settings.
        settings: Settings that all cells share, without the sides of the grid, which may grow; None to read those of
            the folder.

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
            check_settings(read_json(file), settings, folder, "study")
        elif self.folder.exists() and any(self.folder.iterdir()):
            raise TrlRealError(f"The folder {str(folder)!r} is not empty and has no study. Give a new folder.")
        self.cells.mkdir(parents=True, exist_ok=True)
        if not file.exists():
            write_json(file, settings)
        self.settings = settings

    def result(self, cell: Cell) -> Result | None:
        """Return the result of a cell, or None if it is not done."""
        file = self.cells / f"{cell.key}.json"
        if not file.exists():
            return None
        with np.load(file.with_suffix(".npz")) as arrays:
            return Result(read_json(file), dict(arrays))

    def save(self, cell: Cell, result: Result) -> None:
        """Write the result of a cell."""
        file = self.cells / f"{cell.key}.json"
        write_arrays(file.with_suffix(".npz"), result.arrays)
        write_json(file, result.values)


def run_cells(folder: RunFolder, cells: Iterable[Cell], run: Callable[[Cell], Result], desc: str) -> int:
    """
    Run the cells that are not done, with a progress bar.

    Args:
        folder: Run folder of the study.
        cells: Cells in the order in which they run.
        run: Function that runs one cell.
        desc: Label of the progress bar.

    Returns:
        Number of cells that were run.
    """
    cells = list(cells)
    missing = [cell for cell in cells if not (folder.cells / f"{cell.key}.json").exists()]
    with tqdm(missing, initial=len(cells) - len(missing), total=len(cells), desc=desc, unit="cell") as bar:
        for cell in bar:
            bar.set_postfix_str(cell.key)
            folder.save(cell, run(cell))
    return len(missing)


def write_arrays(file: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write arrays by name as `.npz`, in one step."""
    content = io.BytesIO()
    np.savez_compressed(content, **arrays)
    write_whole(file, content.getvalue())
