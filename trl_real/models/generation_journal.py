"""Texts that were written, kept by what they hang on."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from trl_real.runtime.digests import sha256
from trl_real.runtime.distributed import once
from trl_real.runtime.journal import Journal


@dataclass
class Written:
    """A text and why it ended."""

    text: str
    finish_reason: str


class Kept:
    """
    Texts by what they hang on, in a journal where there is one.

    Args:
        journal: Path of the file, None for no file.
        settings: Gives what all of the texts hang on; asked for if there is a file.
        all_processes: Whether all processes of a launcher look together, and know the same.
    """

    def __init__(self, journal: str | Path | None, settings: Any, all_processes: bool = False):
        self.journal = None if journal is None else Journal(journal)
        self.known: dict[str, list[Written]] = {}
        self.settings = ""
        if self.journal is not None:
            self.settings = json.dumps(settings(), sort_keys=True)
            for line in once(self.journal.read, all_processes):
                self.known[line.get("key", "")] = [Written(**each) for each in line.get("written", [])]

    def has(self, *parts: Any) -> bool:
        """Whether the texts are there."""
        return self._key(parts) in self.known

    def get(self, *parts: Any) -> list[Written]:
        """The texts."""
        return self.known[self._key(parts)]

    def add(self, *parts_and_written: Any) -> None:
        """Keep texts; when this returns, they are on disk if there is a file."""
        *parts, written = parts_and_written
        key = self._key(parts)
        if self.journal is not None:
            self.journal.append({"key": key, "written": [asdict(each) for each in written]})
        self.known[key] = written

    def __enter__(self) -> "Kept":
        return self

    def __exit__(self, *exception: Any) -> None:
        if self.journal is not None:
            self.journal.close()

    def _key(self, parts: Sequence[Any]) -> str:
        return sha256(f"{self.settings}{json.dumps(parts)}").hex()[:40]


def columns(rows: list[list[Written]]) -> tuple[list[list[str]], list[list[str]]]:
    """Texts and finish reasons of responses."""
    return [[each.text for each in row] for row in rows], [[each.finish_reason for each in row] for row in rows]
