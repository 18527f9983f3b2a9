"""The examples run unchanged: with a tiny model here, with the demo's model in `make test-slow`."""

import difflib
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
from itertools import combinations
from pathlib import Path

import pytest
import yaml
from datasets import Dataset, load_from_disk

from support.browser import arrive
from support.judge_server import MODEL as JUDGE
from support.judge_server import JudgeServer
from support.project import ROOT
from support.tiny import TOOL_TEMPLATE, save_tiny, tiny_tokenizer
from trl_real import EmbeddingPairSelector, REALDPOConfig, REALDPOTrainer, annotate
from trl_real.cli.main import main
from trl_real.demo.model import demo_model
from trl_real.labeling.people.queue import VoteQueue
from trl_real.runtime.journal import Journal
from trl_real.selection.record import SelectionRecord


pytestmark = pytest.mark.usefixtures("one_thread")

EXAMPLES = ROOT / "examples"
CONFIGS = EXAMPLES / "configs"
HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> str:
    return save_tiny(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def real() -> str:
    return demo_model()


@pytest.fixture
def checkout(tmp_path, monkeypatch) -> Path:
    """A folder from which `examples/…` is found, and in which `runs/…` is nobody else's."""
    (tmp_path / "examples").symlink_to(EXAMPLES)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path))  # where answers are cached
    return tmp_path


def run(script: str, *flags: object) -> None:
    argv, sys.argv = sys.argv, [script, *map(str, flags)]
    try:
        runpy.run_path(str(EXAMPLES / script), run_name="__main__")
    finally:
        sys.argv = argv


def pool_of(n: int, folder: Path) -> Path:
    """The first rows of the pool."""
    lines = (EXAMPLES / "pool.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    (folder / "pool.jsonl").write_text("".join(lines[:n]), encoding="utf-8")
    return folder / "pool.jsonl"


def rounds_told(out: str) -> list[str]:
    return re.findall(r"^round \d+|^initial|^seed(?=:)", out, flags=re.MULTILINE)


# The change to a TRL script


def trl_script() -> str:
    """`dpo_script.py` without the change that its docstring tells."""
    text = (EXAMPLES / "dpo_script.py").read_text(encoding="utf-8")
    told = re.findall(r"^    ([+-])(.*)$", text.split('"""')[1], flags=re.MULTILINE)
    code = text.split('"""', 2)[2]
    for i, (sign, line) in enumerate(told):
        before = told[i - 1][1] if i and told[i - 1][0] == "-" else ""
        if sign == "+":
            assert f"\n{line}\n" in code, line
            code = code.replace(f"\n{line}\n", f"\n{before}\n" if before else "\n")
    return code


def test_docstring_shows_the_whole_diff(tmp_path):
    before = trl_script()
    assert "trl_real" not in before and "REALDPO" not in before and "DPOTrainer(" in before
    after = (EXAMPLES / "dpo_script.py").read_text(encoding="utf-8").split('"""', 2)[2]
    lines = [line for line in difflib.ndiff(before.split("\n"), after.split("\n")) if line[0] == "+" and line[2:]]
    assert len(lines) == 4  # three that changed, one import of which a line has been split
    compile(before, "before", "exec")


def dpo_script(model: str, *flags: object) -> None:
    fixed = [
        "--dataset_name",
        "examples/preferences.jsonl",
        "--output_dir",
        "runs/dpo",
        "--use_cpu",
        "True",
        "--bf16",
        "False",
    ]
    select = ["--selection_strategy", "easy", "--selection_budget", "0.5", "--report_to", "none"]
    run("dpo_script.py", "--model_name_or_path", model, *fixed, *select, "--use_peft", *flags)
    record = SelectionRecord.load("runs/dpo")
    assert (record.n_rows, record.n_kept) == (48, 24)
    assert Path("runs/dpo/adapter_model.safetensors").exists()


def test_the_trl_script_selects_and_trains(tiny, checkout):
    dpo_script(tiny, "--max_steps", 1)


@pytest.mark.slow
def test_the_trl_script_trains_a_real_model(real, checkout):
    dpo_script(real, "--max_steps", 2)


# Select, label, train


@pytest.mark.slow
def test_pool_to_policy_trains_a_real_model(real, checkout, capsys):
    run("pool_to_policy.py", "--model", real, "--max_steps", 2, "--output_dir", "runs/aligned")
    assert "40 rows in: 20 kept, 20 not chosen, 0 skipped" in capsys.readouterr().out
    assert Path("runs/aligned/adapter_model.safetensors").exists()


# A chat model as the judge


def chat_judge(model: str, capsys, *flags: object) -> None:
    run("chat_judge.py", "--model", model, "--output_dir", "runs/chat", *flags)
    out = capsys.readouterr().out
    assert re.search(r"^win rate [\d.]+ \[", out, flags=re.MULTILINE) and "trained against before" in out
    assert Path("runs/chat/adapter_model.safetensors").exists() and Path("runs/chat.verdicts.jsonl").exists()


def test_a_served_chat_model_labels_and_compares(tiny, checkout, capsys):
    pool = pool_of(10, checkout)
    sizes = ["--n_test", 3, "--budget", 4, "--max_new_tokens", 4, "--max_steps", 1]
    with JudgeServer() as server:
        judge = ["--judge", JUDGE, "--base_url", server.url, "--max_cost", 1]
        chat_judge(tiny, capsys, "--pool", pool, *sizes, *judge)
        assert server.answered.total() >= 2 * 4  # and those of answers that came out different


@pytest.mark.slow
def test_a_real_chat_model_labels_and_compares(real, checkout, capsys):
    sizes = ["--n_test", 4, "--budget", 8, "--max_new_tokens", 16, "--max_steps", 2]
    chat_judge(real, capsys, "--judge", real, *sizes)


# Calls of tools


def tool_calls(model: str, capsys, *flags: object) -> str:
    run("tool_calls.py", "--model", model, *flags)
    assert Path("runs/tools/adapter_model.safetensors").exists()
    return capsys.readouterr().out


def test_calls_are_selected_judged_and_trained_with_their_tools(tiny, checkout, capsys):
    model = shutil.copytree(tiny, checkout / "with-tools")
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = TOOL_TEMPLATE
    tokenizer.save_pretrained(model)
    out = tool_calls(str(model), capsys, "--max_steps", 1)
    assert "8 labels; columns ['prompt', 'chosen', 'rejected'" in out and "'tools'" in out and "[call] get_" in out
    judge = runpy.run_path("examples/tool_calls.py")["expected_call"]
    pool = Dataset.from_json("examples/tool_pool.jsonl")
    labels = annotate(EmbeddingPairSelector(str(model)).select(pool, 8), judge)
    expected = [json.loads(row["expected"])["arguments"] for row in labels]
    called = [row["chosen"][0]["tool_calls"] for row in labels]
    right = [bool(c) and json.loads(c[0]["function"]["arguments"]) == e for c, e in zip(called, expected, strict=True)]
    assert sum(right) >= 4  # a pair may hold two wrong ones
    trainer = REALDPOTrainer(
        str(model),
        args=REALDPOConfig("runs/t", use_cpu=True, bf16=False, report_to="none"),
        train_dataset=labels,
        processing_class=tokenizer,
    )
    for row, ids in zip(labels, trainer.train_dataset["prompt_ids"], strict=True):
        assert json.loads(row["tools"])[0]["function"]["name"] in tokenizer.decode(ids)


@pytest.mark.slow
def test_a_real_model_learns_calls(real, checkout, capsys):
    assert "8 labels" in tool_calls(real, capsys, "--max_steps", 2)


# People in the loop


def vote_on_all(pool: Path, votes: Path) -> int:
    """What a person would have said about every pair of a pool; how many there are."""
    rows = [
        {"prompt": row["prompt"], "pair": [0, 1], "response_a": a, "response_b": b}
        for row in map(json.loads, pool.read_text(encoding="utf-8").splitlines())
        for a, b in combinations(row["responses"], 2)
    ]
    votes.parent.mkdir(exist_ok=True)
    with Journal(votes) as journal:
        queue = VoteQueue(Dataset.from_list(rows), journal, "ann")
        for _ in rows:
            assert queue.vote("a", 1.0)
    return len(rows)


def test_rounds_use_human_votes(tiny, checkout, capsys):
    pool = pool_of(4, checkout)
    assert vote_on_all(pool, checkout / "runs" / "people.votes.jsonl") == 24
    flags = ["--pool", pool, "--rounds", 1, "--budget", 3, "--max_steps", 1, "--output_dir", "runs/people"]
    run("people_in_the_loop.py", "--model", tiny, *flags)
    out = capsys.readouterr().out
    assert rounds_told(out) == ["round 0", "round 1"] and "round 1: 3 labels of 3 pairs" in out
    assert "Label at" not in out


@pytest.mark.slow
def test_a_person_votes_on_the_page_of_each_round(real, checkout, browser):
    pool, flags = pool_of(6, checkout), ["--rounds", 2, "--budget", 2, "--max_steps", 1]
    command = [sys.executable, "examples/people_in_the_loop.py", "--model", real, "--pool", pool, *flags]
    settings = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([*map(str, command)], stdout=subprocess.PIPE, text=True, env=settings)
    try:
        for _ in range(2):
            address = next(found[1] for line in process.stdout if (found := re.search(r"Label at (http\S+)", line)))
            arrive(browser, address)
            browser.run("document.querySelector('#guidelines button').click()")  # folded, and not there until opened
            browser.wait("document.querySelector('#guidelines').textContent.includes('cheerful')")
            while browser.shown():
                browser.vote("1")
        assert rounds_told(process.stdout.read())[-1] == "round 2" and process.wait(timeout=120) == 0
    finally:
        process.kill()


# Self-annotation


def self_annotation(model: str, capsys, rounds: int, *flags: object) -> None:
    run("self_annotation.py", "--model", model, "--rounds", rounds, *flags)
    out = capsys.readouterr().out
    assert "100 labels to begin with" in out
    assert rounds_told(out) == ["initial", "seed", *(f"round {i + 1}" for i in range(rounds))]


def test_self_annotation_starts_from_seed_labels(tiny, checkout, capsys):
    learning = ["--max_steps", 2, "--learning_rate", 1e-2]
    self_annotation(tiny, capsys, 1, "--n_prompts", 4, "--max_new_tokens", 4, *learning)


@pytest.mark.slow
def test_self_annotation_with_a_real_model(real, checkout, capsys):
    learning = ["--max_steps", 3, "--learning_rate", 1e-3]
    self_annotation(real, capsys, 2, "--n_prompts", 4, "--max_new_tokens", 16, *learning)


# The settings files

TRAINER = ["--max_steps", 1, "--per_device_train_batch_size", 2, "--report_to", "none", "--bf16", "False"]
TRAINER += ["--learning_rate", 1e-2, "--warmup_steps", 0]  # with less, a step teaches nothing that a label could tell


def chain(model: str, small: bool) -> dict:
    """Every file, one after another as its comments say, and what the last three came to."""

    def verb(name: str, *flags: object) -> None:
        config = CONFIGS / f"{name.replace('-', '_')}.yaml"
        assert main([name, "--config", str(config), *map(str, flags)]) == 0, name

    verb("select", "--model", model)
    verb("label")
    verb("sft", "--model", model, "--max_steps", 1)
    verb("train", "--max_steps", 1)
    verb("win-rate", "--judge_model", model, "--split", "train[:4]", "--max_new_tokens", 6)
    arms = {"active": ["--selectors", "random"], "self-annotate": ["--arms", "expansion"]} if small else {}
    sizes = {"active": ["--budget", 3], "self-annotate": ["--n_prompts", 4, "--max_new_tokens", 6]}
    for name in ("active", "self-annotate"):
        verb(name, "--model", model, "--rounds", 1, *arms.get(name, []), *sizes[name], *TRAINER)
    verb("study", "--model", model, "--seeds", 0, "--arms", "random", "easy")
    return {path.parent.name for path in Path("runs").glob("*/report.html")}


def test_settings_files_work_one_after_the_other(tiny, checkout):
    assert chain(tiny, small=True) == {"labels", "compared", "active", "self_annotation", "study"}
    assert len(load_from_disk("runs/chosen")) == 20


@pytest.mark.slow
def test_the_settings_files_with_a_real_model(real, checkout):
    assert chain(real, small=False) == {"labels", "compared", "active", "self_annotation", "study"}


def test_chat_judge_gets_its_settings(checkout, capsys):
    assert main(["select", "--config", str(CONFIGS / "select.yaml"), "--strategy", "random", "--budget", "8"]) == 0
    assert main(["label", "--config", str(CONFIGS / "label_chat.yaml"), "--plan", "--json"]) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert told["n_asked"] + told["n_cached"] == 16 and told["cost"] > 0


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_settings_file_documents_its_use_and_has_no_secret(path):
    text = path.read_text(encoding="utf-8")
    assert re.match(rf"# trl-real [a-z-]+ --config examples/configs/{path.name}\b", text)
    assert "api_key" not in yaml.safe_load(text)


# Several GPUs


def test_accelerate_reads_the_launch_config():
    from accelerate.commands.config.config_args import load_config_from_file

    found = load_config_from_file(str(EXAMPLES / "multi_gpu" / "ddp.yaml"))
    assert found.distributed_type.value == "MULTI_GPU" and found.num_processes == 8


@pytest.mark.slow
def test_launch_script_selects_and_trains_with_two_processes(tiny, checkout):
    flags = {
        "LAUNCH": "torchrun --nproc_per_node 2",
        "SELECT_FLAGS": f"--model {tiny}",
        "TRAIN_FLAGS": f"--model {tiny} --max_steps 1 --use_cpu True --eval_strategy no",
    }
    tools = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    settings = {**os.environ, **flags, "PATH": tools, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    subprocess.run(["bash", "examples/multi_gpu/launch.sh"], check=True, env=settings, timeout=900)
    assert SelectionRecord.load("runs/chosen").n_kept == 20
    assert Path("runs/aligned/adapter_model.safetensors").exists()


# The notebook


def parts() -> list[tuple[str, str]]:
    return runpy.run_path(str(EXAMPLES / "build_notebook.py"))["cells"](
        (EXAMPLES / "notebook.py").read_text(encoding="utf-8")
    )


def execute(model: str, folder: Path, changes: dict[str, str]) -> list[list[dict]]:
    builder = runpy.run_path(str(EXAMPLES / "build_notebook.py"))
    sources = [text for kind, text in parts() if kind == "code"]
    for shown, quick in {HUB_ID: model, **changes}.items():
        assert any(shown in text for text in sources), shown
        sources = [text.replace(shown, quick) for text in sources]
    return builder["run"](sources, folder)


QUICK = {"num_train_epochs=2": "max_steps=1", "max_new_tokens=32": "max_new_tokens=4", "train[:16]": "train[:3]"}


def test_notebook_equals_its_script_and_has_its_outputs():
    text = (EXAMPLES / "notebook.ipynb").read_text(encoding="utf-8")
    found = json.loads(text)
    assert (found["nbformat"], found["nbformat_minor"]) == (4, 5)
    assert [(cell["cell_type"], "".join(cell["source"])) for cell in found["cells"]] == parts()
    outputs = [output for cell in found["cells"] if cell["cell_type"] == "code" for output in cell["outputs"]]
    assert {output["output_type"] for output in outputs} == {"stream", "display_data"}
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 3
    printed = "".join("".join(output.get("text", [])) for output in outputs)
    assert "40 rows in: 16 kept, 24 not chosen, 0 skipped" in printed and "/home/" not in printed + text
    assert len(text) < 400_000


def test_the_notebook_runs(tiny, tmp_path):
    pytest.importorskip("vaderSentiment")
    outputs = execute(tiny, tmp_path, QUICK)
    assert sum("image/png" in output.get("data", {}) for cell in outputs for output in cell) == 3


@pytest.mark.slow
def test_the_notebook_runs_with_a_real_model(real, tmp_path):
    pytest.importorskip("vaderSentiment")
    outputs = execute(real, tmp_path, {**QUICK, "max_new_tokens=32": "max_new_tokens=12"})
    assert "difference of win rates" in "".join(outputs[-1][0]["text"])


def test_list_of_examples_is_complete():
    text = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        assert (EXAMPLES / target).exists(), target
    ours = {path.name for path in EXAMPLES.iterdir() if not path.name.startswith((".", "__", "README", "build_"))}
    assert {name for name in ours if f"`{name}" not in text} <= {"runs"}
    for name in re.findall(r"configs/(\w+\.yaml)", text):
        assert (CONFIGS / name).exists()
