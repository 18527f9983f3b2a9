"""Questions that are being asked, noted in the cache's file, so that no other process asks and pays for them too."""

import os
import socket
import sqlite3
import threading
import time
from typing import Any

from trl_real.errors import TrlRealError
from trl_real.labeling.chat.answer_cache import WAIT_FOR_OTHERS, AnswerCache


PAUSE = 0.1  # seconds between two looks at another's question


class Claims:
    """
    Claims of this process in a cache. A claim ends with its answer or failure, when its process has died, or after
    `seconds`.

    Args:
        cache: Cache of the answers.
        seconds: Longest time that a question takes.
    """

    def __init__(self, cache: AnswerCache, seconds: float):
        self.cache, self.seconds, self.host = cache, seconds, socket.gethostname()
        self._lock = threading.Lock()
        # A connection of its own that syncs at checkpoints only: a claim need not outlive a power cut.
        self._connection = sqlite3.connect(cache.path, timeout=WAIT_FOR_OTHERS, check_same_thread=False)
        self._run("PRAGMA synchronous=NORMAL")
        columns = "key TEXT PRIMARY KEY, host TEXT NOT NULL, process INTEGER NOT NULL, until REAL NOT NULL"
        self._run(f"CREATE TABLE IF NOT EXISTS claims ({columns}) WITHOUT ROWID")

    def take(self, key: str) -> bool:
        """Claim a key; return False if another one is asking."""
        row = (key, self.host, os.getpid(), time.time() + self.seconds)
        if self._run("INSERT OR IGNORE INTO claims VALUES (?, ?, ?, ?)", row).rowcount:
            return True
        found = self._run("SELECT host, process, until FROM claims WHERE key = ?", (key,)).fetchone()
        if found is not None and not self._is_over(*found):
            return False
        # Of several that take over a dead claim, the one that removes it goes on; the others look again.
        over = "DELETE FROM claims WHERE (key, host, process, until) = (?, ?, ?, ?)"
        if found is None or not self._run(over, (key, *found)).rowcount:
            return False
        return bool(self._run("INSERT OR IGNORE INTO claims VALUES (?, ?, ?, ?)", row).rowcount)

    def release(self, key: str) -> None:
        """End this process's claim."""
        mine = (key, self.host, os.getpid())
        self._run("DELETE FROM claims WHERE (key, host, process) = (?, ?, ?)", mine)

    def _is_over(self, host: str, process: int, until: float) -> bool:
        if time.time() > until:
            return True
        if host != self.host:
            return False
        try:
            os.kill(process, 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            pass
        return False

    def _run(self, query: str, values: tuple = ()) -> Any:
        try:
            with self._lock, self._connection:
                return self._connection.execute(query, values)
        except sqlite3.Error as error:
            raise TrlRealError(
                f"Cannot note a question in {str(self.cache.path)!r} ({error}), so no more questions are asked."
            ) from error
