"""Every verb tells what is wrong with its data in one line, whatever the rows or the file hold; no traceback."""

import json
import random

import pytest

from support.bad_rows import ALL, KINDS, bad_file
from support.tiny import save_tiny, tiny_model, tiny_tokenizer
from trl_real.cli.main import main


pytestmark = pytest.mark.usefixtures("one_thread")
TRAIN = "--report_to none --max_steps 1 --bf16 False --gradient_checkpointing False --save_strategy no"
SPA = f"--n_prompts 2 --rounds 1 --max_new_tokens 4 --temperature 1.5 --use_peft --lora_r 2 {TRAIN}"
ROUND = f"--budget 2 --rounds 1 --use_peft --lora_r 2 {TRAIN}"
PICK = "--selection_strategy easy --selection_budget 2"
LENGTHS = "--lengths score --baseline_lengths baseline_score"
# Verb run -> kind of its bad dataset, and flags; BAD is that dataset, IN/… is a good one, MODEL a tiny model.
RUNS = {
    "select": ("pool", "select --dataset BAD --model MODEL"),
    "select random": ("pool", "select --dataset BAD --strategy random --budget 2"),
    "select stream": ("pool", "select --dataset BAD --strategy random --streaming"),
    "select d_optimal": ("pool", "select --dataset BAD --model MODEL --strategy d_optimal --context prompt+response"),
    "select mixture": ("pool", "select --dataset BAD --model MODEL --strategy easy+random --budget 4"),
    "select labels": ("labels", "select --dataset BAD --model MODEL --budget 3"),
    "select plan": ("pool", "select --plan --dataset BAD --model MODEL"),
    "label": ("selected", "label --dataset BAD"),
    "label chat": ("selected", "label --dataset BAD --judge chat --model MODEL --max_failure_rate 1"),
    "label reward": ("selected", "label --dataset BAD --judge reward --model REWARD"),
    "label implicit": ("selected", "label --dataset BAD --judge implicit_reward --model MODEL --reference MODEL2"),
    "label plan": ("selected", "label --plan --dataset BAD --judge chat --model MODEL"),
    "label check": ("labels", "label --check BAD --judge chat --model MODEL --max_failure_rate 1"),
    "train": ("labels", f"train --dataset BAD --model MODEL {TRAIN}"),
    "train selecting": ("labels", f"train --dataset BAD --model MODEL {PICK} {TRAIN}"),
    "train eval": ("labels", f"train --dataset IN/labels --eval_dataset BAD --model MODEL {TRAIN}"),
    "train plan": ("labels", "train --plan --dataset BAD --model MODEL --use_peft"),
    "sft": ("labels", f"sft --dataset BAD --model MODEL {TRAIN}"),
    "study": ("labels", "study --dataset BAD --model MODEL --budgets 0.5 1.0 --seeds 0 --n_test 2"),
    "study pool": ("pool", "study --dataset BAD --model MODEL --budgets 0.5 1.0 --seeds 0 --n_test 2"),
    "active": ("pool", f"active --dataset BAD --model MODEL --selectors easy {ROUND}"),
    "active labels": ("labels", f"active --dataset BAD --model MODEL --selectors random {ROUND}"),
    "self-annotate seeds": ("labels", f"self-annotate --seed_labels BAD --prompts IN/prompts --model MODEL {SPA}"),
    "self-annotate prompts": ("prompts", f"self-annotate --seed_labels IN/labels --prompts BAD --model MODEL {SPA}"),
    "win-rate": ("completions", "win-rate --dataset BAD"),
    "win-rate chat": ("completions", "win-rate --dataset BAD --judge chat --judge_model MODEL --max_failure_rate 1"),
    "win-rate verdicts": ("completions", f"win-rate --dataset BAD --preferences verdict {LENGTHS}"),
    "push": ("labels", "push --dataset BAD --repo_id user/pairs"),
}  # fmt: skip
MIXED = random.Random(0).sample(ALL, len(ALL))


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    folder = tmp_path_factory.mktemp("given")
    save_tiny(folder / "MODEL")
    save_tiny(folder / "MODEL2", seed=1)
    reward(folder / "REWARD")
    (folder / "IN").mkdir()
    for kind, (row, _) in KINDS.items():
        lines = (json.dumps({**row, "prompt": f"Tell me about {i}: "}) for i in range(8))
        (folder / f"IN/{kind}.jsonl").write_text("\n".join(lines))
    return folder


def reward(folder):
    from transformers import LlamaForSequenceClassification

    config = tiny_model().config
    config.num_labels = 1
    LlamaForSequenceClassification(config).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    """Handlers of libraries keep the standard error of an earlier test, which is closed."""
    monkeypatch.setattr("logging.raiseExceptions", False)


def play(run, shape, given, tmp_path, capsys):
    """Return what is wrong with the end of a run on a bad dataset, or None."""
    kind, flags = RUNS[run]
    number = len(list(tmp_path.iterdir()))
    (tmp_path / f"{number}.jsonl").write_bytes(bad_file(kind, shape))
    paths = {"BAD": str(tmp_path / f"{number}.jsonl")}
    paths |= {path.name: str(path) for path in given.iterdir()}
    paths |= {f"IN/{file.stem}": str(file) for file in (given / "IN").iterdir()}
    argv = [paths.get(part, part) for part in flags.split()]
    if argv[0] != "push":
        argv += ["--output_dir", str(tmp_path / f"out-{number}")]
    capsys.readouterr()
    try:
        status = main(argv)
    except BaseException as error:
        return f"{run}, {shape}: {type(error).__name__} {error}"[:300]
    said = capsys.readouterr().err.strip().splitlines() or [""]
    if status not in (0, 2) or (status == 2 and not said[-1].startswith("trl-real: ")):
        return f"{run}, {shape}: status {status}: {said[-1]}"[:400]
    if traced := next((i for i, line in enumerate(said) if "Traceback" in line), None):
        return f"{run}, {shape}: {' '.join(said[traced - 1 :])}"[:600]
    return None


def wrong(ends):
    return "\n".join(filter(None, ends))


@pytest.mark.parametrize("run", RUNS)
def test_each_shape_of_bad_rows_in_one_verb(run, given, tmp_path, capsys):
    shapes = MIXED[list(RUNS).index(run) :: len(RUNS)]
    assert not wrong(play(run, shape, given, tmp_path, capsys) for shape in shapes)


@pytest.mark.slow
@pytest.mark.parametrize("run", RUNS)
def test_every_shape_of_bad_rows(run, given, tmp_path, capsys):
    assert not wrong(play(run, shape, given, tmp_path, capsys) for shape in ALL)
