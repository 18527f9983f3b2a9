"""The dear judge gets the least certain pairs and a random share; every row says who labelled it; nothing is lost."""

import math
from collections import Counter

import numpy as np
import pyarrow.parquet as pq
import pytest
from datasets import Dataset

from support.shared_data import data_path
from trl_real import LabelReport, RoutedJudge, TrlRealError, annotate
from trl_real.labeling.verdicts import Verdict


P = 50


def pairs(n: int = P) -> Dataset:
    rows = {"prompt": [f"p{i}" for i in range(n)], "responses": [[f"a{i}", f"b{i}"] for i in range(n)]}
    texts = {side: [f"{side[-1]}{i}" for i in range(n)] for side in ("response_a", "response_b")}
    return Dataset.from_dict({**rows, "pair": [[0, 1]] * n, **texts})


def number(text: str) -> int:
    return int(text[1:])


def cheap(batch):
    """More certain with each row, and always for the first response."""
    return [0.5 + (number(a) + 1) / 1000 for a in batch["response_a"]]


class Person:
    """Prefers the second response; counts what it is asked."""

    name = "person"

    def __init__(self):
        self.asked = Counter()

    def __call__(self, batch):
        self.asked.update(batch["response_a"])
        return [0.0] * len(batch["response_a"])


def test_the_least_certain_pairs_go_to_the_dear_judge_and_rows_say_who_labelled_them():
    person, report = Person(), LabelReport()
    labels = annotate(pairs(), RoutedJudge(cheap, person, 10, random_share=0.0), report=report)
    assert sorted(map(number, person.asked)) == list(range(10))
    assert labels["label_source"] == ["person"] * 10 + ["cheap"] * 40
    assert labels["chosen"][:11] == [f"b{i}" for i in range(10)] + ["a10"]
    assert labels["label_confidence"][10] == pytest.approx(0.511)
    assert (report.routing.n_asked, report.routing.n_changed, report.routing.n_random) == (10, 10, 0)
    assert math.isnan(report.routing.random_agreement) and "10 of 50 pairs went to person" in report.words()


def test_a_random_share_measures_the_agreement_on_all_pairs():
    def half(batch):
        return [float(number(a) % 2) for a in batch["response_a"]]

    report = LabelReport()
    annotate(pairs(400), RoutedJudge(cheap, half, 0.5), report=report)
    found = report.routing
    assert (found.n_asked, found.n_random) == (200, 40) and found.ci_low < 0.5 < found.ci_high
    assert f"would have changed about {(1 - found.random_agreement) * 200:.0f}" in found.words()
    assert report.to_dict()["routing"]["n_answered"] == 200


def test_a_larger_budget_keeps_the_pairs_of_a_smaller_one_and_asks_only_about_new_ones(tmp_path):
    person = Person()
    for budget in (5, 10, 30, P):
        before = set(person.asked)
        annotate(pairs(), RoutedJudge(cheap, person, budget), journal=tmp_path / "journal.jsonl")
        assert before <= set(person.asked) and len(person.asked) == budget
    assert set(person.asked.values()) == {1}


def test_order_and_orientation_of_the_pairs_do_not_matter():
    rows = pairs()
    judge = RoutedJudge(lambda batch: [0.6] * len(batch["prompt"]), Person(), 20, seed=3)
    batch = rows[:]
    one = judge.rows_for_dear(batch, [Verdict(0.6)] * P)
    swapped = {**batch, "response_a": batch["response_b"], "response_b": batch["response_a"]}
    assert judge.rows_for_dear(swapped, [Verdict(0.4)] * P) == one
    mixed = np.random.default_rng(0).permutation(P)
    again = judge.rows_for_dear(rows.select(mixed)[:], [Verdict(0.6)] * P)
    assert sorted(mixed[again].tolist()) == one


def test_failures_are_the_least_certain_and_a_failing_dear_judge_changes_nothing():
    def failing(batch):
        return [math.nan if number(a) in (7, 30) else 0.9 for a in batch["response_a"]]

    report = LabelReport()
    nobody = RoutedJudge(failing, lambda batch: [math.nan] * len(batch["prompt"]), 2, random_share=0.0)
    labels = annotate(pairs(), nobody, report=report)
    assert len(labels) == P - 2 and set(labels["label_source"]) == {"failing"}
    assert (report.routing.n_asked, report.routing.n_answered, report.routing.n_changed) == (2, 0, 0)
    labels = annotate(pairs(), RoutedJudge(failing, Person(), 2, random_share=0.0))
    assert [i for i, who in enumerate(labels["label_source"]) if who == "person"] == [7, 30]


def test_batches_of_its_own_share_one_budget():
    person = Person()
    judge = RoutedJudge(cheap, person, 6)
    for start in range(0, P, 10):
        assert len(judge(pairs()[start : start + 10])) == 10
    assert len(person.asked) == 6


@pytest.mark.parametrize(("budget", "share"), [(-1, 0.2), (0.0, 0.2), (1.5, 0.2), (True, 0.2), (5, 1.5)])
def test_settings_out_of_range_are_named(budget, share):
    with pytest.raises(TrlRealError, match="budget=|random_share="):
        RoutedJudge(cheap, Person(), budget, random_share=share)


def test_routing_a_fifth_of_real_pairs_beats_a_random_fifth():
    """A made-up judge of 70 % on real labels: 200 draws of its errors, routed and random on the same ones."""
    table = pq.read_table(data_path("labelled_pairs/labelled_pairs.parquet")).to_pylist()
    truth = np.array([row["label"] == 1 for row in table if row["source"] == "auto_j" and row["label"]])[:300]
    n, rng, gains = len(truth), np.random.default_rng(0), []
    texts = {name: [f"{name} {i}" for i in range(n)] for name in ("prompt", "response_a", "response_b")}
    for seed in range(200):
        strength = (2 * truth - 1) * 0.5244 + rng.normal(size=n)
        p = 1 / (1 + np.exp(-2 * 0.5244 * strength))
        right = []
        for share in (0.2, 1.0):
            labels, judge = p > 0.5, RoutedJudge(cheap, cheap, 0.2, random_share=share, seed=seed)
            asked = judge.rows_for_dear(texts, [Verdict(x) for x in p])
            labels[asked] = truth[asked]
            right.append((labels == truth).mean())
        gains.append(right[0] - right[1])
    low = np.mean(gains) - 1.97 * np.std(gains, ddof=1) / np.sqrt(len(gains))
    assert low > 0.01
