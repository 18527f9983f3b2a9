"""Short runs of the verbs that write a folder, and what they leave in it."""

import hashlib
import json
import re

from datasets import Dataset, load_from_disk

from support.crashes import in_child
from support.rounds import pool, prompts
from support.tiny import save_tiny
from support.training import pairs
from trl_real.cli.main import main
from trl_real.data.files import save


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


MEASURED = re.compile("second|batch_tokens")  # times, and sizes that follow the machine


def make_inputs(folder):
    """Make the model and the datasets that the verbs read."""
    save_tiny(folder / "model")
    save(pool(), folder / "pool")
    save(Dataset.from_list(pairs(12)), folder / "labels")
    save(prompts(8), folder / "prompts")
    select = ["select", "--strategy", "random", "--dataset", str(folder / "pool"), "--output_dir"]
    assert in_child(lambda: main([*select, str(folder / "selected")]), folder)[0] == 0
    return folder


def run(verb, given, folder, *flags):
    argv = [part.replace("IN/", f"{given}/") for part in VERBS[verb].split()]
    return main([*argv, *flags, "--output_dir", f"{folder}/out"])


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
        return {name: without_times(value) for name, value in values.items() if not MEASURED.search(name)}
    return round(values, 6) if isinstance(values, float) else values
