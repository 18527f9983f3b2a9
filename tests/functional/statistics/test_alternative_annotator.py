"""The alternative annotator test finds judges as good as a person, worse ones, and says where it cannot know."""

import math

import numpy as np
import pyarrow.parquet as pq
import pytest
from scipy.stats import ttest_rel

from support.shared_data import data_path
from trl_real.errors import TrlRealError
from trl_real.functional.statistics.alternative_annotator import alternative_annotator_test


def crowd(accuracies: list[float], n: int = 200, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A truth, and one row of votes per accuracy."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 2, n) * 1.0
    return truth, np.array([np.where(rng.random(n) < accuracy, truth, 1 - truth) for accuracy in accuracies])


def naive(judge: np.ndarray, votes: np.ndarray, epsilon: float) -> tuple[list[float], float]:
    """The paper's scores pair by pair, and its test as a paired one."""
    p_values, advantages = [], []
    for j in range(len(votes)):
        judge_wins, person_wins = [], []
        for i in range(votes.shape[1]):
            others = [votes[k, i] for k in range(len(votes)) if k != j and not math.isnan(votes[k, i])]
            if math.isnan(votes[j, i]) or not others or math.isnan(judge[i]):
                continue
            side = 0.5 if judge[i] == 0.5 else float(judge[i] > 0.5)
            scores = [sum(other == verdict for other in others) / len(others) for verdict in (side, votes[j, i])]
            judge_wins.append(float(scores[0] >= scores[1]))
            person_wins.append(float(scores[1] >= scores[0]))
        p_values.append(ttest_rel(np.array(person_wins) - epsilon, judge_wins, alternative="less").pvalue)
        advantages.append(np.mean(judge_wins))
    return p_values, float(np.mean(advantages))


def test_scores_and_p_values_equal_a_naive_computation():
    rng = np.random.default_rng(1)
    votes = rng.choice([0.0, 0.5, 1.0, math.nan], size=(4, 120))
    judge = rng.choice([0.1, 0.5, 0.8, math.nan], size=120)
    found = alternative_annotator_test(judge, votes, 0.15)
    p_values, advantage = naive(judge, votes, 0.15)
    assert found.p_values == pytest.approx(p_values) and found.advantage == pytest.approx(advantage)


def test_a_judge_like_the_annotators_may_and_a_coin_may_not():
    truth, (*votes, coin) = crowd([0.9, 0.9, 0.9, 0.9, 0.5], seed=2)
    votes = np.array(votes)
    good = alternative_annotator_test(np.where(truth == 1, 0.8, 0.1), votes)
    assert (good.verdict, good.winning_rate) == ("may", 1.0) and good.advantage > 0.9
    coin = alternative_annotator_test(coin, votes)
    assert (coin.verdict, coin.winning_rate, coin.losing_rate) == ("may not", 0.0, 1.0)
    assert "this judge may not replace them" in coin.words()


def test_what_lies_between_is_not_shown():
    _, votes = crowd([0.9, 0.9, 0.9, 0.8], n=40, seed=4)
    found = alternative_annotator_test(votes[3], votes[:3])
    assert found.verdict == "is not shown to" and found.winning_rate < 0.5 and found.losing_rate < 0.5


def test_epsilon_decides_for_the_judge():
    _, votes = crowd([0.9, 0.9, 0.9, 0.86], n=400, seed=5)
    rates = [alternative_annotator_test(votes[3], votes[:3], epsilon).winning_rate for epsilon in (0.0, 0.3)]
    assert rates == [0.0, 1.0]


@pytest.mark.parametrize(("n_annotators", "n"), [(2, 200), (3, 29)])
def test_few_annotators_or_pairs_show_nothing(n_annotators, n):
    truth, votes = crowd([1.0] * n_annotators, n=n)
    found = alternative_annotator_test(truth, votes)
    assert found.verdict == "is not shown to" and "needs 3 annotators with 30 shared pairs" in found.words()


def test_wrong_input_is_named():
    _, votes = crowd([0.9] * 3)
    with pytest.raises(TrlRealError, match="epsilon=1"):
        alternative_annotator_test(votes[0], votes, 1.0)
    with pytest.raises(TrlRealError, match="The judge has verdicts on"):
        alternative_annotator_test(votes[0, :5], votes)


def test_real_annotators_can_be_replaced_by_one_of_them_and_not_by_the_longer_response():
    table = pq.read_table(data_path("labelled_pairs/labelled_pairs.parquet")).to_pylist()
    rows = [row for row in table if row["source"] == "pandalm" and len(row["annotator_labels"]) >= 3]
    side = {1: 1.0, 2: 0.0, 0: 0.5}
    votes = np.array([[side[label] for label in row["annotator_labels"][:3]] for row in rows]).T
    longer = np.array([float(len(row["response_1"]) > len(row["response_2"])) for row in rows])
    assert alternative_annotator_test(longer, votes).verdict == "may not"
    person = votes[np.arange(len(rows)) % 3, np.arange(len(rows))]
    assert alternative_annotator_test(person, votes).verdict == "may"
