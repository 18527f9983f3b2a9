"""Spawned workers of a map, as GPUs need them: the same columns, each rank on its own device."""

import os
import subprocess
import sys

import numpy as np
import pytest
from datasets import Dataset

from support.pools import pool_of
from support.project import MODEL, page_blocks
from support.tiny import save_tiny
from trl_real import EmbeddingPairSelector


SCRIPT = """
import sys

import multiprocess
from datasets import Dataset

from trl_real import EmbeddingPairSelector

if __name__ == "__main__":
    multiprocess.set_start_method("spawn")
    model, pool, output = sys.argv[1:]
    selector = EmbeddingPairSelector(model)
    found = Dataset.from_parquet(pool).map(selector, batched=True, batch_size=6, num_proc=2, with_rank=True)
    assert not selector.encoder._embedders, "the model was loaded in the parent"
    found.to_parquet(output)
"""


def run_script(command: list, **settings) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"}
    command = [sys.executable, *map(str, command)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment, **settings)
    assert done.returncode == 0, done.stderr[-3000:]
    return done


@pytest.mark.slow
def test_spawned_workers_add_the_same_columns(tmp_path, one_thread):
    model, pool = save_tiny(tmp_path / "model"), pool_of(24, 3)
    script, source, output = (tmp_path / name for name in ("script.py", "pool.parquet", "found.parquet"))
    script.write_text(SCRIPT)
    pool.to_parquet(source)
    run_script([script, model, source, output])
    expected = pool.map(EmbeddingPairSelector(model), batched=True, batch_size=6)
    found = Dataset.from_parquet(str(output), cache_dir=str(tmp_path / "cache"))
    assert found.features == expected.features
    np.testing.assert_allclose(found["similarity"], expected["similarity"], atol=2e-6)
    assert found.remove_columns("similarity")[:] == expected.remove_columns("similarity")[:]


@pytest.mark.slow
def test_script_of_the_scale_page_runs(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(page_blocks("scale.md", "python")[-1])
    save_tiny(tmp_path / MODEL)
    pool_of(40, 2).to_parquet(tmp_path / "pool.parquet")
    done = run_script([script], cwd=tmp_path)
    assert done.stdout.startswith("8 40 rows in: 8 kept, 26 not chosen, 6 skipped"), done.stdout
