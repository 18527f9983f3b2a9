"""On-disk cache of generated texts, keyed by everything they depend on."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from trl_real.runtime.digests import sha256
from trl_real.runtime.distributed import once
from trl_real.runtime.journal import Journal


@dataclass
class Completion:
    """A generated text, why it ended, and its number of tokens: 0 in older journals."""

    text: str
    finish_reason: str
    n_tokens: int = 0


class GenerationCache:
    """
    Generated texts by key, in a journal if there is one.

    Args:
        journal: Path of the file, None for no file.
        settings: Function that returns everything that all texts depend on; called if there is a file.
        all_processes: Whether all processes of a launcher open the cache together and share its content.
    """

    def __init__(
        self, journal: str | Path | None, settings: Callable[[], dict[str, Any]], all_processes: bool = False
    ):
        self.journal = None if journal is None else Journal(journal)
        self.entries: dict[str, list[Completion]] = {}
        self.settings = ""
        if self.journal is not None:
            self.settings = json.dumps(settings(), sort_keys=True)
            for line in once(self.journal.read, all_processes):
                try:
                    self.entries[line["key"]] = [Completion(**each) for each in line["written"]]
                except (KeyError, TypeError):
                    continue  # not a line of this cache: its texts are written again

    def has(self, *parts: Any) -> bool:
        """Return whether the cache has the texts with this key."""
        return self._key(parts) in self.entries

    def get(self, *parts: Any) -> list[Completion]:
        """Return the texts with this key."""
        return self.entries[self._key(parts)]

    def n_tokens(self, *parts: Any) -> int:
        """Return the number of tokens of the texts with this key; 0 without them."""
        return sum(each.n_tokens for each in self.entries.get(self._key(parts), []))

    def add(self, *parts: Any, completions: list[Completion]) -> None:
        """Add texts; if there is a file, they are on disk when this returns."""
        key = self._key(parts)
        if self.journal is not None:
            self.journal.append({"key": key, "written": [asdict(each) for each in completions]})
        self.entries[key] = completions

    def __enter__(self) -> "GenerationCache":
        return self

    def __exit__(self, *exception: Any) -> None:
        if self.journal is not None:
            self.journal.close()

    def _key(self, parts: Sequence[Any]) -> str:
        return sha256(f"{self.settings}{json.dumps(parts)}").hex()[:40]


def columns(rows: list[list[Completion]]) -> tuple[list[list[str]], list[list[str]]]:
    """Return the texts and the finish reasons of completions."""
    return [[each.text for each in row] for row in rows], [[each.finish_reason for each in row] for row in rows]
