"""Lock of a run folder: one process at a time writes into it."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from trl_real.errors import TrlRealError
from trl_real.runtime.distributed import rank


PATIENCE = 0.5  # seconds


@contextmanager
def run_lock(folder: str | Path) -> Iterator[None]:
    """
    Hold the lock of a run folder, in the file `.NAME.lock` next to it, which has the holder's process number.

    The operating system releases the lock when the process ends, however it ends. A process may take a lock that it
    already holds. Of the processes of a launcher, the first one holds the lock for all.

    Args:
        folder: Path of the folder, which need not exist yet.

    Raises:
        TrlRealError: If another process holds the lock (names it), or the lock file cannot be written.
    """
    if rank() or int(os.environ.get("RANK", "0")):
        yield
        return
    target = Path(folder).expanduser().resolve()
    file = target.with_name(f".{target.name}.lock")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(file, timeout=PATIENCE, is_singleton=True)
        lock.acquire()
    except Timeout as error:
        raise TrlRealError(
            f"{_holder(file)} is writing to {str(folder)!r}. Wait until it ends, or give another output_dir."
        ) from error
    except OSError as error:
        raise TrlRealError(
            f"Cannot write to {str(target.parent)!r} ({error.strerror}). Give another folder."
        ) from error
    try:
        _write_holder(file)
        yield
    finally:
        if lock.lock_counter == 1:
            file.unlink(missing_ok=True)  # before the release: who waits for the removed file opens a new one
        lock.release()


def _write_holder(file: Path) -> None:
    try:
        file.write_text(str(os.getpid()), encoding="utf-8")
    except OSError:
        pass  # a full disk: the lock holds, only its message names no process


def _holder(file: Path) -> str:
    try:
        return f"Process {int(file.read_text(encoding='utf-8'))}"
    except (OSError, ValueError):
        return "Another process"
