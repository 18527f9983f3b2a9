"""Rolling window of margins that tells which pairs are doubtful: those in its lowest share (SPA, Eq. 9-10)."""

import math
from collections import deque
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from trl_real.runtime.atomic_files import read_json, write_json


WINDOW_FILE = "noise_window.json"
MIN_HISTORY = 50


class NoiseWindow:
    """
    Last margins of all processes, and the threshold below which a pair of the next batch is doubtful.

    With `h` earlier margins, the threshold is their order statistic `share / 100 * (h + 1)` (Weibull's quantile): the
    next margin of an exchangeable stream is below it with probability `share / 100`. A plain quantile of 50 margins
    flags 11.5 % instead of 10 %. SPA's code keeps 50 batch means per process instead, and flags 12.7 %.

    Args:
        size: Maximum number of margins in the window, at least `shortest_window(share)`.
        share: K, percentage of pairs that are doubtful.
    """

    def __init__(self, size: int, share: float):
        self.share = share
        self.margins: deque[float] = deque(maxlen=size)
        self.min_history = min(size, max(MIN_HISTORY, shortest_window(share)))

    def add(self, margins: Iterable[float]) -> None:
        """Add the finite margins of a batch, in the order of the processes."""
        self.margins.extend(margin for margin in map(float, margins) if math.isfinite(margin))

    @property
    def threshold(self) -> float | None:
        """Margin strictly below which a pair is doubtful; None while the window has too few margins."""
        if len(self.margins) < self.min_history:
            return None
        return float(np.quantile(np.array(self.margins), self.share / 100, method="weibull"))

    def save(self, folder: str | Path) -> None:
        """Write the margins into `folder`; the file is complete or absent."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        write_json(Path(folder) / WINDOW_FILE, {"margins": list(self.margins)})

    def load(self, folder: str | Path | None) -> None:
        """Continue with the margins that `save` wrote; start empty without a folder or file."""
        path = Path(folder or "") / WINDOW_FILE
        self.margins.clear()
        if folder is not None and path.exists():
            self.add(read_json(path).get("margins", ()))


def shortest_window(share: float) -> int:
    """Return the smallest window in which `share` percent, and the rest, are at least one margin each."""
    return math.ceil(100 / min(share, 100 - share))
