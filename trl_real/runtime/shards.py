"""Map over a dataset in shards on disk: all processes share the work, and a finished shard is not repeated."""

import hashlib
import io
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset, Features, Value
from datasets.fingerprint import Hasher
from tqdm.auto import tqdm

from trl_real.errors import TrlRealError
from trl_real.runtime.atomic_files import write_atomic
from trl_real.runtime.distributed import gather, once, rank, share, wait
from trl_real.runtime.run_lock import run_lock


SHARD_ROWS = 2048
ROW = "_row"  # column with the index of a row in the dataset

Batch = Callable[[Any, list[int]], dict[str, list]]


class Shards:
    """
    Results of a function over rows, as files in a folder.

    A shard is one Parquet file, written in one step. Its name has a digest of the function and of the input rows: a
    later run uses the shards that a killed run finished, and repeats those with another function or other rows.

    Args:
        function: Function of a batch, in the dataset's format, and the indices of its rows. It returns columns with
            one value per row; its pickle identifies it.
        features: Features of the columns that `function` returns.
        folder: Path of the folder for the shards; with several machines, all of them must share it.
        batch_size: Number of rows in a batch.

    Raises:
        TrlRealError: If `batch_size` is not positive.
    """

    def __init__(self, function: Batch, features: Features, folder: str | Path, batch_size: int):
        check_rows(batch_size=batch_size)
        self.function, self.features = function, features
        self.folder, self.batch_size = Path(folder), batch_size
        key = f"{Hasher.hash(function)} {batch_size} {features.arrow_schema}".encode()
        self.key = hashlib.blake2b(key).digest()

    def existing(self) -> set[int]:
        """Return the numbers of the shards on disk."""
        return {int(file.name.partition("-")[0]) for file in self.folder.glob("*-*.parquet")}

    def file(self, number: int, digest: bytes) -> Path:
        """Return the path of the shard with this number, for rows with this `rows_digest`."""
        name = hashlib.blake2b(digest, key=self.key, digest_size=8).hexdigest()
        return self.folder / f"{number:06d}-{name}.parquet"

    def make(self, file: Path, rows: Dataset, numbers: Sequence[int]) -> None:
        """
        Write the shard of `rows`, which have these `numbers` in the dataset, if it is missing, and remove older shards
        with its number.

        Raises:
            TrlRealError: If the disk is full.
        """
        if not file.exists():
            buffer = io.BytesIO()
            pq.write_table(self._table(rows, numbers), buffer)
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                write_atomic(file, buffer.getvalue())
            except OSError as error:
                raise TrlRealError(
                    f"Cannot write {str(file)!r} ({error.strerror}). Finished shards are safe: free some disk space "
                    "and run again."
                ) from error
        for other in self.folder.glob(f"{file.name.partition('-')[0]}-*"):
            if other != file:
                other.unlink(missing_ok=True)

    def read(self, files: list[Path]) -> Dataset:
        """Read the shards, in the order of the rows; they are first copied into one Arrow file."""
        arrow = self.folder / "arrow"
        shutil.rmtree(arrow, ignore_errors=True)
        if not files:
            return Dataset.from_dict({name: [] for name in self.features}, features=self.features)
        features = Features({ROW: Value("int64"), **self.features})
        names = [str(file) for file in files]
        return Dataset.from_parquet(names, features=features, cache_dir=str(arrow)).remove_columns(ROW)

    def _table(self, rows: Dataset, numbers: Sequence[int]) -> pa.Table:
        tables = []
        for start in range(0, len(rows), self.batch_size):
            batch = list(numbers[start : start + self.batch_size])
            columns = self.function(rows[start : start + len(batch)], batch)
            found = Dataset.from_dict(columns, features=self.features).with_format("arrow")[:]
            tables.append(found.add_column(0, ROW, pa.array(batch)))
        return pa.concat_tables(tables).replace_schema_metadata(None)


class ShardedMap:
    """
    Map of `function` over a dataset, in shards (`Shards`) of consecutive rows.

    All processes share the work; shards and batches do not depend on the number of processes.

    Args:
        function, features, folder, batch_size: As in `Shards`.
        dataset: Dataset to map, the same in all processes.
        shard_rows: Number of rows in a shard.

    Raises:
        TrlRealError: If `shard_rows` or `batch_size` is not positive.
    """

    def __init__(
        self,
        function: Batch,
        dataset: Dataset,
        features: Features,
        folder: str | Path,
        *,
        shard_rows: int = SHARD_ROWS,
        batch_size: int = 512,
    ):
        check_rows(shard_rows=shard_rows)
        self.shards = Shards(function, features, folder, batch_size)
        self.dataset, self.shard_rows = dataset, shard_rows

    def __len__(self) -> int:
        return -(-len(self.dataset) // self.shard_rows)

    def run(self, desc: str) -> Dataset:
        """
        Do the missing shards together with the other processes, then read all shards. The first process shows `desc`.

        Returns:
            Output of `function` in the order of the rows, in all processes; the data stays on disk.

        Raises:
            TrlRealError: If the disk is full, or another process writes into the folder.
        """
        with run_lock(self.shards.folder):
            with tqdm(share(once(self.order)), desc=desc, unit="shard", disable=rank() > 0) as numbers:
                files = gather({number: self.do(number) for number in numbers})
            wait()
            return once(lambda: self.shards.read([files[number] for number in sorted(files)]))

    def order(self) -> list[int]:
        """Return the numbers of all shards: first those without a file, then those with a file to check."""
        existing = self.shards.existing()
        return sorted(range(len(self)), key=lambda number: number in existing)

    def do(self, number: int) -> Path:
        """Write a shard if it is missing, remove older shards with its number, and return its path."""
        file, numbers, rows = self._place(number)
        self.shards.make(file, rows, numbers)
        return file

    def read(self) -> Dataset:
        """Read the shards of these rows and this function, in the order of the rows."""
        return self.shards.read([self._place(number)[0] for number in range(len(self))])

    def _place(self, number: int) -> tuple[Path, range, Dataset]:
        """Return the path of a shard, the numbers of its rows, and the rows."""
        start = number * self.shard_rows
        numbers = range(start, min(start + self.shard_rows, len(self.dataset)))
        rows = self.dataset.select(numbers)
        return self.shards.file(number, rows_digest(rows)), numbers, rows


def rows_digest(rows: Dataset) -> bytes:
    """Return a digest of the rows' content."""
    sink = io.BytesIO()  # Parquet, because the gaps in Arrow's own buffers are not initialized
    # One chunk, because chunks decide the pages.
    table = rows.with_format("arrow")[:].combine_chunks().replace_schema_metadata(None)
    pq.write_table(table, sink, compression="none", use_dictionary=False, write_statistics=False)
    return hashlib.blake2b(sink.getbuffer(), digest_size=16).digest()


def check_rows(**sizes: int) -> None:
    """
    Check that numbers of rows, given by argument name, are positive.

    Raises:
        TrlRealError: If one is not.
    """
    for name, value in sizes.items():
        if value < 1:
            raise TrlRealError(f"{name}={value} must be at least 1. Type {name}=512.")
