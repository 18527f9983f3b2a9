"""Tests of the command line: each verb reads the output of the one before, and a mistake gives a one-line error."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from datasets import Dataset, load_from_disk

from support.command_line import fails
from support.tiny import save_tiny
from trl_real.cli.main import VERBS, main
from trl_real.data.files import save
from trl_real.demo import task as demo_task
from trl_real.selection.record import SelectionRecord


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(save_tiny(tmp_path_factory.mktemp("model")))


@pytest.fixture
def pool(tmp_path):
    rows = {
        "prompt": [f"question {i}" for i in range(12)],
        "responses": [[f"yes {i}", f"no, not number {i}", f"perhaps {i} times"] for i in range(11)]
        + [["same", "same"]],
        "scores": [[float(i % 3), 1.5, 0.5] for i in range(11)] + [[1.0, 2.0]],
    }
    path = tmp_path / "pool.parquet"
    Dataset.from_dict(rows).to_parquet(str(path))
    return path


def test_select_label_and_train_work_one_after_the_other(tmp_path, pool, model, capsys):
    chosen, labels, trained = (str(tmp_path / name) for name in ("chosen", "labels", "trained"))
    assert main(["select", "--dataset", str(pool), "--model", model, "--budget", "8", "--output_dir", chosen]) == 0
    out, err = capsys.readouterr()
    assert out.strip() == chosen and "12 rows in: 8 kept, 3 not chosen, 1 skipped (1 identical responses)" in err
    assert SelectionRecord.load(chosen).n_kept == len(load_from_disk(chosen)) == 8

    assert main(["label", "--dataset", chosen, "--output_dir", labels, "--json"]) == 0
    counts = json.loads(capsys.readouterr().out)
    assert counts["labeled"] + counts["ties"] + counts["failed"] == 8
    assert SelectionRecord.load(labels).n_kept == 8

    flags = ["--max_steps", "1", "--per_device_train_batch_size", "2", "--bf16", "False", "--report_to", "none"]
    selection = ["--selection_strategy", "hard", "--selection_budget", "0.5"]
    argv = ["train", "--dataset", labels, "--model", model, "--output_dir", trained, *flags, *selection, "--json"]
    assert main(argv) == 0
    out = capsys.readouterr().out
    assert json.loads(out)["output_dir"] == trained
    assert (Path(trained) / "model.safetensors").exists()
    assert SelectionRecord.load(trained).strategy == "hard"


def test_settings_come_from_yaml_and_flags_override_them(tmp_path, pool, model, capsys):
    config = tmp_path / "select.yaml"
    config.write_text(
        f"dataset: {pool}\nmodel: {model}\nstrategy: random\nbudget: 0.5\noutput_dir: {tmp_path / 'a'}\n"
    )
    assert main(["select", "--config", str(config), "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["strategy"] == "random" and record["budget"] == 0.5
    flags = ["--strategy", "hard", "--output_dir", str(tmp_path / "b")]
    assert main(["select", "--config", str(config), *flags, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["strategy"] == "hard"


def test_train_reads_yaml(tmp_path, model, capsys):
    rows = {"prompt": ["a", "b"], "chosen": [" yes", " sure"], "rejected": [" no", " never"]}
    data = tmp_path / "pairs.jsonl"
    Dataset.from_dict(rows).to_json(str(data))
    config = tmp_path / "train.yaml"
    settings = {"dataset": str(data), "model": model, "output_dir": str(tmp_path / "out"), "max_steps": 1}
    config.write_text(yaml.safe_dump({**settings, "bf16": False, "report_to": "none"}))
    assert main(["train", "--config", str(config), "--json"]) == 0
    assert "train_loss" in json.loads(capsys.readouterr().out)


def test_win_rate_plan_with_scores_asks_no_judge(tmp_path, capsys):
    rows = {"prompt": ["a"], "response": ["b"], "baseline_response": ["c"], "score": [1.0], "baseline_score": [0.0]}
    Dataset.from_dict(rows).to_parquet(str(tmp_path / "rows.parquet"))
    assert main(["win-rate", "--dataset", str(tmp_path / "rows.parquet"), "--plan"]) == 0
    assert capsys.readouterr().out == "score:scores asks no questions\n"


def test_failed_verdict_needs_no_length(tmp_path, capsys):
    rows = {"v": [1.0, 0.0, None, 1.0], "a": [3, 5, None, 9], "b": [4, 4, None, 7]}
    Dataset.from_dict(rows).to_parquet(str(tmp_path / "rows.parquet"))
    flags = ["--preferences", "v", "--lengths", "a", "--baseline_lengths", "b", "--json"]
    assert main(["win-rate", "--dataset", str(tmp_path / "rows.parquet"), *flags]) == 0
    assert json.loads(capsys.readouterr().out)["n_failed"] == 1


def test_win_rate_from_verdicts_and_from_scores(tmp_path, capsys):
    rows = {
        "prompt": ["a", "b", "c", "d"],
        "response": ["x", "y", "z", "same"],
        "baseline_response": ["u", "v", "w", "same"],
        "score": [2.0, 2.0, 1.0, 0.0],
        "baseline_score": [1.0, 1.0, 2.0, 9.0],
        "verdict": [1.0, 1.0, 0.0, 0.5],
    }
    path = str(tmp_path / "rows.parquet")
    Dataset.from_dict(rows).to_parquet(path)
    for extra in (["--preferences", "verdict"], []):
        assert main(["win-rate", "--dataset", path, *extra, "--json"]) == 0
        rates = json.loads(capsys.readouterr().out)
        assert (rates["n_wins"], rates["n_losses"], rates["n_ties"], rates["win_rate"]) == (2, 1, 1, 0.625)
    assert main(["win-rate", "--dataset", path, "--preferences", "verdict"]) == 0
    assert "win_rate\t0.625" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["select"], "--dataset is missing"),
        (["select", "--dataset", "nowhere.parquet", "--output_dir", "x"], "No file or folder 'nowhere.parquet'"),
        (["select", "--dataset", "{pool}", "--output_dir", "x", "--budget", "1.5"], "budget=1.5 is out of range"),
        (["select", "--dataset", "{pool}", "--output_dir", "x", "--strategy", "medium"], "No strategy 'medium'"),
        (
            ["select", "--dataset", "{pool}", "--output_dir", "x", "--source", "reddit"],
            "No source 'reddit'; there are",
        ),
        (["select", "--dataset", "{pool}", "--output_dir", "x"], "No column 'embeddings'"),
        (["select", "--dataset", "{pool}", "--output_dir", "x", "--responses", "answers"], "No column 'answers'"),
        (["select", "--config", "{bad}"], "sets 'strateggy'; there are"),
        (["select", "--config", "nowhere.yaml"], "Cannot read the settings"),
        (["label", "--dataset", "{pool}", "--output_dir", "x"], "No column 'pair'"),
        (["label", "--dataset", "{pool}", "--plan", "--judge", "reward", "--model", "m"], "No column 'pair'"),
        (["train", "--dataset", "{pool}", "--output_dir", "x"], "--model is missing"),
        (["train", "--dataset", "{pool}", "--model", "m", "--output_dir", "x"], "No column 'chosen'"),
        (["train", "--config", "nowhere.yaml"], "nowhere.yaml"),
        (["train", "--config", "{bad}"], "strateggy"),
        (["sft", "--config", "{bad}"], "strateggy"),
        (
            ["active", "--dataset", "{pool}", "--model", "m", "--output_dir", "x", "--eval_dataset", "{pool}"],
            "No column 'chosen'",
        ),
        (["win-rate", "--dataset", "{pool}"], "No column 'score'"),
        (["train", "--dataset", "{none}", "--model", "m", "--output_dir", "x"], "holds no preferences"),
        (["push", "--dataset", "{pool}", "--repo_id", "u/x"], "No selection_record.json"),
    ],
)
def test_each_mistake_gets_a_one_line_error_and_exit_code_2(argv, message, pool, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    bad = tmp_path / "bad.yaml"
    bad.write_text("strateggy: easy\n")
    none = save(Dataset.from_dict({"prompt": ["a"], "chosen": ["b"], "rejected": ["c"]}).select([]), tmp_path / "none")
    assert message in fails(capsys, *[arg.format(pool=pool, bad=bad, none=none) for arg in argv])


def test_a_stray_flag_is_refused(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["select", "--bugdet", "3"])
    assert stopped.value.code == 2


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help(verb, capsys):
    with pytest.raises(SystemExit) as stopped:
        main([verb, "--help"])
    assert stopped.value.code == 0 and "--json" in capsys.readouterr().out


def test_help_and_import_load_nothing_heavy():
    code = (
        "import trl_real, trl_real.cli.main, sys; print([m for m in ('torch', 'datasets', 'trl') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_public_names_exist():
    import trl_real

    for name in trl_real.__all__:
        assert getattr(trl_real, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        trl_real.nothing  # noqa: B018


def test_truncated_reply_ends_with_its_last_full_sentence():
    assert demo_task.whole_sentences("One. Two! And thr") == "One. Two!"
    assert demo_task.whole_sentences('He said "no." Then') == 'He said "no."'
    assert demo_task.whole_sentences(" no end ") == "no end"
    assert demo_task.whole_sentences("3.5 apples. x") == "3.5 apples."


def test_demo_train_and_test_prompts_are_disjoint():
    assert not set(demo_task.TRAIN_TOPICS) & set(demo_task.TEST_TOPICS)
    assert len(demo_task.prompts(demo_task.TRAIN_TOPICS)) == 80


@pytest.fixture(scope="module")
def small_demo(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo") / "out"
    sizes = ["--n_prompts", "6", "--n_responses", "3", "--n_samples", "1", "--max_new_tokens", "6"]
    return folder, ["demo", "--output_dir", str(folder), "--model", model, "--budgets", "3", "5", *sizes]


def test_demo_runs_all_steps_once_and_refuses_other_settings(small_demo, capsys, monkeypatch):
    # The lexicon knows none of the words that a random model writes, so the length stands for the reward here.
    monkeypatch.setattr("trl_real.cli.demo.sentiment", lambda texts: [len(text) / 100 for text in texts])
    folder, argv = small_demo
    assert main(argv) == 0
    table = capsys.readouterr().out
    assert "easy 3" in table and "random 5" in table and "reward before training" in table
    page = (folder / "report.html").read_text()
    assert "<html" in page and "easy 5 : random 5" in page and "difference of win rates" in page
    trained = {path: path.stat().st_mtime_ns for path in folder.glob("*/adapter_model.safetensors")}
    assert len(trained) == 4
    assert main([*argv, "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["arms"]) == 4
    assert trained == {path: path.stat().st_mtime_ns for path in trained}

    assert "has a run with another seed" in fails(capsys, *argv, "--seed", "7")


def test_train_resumes_a_killed_run(tmp_path, model, capsys, caplog):
    rows = [{"prompt": f"q{i}? ", "chosen": f"yes {i}", "rejected": f"no, not {i}"} for i in range(8)]
    Dataset.from_list(rows).to_parquet(str(tmp_path / "pairs.parquet"))
    flags = ["--max_steps", "3", "--per_device_train_batch_size", "2", "--bf16", "False", "--report_to", "none"]
    saving = ["--save_strategy", "steps", "--save_steps", "1", "--logging_steps", "1"]
    argv = ["train", "--dataset", str(tmp_path / "pairs.parquet"), "--model", model, *flags, *saving, "--json"]
    assert main([*argv, "--output_dir", str(tmp_path / "out")]) == 0
    whole = json.loads(capsys.readouterr().out)
    weights = (tmp_path / "out" / "model.safetensors").read_bytes()
    shutil.rmtree(tmp_path / "out" / "checkpoint-3")  # killed before the last step, and before the model was saved
    (tmp_path / "out" / "model.safetensors").unlink()
    for _ in range(2):  # the second time there is nothing left to do
        assert main([*argv, "--output_dir", str(tmp_path / "out")]) == 0
        assert "Resuming from" in caplog.text and json.loads(capsys.readouterr().out)["loss"] == whole["loss"]
        caplog.clear()
        assert (tmp_path / "out" / "model.safetensors").read_bytes() == weights
