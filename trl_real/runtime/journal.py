"""A file of JSON lines that loses none: each line is on disk before the next one begins."""

import errno
import fcntl
import glob
import json
import os
from pathlib import Path
from typing import Any, Self

from trl_real.errors import TrlRealError
from trl_real.runtime.distributed import rank


class Journal:
    """
    Lines appended one by one, each synced; a line that a crash tore is dropped when the file is opened again. A last
    line that is whole counts without its line break, too, as an editor may leave it.

    One writer at a time: a second one, in this process or another, is told so. Processes that a launcher started have
    a file each, `PATH`, `PATH.1`, …, and read all of them. Reading needs no lock.

    Args:
        path: Of the file; made, with its folder, at the first line.

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
        self._break = b""  # that the last line of the file lacks

    def read(self) -> list[dict[str, Any]]:
        """
        All whole lines, in the order in which they were written, those of the first process first.

        Raises:
            TrlRealError: If a line other than the last is no JSON object.
        """
        others = self.first.parent.glob(f"{glob.escape(self.first.name)}.*")
        numbered = {int(file.suffix[1:]): file for file in others if file.suffix[1:].isdecimal()}
        files = [self.first, *(numbered[number] for number in sorted(numbered))]
        return [line for file in files if file.exists() for line in _lines(file)]

    def append(self, line: dict[str, Any]) -> None:
        """
        Write a line; when this returns, it is on disk.

        Raises:
            TrlRealError: If another process writes to the file, or the disk is full.
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
                f"Cannot write to {str(self.path)!r} ({error.strerror}). What was written before is safe; "
                "make room and run again."
            ) from error

    def close(self) -> None:
        """Give the lock back."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: Any) -> None:
        self.close()

    def _open(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        file = open(self.path, "ab", buffering=0)  # unbuffered: a failed write leaves nothing behind to be retried
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
        """Cut a line off that could not be written whole."""
        try:
            self._file.truncate(start)
        except OSError:
            self.close()  # the next opening drops it


def _lines(file: Path) -> list[dict[str, Any]]:
    *ended, tail = file.read_bytes().split(b"\n")
    lines: list[Any] = [_object(line) for line in ended]
    if None in lines:
        raise TrlRealError(f"Line {lines.index(None) + 1} of {str(file)!r} is no JSON object. Mend it, or remove it.")
    last = _object(tail)
    return lines if last is None else [*lines, last]


def _object(line: bytes) -> dict[str, Any] | None:
    """The JSON object of a line; None if it is none, or not whole."""
    try:
        value = json.loads(line)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None
