"""What killed savings left is removed, and nothing else."""

import os
import subprocess
import sys

from datasets import Dataset

from trl_real.data.files import load, save


def test_only_leftovers_of_dead_processes_for_this_folder_go(tmp_path):
    child = subprocess.Popen([sys.executable, "-c", "pass"])
    child.wait()
    dead, alive = child.pid, os.getppid()
    gone = [f".out.{dead}.new", f".out.{dead}.old"]
    stay = [f".out.{alive}.new", f".out.{alive}.old", f".out.{dead}.mine", ".out.x.new", f".other.{dead}.new"]
    for name in (*gone, *stay):
        (tmp_path / name).mkdir()
    save(Dataset.from_dict({"prompt": ["a"]}), tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {"out", *stay}
    assert load(tmp_path / "out")[0] == {"prompt": "a"}


def test_saving_again_replaces_everything_in_the_folder(tmp_path):
    for n in (5, 2):
        save(Dataset.from_dict({"prompt": ["a"] * n}), tmp_path / "out")
        (tmp_path / "out/report.html").write_text("of this run")
        assert len(load(tmp_path / "out")) == n
    save(Dataset.from_dict({"prompt": ["b"]}), tmp_path / "out")
    assert not (tmp_path / "out/report.html").exists() and len(load(tmp_path / "out")) == 1
