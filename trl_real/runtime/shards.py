"""A map over a dataset in parts that stay on disk, shared out among all processes and never done twice."""

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
from trl_real.runtime.distributed import once, rank, share, wait


SHARD_ROWS = 2048
ROW = "_row"  # number of a row in the dataset

Batch = Callable[[Any, list[int]], dict[str, list]]


class Shards:
    """
    What a function makes of rows, kept in the files of a folder.

    A shard is one Parquet file, written whole or not at all, whose name holds a digest of the function and of the rows
    that went in: what a killed run has finished is found again, and what was changed since is done again.

    Args:
        function: From a batch, as the dataset formats it, and the numbers of its rows to columns of as many values;
            told apart from others by its pickle.
        features: Of what `function` returns.
        folder: Where the shards lie; on several machines one that all of them see.
        batch_size: Rows of a batch.

    Raises:
        TrlRealError: If the number of rows is not positive.
    """

    def __init__(self, function: Batch, features: Features, folder: str | Path, batch_size: int):
        check_rows(batch_size=batch_size)
        self.function, self.features = function, features
        self.folder, self.batch_size = Path(folder), batch_size
        key = f"{Hasher.hash(function)} {batch_size} {features.arrow_schema}".encode()
        self.key = hashlib.blake2b(key).digest()

    def known(self) -> set[int]:
        """Numbers of the shards that are there."""
        return {int(file.name.partition("-")[0]) for file in self.folder.glob("*-*.parquet")}

    def file(self, number: int, digest: bytes) -> Path:
        """Where the shard of that number lies, or would, for rows with that `rows_digest`."""
        name = hashlib.blake2b(digest, key=self.key, digest_size=8).hexdigest()
        return self.folder / f"{number:06d}-{name}.parquet"

    def make(self, file: Path, rows: Dataset, numbers: Sequence[int]) -> None:
        """
        The shard of `rows` at `file`, if it is not there yet; older ones of its number are removed.

        Args:
            file: From `file`, for these rows.
            rows: As `function` takes them.
            numbers: Of the rows in the whole.

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
                    f"Cannot write {str(file)!r} ({error.strerror}). Finished shards are safe: make room, run again."
                ) from error
        for other in self.folder.glob(f"{file.name.partition('-')[0]}-*"):
            if other != file:
                other.unlink(missing_ok=True)

    def read(self, files: list[Path]) -> Dataset:
        """What these shards hold, in the order of the rows, from one Arrow file that is made of them."""
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
    `function` over a dataset, in shards (`Shards`) of rows that follow each other.

    Any number of processes share the work; the shards, and the batches in them, are the same whatever that number.

    Args:
        function, features, folder, batch_size: As in `Shards`.
        dataset: The same in all processes.
        shard_rows: Rows of a shard.

    Raises:
        TrlRealError: If a number of rows is not positive.
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
        Do, together with the other processes, what is missing; then read all of it.

        Args:
            desc: For the progress bar of the first process.

        Returns:
            What `function` returned, in the order of the rows, in all processes; it stays on the disk.

        Raises:
            TrlRealError: If the disk is full.
        """
        for number in tqdm(share(once(self.order)), desc=desc, unit="shard", disable=rank() > 0):
            self.do(number)
        wait()
        return once(self.read)

    def order(self) -> list[int]:
        """Numbers of all shards: first those that nothing is known of, which are work, then those to be checked."""
        known = self.shards.known()
        return sorted(range(len(self)), key=lambda number: number in known)

    def do(self, number: int) -> Path:
        """The file of a shard, made if it is not there; older ones of that number are removed."""
        start = number * self.shard_rows
        numbers = range(start, min(start + self.shard_rows, len(self.dataset)))
        rows = self.dataset.select(numbers)
        file = self.shards.file(number, rows_digest(rows))
        self.shards.make(file, rows, numbers)
        return file

    def read(self) -> Dataset:
        """What all shards hold, in the order of the rows."""
        return self.shards.read(sorted(self.shards.folder.glob("*-*.parquet"))[: len(self)])


def rows_digest(rows: Dataset) -> bytes:
    """Digest of the rows' content."""
    sink = io.BytesIO()  # of Parquet: Arrow's own buffers have gaps with anything in them
    table = rows.with_format("arrow")[:].combine_chunks().replace_schema_metadata(None)  # pages follow the chunks
    pq.write_table(table, sink, compression="none", use_dictionary=False, write_statistics=False)
    return hashlib.blake2b(sink.getbuffer(), digest_size=16).digest()


def check_rows(**sizes: int) -> None:
    """
    Numbers of rows, by the names of the arguments.

    Raises:
        TrlRealError: If one is not positive.
    """
    for name, value in sizes.items():
        if value < 1:
            raise TrlRealError(f"{name}={value} holds no row. Type {name}=512.")
