"""Tests of `trl-real self-annotate`, its win rates against the start, and its report page."""

import json

import pytest
from datasets import Dataset

from support.pages import Loads, cells
from support.rounds import active, prompts
from support.tiny import save_tiny
from support.training import pairs
from trl_real.cli.main import main
from trl_real.cli.rounds import _table
from trl_real.rounds.active import labels_of_run
from trl_real.rounds.report import SELF_ANNOTATION, Arms, write_rounds_report
from trl_real.rounds.win_rate import WinRateAgainstStart
from trl_real.training.adapters import fresh_adapter, load_base


pytestmark = pytest.mark.usefixtures("one_thread")


class Shorter:
    name = "shorter"

    def __call__(self, batch):
        sides = zip(batch["response_a"], batch["response_b"], strict=True)
        return [0.5 + 0.5 * ((len(a) < len(b)) - (len(a) > len(b))) for a, b in sides]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    return save_tiny(tmp_path_factory.mktemp("model"))


def run(model, folder, capsys, *flags: object) -> dict:
    Dataset.from_list(pairs(6)).to_parquet(str(folder / "seed.parquet"))
    prompts().to_parquet(str(folder / "prompts.parquet"))
    fixed = [
        "--bf16",
        "False",
        "--max_steps",
        "1",
        "--learning_rate",
        "1e-2",
        "--warmup_steps",
        "0",
        "--per_device_train_batch_size",
        "2",
        "--report_to",
        "none",
    ]
    argv = ["self-annotate", "--seed_labels", folder / "seed.parquet", "--prompts", folder / "prompts.parquet",
            "--n_prompts", 5, "--max_new_tokens", 6, "--temperature", 1.0, "--model", model,
            "--output_dir", folder / "out", *fixed, "--json", *flags]  # fmt: skip
    assert main([*map(str, argv)]) == 0
    return json.loads(capsys.readouterr().out)


def test_arms_run_together_and_their_page_shows_the_annotation(model, tmp_path, capsys):
    test = tmp_path / "test.parquet"
    Dataset.from_list(pairs(5)).to_parquet(str(test))
    flags = ["--arms", "expansion", "detection", "--seeds", 0, 1, "--eval_dataset", test]
    first = run(model, tmp_path, capsys, *flags, "--rounds", 1)
    second = run(model, tmp_path, capsys, *flags, "--rounds", 2)
    assert second["runs"]["detection"][0][:3] == first["runs"]["detection"][0]
    page = (tmp_path / "out" / "report.html").read_text()
    assert len(Loads(page).urls) == 3 and "Self-annotated labels" in page
    told = [row["annotation"]["n_labeled"] for row in second["runs"]["expansion"][0][2:]]
    found = [float(cell[2]) for cell in cells(page, "expansion") if cell[0].startswith("round")]
    assert len(found) == len(told) == 2 and found[0] == pytest.approx(
        round(sum(runs[2]["annotation"]["n_labeled"] for runs in second["runs"]["expansion"]) / 2), abs=0.51
    )


def test_judge_labels_the_least_confident_pairs_and_reports_the_win_rate(model, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("trl_real.cli.rounds.reading_judge", lambda args, why: Shorter())
    prompts(4).to_parquet(str(tmp_path / "held_out.parquet"))
    flags = ["--relabel", 2, "--eval_prompts", tmp_path / "held_out.parquet", "--eval_tokens", 4, "--rounds", 1]
    rows = run(model, tmp_path, capsys, *flags)["runs"]["detection"][0]
    assert rows[0]["win_rate"] == 0.5 and all(0 <= row["win_rate"] <= 1 for row in rows)
    assert rows[-1]["n_labels"] > rows[1]["n_labels"] == 6


def test_start_model_generates_once_and_ties_with_itself(model, tmp_path):
    base, tokenizer = load_base(model, None, cpu=True)
    policy = _adapted(base)
    settings = {"max_new_tokens": 4, "temperature": 1.0}

    def against(settings):
        return WinRateAgainstStart(prompts(3)["prompt"][:], Shorter(), tmp_path / "start", **settings)

    assert against(settings)(policy, tokenizer)["win_rate"] == 0.5
    (file,) = (tmp_path / "start").iterdir()
    written = file.stat().st_mtime_ns
    against(dict(reversed(settings.items())))(policy, tokenizer)
    assert file.stat().st_mtime_ns == written and len(list((tmp_path / "start").iterdir())) == 1
    against({**settings, "max_new_tokens": 3})(policy, tokenizer)
    assert len(list((tmp_path / "start").iterdir())) == 2


def _adapted(base):
    from peft import LoraConfig

    return fresh_adapter(base, LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"), 0)


def test_labels_of_an_active_run_can_be_the_seed(model, tmp_path, capsys):
    active(model, tmp_path, rounds=2)
    labels = labels_of_run(tmp_path / "run")
    assert len(labels) == 8 and labels_of_run(tmp_path) is None
    rows = run(model, tmp_path, capsys, "--seed_labels", tmp_path / "run", "--rounds", 1)["runs"]["detection"][0]
    assert rows[1]["n_labels"] == 8


def test_folder_of_several_runs_is_refused_as_seed(model, tmp_path, capsys):
    active(model, tmp_path, rounds=1, output_dir=tmp_path / "rounds" / "easy-0")
    asked = tmp_path / "p.parquet"
    prompts().to_parquet(str(asked))
    argv = ["self-annotate", "--seed_labels", tmp_path / "rounds", "--prompts", asked, "--n_prompts", 2]
    assert main([*map(str, argv), "--model", model, "--output_dir", str(tmp_path / "out")]) == 2
    assert f"--seed_labels {tmp_path / 'rounds' / 'easy-0'}" in capsys.readouterr().err


def test_rounds_are_averaged_over_seeds_and_compared_with_expansion():
    def rows(add: float) -> list[dict]:
        told = {"n_prompts": 4, "n_labeled": 3 + add, "confidence": {"median": 0.6}, "flagged": None}
        own = {"stage": "round 1", "n_pairs": 9, "accuracy": 0.5 + add / 10, "annotation": told, "phases": {}}
        return [{"stage": "seed", "n_pairs": 6, "accuracy": 0.5, "phases": {}}, own]

    arms = Arms({"expansion": [rows(0), rows(0)], "detection": [rows(0), rows(1)]}, SELF_ANNOTATION)
    assert [p.x for p in arms.curve("detection", "accuracy")] == [6, 9]
    assert arms.difference("detection", "accuracy").mean == pytest.approx(0.05)
    assert arms.annotations[1] == {
        "arm": "detection", "stage": "round 1", "n_prompts": 4, "n_labeled": 3.5, "confidence": 0.6
    }  # fmt: skip


def test_page_is_written_for_one_seed_without_metrics(tmp_path):
    rows = [{"stage": "seed", "round": 0, "n_labels": 3, "n_pairs": 3, "phases": {}}]
    assert write_rounds_report(tmp_path, {"detection": [rows]}, kind=SELF_ANNOTATION).exists()


def test_self_annotation_arms_are_compared_round_by_round(tmp_path):
    """They learn from some pairs more or fewer, since ties are left out."""

    def runs(*counts: int) -> list[list[dict]]:
        one = [{"stage": f"round {i}", "n_pairs": n, "loss": 0.7 - i / 10} for i, n in enumerate(counts)]
        return [[{**row, "phases": {}} for row in one]]

    arms = {"expansion": runs(0, 24, 1217), "detection": runs(0, 24, 1219)}
    page = write_rounds_report(tmp_path, arms, kind=SELF_ANNOTATION).read_text(encoding="utf-8")
    assert '<th scope="col">round 2</th>' in page and '<th scope="col">1,217</th>' not in page
    found = [cell.split() for cell in cells(page, "detection")[0][1:-1]]
    assert found == [["0.700", "<small>0</small>"], ["0.600", "<small>24</small>"], ["0.500", "<small>1219</small>"]]


def test_table_shows_the_label_count_at_which_its_metrics_were_measured():
    def run(*counts: int) -> list[dict]:
        return [{"round": i, "n_asked": n, "loss": 0.7 - i / 10, "phases": {}} for i, n in enumerate(counts)]

    told = _table(Arms({"gradient": [run(0, 10), run(0, 10, 20)]})).splitlines()[1].split()
    assert told == ["gradient", "10", "0.600"]


@pytest.mark.parametrize("n_seeds", [1, 2])
def test_page_mentions_intervals_only_with_several_seeds(n_seeds, tmp_path):
    def runs(last: float) -> list[list[dict]]:
        spent = {"train": {"seconds": 1.0, "n_tokens": 12345}}
        start = {"stage": "seed", "n_pairs": 0, "loss": 0.7, "phases": {}}
        end = {**start, "n_pairs": 8, "phases": spent}
        return [[start, {**end, "loss": last + seed / 100}] for seed in range(n_seeds)]

    page = write_rounds_report(tmp_path, {"expansion": runs(0.6), "detection": runs(0.5)}, kind=SELF_ANNOTATION)
    text = page.read_text(encoding="utf-8")
    assert ("Student" in text) == ("−0.100 [" in text) == (n_seeds > 1) and "−0.100" in text
    assert ("One seed" in text) == ("give more seeds" in text) == (n_seeds == 1) and "12,345" in text
