"""Scores in shards: the same for any number of processes, and none computed twice."""

import errno
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset, Features, Value, load_from_disk

from support.pools import POOLS, pool_of, stamps, told
from support.processes import end, forked, is_over, ranks, status_of
from support.tiny import save_tiny
from trl_real import EmbeddingPairSelector
from trl_real.cli.main import main
from trl_real.errors import TrlRealError
from trl_real.runtime import shards as shards_module
from trl_real.runtime.shards import ROW, ShardedMap
from trl_real.selection.record import RECORD_FILE, SelectionRecord
from trl_real.selection.strategies import STRATEGIES


LENGTH = Features({"length": Value("int32")})
NUMBERS = Dataset.from_dict({"text": [f"{i} " * (i % 7) for i in range(50)]})
COUNTS = ("n_rows", "n_kept", "n_not_chosen", "skipped", "settings", "budget")


class Lengths:
    """A function that tells which rows it was asked about; what it has seen is no part of what it is."""

    def __init__(self, unit: int = 1):
        self.unit, self.seen = unit, []

    def __call__(self, rows, row_ids):
        self.seen += row_ids
        return {"length": [len(text) // self.unit for text in rows["text"]]}

    def __getstate__(self):
        return {"unit": self.unit}


def lengths(folder, dataset=NUMBERS, unit=1, **settings) -> tuple[list[int], list[int]]:
    """What the map gives, and the rows that it did now."""
    function = Lengths(unit)
    settings = {"shard_rows": 8, "batch_size": 3, **settings}
    found = ShardedMap(function, dataset, LENGTH, folder, **settings).run("Measuring")
    return found["length"][:], function.seen


class TestShardedMap:
    def test_equals_a_map_and_a_second_run_computes_nothing(self, tmp_path):
        expected = [len(text) for text in NUMBERS["text"]]
        assert lengths(tmp_path) == (expected, list(range(50)))
        assert lengths(tmp_path) == (expected, [])

    def test_recomputes_missing_and_changed_shards(self, tmp_path):
        lengths(tmp_path)
        next(tmp_path.glob("000002-*")).unlink()
        (tmp_path / "000004-0123456789abcdef.parquet.partial").write_bytes(b"torn")
        assert lengths(tmp_path)[1] == list(range(16, 24))
        changed = NUMBERS.map(lambda row, i: {"text": "new" if i == 30 else row["text"]}, with_indices=True)
        found, seen = lengths(tmp_path, changed)
        assert seen == list(range(24, 32)) and found[30] == 3
        assert lengths(tmp_path, changed, unit=2)[1] == list(range(50))

    def test_longer_or_shorter_pool_reuses_shared_shards(self, tmp_path):
        lengths(tmp_path)
        longer = Dataset.from_dict({"text": [*NUMBERS["text"], *"ab"]})
        assert lengths(tmp_path, longer) == ([*map(len, NUMBERS["text"]), 1, 1], [48, 49, 50, 51])
        assert lengths(tmp_path, NUMBERS.select(range(16))) == ([len(text) for text in NUMBERS["text"][:16]], [])

    def test_shards_hold_the_numbers_of_their_rows(self, tmp_path):
        lengths(tmp_path)
        rows = [i for file in sorted(tmp_path.glob("*.parquet")) for i in Dataset.from_parquet(str(file))[ROW]]
        assert rows == list(range(50))

    def test_an_empty_dataset_has_no_shards(self, tmp_path):
        assert lengths(tmp_path, NUMBERS.select([])) == ([], [])

    def test_full_disk_is_reported_and_loses_nothing(self, tmp_path, monkeypatch):
        write, written = shards_module.write_atomic, []

        def full(file, content):
            if len(written) == 3:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            written.append(file)
            write(file, content)

        monkeypatch.setattr(shards_module, "write_atomic", full)
        with pytest.raises(TrlRealError, match="No space left on device.*free some disk space and run again"):
            lengths(tmp_path)
        monkeypatch.undo()
        assert lengths(tmp_path)[1] == list(range(24, 50))

    def test_zero_shard_rows_is_refused(self, tmp_path):
        with pytest.raises(TrlRealError, match="shard_rows=0 must be at least 1. Type shard_rows=512."):
            lengths(tmp_path, shard_rows=0)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("model"))


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_shards_select_what_a_map_selects(strategy, model, tmp_path):
    pool = pool_of(90, 3)
    mapped, sharded = (EmbeddingPairSelector(model, strategy=strategy) for _ in range(2))
    expected = mapped.select(pool, 0.3)
    found = sharded.select(pool, 0.3, shards=tmp_path, shard_rows=20, batch_size=7)
    for name in expected.column_names:
        if name == "similarity":
            np.testing.assert_allclose(found[name], expected[name], atol=1e-6)
        else:
            assert found[name][:] == expected[name][:]
    own = ("tokens", "similarity", "similarity_kept", "histogram")
    assert {k: v for k, v in told(sharded.record).items() if k not in own} == {
        k: v for k, v in told(mapped.record).items() if k not in own
    }


@pytest.mark.parametrize("settings", [{"geometry": "standardized"}, {"dtype": "bfloat16"}], ids=str)
def test_killed_selection_resumes(settings, model, tmp_path, monkeypatch):
    pool = pool_of(60, 4)
    expected = EmbeddingPairSelector(model, **settings)
    kept = expected.select(pool, 0.5, shards=tmp_path / "whole", shard_rows=8)
    do, done = ShardedMap.do, []

    def killed(self, number):
        done.append(number)
        if len(done) == 4:
            raise KeyboardInterrupt
        return do(self, number)

    monkeypatch.setattr(ShardedMap, "do", killed)
    selector = EmbeddingPairSelector(model, **settings)
    with pytest.raises(KeyboardInterrupt):
        selector.select(pool, 0.5, shards=tmp_path / "broken", shard_rows=8)
    monkeypatch.undo()
    selector = EmbeddingPairSelector(model, **settings)
    assert selector.select(pool, 0.5, shards=tmp_path / "broken", shard_rows=8)[:] == kept[:]
    assert told(selector.record) == told(expected.record)


def test_shards_with_num_proc_are_refused(model, tmp_path):
    with pytest.raises(TrlRealError, match="for shards start processes with torchrun or accelerate"):
        EmbeddingPairSelector(model).select(pool_of(4, 2), shards=tmp_path, num_proc=2)


def launched(n_processes: int, arguments: list[str], launcher: tuple[str, ...] = ()) -> subprocess.Popen:
    """`trl-real select` in so many processes, each with one thread."""
    run = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(n_processes)]
    run = list(launcher) or (run if n_processes > 1 else [sys.executable])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    command = [*run, "-m", "trl_real.cli", "select", *arguments]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, start_new_session=True
    )


def finished(process: subprocess.Popen) -> None:
    """Wait for it, and see that it went well."""
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output[-3000:]


@pytest.fixture(scope="module")
def written(model, tmp_path_factory):
    """A pool of 16 responses a row on disk, flags for it, and what one process makes of it."""
    return written_in(tmp_path_factory.mktemp("written"), model, "16 responses")


def written_in(folder: Path, model: str, name: str) -> tuple[list[str], Path]:
    """A pool on disk, flags for it, and what one process makes of it."""
    pool, shard_rows = POOLS[name][0](), str(POOLS[name][1])
    pool.to_parquet(folder / "pool.parquet")
    flags = ["--dataset", str(folder / "pool.parquet"), "--model", model]
    flags += ["--budget", "0.25", "--shard_rows", shard_rows]
    select(*flags, "--output_dir", str(folder / "one"))
    return flags, folder / "one"


def select(*arguments: str) -> None:
    """`trl-real select` in a forked process."""
    assert status_of(forked(lambda: main(["select", *arguments]))) == 0


def assert_same(found: Path, expected: Path) -> None:
    """The same set and, times aside, the same record, from the same shards."""
    assert load_from_disk(str(found))[:] == load_from_disk(str(expected))[:]
    assert told(SelectionRecord.load(found)) == told(SelectionRecord.load(expected))
    assert stamps(of(found)).keys() == stamps(of(expected)).keys()


def kill_one(process: subprocess.Popen, output: Path, n_shards: int, victim: random.Random) -> None:
    """kill -9 of one of the workers, once so many shards are there."""
    while len(stamps(of(output))) < n_shards and process.poll() is None:
        time.sleep(0.01)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    if children:
        os.kill(int(victim.choice(children)), signal.SIGKILL)
    process.communicate(timeout=120)


def of(output: Path) -> Path:
    """Where the command line keeps the shards of an output."""
    return Path(f"{output}.shards")


def test_one_process_resumes_after_one_of_two_was_killed(written, tmp_path):
    flags, expected = written
    output = tmp_path / "two"
    workers = ranks(lambda: main(["select", *flags, "--output_dir", str(output)]))
    while len(stamps(of(output))) < 3 and not any(map(is_over, workers)):
        time.sleep(0.01)
    end(workers)  # the second as its launcher does
    before = stamps(of(output))
    assert before and not (output / RECORD_FILE).exists()
    select(*flags, "--output_dir", str(output))
    assert_same(output, expected)
    assert before.items() <= stamps(of(output)).items()


@pytest.mark.slow
@pytest.mark.parametrize("name", POOLS)
def test_result_does_not_depend_on_the_number_of_processes(name, model, tmp_path):
    flags, expected = written_in(tmp_path, model, name)
    for n_processes in (2, 4):
        finished(launched(n_processes, [*flags, "--output_dir", str(tmp_path / f"of {n_processes}")]))
        assert_same(tmp_path / f"of {n_processes}", expected)
    plain = EmbeddingPairSelector(model)
    kept = plain.select(POOLS[name][0](), 0.25)
    found, record = load_from_disk(str(expected)), told(SelectionRecord.load(expected))
    assert without_similarity(kept) == without_similarity(found)
    np.testing.assert_allclose(kept["similarity"], found["similarity"], atol=1e-5)
    assert {part: told(plain.record)[part] for part in COUNTS} == {part: record[part] for part in COUNTS}


def without_similarity(dataset: Dataset) -> dict:
    """A plain map packs its batches otherwise, which moves a cosine's last bit."""
    return dataset.remove_columns("similarity")[:]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds the workers in /proc")
def test_selection_killed_at_ten_random_moments_resumes(written, tmp_path):
    flags, expected = written
    moments = random.Random(1)
    for trial in range(10):
        output = tmp_path / str(trial)
        process = launched(2, [*flags, "--output_dir", str(output)])
        kill_one(process, output, moments.randint(0, 14), moments)
        before = stamps(of(output))
        finished(launched(moments.choice((1, 2)), [*flags, "--output_dir", str(output)]))
        assert_same(output, expected)
        assert before.items() <= stamps(of(output)).items()
        shutil.rmtree(output)
