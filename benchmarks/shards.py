"""
A pool of many rows in shards, by two processes: memory of each on the way, the cut, and what launching costs.

    python benchmarks/shards.py rows --rows 1000000         # memory flat? seconds of the cut
    python benchmarks/shards.py speed --model MODEL --dataset POOL.parquet --rounds 3
                                                            # 2 processes of a thread beside 1 process of 2 threads

`rows` writes a pool of 4 responses a row, of 320 different ones, and a random two-layer model, and reads the memory of
the workers from /proc: what is theirs alone (`anonymous`) and with the pages of files that they have mapped, which the
system takes back when it needs them (`resident`). `speed` runs whole commands, interleaved; the launch is the
time of a run whose shards are all there.
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq


CHUNK = 50_000
WORDS = "water tea stand minutes rather open lock yours capital larger poem rain tin roof sum numbers".split()


def write_pool(path: Path, n_rows: int) -> None:
    """Rows of 4 responses, each a word and a number, a chunk at a time."""
    rng = np.random.default_rng(0)
    texts = np.array([f"{word} {number}" for word in WORDS for number in range(20)])
    writer = None
    for start in range(0, n_rows, CHUNK):
        size = min(CHUNK, n_rows - start)
        responses = texts[rng.integers(0, len(texts), (size, 4))].tolist()
        table = pa.table({"prompt": [f"prompt {start + i}" for i in range(size)], "responses": responses})
        writer = writer or pq.ParquetWriter(path, table.schema)
        writer.write_table(table)
    writer.close()


def select(pool: Path, model: str, output: Path, processes: int, threads: int, *flags: str) -> subprocess.Popen:
    """`trl-real select` in so many processes."""
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    command = [sys.executable, *(launch if processes > 1 else []), "-m", "trl_real.cli", "select"]
    arguments = ["--dataset", str(pool), "--model", model, "--output_dir", str(output), "--budget", "0.25", *flags]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    return subprocess.Popen([*command, *arguments], env=environment, stdout=subprocess.DEVNULL)


def memory(pid: int) -> dict[str, float]:
    """Of a process, in MB."""
    lines = dict(line.split(":") for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":" in line)
    resident, anonymous = (int(lines[name].split()[0]) / 1024 for name in ("VmRSS", "RssAnon"))
    return {"resident": resident, "anonymous": anonymous}


def rows(args: argparse.Namespace) -> None:
    """Memory of each worker by the share of the shards that are done."""
    sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
    from support.tiny import save_tiny

    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        folder = Path(name)
        write_pool(folder / "pool.parquet", args.rows)
        model = save_tiny(folder / "model")
        n_shards = -(-args.rows // args.shard_rows)
        flags = ("--shard_rows", str(args.shard_rows))
        process = select(folder / "pool.parquet", model, folder / "out", 2, 1, *flags)
        started, seen = time.perf_counter(), set()
        shards = folder / "out.shards"
        while process.poll() is None:
            time.sleep(0.5)
            done = len(list(shards.rglob("*.parquet"))) if shards.exists() else 0
            tenth = 10 * done // n_shards
            if not done or tenth in seen:
                continue
            seen.add(tenth)
            workers = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
            told = "; ".join(
                ", ".join(f"{what} {size:.0f} MB" for what, size in memory(int(pid)).items()) for pid in workers
            )
            print(f"{tenth * 10:>3} % of {args.rows} rows, {time.perf_counter() - started:.0f} s: {told}", flush=True)
        print(f"all: {time.perf_counter() - started:.0f} s, exit status {process.returncode}")
        measure_cut(folder, model, args)


def measure_cut(folder: Path, model: str, args: argparse.Namespace) -> None:
    """Seconds of the cut, of one process that finds all shards."""
    from datasets import Dataset

    from trl_real import EmbeddingPairSelector
    from trl_real.selection import pool as pool_module

    cut = pool_module.cut

    def timed(*arguments):
        started = time.perf_counter()
        found = cut(*arguments)
        print(f"the cut and the record: {time.perf_counter() - started:.1f} s")
        return found

    pool_module.cut = timed
    dataset = Dataset.from_parquet(str(folder / "pool.parquet"), cache_dir=str(folder / "cache"))
    started = time.perf_counter()
    selector = EmbeddingPairSelector(model)
    kept = selector.select(dataset, 0.25, shards=folder / "out.shards", shard_rows=args.shard_rows)
    print(f"all shards checked, read and cut: {len(kept)} rows in {time.perf_counter() - started:.1f} s")


def speed(args: argparse.Namespace) -> None:
    """Seconds of whole commands."""
    found: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        for _ in range(args.rounds):
            for processes, threads in ((1, 2), (2, 1)):
                output = Path(name) / f"{processes}"
                for what in ("run", "run again, all shards there"):
                    started = time.perf_counter()
                    process = select(args.dataset, args.model, output, processes, threads, "--shard_rows", "128")
                    if process.wait():
                        sys.exit(f"exit status {process.returncode}")
                    key = f"{processes} processes of {threads} threads, {what}"
                    found.setdefault(key, []).append(time.perf_counter() - started)
                shutil.rmtree(f"{output}.shards")
    for key, seconds in found.items():
        print(f"{key}: {statistics.median(seconds):.1f} s ({', '.join(f'{one:.1f}' for one in seconds)})")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", help="where to write (default: the system's)")
    parts = parser.add_subparsers(required=True)
    part = parts.add_parser("rows")
    part.add_argument("--rows", type=int, default=1_000_000)
    part.add_argument("--shard_rows", type=int, default=10_000)
    part.set_defaults(run=rows)
    part = parts.add_parser("speed")
    part.add_argument("--model", required=True)
    part.add_argument("--dataset", required=True, type=Path)
    part.add_argument("--rounds", type=int, default=3)
    part.set_defaults(run=speed)
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()
