"""Results of a study's cells: sums over the test pairs, splits put together, and what is told of the tuning."""

import math

import numpy as np
import pytest
import torch
from datasets import Dataset

from support.studies import rows
from trl_real.study.arms import Labeled
from trl_real.study.facts import N_EXAMPLES, describe
from trl_real.study.frozen import FrozenCells
from trl_real.study.grid import Cell, Result
from trl_real.study.learning_arms import LearningArms
from trl_real.study.pool import split_by_prompt, study_pool
from trl_real.study.results import METRICS
from trl_real.study.summarize import collect, summarize, tuning_rows
from trl_real.study.trained import FoldedCells, cell_result, metric_sums


CELL = Cell("easy", 0.5, 3)


def test_metrics_are_summed_by_prompt():
    margins, prompts = torch.tensor([2.0, -1.0, 0.0, 3.0], dtype=torch.float64), np.array([0, 2, 0, 2])
    found = metric_sums(margins, prompts)
    losses = [math.log1p(math.exp(-x)) for x in margins.tolist()]
    assert found["loss"] == pytest.approx([losses[0] + losses[2], 0, losses[1] + losses[3]])
    assert found["margin"].tolist() == [2, 0, 2] and found["counts"].tolist() == [2, 0, 2]
    assert found["accuracy"].tolist() == [1, 0, 1], "a margin of 0 is not right"


def test_a_result_has_the_means_over_pairs_and_the_labels_that_did_not_decide():
    sums = metric_sums(torch.tensor([1.0, 1.0, -4.0], dtype=torch.float64), np.array([0, 0, 1]))
    labeled = Labeled(np.arange(3), np.zeros((3, 2), int), 5, {"share": 0.25})
    values, arrays = cell_result(CELL, labeled, sums, ridge=7.0)
    assert (values["arm"], values["budget"], values["seed"]) == ("easy", 0.5, 3)
    assert (values["n_labels"], values["n_undecided"], values["share"], values["ridge"]) == (5, 2, 0.25, 7.0)
    assert values["accuracy"] == pytest.approx(2 / 3) and values["margin"] == pytest.approx(-2 / 3)
    assert arrays is sums


class Split:
    """A split with given results, as many points as asked for, and as many test pairs."""

    def __init__(self, start: float, n_points: int, n_test: int):
        self.start, self.n_points, self.n_test = start, n_points, n_test

    def __call__(self, cell: Cell) -> Result:
        points = [self.start + i for i in range(self.n_points)]
        values = dict.fromkeys(METRICS, self.start) | {"best_loss": self.start, "n_labels": 10 * self.n_test}
        values |= {"learning_rate": self.start, "along": points, "log": [f"log of {self.start}"]}
        values |= {"arm": "other", "budget": 9, "seed": 9}
        along = np.array(points)[:, None] + np.zeros(self.n_test)
        return Result(values, {"counts": np.full(self.n_test, self.start), "along_loss": along})


@pytest.mark.parametrize("sizes", [(4, 4), (4, 3), (2, 5), (1, 4), (1, 1)])
def test_splits_are_put_together_at_as_many_points_each_with_its_last_one(sizes):
    splits = [Split(100.0 * i, n, 2 + i) for i, n in enumerate(sizes)]
    values, arrays = FoldedCells(splits)(CELL)
    n = min(sizes)
    kept = [[*range(n - 1), size - 1] for size in sizes]  # the first points, and the last
    expected = [np.array(points, float) + split.start for points, split in zip(kept, splits, strict=True)]
    assert arrays["along_loss"].shape == (n, 5) and arrays["counts"].tolist() == [0, 0, 100, 100, 100]
    for places, points in zip((slice(0, 2), slice(2, 5)), expected, strict=True):
        assert (arrays["along_loss"][:, places] == points[:, None]).all()
    assert values["along"] == expected[0].tolist()


def test_splits_are_averaged_by_their_test_pairs_and_other_numbers_plainly():
    found = FoldedCells([Split(0.0, 3, 1), Split(100.0, 3, 3)])
    values, _ = found(CELL)
    assert found.n_test == 4
    assert {values[name] for name in (*METRICS, "best_loss")} == {75.0}
    assert (values["learning_rate"], values["n_labels"], values["log"]) == (50.0, 20.0, ["log of 0.0"])
    assert (values["arm"], values["budget"], values["seed"]) == ("easy", 0.5, 3)


def results(arms=("random", "easy"), budgets=(0.5, 1.0), seeds=(0, 1, 2)):
    found = {}
    for a, arm in enumerate(arms):
        for b, budget in enumerate(budgets):
            for seed in seeds:
                values = {
                    "n_labels": 10 * (b + 1) + seed + a,
                    "ridge": float(seed**2),
                    "loss": seed + a,
                    "best_loss": a,
                }
                sums = {name: np.array([100.0 * a + 10 * b + seed, 1.0]) for name in METRICS}
                found[Cell(arm, budget, seed)] = Result(values, {**sums, "counts": np.array([1.0, 3.0])})
    return found


def test_tuning_is_the_median_choice_and_the_mean_losses_of_the_seeds():
    found = tuning_rows(results(budgets=(0.5,)))
    assert found == [
        {"arm": arm, "budget": 0.5, "chosen": 1.0, "loss": 1.0 + a, "loss_if_best": float(a)}
        for a, arm in enumerate(("random", "easy"))
    ]


def test_curves_are_of_the_seeds_with_all_cells_and_their_mean_labels():
    sides = ["random", "easy"], [0.5, 1.0], [0, 1, 2]
    whole = results()
    found = collect(whole, *sides)
    assert found.n_labels.tolist() == [11.5, 21.5]
    first = [points[0].value for points in (curve.points for curve in found.curves()["loss"].values())]
    assert first == pytest.approx([(1 + 1) / 4, (101 + 1) / 4])
    del whole[Cell("easy", 1.0, 2)]
    fewer = collect(whole, *sides)
    assert fewer.n_labels.tolist() == [11.0, 21.0]
    assert fewer.curves()["loss"]["random"].points[0].value == pytest.approx((0.5 + 1) / 4)
    assert collect({}, *sides) is None


@pytest.mark.parametrize(
    ("budgets", "shown"),
    [([0.25, 0.5, 1.0], 0.5), ([0.25, 0.5], 0.5), ([1.0], 1.0), ([1, 2], 2), ([0.5, 1], 1)],
)
def test_what_is_shown_along_a_run_is_the_largest_budget_below_the_whole_pool(budgets, shown):
    """1.0 is the whole pool, 1 is one pair."""
    found = {}
    for cell, (values, arrays) in results(budgets=tuple(budgets)).items():
        drift = [{"labels": values["n_labels"]}] if cell.arm == "easy" and cell.seed == 0 else []
        more = {
            "along": [1.0, 2.0],
            "log": [f"{cell.arm} {cell.budget} {cell.seed}"],
            "drift": drift,
            "learning_rate": 1,
        }
        along = {f"along_{name}": np.stack([arrays[name]] * 2) for name in METRICS}
        found[cell] = Result(values | more, arrays | along)
    facts = {"title": "A", "n_pool": 9, "n_test": 4, "agreement": {}, "histograms": {}, "examples": {}, "model": "m"}
    grid = {"arms": ["random", "easy"], "budgets": budgets, "seeds": [0, 1, 2]}
    study = summarize(found, grid, {**facts, "recipe": {"versions": "v"}}, {"engine": "dpo", "layer": -1}, 99)
    assert study.rewards == {arm: [f"{arm} {shown} 0"] for arm in ("random", "easy")}
    assert study.drift == [{"labels": max(10 * len(budgets) + 1, 11)}], "the longest run that was followed"
    b = budgets.index(shown)
    assert study.run_curves["loss"]["easy"].n_labels == [1.0, 2.0]
    assert study.run_curves["loss"]["easy"].points[0].value == pytest.approx((101 + 10 * b + 1) / 4)
    assert (study.n_done, study.n_cells) == (6 * len(budgets), 99)
    assert study.recipe == {"embedding model": "m", "layer": -1, "versions": "v"}
    few = summarize(
        {CELL: Result(found[Cell("easy", shown, 1)].values, {})}, grid, {**facts, "recipe": {}}, {"engine": "dpo"}, 99
    )
    assert (few.curves, few.savings, few.n_done, few.n_cells) == ({}, {}, 1, 99), "no seed is whole"


@pytest.mark.parametrize(("budgets", "shown"), [([0.25, 0.5, 1.0], 0.5), ([0.25, 0.5], 0.25), ([20], 20)])
def test_facts_are_of_the_middle_budget_and_examples_from_both_sides_of_its_cut(budgets, shown):
    everything = study_pool(Dataset.from_dict(rows()), embeddings=True)
    pool, test = (everything.take(part) for part in split_by_prompt(everything, 40, 1, 0)[0])
    frozen = FrozenCells(LearningArms(pool, pool.vectors, pool_share=1.0), test, test.vectors)
    facts = describe(frozen, ["random", "easy", "hard", "auto"], budgets, 0, everything)
    assert facts["recipe"]["shown selection"] == f"budget {shown:g}, seed 0"
    assert (facts["recipe"]["rows with a pair"], facts["recipe"]["prompts"], facts["recipe"]["responses"]) == (
        160,
        80,
        320,
    )
    n_kept = round(shown * 120) if isinstance(shown, float) else shown
    for arm, way in (("easy", 1), ("hard", -1)):
        histogram = facts["histograms"][arm]
        assert (sum(histogram["pool"]), sum(histogram["kept"])) == (120, n_kept)
        examples = facts["examples"][arm]
        assert [e["where"] for e in examples] == ["just kept"] * N_EXAMPLES + ["just left out"] * N_EXAMPLES
        along = [way * e["similarity"] for e in examples]
        ordered = np.sort(way * frozen.selector.scored_pairs(arm, 0).similarity)
        assert along == pytest.approx(ordered[n_kept - N_EXAMPLES : n_kept + N_EXAMPLES])
    assert facts["examples"]["auto"] == [] and "random" not in facts["histograms"]
