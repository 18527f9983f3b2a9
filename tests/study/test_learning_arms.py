"""Arms of a study that choose in rounds, and the picks that arms share."""

import numpy as np
import pytest
import torch
from datasets import Dataset

from trl_real.functional.design import greedy_design
from trl_real.selection.strategies import STRATEGIES
from trl_real.study.arms import KeptPicks
from trl_real.study.learning_arms import AUTO_IN_ROUNDS, LearningArms, round_sizes
from trl_real.study.pool import study_pool
from trl_real.study.run import run_study


pytestmark = pytest.mark.usefixtures("one_thread")


def arms_of(n=200, d=5, k=2, seed=0, signal=2.0) -> LearningArms:
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(n, k, d))
    scores = signal * vectors @ rng.normal(size=d) + rng.logistic(size=(n, k))
    names = {"prompt": [f"p{i}" for i in range(n)], "responses": [[f"{i} {j}" for j in range(k)] for i in range(n)]}
    pool = study_pool(Dataset.from_dict({**names, "scores": scores, "embeddings": vectors}), embeddings=True)
    return LearningArms(pool, pool.vectors, pool_share=1.0)


@pytest.mark.parametrize("name", [name for name, strategy in STRATEGIES.items() if strategy.budget])
def test_a_smaller_budget_is_the_beginning_of_a_larger_one_and_is_computed_once(name):
    x = torch.randn(60, 8, generator=torch.Generator().manual_seed(0))
    sizes = []

    def counted(differences, size):
        sizes.append(size)
        return STRATEGIES[name].budget(differences, size)

    kept = KeptPicks(counted)
    for size in (5, 7, 3, 20, 60):
        direct = STRATEGIES[name].budget(x, size)
        assert kept(x, size).indices.tolist() == direct.indices.tolist()
        torch.testing.assert_close(kept(x, size).scores, direct.scores)
    assert sizes == [5, 20, 60] and greedy_design(x, 0).log_det == 0


@pytest.mark.parametrize("size", [0, 3, 10, 41])
def test_rounds_add_up(size):
    assert sum(round_sizes(size)) == size and max(round_sizes(size)) - min(round_sizes(size)) <= 1


@pytest.mark.parametrize("k", [2, 3])
def test_the_race_buys_its_budget_once_and_says_what_it_chose(k):
    arms = arms_of(k=k)
    places, pairs, notes = arms.bought(AUTO_IN_ROUNDS, 80, 0)
    assert len(places) == len(set(places.tolist())) == len(pairs) == 80
    assert notes["rules"][0] == "random" and sum(notes["shares"]) == pytest.approx(1)
    assert len(notes["race"]["loss"]) == len(notes["rules"]) and notes["race"]["n_tests"] >= 15
    again = arms_of(k=k).bought(AUTO_IN_ROUNDS, 80, 0)
    np.testing.assert_array_equal(pairs, again.pairs)


def test_the_first_round_of_the_race_is_autos_and_reads_no_label():
    """Where later labels differ, the first quarter stays; and the last quarter follows the labels."""
    arms = arms_of()
    auto = arms.scored_pairs("auto", 0)
    first = set(auto.scored[0].places[auto.taken(20).rows].tolist())
    assert first <= set(arms.bought(AUTO_IN_ROUNDS, 80, 0).places.tolist())


def test_race_is_an_arm_of_a_study_and_its_notes_stay_with_the_cell(tmp_path):
    arms = arms_of(120)
    data = Dataset.from_dict(
        {
            "prompt": [row.prompt for row in arms.pool.rows],
            "responses": [row.texts for row in arms.pool.rows],
            "scores": [s.tolist() for s in arms.pool.scores],
            "embeddings": [v.tolist() for v in arms.pool.vectors],
        }
    )
    grid = {"arms": ["random", AUTO_IN_ROUNDS, "infomax"], "budgets": [0.1, 0.5], "seeds": [0], "n_folds": 2}
    found = run_study(data, None, tmp_path, **grid)
    assert found.n_done == found.n_cells == 6 and set(found.differences["loss"]) == {AUTO_IN_ROUNDS, "infomax"}
