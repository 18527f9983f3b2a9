"""What processes on one cache note for each other in its file: questions that are being asked, and money spent."""

import os
import socket
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property

import psutil

from trl_real.errors import TrlRealError
from trl_real.labeling.chat.answer_cache import WAIT_FOR_OTHERS, AnswerCache


PAUSE = 0.1  # seconds between two looks at another's question


class Notes:
    """
    Tables of a cache for what its processes tell each other. A note ends after `seconds`, or when its process died.

    Args:
        cache: Cache of the answers.
        seconds: Longest time that a question takes.
    """

    tables: tuple[str, ...] = ()

    def __init__(self, cache: AnswerCache, seconds: float):
        self.cache, self.seconds, self.host = cache, seconds, socket.gethostname()
        self._lock = threading.Lock()
        # A connection of its own that syncs at checkpoints only: a note need not outlive a power cut.
        self._connection = sqlite3.connect(
            cache.path, timeout=WAIT_FOR_OTHERS, check_same_thread=False, isolation_level=None
        )
        self._connection.execute("PRAGMA synchronous=NORMAL")
        with self._at_once() as database:
            for table in self.tables:
                database.execute(f"CREATE TABLE IF NOT EXISTS {table} WITHOUT ROWID")

    @contextmanager
    def _at_once(self, writes: bool = True) -> Iterator[sqlite3.Connection]:
        """Read, and write without another process in between."""
        try:
            with self._lock, self._connection:
                if writes:
                    self._connection.execute("BEGIN IMMEDIATE")
                yield self._connection
        except sqlite3.Error as error:
            raise TrlRealError(
                f"Cannot note a question in {str(self.cache.path)!r} ({error}), so no more questions are asked."
            ) from error

    def _until(self) -> float:
        return time.time() + self.seconds

    def _is_over(self, host: str, process: int, until: float) -> bool:
        return time.time() > until or host == self.host and not psutil.pid_exists(process)


class Claims(Notes):
    """Questions that this process is asking; a claim also ends with its answer or failure."""

    tables = ("claims (key TEXT PRIMARY KEY, host TEXT NOT NULL, process INTEGER NOT NULL, until REAL NOT NULL)",)

    def take(self, key: str) -> bool:
        """Claim a key; return False if another one is asking."""
        with self._at_once() as database:
            found = database.execute("SELECT host, process, until FROM claims WHERE key = ?", (key,)).fetchone()
            if found is not None and not self._is_over(*found):
                return False
            row = (key, self.host, os.getpid(), self._until())
            database.execute("INSERT OR REPLACE INTO claims VALUES (?, ?, ?, ?)", row)
        return True

    def release(self, key: str) -> None:
        """End this process's claim."""
        with self._at_once() as database:
            mine = (key, self.host, os.getpid())
            database.execute("DELETE FROM claims WHERE (key, host, process) = (?, ?, ?)", mine)


class Ledger(Notes):
    """
    Money that processes with a limit spend on one job, such as a model of a server, while they run at the same time.

    Args:
        cache, seconds: As for `Notes`.
        job: Name of the job: processes with the same one share what they have spent.
    """

    tables = (
        "spending (job TEXT PRIMARY KEY, total REAL NOT NULL)",
        "spenders (job TEXT, host TEXT, process INTEGER, start REAL NOT NULL, until REAL NOT NULL,"
        " PRIMARY KEY (job, host, process))",
    )

    def __init__(self, cache: AnswerCache, seconds: float, job: str):
        super().__init__(cache, seconds)
        self.job = job

    @cached_property
    def start(self) -> float:
        """Total of the job when the first of the processes that now work on it began, this one included."""
        with self._at_once() as database:
            query = "SELECT host, process, until, start FROM spenders WHERE job = ?"
            others = [row for row in database.execute(query, (self.job,)) if row[:2] != (self.host, os.getpid())]
            start = min([row[3] for row in others if not self._is_over(*row[:3])], default=self._total(database))
            row = (self.job, self.host, os.getpid(), start, self._until())
            database.execute("INSERT OR REPLACE INTO spenders VALUES (?, ?, ?, ?, ?)", row)
        return start

    def add(self, cost: float) -> None:
        """Note an answer that was paid for."""
        mine = (self._until(), self.job, self.host, os.getpid())
        with self._at_once() as database:
            add = "INSERT INTO spending VALUES (?, ?) ON CONFLICT (job) DO UPDATE SET total = total + excluded.total"
            database.execute(add, (self.job, cost))
            database.execute("UPDATE spenders SET until = ? WHERE (job, host, process) = (?, ?, ?)", mine)

    def total(self) -> float:
        """Return what was ever spent on the job."""
        with self._at_once(writes=False) as database:
            return self._total(database)

    def _total(self, database: sqlite3.Connection) -> float:
        found = database.execute("SELECT total FROM spending WHERE job = ?", (self.job,)).fetchone()
        return found[0] if found else 0.0
