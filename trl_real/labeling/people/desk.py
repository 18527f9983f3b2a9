"""Queues of all annotators over one votes file, for the page."""

import threading
from itertools import count
from pathlib import Path
from typing import Any

from datasets import Dataset

from trl_real.errors import TrlRealError
from trl_real.labeling.people.page_html import end_html, error_html, pair_html
from trl_real.labeling.people.queue import LONGEST_NAME, Deck, VoteQueue
from trl_real.runtime.journal import Journal


class Desk:
    """
    Queues of all annotators over one votes file; requests are handled one at a time.

    Args:
        dataset: Selected pairs.
        votes: Path of the votes file, which is locked at once, so that a second server fails at its start.
        annotator: Name of the only annotator; None asks for a name.
        seed: Seed of the order and the sides.
    """

    def __init__(self, dataset: Dataset, votes: str | Path, annotator: str | None = None, seed: int = 42):
        self.annotator, self.seed = annotator, seed
        self.finished = threading.Event()
        self._deck, self._journal = Deck(dataset), Journal(votes)
        self._queues: dict[str, VoteQueue] = {}
        self._lock, self._replies = threading.Lock(), count(1)
        if annotator is not None:
            self._queue(annotator)
        self._journal.append({"opened": len(self._deck), "seed": seed})

    def show(self, annotator: str) -> str:
        """Return the current view of an annotator as HTML; empty without a name."""
        with self._lock:
            queue = self._queue(annotator)
            return self._html(queue) if queue else ""

    def act(self, action: str, asked: dict[str, Any]) -> str:
        """
        Vote on the pair that an annotator saw, or undo a vote.

        Args:
            action: Side in `CHOICES`, or `"undo"`.
            asked: Dict with `annotator`, `key` (the pair that was seen; None if a button was pressed too early) and
                `seconds`.

        Returns:
            New view as HTML.
        """
        with self._lock:
            queue = self._queue(str(asked.get("annotator") or ""))
            if queue is None or asked.get("key") is None:
                return self._html(queue) if queue else ""
            key = str(asked["key"])
            try:
                taken = queue.undo(key) if action == "undo" else queue.vote_side(action, _number(asked), key)
            except TrlRealError as error:
                return error_html(f"{error} Then reload this page.", next(self._replies))
            pair = queue.next()
            is_current = taken or key == (pair.key if pair else "")
            return self._html(queue, "" if is_current else "Another window moved on; this is where you are.")

    def close(self) -> None:
        """Release the votes file."""
        with self._lock:
            self._journal.close()

    def _queue(self, annotator: str) -> VoteQueue | None:
        name = " ".join((self.annotator or annotator).split())[:LONGEST_NAME].rstrip()
        if name and name not in self._queues:
            self._queues[name] = VoteQueue(self._deck, self._journal, name, self.seed)
        return self._queues.get(name)

    def _html(self, queue: VoteQueue, note: str = "") -> str:
        pair, reply = queue.next(), next(self._replies)
        if pair is not None:
            return pair_html(pair, queue.progress, queue.annotator, reply, note)
        if all(other.next() is None for other in self._queues.values()):
            self.finished.set()
        return end_html(queue.progress, queue.annotator, reply, note)


def _number(asked: dict[str, Any]) -> float:
    seconds = asked.get("seconds")
    return float(seconds) if isinstance(seconds, int | float) else 0.0
