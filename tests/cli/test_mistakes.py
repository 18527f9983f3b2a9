"""A mistake on the command line gets a one-line error, where possible before anything heavy is imported."""

import subprocess
import sys
from pathlib import Path

import pytest
from datasets import Dataset

from support.command_line import fails
from trl_real.cli.main import VERBS, main
from trl_real.data.files import save


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
        (["win-rate", "--dataset", "{pool}", "--preferences", "v", "--chat"], "--preferences reads verdicts only."),
        (["label", "--label_studio", "http://127.0.0.1:9", "--project", "1", "--votes", "v", "--pull", "--chat"],
         "--pull reads votes only. Remove --chat."),
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


def test_error_that_nobody_foresaw_is_one_line_with_its_trace_beside_the_output(tmp_path, pool, capsys, monkeypatch):
    def break_down(*_):
        raise ZeroDivisionError("a\nsurprise")

    monkeypatch.setattr("trl_real.data.files.load", break_down)
    out = tmp_path / "out"
    assert main(["select", "--dataset", str(pool), "--output_dir", str(out)]) == 1
    told = capsys.readouterr().err.strip().splitlines()
    assert told == [f"trl-real: ZeroDivisionError: a surprise The trace is in {out}.error.txt; please report it."]
    assert "break_down" in Path(f"{out}.error.txt").read_text()


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


def test_help_and_import_load_nothing_heavy():
    code = (
        "import trl_real, trl_real.cli.main, sys; print([m for m in ('torch', 'datasets', 'trl') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"
