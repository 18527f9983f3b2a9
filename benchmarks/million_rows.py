"""
A pool of a million rows that bring their embeddings: seconds and peak memory of `select`, and of the cut alone.

    python benchmarks/million_rows.py --rows 1000000
"""

import argparse
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset

from trl_real import EmbeddingPairSelector
from trl_real.selection.budget import budget_size, lowest_rows


CHUNK = 50_000


def write_pool(path: Path, n_rows: int, n_responses: int, width: int) -> None:
    """Synthetic rows, a chunk at a time."""
    rng = np.random.default_rng(0)
    writer = None
    for start in range(0, n_rows, CHUNK):
        size = min(CHUNK, n_rows - start)
        vectors = rng.standard_normal((size, n_responses, width), dtype=np.float32)
        responses = [[f"response {k} to {start + i}" for k in range(n_responses)] for i in range(size)]
        flat = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), width)
        offsets = pa.array(np.arange(0, size * n_responses + 1, n_responses, dtype=np.int32))
        columns = {
            "prompt": pa.array([f"prompt {start + i}" for i in range(size)]),
            "responses": pa.array(responses),
            "embeddings": pa.ListArray.from_arrays(offsets, flat.cast(pa.list_(pa.float32()))),
        }
        table = pa.table(columns)
        writer = writer or pq.ParquetWriter(path, table.schema)
        writer.write_table(table)
    writer.close()


def peak_gigabytes() -> float:
    """Peak resident memory of this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--responses", type=int, default=2)
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--budget", type=float, default=0.25)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        write_pool(Path(folder) / "pool.parquet", args.rows, args.responses, args.width)
        pool = Dataset.from_parquet(str(Path(folder) / "pool.parquet"), cache_dir=folder)
        print(f"pool: {len(pool)} rows, peak {peak_gigabytes():.2f} GB")
        for strategy in ("easy", "random"):
            selector = EmbeddingPairSelector(strategy=strategy)
            start = time.perf_counter()
            kept = selector.select(pool, args.budget)
            print(
                f"{strategy}: {len(kept)} kept in {time.perf_counter() - start:.1f} s, peak {peak_gigabytes():.2f} GB"
            )
            start = time.perf_counter()
            selector.select(pool, args.budget)
            print(f"{strategy}: again, from the cache, in {time.perf_counter() - start:.1f} s")
        scores = np.random.default_rng(0).random(args.rows)
        start = time.perf_counter()
        lowest_rows(scores, budget_size(args.budget, args.rows))
        print(f"the cut alone: {time.perf_counter() - start:.2f} s")


if __name__ == "__main__":
    main()
