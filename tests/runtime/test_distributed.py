"""Several processes give the same result as one, and finished work is not repeated."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from support.active_selectors import adapted
from support.shared_work import POOL, work
from support.tiny import tiny_tokenizer
from trl_real.errors import TrlRealError
from trl_real.runtime.journal import Journal
from trl_real.selection.active.gradient import GradientPairSelector


pytestmark = pytest.mark.usefixtures("one_thread")


def same(found: dict, expected: dict) -> None:
    """What came of it; what was done for it is another matter."""
    for name in ("texts", "labels", "failed", "picks", "tokens"):
        assert found[name] == expected[name], name
    np.testing.assert_allclose(found["uncertainty"], expected["uncertainty"], rtol=1e-5)


def test_two_processes_share_the_work_and_a_later_one_resumes_it(tmp_path):
    (tmp_path / "worker.py").write_text(
        """
import os, sys
from pathlib import Path
import torch
from support.shared_work import work
from trl_real.runtime.distributed import init_distributed, rank
init_distributed()
torch.set_num_threads(1)
torch.save(work(Path(sys.argv[1]), True), f"{sys.argv[1]}/rank{rank()}.pt")
# Leave without the interpreter's clean-up: threads of gloo that still run then abort the process now and then
# ("terminate called without an active exception"). The files are closed, and the barrier keeps both ranks until then.
torch.distributed.barrier()
os._exit(0)
"""
    )
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [*launch, str(tmp_path / "worker.py"), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    (tmp_path / "alone").mkdir()
    alone = work(tmp_path / "alone", False)
    ranks = [torch.load(tmp_path / f"rank{rank}.pt", weights_only=False) for rank in (0, 1)]
    for rank in ranks:
        same(rank, alone)
        assert rank["written"] == alone["written"]
    for each in (0, 1):
        counts = [rank["asked"][each] for rank in ranks]
        assert min(counts) > 0 and sum(counts) == alone["asked"][each]
    again = work(tmp_path, False)
    same(again, alone)
    assert again["written"] == 0 and again["asked"][0] == alone["failed"]


def test_journals_of_all_processes_are_read(tmp_path):
    for name, value in (("j", 1), ("j.10", 4), ("j.2", 3), ("j.1", 2), ("j.backup", 9), ("other.1", 9)):
        (tmp_path / name).write_text(f'{{"value": {value}}}\n')
    with Journal(tmp_path / "j") as journal:
        assert [line["value"] for line in journal.read()] == [1, 2, 3, 4]
        journal.append({"value": 5})
    assert (tmp_path / "j").read_text().count("\n") == 2
    (tmp_path / "j.1").write_text("no JSON\n")
    with pytest.raises(TrlRealError, match=r"Line 1 of '.*j\.1' is not a JSON object"):
        Journal(tmp_path / "j").read()


def test_gradient_shards_are_reused_only_for_the_same_policy(tmp_path):
    def picks(model, **settings):
        selector = GradientPairSelector(model, tokenizer=tiny_tokenizer(), projection_dim=64, **settings)
        return selector.select(POOL, 5)["pair"][:]

    assert picks(adapted(), shards=tmp_path) == picks(adapted())
    before = {file.name for file in tmp_path.glob("*.parquet")}
    assert picks(adapted(), shards=tmp_path) and {file.name for file in tmp_path.glob("*.parquet")} == before
    assert picks(adapted(1), shards=tmp_path) == picks(adapted(1))
    assert {file.name for file in tmp_path.glob("*.parquet")}.isdisjoint(before)
    with pytest.raises(TrlRealError, match="With shards all processes share the work already"):
        picks(adapted(), shards=tmp_path, all_processes=True)


def test_gradient_shards_are_reused_only_for_the_same_precision(tmp_path):
    def uncertainty(**settings):
        selector = GradientPairSelector(adapted(), tokenizer=tiny_tokenizer(), projection_dim=64, **settings)
        return sorted(selector.select(POOL, 5)["uncertainty"][:])

    uncertainty(shards=tmp_path)
    assert uncertainty(shards=tmp_path, dtype="bfloat16") == uncertainty(dtype="bfloat16")
