"""Streams read several times in the same chunks, and a map over them with one shard per chunk."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from datasets import Dataset, Features, IterableDataset
from tqdm.auto import tqdm

from trl_real.errors import TrlRealError
from trl_real.runtime.distributed import is_mine, once, rank, wait
from trl_real.runtime.run_lock import run_lock
from trl_real.runtime.shards import Batch, Shards, check_rows, rows_digest


HEAD_ROWS = 1000  # rows that the features of an untyped stream are inferred from


def typed(stream: IterableDataset) -> IterableDataset:
    """
    Return the stream as plain Python values with features: its own, or those inferred from its first 1,000 rows.

    Raises:
        TrlRealError: If the stream has neither features nor rows.
    """
    plain = stream.with_format(None)
    if plain.features is not None:
        return plain
    head = list(plain.take(HEAD_ROWS))
    if not head:
        raise TrlRealError("The stream is empty: it has neither rows nor features.")
    return plain.cast(Dataset.from_list(head).features)


class Chunks:
    """
    Chunks of a stream. They can be read several times; a later pass with other rows raises an error.

    One chunk is in memory at a time, plus a digest of 16 bytes for each chunk read so far.

    Args:
        stream: Stream with features, from `typed`.
        columns: Columns to read and to compare between passes.
        size: Number of rows in a chunk.
        arrays: Columns to return as NumPy arrays.

    Raises:
        TrlRealError: If the size is not positive; while reading, if a row differs from the first pass.
    """

    def __init__(self, stream: IterableDataset, columns: list[str], size: int, arrays: tuple[str, ...] = ()):
        check_rows(shard_rows=size)
        self.stream, self.columns, self.size, self.arrays = stream, columns, size, arrays
        self.features = Features({name: stream.features[name] for name in columns})
        self.digests: list[bytes] = []
        self.complete = False

    def __iter__(self) -> Iterator[tuple[int, Dataset]]:
        """Yield the index of each chunk's first row, and the chunk's rows with `columns`."""
        for start, rows, _ in self._read(self.stream.select_columns(self.columns)):
            yield start, rows

    def full_chunks(self) -> Iterator[tuple[int, dict[str, list]]]:
        """Yield the index of each chunk's first row, and all columns of the chunk."""
        for start, _, batch in self._read(self.stream):
            yield start, batch

    def _read(self, stream: IterableDataset) -> Iterator[tuple[int, Dataset, dict[str, list]]]:
        n_chunks = 0
        for batch in stream.iter(self.size):
            rows = Dataset.from_dict({name: batch[name] for name in self.columns}, features=self.features)
            self._check(n_chunks, rows_digest(rows))
            if self.arrays:
                rows = rows.with_format("numpy", columns=list(self.arrays), output_all_columns=True)
            yield n_chunks * self.size, rows, batch
            n_chunks += 1
        if self.complete and n_chunks < len(self.digests):
            self._refuse(n_chunks)
        self.complete = True

    def _check(self, number: int, digest: bytes) -> None:
        if number == len(self.digests) and not self.complete:
            self.digests.append(digest)
        elif number >= len(self.digests) or self.digests[number] != digest:
            self._refuse(number)

    def _refuse(self, number: int) -> None:
        raise TrlRealError(
            f"The stream differs from its first pass, from row {number * self.size} on. Two passes need a fixed "
            "order: remove random steps such as shuffle(), or type sample=1000 for one pass."
        )


def map_chunks(
    function: Batch,
    chunks: Chunks,
    features: Features,
    folder: Path,
    *,
    batch_size: int,
    desc: str,
    only: np.ndarray | None = None,
) -> Dataset:
    """
    Map `function` over a stream, with one shard per chunk (`trl_real.runtime.shards`).

    Every process reads the full stream and does its share of the chunks; finished shards are not repeated.

    Args:
        function, features, folder, batch_size: As in `Shards`.
        chunks: Chunks of the full stream, in all processes.
        desc: Text of the progress bar in the first process.
        only: Indices of the rows to do, ascending; all rows by default.

    Returns:
        Output of `function` in the order of the rows, in all processes; the data stays on disk.

    Raises:
        TrlRealError: If the disk is full, or the stream is not the same in all passes and processes.
    """
    shards = Shards(function, features, folder, batch_size)
    with run_lock(folder):
        files = _map(shards, chunks, only, desc)
        wait()
        return once(lambda: _read(shards, files))


def _map(shards: Shards, chunks: Chunks, only: np.ndarray | None, desc: str) -> list[Path]:
    """Write this process's share of the shards, and return the paths of all."""
    files: list[Path] = []
    for start, rows in tqdm(chunks, desc=desc, unit="chunk", disable=rank() > 0):
        number = start // chunks.size
        numbers, digest = np.arange(start, start + len(rows)), chunks.digests[number]
        if only is not None:
            numbers = only[slice(*np.searchsorted(only, (start, start + len(rows))))]
            rows = rows.select(numbers - start)
            digest = rows_digest(rows)
        if not len(numbers):
            continue
        files.append(shards.file(number, digest))
        if is_mine(number):
            shards.make(files[-1], rows, numbers.tolist())
    return files


def _read(shards: Shards, files: list[Path]) -> Dataset:
    if not all(file.exists() for file in files):
        raise TrlRealError("The processes read different rows. Give each process the full stream, not its own part.")
    return shards.read(files)
