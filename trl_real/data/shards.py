"""A map over a dataset in parts that stay on disk, shared out among all processes and never done twice."""

import hashlib
import io
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset, Features, Value
from datasets.fingerprint import Hasher
from torch import distributed
from tqdm.auto import tqdm

from trl_real.data.processes import once, rank, share
from trl_real.data.whole import write_whole
from trl_real.errors import TrlRealError


SHARD_ROWS = 2048
ROW = "_row"  # number of a row in the dataset

Batch = Callable[[Any, list[int]], dict[str, list]]


class ShardedMap:
    """
    `function` over a dataset, in shards of rows that follow each other.

    A shard is one Parquet file, written whole or not at all, whose name holds a digest of the function and of the rows
    that went in: what a killed run has finished is found again, by any number of processes, and what was changed since
    is done again. The shards, and the batches in them, are the same whatever the number of processes.

    Args:
        function: From a batch, as the dataset formats it, and the numbers of its rows to columns of as many values;
            told apart from others by its pickle.
        dataset: The same in all processes.
        features: Of what `function` returns.
        folder: Where the shards lie; on several machines one that all of them see.
        shard_rows: Rows of a shard.
        batch_size: Rows of a batch.

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
        for name, value in (("shard_rows", shard_rows), ("batch_size", batch_size)):
            if value < 1:
                raise TrlRealError(f"{name}={value} holds no row. Type {name}=512.")
        self.function, self.dataset, self.features = function, dataset, features
        self.folder, self.shard_rows, self.batch_size = Path(folder), shard_rows, batch_size
        self.key = f"{Hasher.hash(function)} {batch_size} {features.arrow_schema}".encode()

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
        if distributed.is_initialized():
            distributed.barrier()
        return once(self.read)

    def order(self) -> list[int]:
        """Numbers of all shards: first those that nothing is known of, which are work, then those to be checked."""
        self.folder.mkdir(parents=True, exist_ok=True)
        known = {int(file.name.partition("-")[0]) for file in self.folder.glob("*-*.parquet")}
        return sorted(range(len(self)), key=lambda number: number in known)

    def do(self, number: int) -> Path:
        """The file of a shard, made if it is not there; older ones of that number are removed."""
        start = number * self.shard_rows
        rows = range(start, min(start + self.shard_rows, len(self.dataset)))
        file = self.folder / f"{number:06d}-{self._digest(rows)}.parquet"
        if not file.exists():
            buffer = io.BytesIO()
            pq.write_table(self._table(rows), buffer)
            try:
                write_whole(file, buffer.getvalue())
            except OSError as error:
                raise TrlRealError(
                    f"Cannot write {str(file)!r} ({error.strerror}). Finished shards are safe: make room, run again."
                ) from error
        for other in self.folder.glob(f"{number:06d}-*"):
            if other != file:
                other.unlink(missing_ok=True)
        return file

    def read(self) -> Dataset:
        """What all shards hold, in the order of the rows, from one Arrow file that is made of them."""
        files = [str(file) for file in sorted(self.folder.glob("*-*.parquet"))[: len(self)]]
        arrow = self.folder / "arrow"
        shutil.rmtree(arrow, ignore_errors=True)
        if not files:
            return Dataset.from_dict({name: [] for name in self.features}, features=self.features)
        features = Features({ROW: Value("int64"), **self.features})
        return Dataset.from_parquet(files, features=features, cache_dir=str(arrow)).remove_columns(ROW)

    def _table(self, rows: range) -> pa.Table:
        tables = []
        for start in range(rows.start, rows.stop, self.batch_size):
            numbers = list(range(start, min(start + self.batch_size, rows.stop)))
            columns = self.function(self.dataset[numbers[0] : numbers[-1] + 1], numbers)
            found = Dataset.from_dict(columns, features=self.features).with_format("arrow")[:]
            tables.append(found.add_column(0, ROW, pa.array(numbers)))
        return pa.concat_tables(tables).replace_schema_metadata(None)

    def _digest(self, rows: range) -> str:
        """Of the function and of the rows' content."""
        sink = io.BytesIO()  # of Parquet: Arrow's own buffers have gaps with anything in them
        table = self.dataset.with_format("arrow")[rows.start : rows.stop].replace_schema_metadata(None)
        pq.write_table(table, sink, compression="none", use_dictionary=False, write_statistics=False)
        return hashlib.blake2b(sink.getbuffer(), key=hashlib.blake2b(self.key).digest(), digest_size=8).hexdigest()
