"""Tests of `annotate`: labels from scores and other judges."""

import json
import math
import re

import pytest
from datasets import Dataset

from support.chosen_pairs import Once, pool
from trl_real import EmbeddingPairSelector, MissingColumnError, ScoreJudge, TrlRealError, annotate
from trl_real.data.conversation import text_of
from trl_real.labeling.annotate import LabelReport
from trl_real.labeling.chat.judge import ChatJudge
from trl_real.labeling.panel import JudgePanel
from trl_real.labeling.people.queue import Deck
from trl_real.selection.planning.plan import plan_selection


def test_chosen_is_the_better_scored_response_and_ties_and_failures_are_counted_apart():
    report = LabelReport()
    labeled = annotate(pool(), ScoreJudge(), report=report)
    assert labeled["chosen"][:] == ["b", "c"]
    assert labeled["rejected"][:] == ["a", "e"]
    assert report.counts == {"labeled": 2, "ties": 1, "failed": 1}
    assert labeled["label_confidence"][:] == [1.0, 1.0]
    assert set(labeled["label_source"]) == {"score:scores"}
    assert labeled.column_names == [
        "prompt", "chosen", "rejected", "label_confidence", "label_source",
        "pair", "response_a", "response_b", "similarity", "skipped", "scores",
    ]  # fmt: skip


def test_swapping_the_responses_does_not_change_the_label():
    swapped = pool(responses=[["b", "a"], ["e", "d", "c"], ["g", "f"], ["i", "h"]],
                   scores=[[2.0, 1.0], [2.0, 9.0, 3.0], [5.0, 5.0], [1.0, None]],
                   response_a=["b", "e", "g", "i"], response_b=["a", "c", "f", "h"])  # fmt: skip
    first, second = annotate(pool(), ScoreJudge()), annotate(swapped, ScoreJudge())
    assert first["chosen"][:] == second["chosen"][:] and first["rejected"][:] == second["rejected"][:]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, [0.0, 1.0, 0.5, math.nan]),
        ({"min_gap": 1.0}, [0.0, 1.0, 0.5, math.nan]),
        ({"min_gap": 1.5}, [0.5, 0.5, 0.5, math.nan]),
        ({"min_ratio": 1.5}, [0.0, 1.0, 0.5, math.nan]),
        ({"min_ratio": 1.8}, [0.0, 0.5, 0.5, math.nan]),
    ],
)
def test_gap_or_ratio_below_the_minimum_is_a_tie(settings, expected):
    assert ScoreJudge(**settings)(pool()[:]) == pytest.approx(expected, nan_ok=True)


def test_scores_of_zero_have_no_ratio():
    verdicts = ScoreJudge(min_ratio=1.5)(pool(scores=[[0.0, 2.0], [-1.0, 9.0, -2.0], [5.0, 1.0], [1.0, 1.0]])[:])
    assert verdicts == pytest.approx([math.nan, math.nan, 1.0, 0.5], nan_ok=True)


def test_rows_without_a_pair_get_no_label():
    rows = pool(pair=[[-1, -1], [0, 2], [0, 1], [0, 1]], skipped=["empty response", "", "", ""])
    report = LabelReport()
    assert annotate(rows, ScoreJudge(), report=report)["prompt"][:] == ["p1"]
    assert (report.n_rows, report.n_without_pair, sum(report.counts.values())) == (4, 1, 3)


def test_text_response_to_a_conversational_prompt_becomes_an_assistant_message():
    prompts = [[{"role": "user", "content": f"q{i}"}] for i in range(4)]
    labeled = annotate(pool(prompt=prompts), ScoreJudge())
    assert labeled[0]["chosen"] == [{"role": "assistant", "content": "b"}]
    assert labeled[0]["prompt"] == prompts[0]


def test_messages_stay_messages():
    responses = [[[{"role": "assistant", "content": t}] for t in row] for row in pool()["responses"]]
    prompts = [[{"role": "user", "content": f"q{i}"}] for i in range(4)]
    labeled = annotate(pool(prompt=prompts, responses=responses), ScoreJudge())
    assert labeled[1]["rejected"] == [{"role": "assistant", "content": "e"}]


def said(text, role="assistant"):
    return [{"role": role, "content": text}]


@pytest.mark.parametrize("repeats", [False, True], ids=["responses", "whole dialogues"])
def test_text_prompt_of_message_responses_becomes_one_user_message(repeats):
    before = [said(f"p{i}", "user") if repeats else [] for i in range(4)]
    rows = pool(responses=[[before[i] + said(text) for text in row] for i, row in enumerate(pool()["responses"])])
    labeled = annotate(rows, ScoreJudge())[1]
    assert labeled["prompt"] == said("p1", "user")
    assert (labeled["chosen"], labeled["rejected"]) == (said("c"), said("e"))


def test_full_dialogues_lose_the_prompt_messages():
    prompts = [said(f"p{i}", "user") for i in range(4)]
    answers = [[prompts[i] + said(text) for text in row] for i, row in enumerate(pool()["responses"])]
    rows = pool(prompt=prompts, responses=answers)
    assert annotate(rows, ScoreJudge())[1]["chosen"] == said("c")


def test_text_next_to_messages_with_parts_becomes_a_part():
    parts = lambda text: [{"type": "text", "text": text}]  # noqa: E731
    prompts = [said(parts(f"p{i}"), "user") for i in range(4)]
    assert annotate(pool(prompt=prompts), ScoreJudge())[1]["chosen"] == said(parts("c"))
    answers = [[said(parts(text)) for text in row] for row in pool()["responses"]]
    assert annotate(pool(responses=answers), ScoreJudge())[1]["prompt"] == said(parts("p1"), "user")


def test_a_soft_verdict_gives_its_confidence():
    class Unsure:
        name = "unsure"

        def __call__(self, batch):
            return [0.3] * len(batch["prompt"])

    labeled = annotate(pool(), Unsure(), batch_size=3)
    assert labeled["chosen"][:] == ["b", "e", "g", "i"]
    assert labeled["label_confidence"][:] == pytest.approx([0.7] * 4)


def test_all_ties_give_an_empty_dataset_with_the_same_columns():
    labeled = annotate(pool(), ScoreJudge(min_gap=100.0))
    assert len(labeled) == 0 and "label_confidence" in labeled.column_names


class Wrong:
    name = "wrong"

    def __init__(self, answers):
        self.answers = answers

    def __call__(self, batch):
        return self.answers


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda: annotate(pool().remove_columns("pair"), ScoreJudge()), "No column 'pair'.*Select pairs first"),
        (lambda: annotate(Dataset.from_dict({"chosen": ["a"], "rejected": ["b"]}), ScoreJudge()), "have labels"),
        (lambda: annotate(pool().remove_columns("prompt"), ScoreJudge()), "No column 'prompt'.*rename_column"),
        (lambda: annotate(pool(), ScoreJudge("votes")), "No column 'votes'.*or --column"),
        (lambda: annotate(pool(scores=[[1.0]] * 4), ScoreJudge()), "1 scores in a row with the pair \\[0, 1\\]"),
        (lambda: ScoreJudge(min_gap=-1), "min_gap=-1 is negative"),
        (lambda: ScoreJudge(min_ratio=0.5), "min_ratio=0.5 is below 1"),
        (lambda: annotate(pool(), Wrong([0.5])), "wrong returned 1 verdicts on 4 rows"),
        (lambda: annotate(pool(), Wrong([0.5, 1.0, 7.0, 0.0])), "returned 7.0 on row 2"),
    ],
)
def test_each_mistake_gets_a_one_line_error_with_a_fix(break_it, message):
    with pytest.raises(TrlRealError, match=message) as caught:
        break_it()
    assert "\n" not in str(caught.value)


def test_chat_judge_reports_a_row_without_a_prompt():
    class Model:
        name, answers = "model", None

    with pytest.raises(TrlRealError, match="'prompt' holds NoneType where a text or messages should be. Remove such"):
        ChatJudge(Model())(pool(prompt=["p0", None, "p2", "p3"])[:])


def test_a_missing_column_can_be_caught_by_name():
    with pytest.raises(MissingColumnError):
        annotate(pool().remove_columns("pair"), ScoreJudge())


def test_agreement_with_gold_counts_the_pairs_that_both_decided():
    report = LabelReport()
    annotate(pool(), Once(), gold=ScoreJudge(), report=report)
    gold = report.gold  # scores say: b, a, tie, none; the judge: a, b, tie, none
    assert (gold.n, gold.n_agree, gold.n_undecided, gold.rate) == (2, 0, 0, 0.0)
    assert "agreement with gold labels 0.00" in report.words()
    assert report.to_dict()["gold"]["ci_high"] == pytest.approx(0.6576, abs=1e-3)
    annotate(pool(), ScoreJudge(), gold=ScoreJudge(), report=report)
    assert report.gold.rate == 1.0


def test_panel_pools_verdicts_and_reports_agreement():
    class Says:
        def __init__(self, *answers):
            self.name, self.answers = f"says {answers[0]}", answers

        def __call__(self, batch):
            return self.answers[: len(batch["prompt"])]

    members = [Says(0.9, 0.2, 0.6, None), Says(0.8, 0.6, 0.5, None), Says(0.4, 0.1, 0.9, 0.7)]
    report = LabelReport()
    labeled = annotate(pool(), JudgePanel(members), report=report)
    assert labeled["label_confidence"][:] == pytest.approx([0.7, 0.7, 2 / 3])
    assert labeled["chosen"][:] == ["a", "e", "f"]
    assert report.verdicts.failures == {"fewer than 2 judges had a verdict": 1}
    assert (report.panel.n_judges, report.panel.n_pairs) == (3, 3)
    assert JudgePanel(members, "majority")(pool()[:]) == pytest.approx([2 / 3, 1 / 3, 5 / 6, math.nan], nan_ok=True)
    assert JudgePanel(members, quorum=1)(pool()[:])[3] == 0.7
    for broken, message in ((dict(judges=[Once()]), "panel has 1"), (dict(judges=members, pooling="max"), "pooling"),
                            (dict(judges=members, quorum=4), "quorum=4 of 3 judges. Give 1 to 3")):  # fmt: skip
        with pytest.raises(TrlRealError, match=message):
            JudgePanel(**broken)


@pytest.mark.parametrize("form", ["texts", "messages"])
def test_ready_pairs_are_taken_without_a_selection(form, tmp_path):
    sides = {"response_a": ["good", "same", "fine"], "response_b": ["bad", "same", "poor"]}
    if form == "messages":
        sides = {name: [[{"role": "assistant", "content": text}] for text in texts] for name, texts in sides.items()}
    ready = Dataset.from_dict({"prompt": ["p", "q", "r"], **sides})

    def judge(batch):
        assert batch["response_a"] == ["good", "fine"]
        return [0.9, 0.2]

    labels = annotate(ready, judge)
    texts = [text_of(row[side]) for row in labels for side in ("chosen", "rejected")]
    assert texts == ["good", "bad", "poor", "fine"]
    chooser = EmbeddingPairSelector(strategy="random")
    assert plan_selection(chooser, ready, None).n_rows == 3
    streamed = chooser.select(ready.to_iterable_dataset(), shards=tmp_path / "shards")
    assert json.dumps(list(streamed)) == json.dumps(chooser.select(ready).to_list())
    with pytest.raises(TrlRealError, match="These are ready pairs, which select and annotate take as they are"):
        ready.map(chooser)
    kept = chooser.select(ready, 1)
    assert len(annotate(kept, lambda batch: [0.9])) == 1
    assert len(Deck(ready)) == 2


def judged(**changes):
    rows = {
        "prompt": ["one?", "two?"], "responses": [["p", "q", "r"], ["s", "t"]],
        "scores": [[1.0, 2.0, 3.0], [1.0, 2.0]], "pair": [[0, 2], [0, 1]],
        "response_a": ["p", "s"], "response_b": ["r", "t"],
    }  # fmt: skip
    return Dataset.from_dict({**rows, **changes})


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"responses": [["r", "q", "p"], ["s", "t"]]}, "1 where 'response_a' is not the response that 'pair' names"),
        ({"response_b": ["q", "s"]}, "2 where 'response_b' is not the response that 'pair' names (first: row 0)"),
        ({"pair": [[0, 2], [1, 1]]}, "'pair' does not name two of the 'responses' (first: row 1)"),
        ({"pair": [[0, 9], [0, 1]]}, "'pair' does not name two of the 'responses'"),
        ({"pair": [None, [0, 1]]}, "'pair' is not two numbers"),
        ({"pair": [[0], [0, 1]]}, "'pair' is not two numbers"),
        ({"responses": [["p", "q", None], ["s", "t"]]}, "one of the 'responses' is neither a text nor messages"),
        ({"responses": [None, ["s", "t"]]}, "'responses' is not a list"),
        ({"prompt": [None, "two?"]}, "'prompt' is neither a text nor messages"),
    ],
)
def test_rows_whose_label_would_go_on_other_texts_are_refused_before_anything_is_asked(changes, reason, tmp_path):
    def judge(batch):
        raise AssertionError("asked")

    with pytest.raises(TrlRealError, match=re.escape(reason)):
        annotate(judged(**changes), judge, journal=tmp_path / "verdicts.jsonl")
    assert not list(tmp_path.iterdir())


def test_the_label_follows_the_texts_of_messages_and_prompts_that_repeat():
    asked = [{"role": "user", "content": "one?"}]
    answers = [[*asked, {"role": "assistant", "content": text}] for text in ("p", "q")]
    rows = {"prompt": [asked], "responses": [answers], "scores": [[2.0, 1.0]], "pair": [[0, 1]]}
    found = annotate(Dataset.from_dict({**rows, "response_a": ["p"], "response_b": ["q"]}), ScoreJudge())
    assert found[0]["chosen"] == answers[0][1:] and found[0]["rejected"] == answers[1][1:]
