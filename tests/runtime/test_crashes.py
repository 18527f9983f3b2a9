"""A verb that is killed, or finds the disk full, at any change of a file ends, run again, as an unkilled one would."""

import hashlib
import json
import logging
import random
import shutil
import sys

import pytest
from datasets import Dataset, load_from_disk

from support.crashes import ERRORS, FAILURES, KILLED, in_child
from support.rounds import pool, prompts
from support.tiny import save_tiny
from support.training import pairs
from trl_real.cli.main import main
from trl_real.data.files import save


pytestmark = pytest.mark.usefixtures("one_thread")
TRAINING = "--max_steps 3 --save_steps 1 --logging_steps 1 --learning_rate 1e-2 --per_device_train_batch_size 2"
TRAINING += " --report_to none --bf16 False --disable_tqdm True --gradient_checkpointing False"
LORA = "--use_peft --lora_r 2 --lora_target_modules all-linear"
ACTIVE = f"--selectors easy --budget 4 --rounds 2 {TRAINING} {LORA} --max_steps 2"
SPA = f"--n_prompts 3 --max_new_tokens 4 --temperature 1.5 --rounds 1 {TRAINING} {LORA} --max_steps 2"
VERBS = {
    "select": "select --dataset IN/pool --model IN/model --budget 6 --shard_rows 5",
    "label": "label --dataset IN/selected",
    "train": f"train --dataset IN/labels --model IN/model {TRAINING}",
    "sft": f"sft --dataset IN/labels --model IN/model {TRAINING}",
    "active": f"active --dataset IN/pool --model IN/model {ACTIVE}",
    "self-annotate": f"self-annotate --seed_labels IN/labels --prompts IN/prompts --model IN/model {SPA}",
    "study": "study --dataset IN/labels --model IN/model --budgets 0.5 1.0 --seeds 0 --n_test 4",
}
FAST = 3  # crash points a verb in the fast tests
SLOW = 60  # and, evenly, a verb and failure in the slow ones: all of most verbs


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    folder = tmp_path_factory.mktemp("given")
    save_tiny(folder / "model")
    save(pool(), folder / "pool")
    save(Dataset.from_list(pairs(12)), folder / "labels")
    save(prompts(8), folder / "prompts")
    select = ["select", "--strategy", "random", "--dataset", str(folder / "pool"), "--output_dir"]
    assert in_child(lambda: main([*select, str(folder / "selected")]), folder)[0] == 0
    return folder


@pytest.fixture(scope="module")
def unkilled(given, tmp_path_factory):
    """Outcome and number of changes of each verb's unkilled run, made when first asked for."""
    found = {}

    def of(verb):
        if verb not in found:
            folder = tmp_path_factory.mktemp("whole")
            status, n_changes = in_child(lambda: run(verb, given, folder), folder)
            assert status == 0
            found[verb] = outcome(folder), n_changes
        return found[verb]

    return of


def run(verb, given, folder):
    return main([part.replace("IN/", f"{given}/") for part in VERBS[verb].split()] + ["--output_dir", f"{folder}/out"])


def outcome(folder):
    """Everything that a run leaves for the next command: weights, rows, results; no times and no leftovers."""
    found = {}
    for file in sorted((folder / "out").rglob("*")):
        name = str(file.relative_to(folder))
        if "checkpoint-" in name or "trainer" in name or not file.is_file():
            continue
        if file.suffix == ".safetensors":
            found[name] = hashlib.sha256(file.read_bytes()).hexdigest()
        elif file.name == "state.json" and "round-" in name:
            found[name] = {step: without_times(values) for step, values in json.loads(file.read_text()).items()}
        elif file.name == "state.json":
            found[name] = repr(load_from_disk(str(file.parent)).to_list())  # nan equals nan
        elif file.parent.name == "cells" and file.suffix == ".json":
            found[name] = without_times(json.loads(file.read_text()))
    return found


def without_times(values):
    if isinstance(values, dict):
        return {name: without_times(value) for name, value in values.items() if "second" not in name}
    return round(values, 6) if isinstance(values, float) else values


def check(verb, failure, points, given, unkilled, tmp_path):
    whole, _ = unkilled(verb)
    assert whole
    for point in points:
        folder = tmp_path / str(point)
        folder.mkdir()
        assert not (wrong := told_badly(verb, given, folder, point, failure)), wrong
        status, _ = in_child(lambda: run(verb, given, folder), folder)  # noqa: B023
        assert status == 0, f"{verb}: the run after failure {failure!r} at change {point} fails"
        assert outcome(folder) == whole, f"{verb}: another outcome after failure {failure!r} at change {point}"
        shutil.rmtree(folder)


def snapshot(folder):
    return {file: (file.stat().st_mtime_ns, file.stat().st_size) for file in folder.rglob("*")}


@pytest.mark.parametrize("verb", VERBS)
def test_no_verb_writes_into_an_input_folder(verb, given, tmp_path):
    before = snapshot(given)
    assert in_child(lambda: run(verb, given, tmp_path), tmp_path)[0] == 0
    assert snapshot(given) == before


def told_badly(verb, given, folder, point, failure):
    """Fail at a change, and return what is wrong with the end of a verb that could tell it."""
    said = folder.parent / f"{folder.name}.stderr"

    def action():
        sys.stderr = said.open("w")
        logging.getLogger().handlers.clear()
        return run(verb, given, folder)

    status, _ = in_child(action, folder, point, failure)
    lines = said.read_text().strip().splitlines() or [""]
    if status in (0, KILLED) and failure not in ERRORS or status == 0:
        return ""
    is_line = status == 2 and lines[-1].startswith("trl-real: ") and not any("Traceback" in line for line in lines)
    return "" if is_line else f"{verb}: status {status} after {failure!r} at change {point}: {lines[-1]}"


@pytest.mark.parametrize("verb", VERBS)
def test_a_disk_that_cannot_be_written_is_one_line(verb, given, tmp_path):
    (tmp_path / "run").mkdir()
    wrong = told_badly(verb, given, tmp_path / "run", 1, "read-only")
    assert not wrong and (tmp_path / "run.stderr").read_text().count("Read-only file system") == 1


@pytest.mark.parametrize("verb", VERBS)
def test_some_crash_points(verb, given, unkilled, tmp_path):
    n_changes, draw = unkilled(verb)[1], random.Random(verb)
    points = sorted(draw.sample(range(1, n_changes + 1), min(FAST, n_changes)))
    for failure, point in zip(FAILURES, points, strict=False):
        check(verb, failure, [point], given, unkilled, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("failure", FAILURES)
@pytest.mark.parametrize("verb", VERBS)
def test_crash_points_from_the_first_to_the_last_change(verb, failure, given, unkilled, tmp_path):
    n_changes, draw = unkilled(verb)[1], random.Random(f"{verb} {failure}")
    step = max(1.0, n_changes / SLOW)
    points = sorted({1 + int(step * (i + draw.random())) for i in range(int(n_changes / step))})
    check(verb, failure, points, given, unkilled, tmp_path)
