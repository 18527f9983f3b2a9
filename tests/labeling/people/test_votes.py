"""Votes of people: the queue, the file, and the judge that reads it."""

import json
import math
import os
import random
import subprocess
import sys

import numpy as np
import pytest
from datasets import Dataset

from support.votes import pool, row
from trl_real.errors import MissingColumnError, TrlRealError
from trl_real.functional.statistics.crowd import AGGREGATIONS
from trl_real.labeling.annotate import LabelReport, annotate
from trl_real.labeling.people.queue import VoteQueue
from trl_real.labeling.people.report import vote_report
from trl_real.labeling.people.votes import VERDICTS, VoteBook, VotesJudge, pair_key
from trl_real.labeling.verdicts import ask, summarize
from trl_real.runtime.journal import Journal


def mirrored(dataset: Dataset) -> Dataset:
    swap = [{**r, "response_a": r["response_b"], "response_b": r["response_a"]} for r in dataset]
    return Dataset.from_list(swap)


def share(votes: np.ndarray) -> np.ndarray:
    return np.array([v[~np.isnan(v)].mean() if (~np.isnan(v)).any() else np.nan for v in votes.T])


def screens(queue: VoteQueue, verdict: str = "a") -> list[tuple[str, str, str]]:
    seen = []
    while (pair := queue.next()) is not None:
        seen.append((pair.prompt, pair.first, pair.second))
        assert queue.vote(verdict, 1.0)
    return seen


def test_key_depends_on_the_texts_of_a_pair():
    key = pair_key("p", "a", "b")
    assert key == pair_key("p", "a", "b") and len(key) == 32 and int(key, 16) >= 0
    others = [("p", "b", "a"), ("pa", "", "b"), ("p", "ab", ""), ([{"role": "user", "content": "p"}], "a", "b")]
    assert len({key, *(pair_key(*other) for other in others)}) == 5
    assert pair_key("\ud800", "\udfff", "b") != pair_key("\ud801", "\udfff", "b")
    said = [{"role": "user", "content": "p", "tool_calls": None}]
    assert pair_key(said, "a", "b") == pair_key([{"role": "user", "content": "p"}], "a", "b")


def test_order_and_sides_depend_only_on_seed_name_and_content(tmp_path):
    dataset = pool(30)
    shuffled = dataset.select(random.Random(0).sample(range(30), 30))
    seen = [
        screens(VoteQueue(data, Journal(tmp_path / f"{i}.jsonl"), "ann"))
        for i, data in enumerate((dataset, shuffled, mirrored(dataset)))
    ]
    assert seen[0] == seen[1] == seen[2]
    other_name = screens(VoteQueue(dataset, Journal(tmp_path / "n.jsonl"), "bob"))
    other_seed = screens(VoteQueue(dataset, Journal(tmp_path / "s.jsonl"), "ann", seed=7))
    assert sorted(p for p, *_ in seen[0]) == sorted(p for p, *_ in other_name) and other_name != seen[0] != other_seed
    # a pair more moves no other pair's side, and no two pairs past each other
    more = screens(VoteQueue(pool(31), Journal(tmp_path / "m.jsonl"), "ann"))
    assert [screen for screen in more if screen[0] != "question 30"] == seen[0]


def test_sides_are_balanced_and_independent_between_people(tmp_path):
    dataset = pool(1000)
    sides = []
    for name in ("ann", "bob"):
        queue = VoteQueue(dataset, Journal(tmp_path / "votes.jsonl"), name)
        shown = {name: queue._deck.show(name, 42, queue.annotator) for name in queue._order}
        sides.append([shown[name].shown_first == "a" for name in sorted(shown)])
    assert all(abs(np.mean(side) - 0.5) < 4 * 0.5 / math.sqrt(1000) for side in sides)
    assert abs(np.corrcoef(*sides)[0, 1]) < 4 / math.sqrt(1000)


def test_vote_for_a_side_is_written_for_the_response_shown_there(tmp_path):
    dataset = pool(40)
    queue = VoteQueue(dataset, Journal(tmp_path / "votes.jsonl"), "ann")
    for side in ["left", "right", "tie", "skip"] * 10:
        pair = queue.next()
        assert queue.vote_side(side, 2.5, pair.key)
        line = Journal(tmp_path / "votes.jsonl").read()[-1]
        chosen = {"left": pair.first, "right": pair.second}.get(side)
        told = {"a": dataset[line["row"]]["response_a"], "b": dataset[line["row"]]["response_b"]}
        assert told.get(line["verdict"]) == chosen and told[line["shown_first"]] == pair.first
        assert (line["annotator"], line["seconds"], line["seed"]) == ("ann", 2.5, 42)
    assert queue.next() is None and not queue.vote("a", 1.0)
    progress = queue.progress
    assert (progress.left, progress.right, progress.counts["tie"], progress.skipped) == (10, 10, 10, 10)
    assert progress.done == progress.total == 40 and progress.pairs_per_hour == 3600 / 2.5


def test_vote_on_a_pair_that_is_not_next_is_refused(tmp_path):
    queue = VoteQueue(pool(3), Journal(tmp_path / "votes.jsonl"), "ann")
    first = queue.next().key
    assert queue.vote("a", 1.0, first) and not queue.vote("b", 1.0, first) and not queue.undo(first)
    assert queue.progress.done == 1 and queue.undo(queue.next().key) and queue.next().key == first


def test_queue_resumes_after_any_line_of_the_journal(tmp_path):
    dataset, path = pool(8), tmp_path / "votes.jsonl"
    whole = screens(VoteQueue(dataset, Journal(tmp_path / "whole.jsonl"), "ann"))
    seen = []
    for _ in range(8):  # a new process for each vote, and a line torn by a kill before each
        with Journal(path) as journal:
            queue = VoteQueue(dataset, journal, "ann")
            pair = queue.next()
            seen.append((pair.prompt, pair.first, pair.second))
            assert queue.vote("tie", 1.0, pair.key)
        with open(path, "ab") as file:
            file.write(b'{"key": "torn by a k')
    assert seen == whole
    assert VoteQueue(dataset, Journal(path), "ann").next() is None and len(Journal(path).read()) == 8


def test_undo_reverts_votes_one_at_a_time_also_after_a_restart(tmp_path):
    dataset, path = pool(4), tmp_path / "votes.jsonl"
    with Journal(path) as journal:
        queue = VoteQueue(dataset, journal, "ann")
        keys = []
        for verdict in ("a", "b", "tie"):
            keys.append(queue.next().key)
            queue.vote(verdict, 1.0)
    with Journal(path) as journal:
        queue = VoteQueue(dataset, journal, "ann")
        assert queue.undo() and queue.next().key == keys[2]
    with Journal(path) as journal:
        queue = VoteQueue(dataset, journal, "ann")
        assert queue.undo() and queue.next().key == keys[1]
        assert queue.vote("skip", 1.0) and queue.next().key == keys[2]
        assert queue.undo() and queue.undo() and not queue.undo() and queue.progress.done == 0
    lines = Journal(path).read()
    assert [line["undo"] for line in lines if "undo" in line] == [keys[2], keys[1], keys[1], keys[0]]
    assert sum("verdict" in line for line in lines) == 4  # nothing is deleted
    assert VoteBook.read(path).matrix()[2].size == 0


def test_two_people_in_one_file_do_not_see_each_other(tmp_path):
    dataset, journal = pool(5), Journal(tmp_path / "votes.jsonl")
    ann, bob = VoteQueue(dataset, journal, "ann"), VoteQueue(dataset, journal, "bob")
    for i in range(5):
        assert ann.vote("a", 1.0) and bob.vote("b", 2.0)
        if i == 2:
            assert bob.undo() and bob.vote("tie", 1.0)
    journal.close()
    names, keys, votes = VoteBook.read(tmp_path / "votes.jsonl").matrix()
    assert names == ["ann", "bob"] and votes.shape == (2, 5) and (votes[0] == 1).all()
    assert sorted(votes[1]) == [0, 0, 0, 0, 0.5] and sorted(keys) == sorted(pair_key(*texts(r)) for r in dataset)


def texts(r: dict) -> tuple[str, str, str]:
    return r["prompt"], r["response_a"], r["response_b"]


def test_a_second_writer_is_refused(tmp_path):
    dataset, path = pool(2), tmp_path / "votes.jsonl"
    with Journal(path) as first:
        VoteQueue(dataset, first, "ann").vote("a", 1.0)
        with pytest.raises(TrlRealError, match="Another process is writing"):
            VoteQueue(dataset, Journal(path), "bob").vote("a", 1.0)


def test_each_pair_is_asked_once_and_rows_without_one_never(tmp_path):
    rows = [row(0), row(1, pair=[-1, -1], response_a="", response_b=""), row(0), row(2)]
    rows.append({**row(2), "response_a": row(2)["response_b"], "response_b": row(2)["response_a"]})
    assert len(screens(VoteQueue(Dataset.from_list(rows), Journal(tmp_path / "v.jsonl"), "ann"))) == 2
    with pytest.raises(TrlRealError, match="nothing to vote on"):
        VoteQueue(Dataset.from_list(rows[1:2]), Journal(tmp_path / "w.jsonl"), "ann")
    with pytest.raises(MissingColumnError, match="Select pairs first"):
        VoteQueue(Dataset.from_dict({"prompt": ["p"]}), Journal(tmp_path / "w.jsonl"), "ann")


@pytest.mark.parametrize("name", ["", " \t", "x" * 81])
def test_invalid_name_is_refused(tmp_path, name):
    with pytest.raises(TrlRealError, match="1 to 80"):
        VoteQueue(pool(1), Journal(tmp_path / "v.jsonl"), name)


@pytest.mark.parametrize("seconds, written", [(-3, 0), (math.nan, 0), (math.inf, 0), (1e9, 86400), (1.23456, 1.235)])
def test_invalid_seconds_do_not_break_the_journal(tmp_path, seconds, written):
    queue = VoteQueue(pool(1), Journal(tmp_path / "v.jsonl"), "ann")
    assert queue.vote("a", seconds) and Journal(tmp_path / "v.jsonl").read()[0]["seconds"] == written


def voted(path, dataset: Dataset, **verdicts: list[str]) -> None:
    """Everyone's verdicts, row by row; None leaves a row out."""
    with Journal(path) as journal:
        for name, said in verdicts.items():
            by_row = dict(enumerate(said))
            queue = VoteQueue(dataset.select([i for i, v in by_row.items() if v]), journal, name)
            kept = [v for v in said if v]
            while (pair := queue.next()) is not None:
                queue.vote(kept[pair.row], 1.0)


def test_judge_returns_the_votes(tmp_path):
    dataset, path = pool(5), tmp_path / "votes.jsonl"
    voted(path, dataset, ann=["a", "tie", "b", "skip", None], bob=["a", "a", "b", "skip", None])
    judge = VotesJudge(path, share)
    verdicts = ask(judge, dataset[:])
    assert [v.probability for v in verdicts[:3]] == [1, 0.75, 0] and judge.annotators == ["ann", "bob"]
    assert [v.outcome for v in verdicts] == ["a", "a", "b", "failed", "failed"]
    assert [v.failure for v in verdicts] == ["", "", "", "skipped", "not labelled"]
    assert verdicts[1].members == (0.5, 1.0) and [v.n_cached for v in verdicts] == [2, 2, 2, 0, 0]
    only = VotesJudge(path, share, annotators=["ann"])
    assert [v.outcome for v in ask(only, dataset[:])][:3] == ["a", "tie", "b"] and only.identity != judge.identity
    with pytest.raises(TrlRealError, match="No votes by eve"):
        VotesJudge(path, share, annotators=["eve"])


def test_votes_become_preferences(tmp_path):
    dataset, path = pool(5), tmp_path / "votes.jsonl"
    dataset = dataset.add_column("responses", [[r["response_a"], r["response_b"]] for r in dataset])
    voted(path, dataset, ann=["a", "tie", "b", "skip", None])
    labeled = annotate(dataset, VotesJudge(path, share), report=(report := LabelReport()))
    assert labeled["chosen"][:] == ["answer 0", "another 2"] and labeled["rejected"][:] == ["another 0", "answer 2"]
    assert (report.n_labeled, report.verdicts.n_ties) == (2, 1)
    assert report.verdicts.failures == {"skipped": 1, "not labelled": 1}


def test_swapping_the_responses_mirrors_the_verdict(tmp_path):
    dataset, path = pool(20), tmp_path / "votes.jsonl"
    said = [random.Random(0).choice(list(VERDICTS)) for _ in range(20)]
    voted(path, dataset, ann=said, bob=["a"] * 20)
    judge = VotesJudge(path, share)
    for v, m in zip(ask(judge, dataset[:]), ask(judge, mirrored(dataset)[:]), strict=True):
        assert m.probability == 1 - v.probability and m.failure == v.failure
        np.testing.assert_equal(m.a_first, 1 - v.b_first)
        np.testing.assert_equal(m.members, tuple(1 - x for x in v.members))


def test_votes_on_a_pair_and_its_swap_share_one_column(tmp_path):
    dataset, path = pool(6), tmp_path / "votes.jsonl"
    voted(path, dataset, ann=["a"] * 6)
    voted(path, mirrored(dataset), bob=["b"] * 6)
    names, keys, votes = VoteBook.read(path).matrix()
    assert names == ["ann", "bob"] and votes.shape == (2, 6) and (votes == 1).all()
    assert [v.probability for v in ask(VotesJudge(path, share), mirrored(dataset)[:])] == [0.0] * 6
    assert screens(VoteQueue(mirrored(dataset), Journal(path), "ann")) == []  # not asked again the other way round


def test_always_voting_left_shows_as_position_bias(tmp_path):
    dataset, path = pool(40), tmp_path / "votes.jsonl"
    with Journal(path) as journal:
        for name in ("ann", "bob"):
            queue = VoteQueue(dataset, journal, name)
            while queue.next():
                queue.vote_side("left", 1.0)
    found = summarize(ask(VotesJudge(path, share), dataset[:]))
    assert found.position_bias == 0.5 and found.n_both > 5 and found.flip_rate == 1
    report = vote_report(path)
    assert report.annotators["ann"].first_shown_rate == 1 and report.annotators["ann"].first_shown_low > 0.9


def test_the_shown_side_of_a_mirrored_vote_is_mirrored_too(tmp_path):
    """Ann always votes left, also on pairs that were pushed the other way round after Bob had seen them."""
    dataset, path = pool(30), tmp_path / "votes.jsonl"
    voted(path, dataset, bob=["skip"] * 30)  # the first to see a pair decides how it is stored
    for asked in (dataset, mirrored(dataset)):
        path_of_one = tmp_path / f"{asked[0]['response_a']}.jsonl"
        path_of_one.write_text(path.read_text())
        with Journal(path_of_one) as journal:
            queue = VoteQueue(asked, journal, "ann")
            while queue.next():
                queue.vote_side("left", 1.0)
        for shown in (dataset, mirrored(dataset)):
            found = ask(VotesJudge(path_of_one, share, annotators=["ann"]), shown[:])
            assert summarize(found).position_bias == 0.5
            sides = [(v.a_first, v.b_first) for v in found]
            assert {(1.0 if a == a else None, 0.0 if b == b else None) for a, b in sides} == {(1.0, None), (None, 0.0)}
            assert all(v.probability == (a if a == a else b) for v, (a, b) in zip(found, sides, strict=True))


def test_report_counts_only_current_votes(tmp_path):
    dataset, path = pool(4), tmp_path / "votes.jsonl"
    with Journal(path) as journal:
        queue = VoteQueue(dataset, journal, "ann")
        for verdict, seconds in (("a", 2.0), ("skip", 4.0), ("tie", 6.0)):
            queue.vote(verdict, seconds)
        queue.undo()
        queue.vote("b", 9.0)
    report = vote_report(path)
    ann = report.annotators["ann"]
    assert (ann.votes, ann.undone, ann.median_seconds, ann.pairs_per_hour) == (3, 1, 4.0, 900.0)
    assert ann.counts == {"a": 1, "tie": 0, "b": 1, "skip": 1} and 0 <= ann.first_shown_low <= ann.first_shown_rate
    assert (report.n_pairs, report.n_decided, report.n_shared) == (3, 2, 0) and math.isnan(report.alpha)
    assert json.loads(json.dumps(report.to_dict()))["alpha"] is None and "ann: 3 votes" in report.words()


@pytest.mark.parametrize(
    "line",
    [
        {"verdict": "a"},
        {"key": "k", "annotator": "x", "verdict": "c", "shown_first": "a"},
        {"verdict": ["a"], "key": 1},
    ],
)
def test_invalid_vote_line_is_named(tmp_path, line):
    path = tmp_path / "votes.jsonl"
    path.write_text(json.dumps({"opened": 1}) + "\n" + json.dumps(line) + "\n")
    with pytest.raises(TrlRealError, match="Line 2 of the votes is not valid"):
        VoteBook.read(path).matrix()


def test_missing_file_or_file_without_votes_is_named(tmp_path):
    with pytest.raises(TrlRealError, match="label --human"):
        VotesJudge(tmp_path / "none.jsonl")
    (tmp_path / "other.jsonl").write_text('{"probability": 1}\n')
    with pytest.raises(TrlRealError, match="is not a votes file"):
        VotesJudge(tmp_path / "other.jsonl")


KILLED = """
import os, sys
from trl_real.runtime.journal import Journal
from trl_real.labeling.people.queue import VoteQueue
from support.votes import pool
queue = VoteQueue(pool(60), Journal(sys.argv[1]), "ann")
while queue.next():
    queue.vote("a", 1.0)
    print(queue.progress.done, flush=True)
"""


def test_kill_loses_no_accepted_vote(tmp_path):
    path = tmp_path / "votes.jsonl"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", KILLED, path]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as worker:
        told = [int(worker.stdout.readline()) for _ in range(25)]
        worker.kill()
        told += [int(line) for line in worker.stdout.read().splitlines()]
    queue = VoteQueue(pool(60), Journal(path), "ann")
    assert told[-1] <= queue.progress.done <= told[-1] + 1
    screens(queue)
    keys = [line["key"] for line in Journal(path).read()]
    assert len(keys) == len(set(keys)) == 60


def test_aggregations_are_chosen_by_name(tmp_path):
    dataset, path = pool(30), tmp_path / "votes.jsonl"
    truth = ["a" if i % 3 else "b" for i in range(30)]
    wrong = [random.Random(1).choice("ab") for _ in range(30)]
    voted(path, dataset, ann=truth, bob=truth, eve=wrong, kim=truth[:15] + [None] * 15)
    for name in AGGREGATIONS:
        judge = VotesJudge(path, name)
        assert [v.outcome for v in ask(judge, dataset[:])] == truth and judge.name == f"votes:{name}"
    with pytest.raises(TrlRealError, match="Unknown aggregation 'mode'"):
        VotesJudge(path, "mode")


def test_report_on_two_people_shows_their_agreement(tmp_path):
    dataset, path = pool(30), tmp_path / "votes.jsonl"
    said = ["a" if i % 2 else "b" for i in range(30)]
    voted(path, dataset, ann=said, bob=said)
    report = vote_report(path)
    assert report.alpha == pytest.approx(1) and report.n_shared == 30 and "alpha 1.00" in report.words()
