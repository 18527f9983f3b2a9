"""The study with real training of a tiny model: the trained cells, the chosen checkpoint, the recorded results."""

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig

from support.tiny import save_tiny
from support.training import pairs
from trl_real import REALDPOConfig, REALDPOTrainer, TrlRealError
from trl_real.cli.main import main
from trl_real.study.dpo import DPOCells
from trl_real.study.results import WITH_PROMPT
from trl_real.study.run import load_study, run_study
from trl_real.study.trained import RunPoint, TrainingRun, best_point, metric_sums


GRID = {"arms": ["easy"], "budgets": [0.5, 1.0], "seeds": [0, 1], "n_test": 8, "pool_share": 0.75}


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("model"), seed=1)


def cells(model, folder, **changes):
    args = REALDPOConfig(
        str(folder / "unused"), use_cpu=True, bf16=False, per_device_train_batch_size=4, report_to="none",
        num_train_epochs=1, disable_tqdm=True,
    )  # fmt: skip
    return DPOCells(model, args, **{"learning_rates": [1e-3, 1e-2], "n_evaluations": 2, **changes})


@pytest.fixture(scope="module")
def found(model, tmp_path_factory):
    """A study, and how its cells were trained."""
    folder = tmp_path_factory.mktemp("study")
    trained = []

    class Counting(DPOCells):
        def __call__(self, train, validation, test, seed, folder, follow_drift=False):
            trained.append((len(train), len(validation), len(test), seed, sorted(train["prompt"])))
            return super().__call__(train, validation, test, seed, folder, follow_drift)

    given = cells(model, folder)
    counting = Counting(model, given.config, None, given.learning_rates, 2)
    study = run_study(Dataset.from_list(pairs(40)), model, folder / "s", trainer=counting, **GRID)
    return SimpleNamespace(study=study, trained=trained, folder=folder / "s", counting=counting)


def test_folds_of_unequal_size_are_combined_along_training(model, tmp_path):
    """With four evaluations asked for, 4 pairs are evaluated on 4 times and 5 pairs 3 times."""
    grid = {"arms": ["easy"], "budgets": [0.5, 1.0], "seeds": [0], "n_folds": 2, "pool_share": 1.0, "n_validation": 0}
    args = REALDPOConfig(
        str(tmp_path / "unused"), use_cpu=True, bf16=False, per_device_train_batch_size=1, report_to="none",
        num_train_epochs=1, disable_tqdm=True,
    )  # fmt: skip
    trainer = DPOCells(model, args, learning_rates=[1e-3], n_evaluations=4)
    study = run_study(Dataset.from_list(pairs(9)), model, tmp_path / "s", trainer=trainer, **grid)
    assert study.n_done == study.n_cells == 4 and study.n_test == 9


def test_every_arm_and_budget_is_trained_and_equal_sets_only_once(found):
    assert [(n, v, t) for n, v, t, *_ in found.trained] == [(12, 8, 8), (12, 8, 8), (24, 8, 8)] * 2
    assert found.study.arms == ["random", "easy"] and found.study.n_done == found.study.n_cells == 8
    whole = [curve.points[-1] for curve in found.study.curves["loss"].values()]
    assert whole[0] == whole[1]


def test_curves_rewards_drift_and_tuning_are_reported(found):
    study = found.study
    assert study.engine == "dpo" and study.n_test == 8
    assert study.run_curves["loss"]["easy"].n_labels == [8, 12]  # steps 2 and 3 of 3, of four pairs each
    assert {"rewards/chosen", "rewards/rejected", "rewards/margins"} <= set(study.rewards["easy"][0])
    assert [row["labels"] for row in study.drift] == [12, 24]
    for prefix in ("", WITH_PROMPT):
        assert all(0 <= row[f"{prefix}jaccard"] <= 1 and row[f"{prefix}relative_l2"] > 0 for row in study.drift)
    assert all(row["cosine"] != row[f"{WITH_PROMPT}cosine"] for row in study.drift)
    assert {row["chosen"] for row in study.tuning} <= {1e-3, 1e-2, 5.5e-3}
    assert load_study(found.folder) == study


def test_test_metrics_equal_those_of_the_trainer(model, tmp_path):
    train, test = Dataset.from_list(pairs(12)), Dataset.from_list(pairs(20)).select(range(12, 20))
    (run,) = cells(model, tmp_path, learning_rates=[1e-2])(train, test.select([]), test, 3, tmp_path / "work")
    args = REALDPOConfig(
        str(tmp_path / "alone"), use_cpu=True, bf16=False, per_device_train_batch_size=4, report_to="none",
        num_train_epochs=1, disable_tqdm=True, learning_rate=1e-2, seed=3, data_seed=3, save_strategy="no",
    )  # fmt: skip
    trainer = REALDPOTrainer(model, args=args, train_dataset=train, eval_dataset=test)
    trainer.train()
    expected = trainer.evaluate()
    sums = metric_sums(torch.from_numpy(run.points[-1].test), np.arange(8))
    assert sums["loss"].mean() == pytest.approx(expected["eval_loss"], abs=1e-5)
    assert sums["margin"].mean() == pytest.approx(expected["eval_rewards/margins"], abs=1e-5)
    assert sums["accuracy"].mean() == pytest.approx(expected["eval_rewards/accuracies"])
    assert not (tmp_path / "work").exists()


def test_finished_cells_are_not_trained_again(found):
    n_trained = len(found.trained)
    (found.folder / "cells" / "easy-0.5-1.json").unlink()
    again = run_study(Dataset.from_list(pairs(40)), found.counting.model, found.folder, trainer=found.counting, **GRID)
    assert len(found.trained) == n_trained + 1 and again == found.study


def test_other_learning_rates_are_another_study(found, model, tmp_path):
    with pytest.raises(TrlRealError, match="holds a study with learning_rates="):
        run_study(
            Dataset.from_list(pairs(40)), model, found.folder,
            trainer=cells(model, tmp_path, learning_rates=[1e-1]), **GRID,
        )  # fmt: skip


def test_lora_and_precomputed_references_work(model, tmp_path):
    given = cells(model, tmp_path, learning_rates=[1e-2], peft_config=LoraConfig(r=4, task_type="CAUSAL_LM"))
    given.config.precompute_ref_log_probs = True
    study = run_study(
        Dataset.from_list(pairs(24)), model, tmp_path / "s", trainer=given, arms=["easy"], budgets=[0.5], seeds=[0],
        n_test=6,
    )  # fmt: skip
    assert study.n_done == 2 and study.savings == {}
    assert abs(study.curves["loss"]["easy"].points[0].value - math.log(2)) < 0.5


def point(labels, validation, test):
    return RunPoint(labels, np.array(validation, float), np.array(test, float))


def test_best_point_is_chosen_by_validation_loss_and_not_by_test_pairs():
    slow = TrainingRun(1e-5, [point(1, [0.0], [9.0]), point(2, [1.0], [-9.0])], [], [])
    fast = TrainingRun(1e-4, [point(1, [2.0], [-8.0]), point(2, [-1.0], [9.0])], [], [])
    run, best = best_point([slow, fast])
    assert run is fast and best is fast.points[0]
    alone = TrainingRun(1e-4, [point(1, [], [1.0]), point(2, [], [2.0])], [], [])
    assert best_point([alone])[1] is alone.points[-1]
    with pytest.raises(TrlRealError, match="Several learning rates need validation pairs"):
        best_point([alone, alone])


def test_the_command_line(model, tmp_path, capsys):
    Dataset.from_list(pairs(24)).to_parquet(tmp_path / "pairs.parquet")
    argv = ["--dataset", str(tmp_path / "pairs.parquet"), "--model", model, "--output_dir", str(tmp_path / "s")]
    grid = ["--arms", "easy", "--budgets", "0.5", "1.0", "--seeds", "0", "--n_test", "6"]
    flags = ["--engine", "dpo", "--learning_rates", "1e-2", "--n_evaluations", "1", "--bf16", "False"]
    assert main(["study", *argv, *grid, *flags, "--json"]) == 0
    out, err = capsys.readouterr()
    savings = json.loads(out)["savings"]
    assert set(savings) == {"easy"} and "Report:" in err and "Traceback" not in err
    page = (tmp_path / "s" / "report.html").read_text()
    assert "DPO training of the model itself" in page
    (tmp_path / "s" / "report.html").unlink()
    assert main(["report", "--dataset", str(tmp_path / "s")]) == 0
    out = capsys.readouterr().out
    told = "Labels saved compared with random" if savings["easy"] else "random selection learned nothing measurable"
    assert told in out and out.endswith(f"report: {tmp_path / 's' / 'report.html'}\n")
    assert (tmp_path / "s" / "report.html").read_text() == page


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["study"], "--dataset is missing"),
        (["study", "--dataset", "PAIRS"], "--output_dir is missing"),
        (["study", "--dataset", "PAIRS", "--output_dir", "OUT", "--bf16", "False"], "need --engine dpo"),
        (["study", "--dataset", "PAIRS", "--output_dir", "OUT", "--source", "x"], "No source 'x'"),
        (["study", "--dataset", "PAIRS", "--output_dir", "OUT", "--arms", "esay"], "No strategy 'esay'"),
        (["study", "--dataset", "PAIRS", "--output_dir", "OUT", "--engine", "dpo"], "--model is missing"),
        (["report", "--dataset", "OUT"], "No study in"),
        (["sft", "--dataset", "PAIRS", "--output_dir", "OUT"], "--model is missing"),
    ],
)
def test_mistake_gets_a_one_line_error(argv, message, tmp_path, capsys):
    Dataset.from_list(pairs(24)).to_parquet(tmp_path / "pairs.parquet")
    names = {"PAIRS": str(tmp_path / "pairs.parquet"), "OUT": str(tmp_path / "out")}
    assert main([names.get(word, word) for word in argv]) == 2
    assert message in capsys.readouterr().err.strip().splitlines()[-1]
