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
            "--source: No source 'reddit'; there are",
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


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["slect"], "No verb 'slect'; there are select, label, "),
        (["slect"], "Did you mean select?"),
        (["select", "--bugdet", "3"], "select has no flag --bugdet. Did you mean --budget?"),
        (["select", "--min_gap", "3"], "select has no flag --min_gap. Type: trl-real select --help"),
        (["select", "pool.jsonl"], "'pool.jsonl' follows no flag"),
        (["select", "--strategy", "esay"], "--strategy: No strategy 'esay'; there are "),
        (["select", "--strategy", "easy@centred"], "No geometry 'centred'; there are "),
        (["select", "--layer", "last"], "--layer is 'last', not a whole number."),
        (["select", "--layer"], "--layer has no value: it takes one argument."),
        (["select", "--budget", "half"], "--budget: 'half' is neither a share such as 0.25 nor a number of rows."),
        (["select", "--max_length", "0"], "--max_length: '0' is not a whole number of 1 or more."),
        (["select", "--dataset", "{pool}.parquet", "--output_dir", "x"], "Did you mean {pool}?"),
        (["select", "--dataset", "{pool}", "--model", "./nowhere", "--output_dir", "x"], "no folder './nowhere'."),
        (["select", "--dataset", "{pool}", "--output_dir", "{pool}"], "is a file. Give a folder."),
        (["select", "--dataset", "{pool}", "--output_dir", "x", "--budget", "99"],
         "--budget 99, but the dataset has only 12 rows. Type --budget 12, or leave it out."),
        (["select", "--dataset", "{pool}", "--split", "test", "--output_dir", "x"], "Type: --split train"),
        (["study", "--engine", "DPO"], "--engine: invalid choice: 'DPO'; there are frozen, dpo. Did you mean dpo?"),
        (["win-rate", "--confidence", "95"], "--confidence: '95' is not a number between 0 and 1."),
        (["label", "--dataset", "{pool}", "--human", "--votes", "v", "--guidelines", "g.md"], "no file 'g.md'"),
        (["win-rate", "--method", "willson"], "No method 'willson'; there are auto, "),
        (["train", "--dataset", "{pool}", "--model", "user/m", "--output_dir", "x", "--lerning-rate", "1"],
         "There is no flag --lerning_rate. Did you mean --learning_rate?"),
        (["train", "--dataset", "{pool}", "--model", "user/m", "--output_dir", "x", "--learning-rate", "abc"],
         "--learning_rate is 'abc', not a number."),
        (["label", "--dataset", "{pool}", "--output_dir", "x", "--judge", "chatt"], "Did you mean chat?"),
        (["self-annotate", "--arms", "detektion"], "Did you mean detection?"),
        *[([verb, "--plan"], "has no --plan: only select, label, train and win-rate") for verb in VERBS
          if verb not in ("select", "label", "train", "win-rate")],
    ],
)  # fmt: skip
def test_mistake_in_a_flag_is_told_before_anything_heavy_is_imported(argv, message, pool, tmp_path, capsys):
    argv = [arg.format(pool=pool) for arg in argv]
    assert message.format(pool=pool) in fails(capsys, *argv)


def test_check_of_flags_imports_no_heavy_library(tmp_path):
    verbs = ("select", "label", "sft", "train", "active", "study", "win-rate")
    mistakes = [["select", "--strategy", "esay"], ["self-annotate", "--prompts", "no.jsonl"]]
    mistakes += [[verb, "--dataset", "no.jsonl"] for verb in verbs]
    code = "import sys; from trl_real.cli.main import main\n"
    code += "".join(f"print(main({argv}), [m for m in ('torch', 'trl') if m in sys.modules])\n" for argv in mistakes)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout.splitlines() == ["2 []"] * len(mistakes), done.stderr


def test_names_that_are_checked_early_are_those_of_the_tables():
    from typing import get_args

    from trl_real.cli import checks, options
    from trl_real.data.sources import SOURCES
    from trl_real.functional.bayesian_head import ACQUISITIONS
    from trl_real.functional.geometry import GEOMETRIES
    from trl_real.functional.statistics.intervals import INTERVALS
    from trl_real.labeling.self_annotate import PICKS
    from trl_real.models.embed import Context
    from trl_real.models.load import DTYPES
    from trl_real.rounds.ablations import ABLATIONS
    from trl_real.selection.mixture.parts import MIXTURES
    from trl_real.selection.strategies import STRATEGIES
    from trl_real.training.trainers import TRAINERS

    assert set(checks.STRATEGIES) == set(STRATEGIES) and set(checks.MIXTURES) == set(MIXTURES)
    assert set(checks.ACQUISITIONS) == set(ACQUISITIONS) and set(checks.GEOMETRIES) == set(GEOMETRIES)
    assert checks.METHODS == INTERVALS
    assert set(checks.TRAINERS) == set(TRAINERS)
    assert checks.DTYPES == DTYPES and set(checks.PICKS) == set(PICKS) and set(checks.ABLATIONS) == set(ABLATIONS)
    assert options.SOURCES == tuple(SOURCES) and checks.CONTEXTS == get_args(Context)


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


def test_error_that_nobody_foresaw_is_one_line_with_its_trace_beside_the_output(tmp_path, pool, capsys, monkeypatch):
    def break_down(*_):
        raise ZeroDivisionError("a\nsurprise")

    monkeypatch.setattr("trl_real.data.files.load", break_down)
    out = tmp_path / "out"
    assert main(["select", "--dataset", str(pool), "--output_dir", str(out)]) == 1
    told = capsys.readouterr().err.strip().splitlines()
    assert told == [f"trl-real: ZeroDivisionError: a surprise The trace is in {out}.error.txt; please report it."]
    assert "break_down" in Path(f"{out}.error.txt").read_text()


def test_json_is_strict(tmp_path, capsys):
    rows = {"v": [1.0, 1.0, 1.0]}
    Dataset.from_dict(rows).to_parquet(str(tmp_path / "rows.parquet"))
    argv = ["win-rate", "--dataset", str(tmp_path / "rows.parquet"), "--preferences", "v", "--json"]
    assert main([*argv, "--output_dir", str(tmp_path / "out")]) == 0

    def refuse(word):
        raise AssertionError(word)

    for text in (capsys.readouterr().out, (tmp_path / "out" / "comparison.json").read_text()):
        json.loads(text, parse_constant=refuse)


def test_output_of_other_settings_is_not_overwritten(tmp_path, pool, capsys):
    rows = {"prompt": ["a"], "response": ["b"], "baseline_response": ["c"], "score": [1.0], "baseline_score": [0.0]}
    Dataset.from_dict(rows | {"v": [1.0]}).to_parquet(str(tmp_path / "rows.parquet"))
    select = ["select", "--dataset", pool, "--strategy", "random", "--output_dir", tmp_path / "chosen"]
    label = ["label", "--dataset", tmp_path / "chosen", "--output_dir", tmp_path / "labels"]
    rate = ["win-rate", "--dataset", tmp_path / "rows.parquet", "--output_dir", tmp_path / "rates"]
    for argv, flags, told in (
        (select, ["--budget", "4"], "holds a selection with --budget None, not 4"),
        (select, ["--seed", "7"], "holds a selection with --seed 42, not 7"),
        (label, ["--min_gap", "0.1"], "holds a labelling with --min_gap None, not 0.1"),
        (rate, ["--confidence", "0.9"], "holds a win rate with --confidence 0.95, not 0.9"),
        (rate, ["--preferences", "v"], "holds a win rate with --preferences None, not v"),
    ):
        assert main([*map(str, argv)]) == main([*map(str, argv)]) == 0  # the same settings may run again
        capsys.readouterr()
        before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
        assert told in fails(capsys, *argv, *flags).replace("'", "")
        assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}


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
