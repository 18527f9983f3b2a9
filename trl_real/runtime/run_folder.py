"""The folder of a run in rounds: each step is done once, however often the run is killed and started."""

import logging
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from trl_real.errors import TrlRealError
from trl_real.runtime.atomic_files import check_settings, read_json, write_json


logger = logging.getLogger(__name__)

SETTINGS_FILE, STATE_FILE = "rounds.json", "state.json"

Step = Callable[[], Mapping[str, Any] | None]


class RoundFolder:
    """
    Settings, and a folder and a state file for each round.

    Args:
        folder: New, empty, or of a run with the same settings.
        settings: Plain values that every round hangs on. The number of rounds is no part of them and may grow.

    Raises:
        TrlRealError: If the folder holds something else, or a run with other settings.
    """

    def __init__(self, folder: str | Path, settings: Mapping[str, Any]):
        self.folder = Path(folder)
        file = self.folder / SETTINGS_FILE
        if self.folder.exists() and not self.folder.is_dir():
            raise TrlRealError(f"{str(folder)!r} is a file. Give a folder.")
        if file.exists():
            check_settings(read_json(file), dict(settings), folder, "run")
        elif self.folder.exists() and any(self.folder.iterdir()):
            raise TrlRealError(f"The folder {str(folder)!r} holds something that is no run. Give a new one.")
        self.folder.mkdir(parents=True, exist_ok=True)
        if not file.exists():
            write_json(file, settings)

    def round(self, number: int) -> "Round":
        """The round of this number; 0 holds what there was before the first."""
        return Round(self.folder / f"round-{number:02d}", number)


class Round:
    """
    One round: its files, and what its steps came to.

    Args:
        folder: Made if need be.
        number: For the log.
    """

    def __init__(self, folder: Path, number: int):
        self.folder, self.number = folder, number
        folder.mkdir(exist_ok=True)
        file = folder / STATE_FILE
        self.state: dict[str, Any] = read_json(file) if file.exists() else {}

    def __truediv__(self, name: str) -> Path:
        return self.folder / name

    def clear(self, name: str) -> None:
        """Remove a folder that no later step needs."""
        shutil.rmtree(self / name, ignore_errors=True)

    def take(self, run: Path, steps: Sequence[str]) -> None:
        """
        Copy steps that are done in another run, unless this round has begun.

        Args:
            run: Its folder.
            steps: Those to copy, if they are done, with the round's files.
        """
        other = Round(run / self.folder.name, self.number)
        if self.state or not other.state:
            return
        kept = {name: value for name, value in other.state.items() if name in steps}
        left = {STATE_FILE} | ({"adapter", "trainer"} if kept != other.state else set())
        for path in other.folder.iterdir():
            if path.is_dir() and path.name not in left:
                shutil.copytree(path, self / path.name, ignore=shutil.ignore_patterns("cache-*"), dirs_exist_ok=True)
            elif path.name not in left:
                shutil.copy2(path, self / path.name)
        self.state = kept
        write_json(self.folder / STATE_FILE, kept)

    def step(self, name: str, run: Step, **settings: Any) -> dict[str, Any]:
        """
        Do a step, unless it is done.

        Args:
            name: Of the step.
            run: Does it, and leaves its files whole; returns plain values to be kept. Its seconds are kept with them.
                What it wrote before a kill it must be able to write again.
            **settings: Of this round's step alone, kept with it: plain values that may differ from round to round.

        Returns:
            What was kept.

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
