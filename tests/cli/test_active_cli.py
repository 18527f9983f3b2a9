"""Tests of `trl-real active` and its report page."""

import json
import re

import pytest
from datasets import Dataset

from support.pages import Loads, cells
from support.rounds import pool
from support.tiny import save_tiny
from support.training import pairs
from trl_real.cli.main import main
from trl_real.rounds.report import Arms, write_rounds_report


pytestmark = pytest.mark.usefixtures("one_thread")


def rounds(slope: float, seed: int) -> list[dict]:
    phases = {"select": {"seconds": 2.0, "n_tokens": 100}, "label": {"seconds": 0.5, "n_tokens": 0}}
    return [
        {"round": i, "n_asked": 10 * i, "n_labels": 9 * i, "accuracy": 0.5 + slope * i + seed / 100,
         "phases": phases if i else {}}
        for i in range(4)
    ]  # fmt: skip


def test_curves_differences_and_costs_are_means_over_seeds(tmp_path):
    runs = {"gradient": [rounds(0.05, s) for s in range(3)], "random": [rounds(0.02, s) for s in range(3)]}
    arms = Arms(runs)
    assert arms.metrics == ["accuracy"]
    assert [p.x for p in arms.curve("gradient", "accuracy")] == [0, 10, 20, 30]
    difference = arms.difference("gradient", "accuracy")
    assert difference.mean == pytest.approx(0.09) and difference.low == pytest.approx(0.09)
    assert arms.difference("random", "accuracy") is None
    assert arms.costs("gradient")["select"] == pytest.approx((6.0, 300))
    page = write_rounds_report(tmp_path, runs).read_text()
    assert cells(page, "gradient")[0][-1].startswith("+0.090")
    urls = Loads(page).urls
    assert len(urls) == 1 and not re.search(r"https?://|<script|<link", page)


def test_arms_are_compared_at_equal_label_counts(tmp_path):
    """The baseline's third round found two labels only, so that it stands at 22, and has no fourth."""
    short = [*rounds(0.02, 0)[:3], {**rounds(0.02, 0)[3], "n_asked": 22}]
    page = write_rounds_report(tmp_path, {"gradient": [rounds(0.05, 0)], "random": [short]}).read_text()
    heads = [head for head in re.findall(r"<th scope=\"col\">([^<]*)</th>", page) if head.isdigit()]
    assert heads == ["0", "10", "20", "22", "30"]
    assert cells(page, "gradient")[0] == ["1", "0.500", "0.550", "0.600", "", "0.650", "+0.060 at 20"]
    assert cells(page, "random")[0] == ["1", "0.500", "0.520", "0.540", "0.560", "", "–"]


def test_page_is_written_for_runs_of_unequal_length_and_one_seed(tmp_path):
    runs = {"easy": [rounds(0.1, 0)[:2]], "random": [rounds(0.1, 0)]}
    assert len(Arms(runs).curve("easy", "accuracy")) == 2
    assert write_rounds_report(tmp_path, runs).exists()


def test_arms_and_seeds_run_together_and_resume(tmp_path, capsys):
    model = save_tiny(tmp_path / "model")
    pool().to_parquet(str(tmp_path / "pool.parquet"))
    Dataset.from_list(pairs(6)).to_parquet(str(tmp_path / "test.parquet"))
    flags = ["--bf16", "False", "--max_steps", "1", "--per_device_train_batch_size", "2", "--report_to", "none"]
    argv = ["active", "--dataset", tmp_path / "pool.parquet", "--model", model, "--output_dir", tmp_path / "out",
            "--selectors", "easy", "random", "--seeds", 0, 1, "--budget", 3,
            "--eval_dataset", tmp_path / "test.parquet", *flags, "--json"]  # fmt: skip
    assert main([*map(str, argv), "--rounds", "1"]) == 0
    first = json.loads(capsys.readouterr().out)
    assert main([*map(str, argv), "--rounds", "2"]) == 0
    second = json.loads(capsys.readouterr().out)
    assert [run[:2] for run in second["runs"]["easy"]] == first["runs"]["easy"]
    assert [row["n_asked"] for row in second["runs"]["random"][1]] == [0, 3, 6]
    assert {path.name for path in (tmp_path / "out").iterdir()} >= {"report.html", "easy-0", "random-1", "loss.png"}


def test_labelled_pairs_become_a_pool_without_order_information(tmp_path, capsys):
    from trl_real.cli.active import _as_pool

    rows = Dataset.from_list(pairs(20))
    found = _as_pool(rows, "responses")
    assert len(found) == 20 and all(sorted(scores) == [0.0, 1.0] for scores in found["scores"])
    assert 0 < sum(scores[0] for scores in found["scores"]) < 20
    for row, source in zip(found, rows, strict=True):
        assert row["responses"][row["scores"].index(1.0)] == source["chosen"]
