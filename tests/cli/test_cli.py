"""Tests of the command line: each verb reads the output of the one before, and its output is strict."""

import json
import shutil
from pathlib import Path

import pytest
import yaml
from datasets import Dataset, load_from_disk

from support.command_line import fails
from trl_real.cli.main import VERBS, main
from trl_real.demo import task as demo_task
from trl_real.selection.record import SelectionRecord


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


def test_dashes_and_underscores_are_the_same(tmp_path, pool, capsys):
    config = tmp_path / "select.yaml"
    config.write_text(f"output-dir: {tmp_path / 'b'}\n")
    plain = ["select", "--dataset", str(pool), "--strategy=random"]
    for flags in (
        ["--output-dir", str(tmp_path / "a")],
        ["--config", str(config), "--output_dir", str(tmp_path / "b")],
    ):
        assert main([*plain, *flags]) == 0
    capsys.readouterr()
    rows = {"prompt": ["a"], "response": ["b"], "baseline_response": ["c"], "score": [1.0], "baseline_score": [0.0]}
    Dataset.from_dict(rows).to_parquet(str(tmp_path / "rows.parquet"))
    assert main(["win_rate", "--dataset", str(tmp_path / "rows.parquet"), "--baseline-score", "baseline_score"]) == 0


def test_json_is_strict(tmp_path, capsys):
    rows = {"v": [1.0, 1.0, 1.0]}
    Dataset.from_dict(rows).to_parquet(str(tmp_path / "rows.parquet"))
    argv = ["win-rate", "--dataset", str(tmp_path / "rows.parquet"), "--preferences", "v", "--json"]
    assert main([*argv, "--output_dir", str(tmp_path / "out")]) == 0

    def refuse(word):
        raise AssertionError(word)

    for text in (capsys.readouterr().out, (tmp_path / "out" / "comparison.json").read_text()):
        json.loads(text, parse_constant=refuse)


def test_no_key_is_written_into_the_output():
    import argparse

    from trl_real.cli.judges import add_judge_flags, recorded_judge

    parser = argparse.ArgumentParser()
    add_judge_flags(parser)
    args = parser.parse_args(
        ["--judge", "chat", "--model", "m", "--api_key", "secret", "--base_url", "http://u:p@h/v1"]
    )
    assert recorded_judge(args) == {"judge": "chat", "model": "m"}


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (
            ["label", "--dataset", "{pool}", "--plan", "--human", "--votes", "v.jsonl"],
            "--plan tells what a judge would cost",
        ),
        (["label", "--dataset", "{pool}", "--plan", "--check", "{pool}"], "without --check"),
        (["win-rate", "--dataset", "{pool}", "--plan", "--preferences", "v"], "--preferences needs none"),
        (
            ["win-rate", "--dataset", "{pool}", "--plan", "--model", "{model}", "--baseline", "prompt"],
            "Generate them first.",
        ),
    ],
)
def test_plan_works_or_is_refused(argv, message, pool, model, capsys):
    assert message in fails(capsys, *[arg.format(pool=pool, model=model) for arg in argv])


def test_what_libraries_print_does_not_mix_with_the_result(tmp_path, pool, capsys, monkeypatch):
    from trl_real.data import files

    load = files.load
    monkeypatch.setattr(files, "load", lambda *args: (print("noise"), load(*args))[1])  # noqa: T201
    out = str(tmp_path / "out")
    assert main(["select", "--dataset", str(pool), "--strategy", "random", "--output_dir", out]) == 0
    assert capsys.readouterr().out == out + "\n"


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help(verb, capsys):
    with pytest.raises(SystemExit) as stopped:
        main([verb, "--help"])
    assert stopped.value.code == 0 and "--json" in capsys.readouterr().out


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
