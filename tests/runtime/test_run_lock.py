"""One process at a time writes into a run folder."""

import os
import signal
import subprocess
import sys

import pytest
from datasets import load_from_disk

from support.processes import forked, status_of
from support.rounds import pool
from support.tiny import save_tiny
from trl_real import TrlRealError
from trl_real.cli.main import main
from trl_real.data.files import save
from trl_real.runtime.run_lock import run_lock


HOLDER = """
import sys, time
from trl_real.runtime.run_lock import run_lock
with run_lock(sys.argv[1]):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the lock of `run`."""
    process = subprocess.Popen([sys.executable, "-c", HOLDER, tmp_path / "run"], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_a_second_process_is_told_which_one_writes(holder, tmp_path):
    with pytest.raises(TrlRealError, match=f"Process {holder.pid} is writing to .*another output_dir"):
        with run_lock(tmp_path / "run"):
            pass


def test_the_lock_of_a_killed_process_is_free(holder, tmp_path):
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    with run_lock(tmp_path / "run"), run_lock(tmp_path / "run"):  # and a process may take its own lock again
        assert (tmp_path / ".run.lock").read_text() == str(os.getpid())
    assert not list(tmp_path.iterdir())


COMMANDS = {
    "select": ["--dataset", "POOL"],
    "label": ["--dataset", "SELECTED"],
    "train": ["--dataset", "POOL", "--model", "MODEL", "--report_to", "none"],
    "sft": ["--dataset", "LABELS", "--model", "MODEL", "--report_to", "none"],
    "active": ["--dataset", "POOL", "--model", "m"],
    "self-annotate": ["--seed_labels", "LABELS", "--prompts", "POOL", "--n_prompts", "2", "--model", "m"],
    "study": ["--dataset", "POOL"],
    "win-rate": ["--dataset", "POOL"],
}


@pytest.mark.parametrize("verb", COMMANDS)
def test_every_verb_that_writes_a_folder_is_told(verb, holder, tmp_path, capsys):
    save(pool(), tmp_path / "pool")
    labels = pool().map(lambda row: {"chosen": row["responses"][0], "rejected": row["responses"][1]})
    save(labels, tmp_path / "labels")
    save(pool().add_column("pair", [[0, 1]] * 14), tmp_path / "selected")
    save_tiny(tmp_path / "model")
    paths = {
        "MODEL": tmp_path / "model",
        "POOL": tmp_path / "pool",
        "LABELS": tmp_path / "labels",
        "SELECTED": tmp_path / "selected",
    }
    argv = [str(paths.get(part, part)) for part in COMMANDS[verb]]
    if verb == "label":
        two = {"response_a": [r[0] for r in pool()["responses"]], "response_b": [r[1] for r in pool()["responses"]]}
        selected = load_from_disk(tmp_path / "selected")
        for name, values in two.items():
            selected = selected.add_column(name, values)
        save(selected, tmp_path / "selected2")
        argv[-1] = str(tmp_path / "selected2")
    assert main([verb, *argv, "--output_dir", str(tmp_path / "run")]) == 2
    assert f"Process {holder.pid} is writing" in capsys.readouterr().err.strip().splitlines()[-1]
    assert not (tmp_path / "run").exists()


def test_selections_with_other_settings_at_the_same_time_are_not_mixed(tmp_path):
    save(pool(60), tmp_path / "pool")
    argv = ["select", "--dataset", str(tmp_path / "pool"), "--strategy", "random", "--shard_rows", "5"]
    alone = {}
    for seed in ("1", "2", "3"):
        assert main([*argv, "--seed", seed, "--output_dir", str(tmp_path / seed)]) == 0
        alone[seed] = load_from_disk(tmp_path / seed)["pair"][:]

    def action(seed):
        sys.stderr = (tmp_path / f"{seed}.stderr").open("w")
        return main([*argv, "--output_dir", str(tmp_path / "out"), "--seed", seed])

    runs = {seed: forked(lambda: action(seed)) for seed in alone}  # noqa: B023
    ended = {seed: status_of(child) for seed, child in runs.items()}
    for seed, status in ended.items():
        said = ((tmp_path / f"{seed}.stderr").read_text().splitlines() or [""])[-1]
        assert status == 0 or (status == 2 and ("is writing to" in said or "holds a selection with" in said)), said
    done = [seed for seed, status in ended.items() if not status]
    assert load_from_disk(tmp_path / "out")["pair"][:] in [alone[seed] for seed in done]
