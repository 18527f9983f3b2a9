"""People in a comparison: the draw stays, the votes count once, and the rate is theirs."""

import json

import numpy as np
import pytest
from datasets import Dataset

from trl_real import MissingColumnError, TrlRealError, compare, compare_columns
from trl_real.evaluation.people import DRAWS, People
from trl_real.functional.statistics.people import paired_people, people_win_rate
from trl_real.labeling.people.queue import VoteQueue
from trl_real.runtime.journal import Journal


N = 80


def number(text: str) -> int:
    return int(text.split()[-1])


def judge(batch):
    return [0.5 + 0.45 * np.sin(number(a)) for a in batch["response_a"]]


class Crowd:
    """Judge that counts what it is asked; skips every tenth pair."""

    name = "crowd"

    def __init__(self, shift: float = 0.0):
        self.asked: list[str] = []
        self.shift = shift

    def __call__(self, batch):
        self.asked += batch["response_a"]
        numbers = [number(a) for a in batch["response_a"]]
        return [None if i % 10 == 9 else float(np.sin(i + self.shift) + np.cos(5 * i) / 2 > 0) for i in numbers]


def rows(model: str = "ours", n: int = N, rows_a_prompt: int = 2) -> dict:
    prompts = [f"p {i // rows_a_prompt}" for i in range(n)]
    return {"prompt": prompts, model: [f"{model} {i}" for i in range(n)], "theirs": [f"theirs {i}" for i in range(n)]}


def compared(people, columns=None, model="ours", rows_a_prompt=2, ask=judge, **options):
    dataset = Dataset.from_dict({**rows(model, rows_a_prompt=rows_a_prompt), **(columns or {})})
    return compare_columns(dataset, ask, model=model, baseline="theirs", people=people, **options)


@pytest.mark.parametrize("by", DRAWS)
def test_drawn_pairs_are_asked_once_and_the_rates_are_those_of_their_columns(by):
    crowd, drawn = Crowd(), []
    found = compared(People(crowd, n=30, by=by, on_draw=drawn.append))
    assert len(crowd.asked) == len(set(crowd.asked)) == 30 and drawn[0]["response_a"] == crowd.asked
    columns = found.rows["preference"], found.rows["people"], found.rows["inclusion_probability"]
    expected = people_win_rate(*columns, clusters=found.rows["prompt"])
    assert {name: found.rates[name] for name in expected} == expected
    n_skipped = sum(number(text) % 10 == 9 for text in crowd.asked)
    assert (found.rates["n_asked"], found.rates["n_skipped"], found.rates["n_open"]) == (30, n_skipped, 0)
    # What was skipped is made up for by the others: together they stand for all rows.
    assert np.nansum((1 / np.array(columns[2]))[~np.isnan(columns[1])]) == pytest.approx(N, rel=0.2)
    assert found.people == "crowd" and "people alone" in found.summary() and found.to_dict()["people"] == "crowd"


def test_identical_completions_are_known_ties_that_nobody_sees():
    columns = {"theirs": [f"ours {i}" if i < 20 else f"theirs {i}" for i in range(N)]}
    crowd = Crowd()
    found = compared(People(crowd, n=N), columns)
    assert all(number(text) >= 20 for text in crowd.asked) and len(crowd.asked) == 60
    assert found.rows["people"][:20] == [0.5] * 20 and found.rows["inclusion_probability"][:20] == [1.0] * 20
    assert found.rates["n_ties"] == 20


def test_a_votes_file_of_any_pairs_counts_as_a_uniform_sample(tmp_path):
    data = rows()
    pairs = Dataset.from_dict({"prompt": data["prompt"], "response_a": data["theirs"], "response_b": data["ours"]})
    with Journal(tmp_path / "votes.jsonl") as journal:
        queue = VoteQueue(pairs.select(range(25)), journal, "ann")
        while pair := queue.next():
            queue.vote("skip" if pair.row < 5 else "b" if pair.row % 3 else "a", 1.0)
    found = compared(tmp_path / "votes.jsonl")
    votes = np.array(found.rows["people"])
    assert votes[5:25].tolist() == [float(i % 3 > 0) for i in range(5, 25)] and np.isnan(votes[25:]).all()
    assert (found.rates["n_asked"], found.rates["n_skipped"], found.rates["n_open"]) == (25, 5, 0)
    uniform = people_win_rate(found.rows["preference"], votes, clusters=found.rows["prompt"])
    assert found.rates["win_rate"] == pytest.approx(uniform["win_rate"])
    given = compared(tmp_path / "votes.jsonl", {"inclusion_probability": [0.2 + 0.5 * (i % 2) for i in range(N)]})
    weights = 1 / np.array([0.2 + 0.5 * (i % 2) for i in range(5, 25)])
    assert given.rates["people_only_win_rate"] == pytest.approx(np.average(votes[5:25], weights=weights))


def test_a_kept_draw_survives_another_verdict_of_the_judge_and_refuses_other_rows(tmp_path):
    draw, one, two = tmp_path / "draw.json", Crowd(), Crowd()
    first = compared(People(one, n=20, draw=draw))
    assert set(json.loads(draw.read_text())) == {"by", "strata", "uniform_share", "seed", "scores"}
    again = compared(People(two, n=20, draw=draw), ask=lambda batch: [None] * len(batch["prompt"]))
    assert two.asked == one.asked and again.rows["inclusion_probability"] == first.rows["inclusion_probability"]
    assert again.rates["judge_weight"] == 0 and again.rates["n_failed"] == N
    with pytest.raises(TrlRealError, match="keeps a draw with by='uncertainty', not 'uniform'"):
        compared(People(one, n=20, by="uniform", draw=draw))
    with pytest.raises(TrlRealError, match="keeps a draw from 80 other pairs; 1 of these 80 are new"):
        compared(People(one, n=20, draw=draw), {"theirs": ["new 0", *rows()["theirs"][1:]]})


def test_a_repeated_pair_is_asked_once_and_counts_in_each_of_its_rows():
    data, crowd = rows(n=20), Crowd()
    swapped = {"ours": data["ours"] + data["theirs"][:9], "theirs": data["theirs"] + data["ours"][:9]}
    repeated = Dataset.from_dict({"prompt": data["prompt"] + data["prompt"][:9], **swapped})
    found = compare_columns(repeated, judge, model="ours", baseline="theirs", people=People(crowd, n=20))
    assert len(crowd.asked) == found.rates["n_asked"] == 20
    assert found.rows["people"][20:] == [1 - vote for vote in found.rows["people"][:9]]


def test_strata_get_their_share_and_must_be_a_column():
    sources = {"source": ["x"] * 20 + ["y"] * 60}
    for seed in range(4):
        crowd = Crowd()
        compared(People(crowd, n=16, by="uniform", strata="source", seed=seed), sources)
        assert sum(number(text) < 20 for text in crowd.asked) == 4, "by chance it is another number sometimes"
    with pytest.raises(MissingColumnError, match="topic"):
        compared(People(crowd, n=16, strata="topic"))


def test_two_models_are_judged_by_people_on_the_same_prompts():
    crowds = {"ours": Crowd(), "rival": Crowd()}
    draws = {model: People(crowd, n=30, by="uniform") for model, crowd in crowds.items()}
    ours, other = (compared(people, model=model, rows_a_prompt=1) for model, people in draws.items())
    assert sorted(map(number, crowds["ours"].asked)) == sorted(map(number, crowds["rival"].asked))
    found = ours.against_by_people(other)
    assert found["difference"] == 0 and found["n_total"] == ours.rates["n_total"]
    rival = compared(People(Crowd(2.0), n=30), model="rival", rows_a_prompt=1)
    found = ours.against_by_people(rival)
    chances = np.minimum(ours.rows["inclusion_probability"], rival.rows["inclusion_probability"])
    sides = [(c.rows["preference"], c.rows["people"]) for c in (ours, rival)]
    assert found == paired_people(*sides, chances, clusters=ours.rows["prompt"])
    plain = compared(None, rows_a_prompt=1)
    with pytest.raises(TrlRealError, match="made without people"):
        ours.against_by_people(plain)


def test_compare_takes_people_and_few_votes_are_doubted():
    data = rows()
    found = compare(data["prompt"], data["ours"], data["theirs"], judge, people=People(Crowd(), n=10))
    assert any(doubt.name == "few votes" for doubt in found.doubts)


@pytest.mark.parametrize(("options", "words"), [({"n": 0}, "n=0"), ({"by": "length"}, "Unknown draw 'length'")])
def test_wrong_requests_are_named(options, words):
    with pytest.raises(TrlRealError, match=words):
        People("votes.jsonl", **options)
