"""Folder of a run: its settings are checked at every start, and each step is done only once."""

import json
import logging
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from trl_real.errors import TrlRealError
from trl_real.runtime.atomic_files import read_json, write_json


logger = logging.getLogger(__name__)

SETTINGS_FILE, STATE_FILE = "rounds.json", "state.json"

Step = Callable[[], Mapping[str, Any] | None]


class RunFolder:
    """
    Folder of a run, with a file of the settings that it was started with.

    Args:
        folder: Path of a new or empty folder, or of a run with the same settings.
        settings: Plain values that all results depend on, or None to read them from the folder. The length of a run
            (its rounds, or the sides of its grid) is not one of them and may grow.
        file: Name of the settings file.
        kind: Kind of the run, for error messages.

    Raises:
        TrlRealError: If the folder holds something else, or a run with other settings.
    """

    def __init__(self, folder: str | Path, settings: Mapping[str, Any] | None, file: str, kind: str):
        self.folder = Path(folder)
        path = self.folder / file
        if self.folder.exists() and not self.folder.is_dir():
            raise TrlRealError(f"{str(folder)!r} is a file. Give a folder.")
        self.settings = read_json(path) if settings is None else json.loads(json.dumps(settings))
        if path.exists():
            older = {"weights": self.settings.get("weights")}  # older versions do not note the weights
            check_settings(older | read_json(path), older | self.settings, folder, kind)
        elif self.folder.exists() and set(self.folder.iterdir()).difference(self.folder.glob(f"{file}.*.partial")):
            raise TrlRealError(f"The folder {str(folder)!r} holds files, but not a {kind}. Give a new one.")
        self.folder.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            write_json(path, self.settings)


class RoundFolder(RunFolder):
    """Folder of a run in rounds, with a folder and a state file for each round."""

    def __init__(self, folder: str | Path, settings: Mapping[str, Any]):
        super().__init__(folder, settings, SETTINGS_FILE, "run")

    def round(self, number: int) -> "Round":
        """Return the round with this number; round 0 holds the state before the first round."""
        return Round(self.folder / f"round-{number:02d}", number)


class Round:
    """Files of one round, in a folder that is created if missing, and the results of its steps."""

    def __init__(self, folder: Path, number: int):
        self.folder, self.number = folder, number
        folder.mkdir(exist_ok=True)
        file = folder / STATE_FILE
        self.state: dict[str, Any] = read_json(file) if file.exists() else {}
        if not all(isinstance(values, dict) for values in self.state.values()):
            raise TrlRealError(f"{str(file)!r} does not hold the steps of a round. Remove it and run again.")

    def __truediv__(self, name: str) -> Path:
        return self.folder / name

    def clear(self, name: str) -> None:
        """Remove a folder that no later step needs."""
        shutil.rmtree(self / name, ignore_errors=True)

    def take(self, run: Path, steps: Sequence[str]) -> None:
        """Copy those of the `steps` that another run has finished, and its files, if this round has not begun."""
        other = Round(run / self.folder.name, self.number)
        if self.state or not other.state:
            return
        copied = {name: value for name, value in other.state.items() if name in steps}
        left_out = {STATE_FILE} | ({"adapter", "trainer"} if copied != other.state else set())
        for path in other.folder.iterdir():
            if path.is_dir() and path.name not in left_out:
                shutil.copytree(path, self / path.name, ignore=shutil.ignore_patterns("cache-*"), dirs_exist_ok=True)
            elif path.name not in left_out:
                shutil.copy2(path, self / path.name)
        self.state = copied
        write_json(self.folder / STATE_FILE, copied)

    def step(self, name: str, run: Step, **settings: Any) -> dict[str, Any]:
        """
        Do a step, or return its stored result if it is done.

        Args:
            name: Name of the step.
            run: Function that does the step and returns plain values to store; the seconds it took are added. After
                a kill it is called again and must overwrite its own files.
            **settings: Settings of this step, stored with it: plain values that may differ from round to round.

        Returns:
            Stored values.

        Raises:
            TrlRealError: If the step was done with other settings.
        """
        if name in self.state:
            check_settings({k: self.state[name].get(k) for k in settings}, settings, self.folder, f"step {name!r}")
        else:
            logger.info("Round %d: %s", self.number, name)
            started = time.perf_counter()
            values = dict(run() or {})
            self.state[name] = {**values, **settings, "seconds": round(time.perf_counter() - started, 3)}
            write_json(self.folder / STATE_FILE, self.state)
        return self.state[name]


def check_settings(found: dict[str, Any], wanted: dict[str, Any], folder: str | Path, kind: str) -> None:
    """
    Check that the settings found in a folder are those of this start; `kind` names its content in the error.

    Raises:
        TrlRealError: If a setting differs; names the first one.
    """
    for name in sorted(found.keys() | wanted.keys()):
        if found.get(name) != wanted.get(name):
            raise TrlRealError(
                f"The folder {str(folder)!r} holds a {kind} with {name}={found.get(name)!r}, not "
                f"{wanted.get(name)!r}. Give another output_dir, or the settings it was started with."
            )
