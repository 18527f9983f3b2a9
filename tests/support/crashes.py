"""
File systems that fail: a forked child is killed at its n-th change of a file, or finds the disk full from there on.

A change is an open for writing, a rename, a removal or an fsync under one folder. Python reports these as audit
events; writers in C++ and Rust, which do not, are announced by patches.
"""

import errno
import json
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors.torch
import torch


KILLED = 137
# die: before the change; torn: after a first byte of the file; full: the change and all later ones raise ENOSPC
FAILURES = ("die", "torn", "full")
ERRORS = {"full": errno.ENOSPC, "read-only": errno.EROFS}
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


class _FileSystem:
    """Counts the changes under `root` in this process, and fails at the one with number `point`."""

    def __init__(self, root: Path, point: int | None, failure: str):
        self.root, self.point, self.failure = f"{root.resolve()}/", point, failure
        self.changes: list[str] = []
        self.busy = False

    def install(self) -> None:
        sys.addaudithook(self._heard)
        fsync = os.fsync

        def counted_fsync(file: Any) -> None:
            number = file if isinstance(file, int) else file.fileno()
            self.change("sync", os.readlink(f"/proc/self/fd/{number}"))
            fsync(file)

        os.fsync = counted_fsync
        self._announce(torch.serialization, "_open_zipfile_writer", 0)
        self._announce(safetensors.torch, "serialize_file", 1)

    def _announce(self, module: Any, name: str, place: int) -> None:
        function = getattr(module, name)

        def announced(*args: Any, **kwargs: Any) -> Any:
            if isinstance(args[place], str | os.PathLike):
                self.change("open", os.fspath(args[place]), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            return function(*args, **kwargs)

        setattr(module, name, announced)

    def _heard(self, event: str, args: tuple) -> None:
        if self.busy or event not in ("open", "os.rename", "os.remove", "sqlite3.connect"):
            return
        if event == "open" and not (isinstance(args[2], int) and args[2] & WRITING):
            return
        if isinstance(args[0], str | bytes | os.PathLike):
            self.change(event, os.fsdecode(args[0]), args[2] if event == "open" else None)

    def change(self, event: str, path: str, flags: int | None = None) -> None:
        if self.busy or not f"{os.path.abspath(path)}/".startswith(self.root):
            return
        self.changes.append(f"{event} {os.path.abspath(path).removeprefix(self.root)}")
        if self.point is None or len(self.changes) < self.point:
            return
        self.busy = True
        if self.failure in ERRORS:
            self.busy = False
            if len(self.changes) == self.point or flags is not None:
                number = ERRORS[self.failure]
                raise OSError(number, os.strerror(number), path)
            return
        if self.failure == "torn" and flags is not None:
            os.write(os.open(path, (flags | os.O_CREAT | os.O_WRONLY) & ~os.O_RDWR, 0o644), b"{")
        os._exit(KILLED)


def in_child(
    action: Callable[[], Any], root: Path, point: int | None = None, failure: str = "die"
) -> tuple[int, list[str]]:
    """
    Run `action` in a forked child whose changes under `root` fail from number `point` on.

    Returns:
        Exit status of the child (what `action` returned, 1 after an exception, or `KILLED`), and its changes: what
        happened to which file.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        status = 1
        try:
            os.close(reader)
            torch.set_num_threads(1)
            files = _FileSystem(root, point, failure)
            files.install()
            status = int(action() or 0)
        except BaseException:
            traceback.print_exc()
        finally:
            with os.fdopen(writer, "w") as pipe:
                json.dump(files.changes, pipe)
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        seen = pipe.read()
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), json.loads(seen or "[]")
