"""Which pairs of a stream are doubtful: those in the lowest share of a rolling window of margins (SPA, Eq. 9-10)."""

import json
import math
from collections import deque
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from trl_real.runtime.atomic_files import write_atomic


WINDOW_FILE = "noise_window.json"
MIN_HISTORY = 50


class NoiseWindow:
    """
    The last margins of all processes, and the threshold below which a pair of the next batch is doubtful.

    With `h` earlier margins the threshold is their order statistic `share / 100 * (h + 1)` (Weibull's quantile): the
    next margin of an exchangeable stream is below it with probability `share / 100`, whereas a plain quantile of 50
    margins flags 11.5 % where 10 % are meant. SPA's code keeps 50 batch means a process instead, and flags 12.7 %.

    Args:
        size: Margins that are remembered, at least `shortest_window(share)`.
        share: K, the part of the pairs that is doubtful, in percent.
    """

    def __init__(self, size: int, share: float):
        self.share = share
        self.margins: deque[float] = deque(maxlen=size)
        self.min_history = min(size, max(MIN_HISTORY, shortest_window(share)))

    def add(self, margins: Iterable[float]) -> None:
        """Remember a batch, in the order of one process; what is not finite is passed over."""
        self.margins.extend(margin for margin in map(float, margins) if math.isfinite(margin))

    @property
    def threshold(self) -> float | None:
        """Doubtful is a margin strictly below this, so that equal margins are not; None while too few are known."""
        if len(self.margins) < self.min_history:
            return None
        return float(np.quantile(np.array(self.margins), self.share / 100, method="weibull"))

    def save(self, folder: str | Path) -> None:
        """Write the margins into `folder`, whole or not at all."""
        path = Path(folder) / WINDOW_FILE
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, json.dumps({"margins": list(self.margins)}).encode())

    def load(self, folder: str | Path | None) -> None:
        """Continue with the margins that `save` wrote; without a folder, or where there are none, start afresh."""
        path = Path(folder or "") / WINDOW_FILE
        self.margins.clear()
        if folder is not None and path.exists():
            self.margins.extend(json.loads(path.read_text(encoding="utf-8"))["margins"])


def shortest_window(share: float) -> int:
    """The fewest margins of which `share` percent, and the rest, are at least one."""
    return math.ceil(100 / min(share, 100 - share))
