"""The scripts for a machine with a GPU run on a CPU: every part tells a result, and what is packed comes out whole."""

import json
import os
import subprocess
import sys
import zipfile
from importlib.metadata import version

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


def test_wheels_are_those_installed_here_without_torch():
    """Else pip would bring torch for a GPU, gigabytes, only for the sake of what needs it."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    from travel import needed

    found = needed(["accelerate", "no-such-package", "torch"])
    names = {line.partition("==")[0] for line in found}
    assert {"accelerate", "numpy", "huggingface-hub", "no-such-package"} <= names
    assert f"accelerate=={version('accelerate')}" in found and "no-such-package" in found
    assert not any(name.startswith(("torch", "nvidia", "triton")) for name in names)


@pytest.mark.slow
def test_what_was_downloaded_is_installed_without_a_network(tmp_path, monkeypatch):
    """From a folder in place of a package index; on the other side nothing but the pieces is there."""
    with zipfile.ZipFile(tmp_path / "tinypack-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("tinypack.py", "value = 7")
        wheel.writestr("tinypack-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tinypack\nVersion: 1.0\n")
        wheel.writestr(
            "tinypack-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr("tinypack-1.0.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    out = tmp_path / "out"
    run(sys.executable, str(ROOT / "benchmarks" / "travel.py"), str(out), "--packages", "tinypack")
    monkeypatch.delenv("PIP_FIND_LINKS")
    run("bash", "unpack.sh", cwd=out)
    run(str(out / "venv" / "bin" / "python"), "-c", "import tinypack; assert tinypack.value == 7")


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
