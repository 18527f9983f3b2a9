"""Engines of the scoring pass: one map of `datasets`, or shards that all processes share."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, TypeVar

from datasets import Dataset, Features

from trl_real.runtime.distributed import once
from trl_real.runtime.shards import SHARD_ROWS, Batch, ShardedMap


T = TypeVar("T")
DESCRIPTION = "Selecting pairs"


@dataclass(frozen=True)
class Mapped:
    """
    Scoring pass as one `Dataset.map`, which `datasets` caches.

    Args:
        num_proc: Number of worker processes.
        batch_size: Number of rows per batch.
    """

    num_proc: int | None = None
    batch_size: int = 512
    folder: ClassVar[None] = None  # no files of its own

    def __call__(self, scoring: Batch, plain: Dataset, features: Features, name: str) -> Dataset:
        """Return the output of `scoring`, row by row."""
        return plain.map(
            scoring,
            with_indices=True,
            with_rank=bool(self.num_proc),
            batched=True,
            batch_size=self.batch_size,
            num_proc=self.num_proc,
            remove_columns=plain.column_names,
            features=features,
            desc=DESCRIPTION,
        ).with_format(None)

    def once(self, function: Callable[[], T]) -> T:
        """Return `function()`: every process works alone."""
        return function()


@dataclass(frozen=True)
class Sharded:
    """
    Scoring pass in shards on disk, by all processes together (`trl_real.runtime.shards`).

    Args:
        folder: Folder of the shards.
        shard_rows: Number of rows per shard.
        batch_size: Number of rows per batch.
    """

    folder: Path
    shard_rows: int = SHARD_ROWS
    batch_size: int = 512

    def __call__(self, scoring: Batch, plain: Dataset, features: Features, name: str) -> Dataset:
        """Return the output of `scoring`, row by row."""
        return self.work(scoring, plain, features, name).run(DESCRIPTION)

    def work(self, scoring: Batch, plain: Dataset, features: Features, name: str) -> ShardedMap:
        """Return the pass before it runs."""
        sizes = {"shard_rows": self.shard_rows, "batch_size": self.batch_size}
        return ShardedMap(scoring, plain, features, self.folder / name, **sizes)

    def once(self, function: Callable[[], T]) -> T:
        """Return `function()` of the first process in all processes."""
        return once(function)


Engine = Mapped | Sharded
