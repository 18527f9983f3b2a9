"""Run folder of a study: each cell of the grid runs once, even if the study is killed and restarted."""

import io
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from zipfile import BadZipFile

import numpy as np
from tqdm.auto import tqdm

from trl_real.errors import TrlRealError
from trl_real.functional.bayesian_head import ACQUISITIONS
from trl_real.runtime.atomic_files import read_json, write_atomic, write_json
from trl_real.runtime.run_folder import RunFolder
from trl_real.selection.mixture.parts import MIXTURE_VERSIONS


SETTINGS_FILE, CELLS = "study.json", "cells"
# Arms that chose otherwise in an earlier version: their cells have names of their own.
VERSIONS = {"auto": MIXTURE_VERSIONS["auto"], **dict.fromkeys(ACQUISITIONS, 2)}


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
        version = f".{VERSIONS[self.arm]}" if self.arm in VERSIONS else ""
        return f"{self.arm}{version}-{self.budget:g}-{self.seed}"


class StudyFolder(RunFolder):
    """
    Folder of a study, with the files of its finished cells. The values of a cell are written last and in one step, so
    that a file of values stands for a complete cell.

    Args:
        folder: Path of a new or empty folder, or of a study with the same settings.
        settings: Plain values that all cells share, or None to read them from the folder. The sides of the grid are
            not among them and may grow.

    Raises:
        TrlRealError: If the folder holds something else, or a study with other settings.
    """

    def __init__(self, folder: str | Path, settings: Mapping[str, Any] | None):
        super().__init__(folder, settings, SETTINGS_FILE, "study")
        self.cells = self.folder / CELLS
        self.cells.mkdir(exist_ok=True)

    def result(self, cell: Cell) -> Result | None:
        """Return the result of a cell, or None if it is not done."""
        file = self.cells / f"{cell.key}.json"
        if not file.exists():
            return None
        try:
            with np.load(file.with_suffix(".npz")) as arrays:
                return Result(read_json(file), dict(arrays))
        except (OSError, ValueError, EOFError, BadZipFile) as error:
            if isinstance(error, TrlRealError):
                raise
            raise TrlRealError(
                f"{str(file.with_suffix('.npz'))!r} cannot be read. Remove both files of the cell and run again."
            ) from error

    def save(self, cell: Cell, result: Result) -> None:
        """Write the result of a cell."""
        file = self.cells / f"{cell.key}.json"
        write_arrays(file.with_suffix(".npz"), result.arrays)
        write_json(file, result.values)


def run_cells(folder: StudyFolder, cells: Iterable[Cell], run: Callable[[Cell], Result], desc: str) -> int:
    """Run the cells that are not done, in this order and with a progress bar; return their number."""
    cells = list(cells)
    missing = [cell for cell in cells if not (folder.cells / f"{cell.key}.json").exists()]
    with tqdm(missing, initial=len(cells) - len(missing), total=len(cells), desc=desc, unit="cell") as bar:
        for cell in bar:
            bar.set_postfix_str(cell.key)
            folder.save(cell, run(cell))
    return len(missing)


def write_arrays(file: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write arrays by name as `.npz`, in one step as `write_atomic` does."""
    content = io.BytesIO()
    named: dict[str, Any] = {**arrays}
    np.savez_compressed(content, **named)
    write_atomic(file, content.getvalue())
