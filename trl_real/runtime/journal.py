"""Append-only file of JSON lines: each line is on disk before the next one is written."""

import errno
import fcntl
import glob
import json
import os
from pathlib import Path
from typing import Any, Self

from trl_real.errors import TrlRealError
from trl_real.runtime.atomic_files import owner_only
from trl_real.runtime.distributed import rank


class Journal:
    """
    Append-only file of JSON lines. Each line is synced to disk; an incomplete last line, left by a crash, is removed
    when the file is opened again. A complete last line counts even without its line break, as an editor may leave it.

    Only one writer at a time is allowed: a second one, in this process or another, gets an error. Each process of a
    launcher writes its own file, `PATH`, `PATH.1`, …, and reads all of them. Reading needs no lock.

    Args:
        path: Path of the file; it and its folder are created at the first line.

    Raises:
        TrlRealError: If the path is a folder.
    """

    def __init__(self, path: str | Path):
        self.first = self.path = Path(path)
        if self.path.is_dir():
            raise TrlRealError(f"{str(path)!r} is a folder. Give a file, such as {str(self.path / 'votes.jsonl')!r}.")
        if rank():
            self.path = self.path.with_name(f"{self.path.name}.{rank()}")
        self._file: Any = None
        self._break = b""  # line break missing at the end of the file

    def read(self) -> list[dict[str, Any]]:
        """
        Return all complete lines in the order of writing, those of the first process first.

        Raises:
            TrlRealError: If a line other than the last is not a JSON object.
        """
        others = self.first.parent.glob(f"{glob.escape(self.first.name)}.*")
        numbered = {int(file.suffix[1:]): file for file in others if file.suffix[1:].isdecimal()}
        files = [self.first, *(numbered[number] for number in sorted(numbered))]
        return [line for file in files if file.exists() for line in _lines(file)]

    def append(self, line: dict[str, Any]) -> None:
        """
        Write a line; when this returns, it is on disk.

        Raises:
            TrlRealError: If another process writes to the file, or it cannot be written, as on a full disk.
        """
        if self._file is None:
            self._open()
        start = self._file.seek(0, os.SEEK_END)
        try:
            data = self._break + json.dumps(line).encode() + b"\n"
            if self._file.write(data) < len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(self._file.fileno())
            self._break = b""
        except OSError as error:
            self._drop(start)
            raise TrlRealError(
                f"Cannot write to {str(self.path)!r} ({error.strerror}). Earlier lines are safe: free some disk space "
                "and run again."
            ) from error

    def close(self) -> None:
        """Close the file and release the lock."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def __enter__(self) -> Self:
        """Lock the file: a second writer gets its error here, before it does any work."""
        if self._file is None:
            self._open()
        return self

    def __exit__(self, *exception: Any) -> None:
        self.close()

    def _open(self) -> None:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # Unbuffered: no later flush retries a failed write.
            file = open(self.path, "ab", buffering=0, opener=owner_only)
        except OSError as error:
            raise TrlRealError(f"Cannot write to {str(self.path)!r} ({error.strerror}). Give another file.") from error
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.close()
            raise TrlRealError(
                f"Another process is writing to {str(self.path)!r}. Stop it, or give another file."
            ) from error
        tail = self.path.read_bytes().rpartition(b"\n")[2]
        self._break = b"\n" if _object(tail) is not None else b""
        if tail and not self._break:
            file.truncate(file.seek(0, os.SEEK_END) - len(tail))
        self._file = file

    def _drop(self, start: int) -> None:
        """Cut off a line that was not written completely."""
        try:
            self._file.truncate(start)
        except OSError:
            self.close()  # the next `_open` cuts it off


def _lines(file: Path) -> list[dict[str, Any]]:
    *ended, tail = file.read_bytes().split(b"\n")
    lines: list[Any] = [_object(line) for line in ended]
    if None in lines:
        raise TrlRealError(f"Line {lines.index(None) + 1} of {str(file)!r} is not a JSON object. Fix or remove it.")
    last = _object(tail)
    return lines if last is None else [*lines, last]


def _object(line: bytes) -> dict[str, Any] | None:
    """Return the JSON object of a line, or None if the line is incomplete or holds something else."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None
