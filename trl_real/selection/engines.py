"""How the scoring pass goes over a pool: as one map of `datasets`, or in shards that all processes share."""

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
    The scoring pass as one `Dataset.map`, which `datasets` remembers once it is done.

    Args:
        num_proc: Worker processes.
        batch_size: Rows a worker takes at a time.
    """

    num_proc: int | None = None
    batch_size: int = 512
    folder: ClassVar[None] = None  # nothing is kept

    def __call__(self, scoring: Batch, plain: Dataset, features: Features, name: str) -> Dataset:
        """What `scoring` finds, a row a row."""
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
        """What `function` returns: every process works for itself."""
        return function()


@dataclass(frozen=True)
class Sharded:
    """
    The scoring pass in parts that stay in a folder, by all processes together (`trl_real.runtime.shards`).

    Args:
        folder: Of the parts.
        shard_rows: Rows of a part.
        batch_size: Rows of a batch.
    """

    folder: Path
    shard_rows: int = SHARD_ROWS
    batch_size: int = 512

    def __call__(self, scoring: Batch, plain: Dataset, features: Features, name: str) -> Dataset:
        """What `scoring` finds, a row a row."""
        return self.work(scoring, plain, features, name).run(DESCRIPTION)

    def work(self, scoring: Batch, plain: Dataset, features: Features, name: str) -> ShardedMap:
        """The pass, not yet done."""
        sizes = {"shard_rows": self.shard_rows, "batch_size": self.batch_size}
        return ShardedMap(scoring, plain, features, self.folder / name, **sizes)

    def once(self, function: Callable[[], T]) -> T:
        """What `function` returns in the first process, in all of them."""
        return once(function)


Engine = Mapped | Sharded
