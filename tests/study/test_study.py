"""The efficiency study: which data it may read, and how a cell is computed."""

import math

import numpy as np
import pytest
import torch
from datasets import Dataset
from sklearn.linear_model import LogisticRegression

from support.studies import rows, study
from trl_real import ACQUISITIONS, MissingColumnError, TrlRealError
from trl_real.study.frozen import FrozenCells
from trl_real.study.grid import Cell
from trl_real.study.learning_arms import LearningArms
from trl_real.study.pool import decided_pairs, preferences, split_by_prompt, split_by_size, study_pool
from trl_real.study.report import write_study_report


pytestmark = pytest.mark.usefixtures("one_thread")


def prepared(dataset: Dataset, n_test: int = 40) -> FrozenCells:
    everything = study_pool(dataset, embeddings=True)
    pool, test = (everything.take(part) for part in split_by_prompt(everything, n_test, 1, 0)[0])
    return FrozenCells(LearningArms(pool, pool.vectors), test, test.vectors)


@pytest.mark.parametrize(
    ("n_rows", "given", "splits"),
    [(60, {}, 4), (3, {}, 3), (60, {"n_folds": 1, "n_test": 20}, 1), (60, {"n_folds": 2}, 2), (1000, {}, 1)],
)
def test_small_studies_test_in_folds_by_default(n_rows, given, splits):
    columns = {"prompt": [f"p{i}" for i in range(n_rows)], "chosen": ["c"] * n_rows, "rejected": ["r"] * n_rows}
    pool = study_pool(Dataset.from_dict(columns))
    sizes = split_by_size(pool, **{"n_test": None, "n_folds": None, **given})
    found = split_by_prompt(pool, *sizes, 0)
    assert len(found) == splits
    assert splits == 1 or sorted(i for _, test in found for i in test) == list(range(n_rows))


# What it may not look at.


def test_pool_and_test_prompts_are_disjoint_and_row_order_does_not_matter():
    dataset = Dataset.from_dict(rows())
    pool = study_pool(dataset)
    keys = np.array(pool.prompt_keys())
    train, test = split_by_prompt(pool, 40, 1, 0)[0]
    assert not set(keys[train]) & set(keys[test]) and len(train) + len(test) == 160 and len(test) == 40
    shuffled = study_pool(dataset.shuffle(seed=3))
    again = np.array(shuffled.prompt_keys())[split_by_prompt(shuffled, 40, 1, 0)[0][1]]
    assert sorted(again) == sorted(keys[test])


def test_folds_test_every_prompt_once_and_none_of_the_pool(tmp_path):
    pool = study_pool(Dataset.from_dict(rows()))
    keys = np.array(pool.prompt_keys())
    splits = split_by_prompt(pool, 40, 4, 0)
    assert sorted(np.concatenate([test for _, test in splits])) == list(range(160))
    assert all(len(test) == 40 and not set(keys[train]) & set(keys[test]) for train, test in splits)
    found = study(tmp_path / "s", n_folds=4)
    assert found.n_test == 160 and found.curves["loss"]["random"].n_labels == [27, 108]
    one = study(tmp_path / "t")
    curves = [s.curves["loss"]["random"].points[-1] for s in (found, one)]
    assert curves[0].high - curves[0].low < 0.8 * (curves[1].high - curves[1].low)


@pytest.mark.parametrize("arm", ["random", "easy", "hard", "centroid", "easy@whitened"])
@pytest.mark.parametrize("k", [2, 5])
def test_choosing_reads_no_label(arm, k):
    dataset = rows(k=k)
    other = {**dataset}
    if k == 2:
        other |= {"chosen": dataset["rejected"], "rejected": dataset["chosen"]}
        other["embeddings"] = [pair[::-1] for pair in dataset["embeddings"]]
    else:
        other["scores"] = np.random.default_rng(9).normal(size=(160, 5)).tolist()
    first, second = (prepared(Dataset.from_dict(x)).selector.scored_pairs(arm, 0) for x in (dataset, other))
    np.testing.assert_array_equal(first.places, second.places)
    order = np.argsort(first.scores, kind="stable")[:30], np.argsort(second.scores, kind="stable")[:30]
    assert set(first.places[order[0]]) == set(second.places[order[1]])
    if k > 2:
        np.testing.assert_array_equal(first.pairs, second.pairs)


def test_arms_of_a_seed_share_their_rows_and_seeds_do_not():
    selector = prepared(Dataset.from_dict(rows())).selector
    first, second = selector.scored_pairs("easy", 0).places, selector.scored_pairs("hard", 0).places
    np.testing.assert_array_equal(first, second)
    assert len(first) == selector.n_pool() == round(0.9 * 120)
    assert set(first) != set(selector.scored_pairs("easy", 1).places)
    aside = selector.validation_pairs(0, 100)
    assert len(aside.places) == 12 and not set(aside.places) & set(first)


# What a cell is.


@pytest.mark.parametrize("cell", [Cell("easy", 0.25, 0), Cell("random", 30, 1), Cell("hard@centered", 1.0, 2)])
def test_cell_equals_a_logistic_regression_on_the_chosen_pairs(cell):
    frozen = prepared(Dataset.from_dict(rows()))
    result = frozen(cell)
    labeled = frozen.selector.labeled(cell)
    x = torch.stack(
        [
            frozen.selector.vectors[i][a] - frozen.selector.vectors[i][b]
            for i, (a, b) in zip(labeled.places, labeled.pairs, strict=True)
        ]
    ).double()
    x = (x / frozen.selector.scale).numpy()
    both, label = np.concatenate([x, -x]), np.repeat([1, 0], len(x))  # half the weight each: as one pair
    fit = LogisticRegression(C=1 / (2 * result.values["ridge"]), fit_intercept=False, tol=1e-10, max_iter=1000)
    fit.fit(both, label)
    margins = frozen.test_differences.numpy() @ fit.coef_[0]
    assert result.values["loss"] == pytest.approx(np.logaddexp(0, -margins).mean(), abs=1e-5)
    assert result.values["accuracy"] == (margins > 0).mean()
    assert result.values["margin"] == pytest.approx(margins.mean(), abs=1e-5)
    assert result.values["n_labels"] == len(x) == (30 if cell.budget == 30 else round(cell.budget * 108))


def test_ties_and_missing_scores_use_the_budget_and_are_not_trained_on():
    pool = rows(n=60, k=3)
    pool["scores"][:20] = [[1.0, 1.0, 1.0]] * 20
    pool["scores"][20:30] = [[None, 1.0, None]] * 10
    frozen = prepared(Dataset.from_dict(pool), n_test=10)
    result = frozen(Cell("easy", 1.0, 0))
    assert result.values["n_labels"] == frozen.selector.n_pool() and result.values["n_undecided"] > 15


def test_test_pairs_of_a_pool_are_all_pairs_with_different_scores():
    pool = study_pool(
        Dataset.from_dict({"prompt": ["x"], "responses": [["a", "b", "c"]], "scores": [[2.0, 1.0, 2.0]]})
    )
    places, pairs = decided_pairs(pool)
    assert places.tolist() == [0, 0] and pairs.tolist() == [[0, 1], [2, 1]]
    assert decided_pairs(pool, min_gap=1.5)[1].tolist() == []
    assert preferences(pool, places, pairs)[:] == {
        "prompt": ["x", "x"], "chosen": ["a", "c"], "rejected": ["b", "b"],
    }  # fmt: skip


def test_whole_pool_makes_all_arms_equal_and_saves_nothing(tmp_path):
    found = study(tmp_path / "s")
    ends = {arm: curve.points[-1] for arm, curve in found.curves["loss"].items()}
    assert ends["easy"] == ends["hard@centered"] == ends["random"]
    assert [interval[-1].value for interval in found.differences["loss"].values()] == [0.0, 0.0]
    assert all(saving[-1].saving >= 0 for saving in found.savings["loss"].values())
    assert found.n_done == found.n_cells == 12 and found.arms[0] == "random"


def test_labels_that_follow_the_features_are_learned(tmp_path):
    found = study(tmp_path / "s")
    assert found.curves["loss"]["random"].points[-1].value < math.log(2) - 0.1
    assert found.curves["accuracy"]["random"].points[-1].value > 0.65
    assert found.curves["loss"]["random"].n_labels == [27, 108]


def test_no_saving_is_reported_where_random_selection_learns_nothing(tmp_path):
    noise = rows()
    order = np.random.default_rng(5).random(160) < 0.5
    noise["embeddings"] = [v if keep else v[::-1] for v, keep in zip(noise["embeddings"], order, strict=True)]
    found = study(tmp_path / "s", Dataset.from_dict(noise))
    assert found.unlearned["loss"] == [1 / 3, 2 / 3, 1.0]
    assert found.savings["loss"] == {"easy": [], "hard@centered": []}
    page = write_study_report(tmp_path / "s", found).read_text()
    assert "The interval of random there contains the value of a model without labels" in page
    assert study(tmp_path / "t").unlearned["loss"] == []


def test_agreement_with_a_second_opinion_is_reported_by_similarity(tmp_path):
    dataset = Dataset.from_dict({**rows(), "other": [1.0, 0.0] * 80})
    found = study(tmp_path / "s", dataset, second_opinion="other")
    bins = found.agreement["a second annotator"]
    assert sum(row.n for row in bins) == 108 and 0.3 < np.mean([row.agreement for row in bins]) < 0.7


# What a user can get wrong.


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arms": ["esay"]}, "No strategy 'esay'"),
        ({"arms": ["easy@flat"]}, "No geometry 'flat'"),
        ({"arms": "easy"}, "is not a list of arms"),
        ({"budgets": []}, "is not a list of budgets"),
        ({"budgets": [0.5, 10]}, "mixes shares and numbers"),
        ({"budgets": [1.5]}, "out of range"),
        ({"budgets": [500]}, "but only 108 rows have a pair"),
        ({"n_test": 1000}, "leaves the pool or the test set empty. Type n_folds=4."),
        ({"pool_share": 0.0}, "is not in"),
        ({"min_gap": 5.0}, "No test pair has a label"),
    ],
)
def test_invalid_grid_gets_a_one_line_error(changes, message, tmp_path):
    with pytest.raises(TrlRealError, match=message) as raised:
        study(tmp_path / "s", **changes)
    assert "\n" not in str(raised.value)


def test_dataset_without_labels_or_vectors_gets_a_one_line_error(tmp_path):
    pool = Dataset.from_dict({"prompt": ["x"], "responses": [["a", "b"]]})
    with pytest.raises(MissingColumnError, match="No column 'scores'"):
        study(tmp_path / "s", pool)
    with pytest.raises(TrlRealError, match="second_opinion='other' needs labelled pairs"):
        study(tmp_path / "s", pool, second_opinion="other")
    with pytest.raises(MissingColumnError, match="No column 'embeddings'"):
        study(tmp_path / "s", Dataset.from_dict(rows()).remove_columns("embeddings"))
    with pytest.raises(TrlRealError, match="None of the 2 rows has a pair"):
        useless = {
            "prompt": ["x", "y"],
            "chosen": ["a", ""],
            "rejected": ["a", "b"],
            "embeddings": [[[1.0], [2.0]]] * 2,
        }
        study(tmp_path / "s", Dataset.from_dict(useless))


@pytest.mark.parametrize("arm", ACQUISITIONS)
def test_a_head_buys_a_random_quarter_first_and_then_its_best(arm):
    """Every row once, the pilot with the pairs of random, and more labels that end with the same model as random's."""
    everything = study_pool(Dataset.from_dict(rows(60, k=3)), embeddings=True)
    arms = LearningArms(everything, everything.vectors, pool_share=1.0)
    places, pairs, _ = arms.bought(arm, 20, 3)
    random = arms.scored_pairs("random", 3)
    pilot = random.selected(5)
    assert len(set(places.tolist())) == 20 and set(pilot.tolist()) <= set(places.tolist())
    by_place = dict(zip(places.tolist(), pairs.tolist(), strict=True))
    assert all(by_place[row] == random.pairs[row].tolist() for row in pilot.tolist())
    again = arms.bought(arm, 20, 3)
    np.testing.assert_array_equal(pairs, again[1])


def test_a_head_without_a_decided_label_chooses_by_its_prior():
    data = rows(30, k=3) | {"scores": [[1.0, 1.0, 1.0]] * 30}
    everything = study_pool(Dataset.from_dict(data), embeddings=True)
    arms = LearningArms(everything, everything.vectors, pool_share=1.0)
    assert len(arms.bought("fisher", 8, 0).places) == 8 and not len(arms.labeled(Cell("fisher", 8, 0)).places)


def test_large_and_small_gaps_are_those_of_the_head():
    """After a pilot of half the rows, the gaps that the best possible reward sees are larger for `large_gap`."""
    data = rows(200, d=3)
    everything = study_pool(Dataset.from_dict(data), embeddings=True)
    arms = LearningArms(everything, everything.vectors, pool_share=1.0)
    weights = FrozenCells(arms, everything, everything.vectors).fit(
        *(part.tobytes() for part in decided_pairs(everything))
    )[0].weights  # fmt: skip
    gaps = {}
    for arm in ("large_gap", "small_gap"):
        places, pairs, _ = arms.bought(arm, 80, 0)
        utilities = [
            (everything.vectors[i].double() / arms.scale @ weights)[pair]
            for i, pair in zip(places, pairs, strict=True)
        ]
        gaps[arm] = np.mean([float((u[0] - u[1]).abs()) for u in utilities])
    assert gaps["large_gap"] > 1.5 * gaps["small_gap"]
