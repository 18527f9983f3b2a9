"""On-disk cache of answers; every answer is on disk before it is used."""

import json
import os
import sqlite3
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from trl_real.errors import TrlRealError
from trl_real.runtime.atomic_files import owner_only


WAIT_FOR_OTHERS = 60.0


class AnswerCache:
    """
    Cache of answers in one SQLite file (write-ahead log, synced on every answer) for all threads and processes.

    Args:
        path: Path of the file, on a local disk; it and its folder are created if missing.

    Raises:
        TrlRealError: If the file is not such a cache.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self._lock = threading.Lock()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            os.close(owner_only(str(self.path), os.O_RDWR | os.O_CREAT))
            self._connection = sqlite3.connect(self.path, timeout=WAIT_FOR_OTHERS, check_same_thread=False)
            self._connection.execute("PRAGMA journal_mode=WAL")
            self._connection.execute("PRAGMA synchronous=FULL")
            with self._connection:
                self._connection.execute(
                    "CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, answer TEXT NOT NULL) WITHOUT ROWID"
                )
        except (sqlite3.Error, OSError) as error:
            raise TrlRealError(
                f"{str(path)!r} cannot be used as a cache of answers ({error}). Give the path of a new file."
            ) from error

    def get(self, keys: Iterable[str]) -> dict[str, Any]:
        """
        Return the cached answers by key, without those that are no JSON object.

        Raises:
            TrlRealError: If the file cannot be read.
        """
        query = "SELECT key, answer FROM answers WHERE key IN (SELECT value FROM json_each(?))"
        try:
            with self._lock:
                rows = self._connection.execute(query, (json.dumps(list(keys)),)).fetchall()
        except sqlite3.Error as error:
            raise TrlRealError(f"Cannot read answers from {str(self.path)!r} ({error}). Give a new file.") from error
        found = ((key, _object(answer)) for key, answer in rows)
        return {key: answer for key, answer in found if answer is not None}

    def put(self, key: str, answer: Any) -> None:
        """
        Store an answer; when this returns, the answer is on disk.

        Raises:
            TrlRealError: If the file cannot be written, for example on a full disk.
        """
        try:
            with self._lock, self._connection:
                self._connection.execute("INSERT OR REPLACE INTO answers VALUES (?, ?)", (key, json.dumps(answer)))
        except sqlite3.Error as error:
            raise TrlRealError(
                f"Cannot store an answer in {str(self.path)!r} ({error}), so no more questions are asked. "
                "Earlier answers are safe; fix the disk and run again."
            ) from error


def _object(text: str) -> dict[str, Any] | None:
    try:
        value = json.loads(text)
    except (ValueError, TypeError, RecursionError):
        return None
    return value if isinstance(value, dict) else None
