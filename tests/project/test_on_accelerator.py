"""The scripts for a machine with a GPU run on a CPU: every part tells a result, and what is packed comes out whole."""

import json
import os
import subprocess
import sys

import pytest

from support.project import ROOT
from support.tiny import save_tiny


def run(*command: str, cwd=None) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.slow
def test_every_part_tells_a_result(tmp_path):
    output = tmp_path / "results.jsonl"
    script = str(ROOT / "benchmarks" / "on_accelerator.py")
    run(sys.executable, script, "--small", "--device", "cpu", "--output", str(output), "--minutes", "60")
    lines = [json.loads(line) for line in output.read_text().splitlines()]
    parts = {line["part"] for line in lines}
    assert parts == {
        "machine",
        "exact",
        "embedding",
        "gradients",
        "step",
        "generation",
        "quantized",
        "design",
        "study",
    }
    assert [line for line in lines if "failed" in line] == []
    exact = [line for line in lines if line["part"] == "exact" and line["dtype"] == "torch.float32"]
    assert len(exact) == 4 and all(line["embeddings_off"] < 1e-6 and line["gradients_off"] < 1e-6 for line in exact)


def test_what_travels_comes_out_whole(tmp_path):
    model = save_tiny(tmp_path / "tiny")
    out = str(tmp_path / "out")
    flags = ["--packages", "--model", model, "--megabytes", "1"]
    run(sys.executable, str(ROOT / "benchmarks" / "travel.py"), out, *flags)
    pieces = sorted((tmp_path / "out").glob("part-*/piece"))
    assert len(pieces) > 1 and all(piece.stat().st_size <= 2**20 for piece in pieces)
    run("bash", "-c", "cat part-*/piece | tar x", cwd=out)
    found = (tmp_path / "out" / "project" / "trl_real" / "__init__.py").read_bytes()
    assert found == (ROOT / "trl_real" / "__init__.py").read_bytes()
    names = [path.name for path in (tmp_path / "out" / "model").iterdir()]
    assert sorted(names) == sorted(path.name for path in (tmp_path / "tiny").iterdir())
