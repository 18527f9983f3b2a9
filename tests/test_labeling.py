"""Claims about labels from scores."""

import math
from collections import Counter

import pytest
from datasets import Dataset

from trl_real import MissingColumnError, ScoreJudge, TrlRealError, annotate


def pool(**columns):
    rows = {
        "prompt": ["p0", "p1", "p2", "p3"],
        "responses": [["a", "b"], ["c", "d", "e"], ["f", "g"], ["h", "i"]],
        "scores": [[1.0, 2.0], [3.0, 9.0, 2.0], [5.0, 5.0], [None, 1.0]],
        "pair": [[0, 1], [0, 2], [0, 1], [0, 1]],
        "response_a": ["a", "c", "f", "h"],
        "response_b": ["b", "e", "g", "i"],
        "similarity": [0.1, 0.2, 0.3, 0.4],
        "skipped": ["", "", "", ""],
    }
    return Dataset.from_dict({**rows, **columns})


def test_chosen_is_the_better_scored_response_and_ties_and_failures_are_counted_apart():
    counts = Counter()
    labeled = annotate(pool(), ScoreJudge(), counts=counts)
    assert labeled["chosen"][:] == ["b", "c"]
    assert labeled["rejected"][:] == ["a", "e"]
    assert counts == {"labeled": 2, "ties": 1, "failed": 1}
    assert labeled["label_confidence"][:] == [1.0, 1.0]
    assert set(labeled["label_source"]) == {"score:scores"}
    assert labeled.column_names == [
        "prompt", "chosen", "rejected", "label_confidence", "label_source",
        "pair", "response_a", "response_b", "similarity", "skipped",
    ]  # fmt: skip


def test_swapping_the_responses_swaps_nothing_in_the_label():
    swapped = pool(responses=[["b", "a"], ["e", "d", "c"], ["g", "f"], ["i", "h"]],
                   scores=[[2.0, 1.0], [2.0, 9.0, 3.0], [5.0, 5.0], [1.0, None]])  # fmt: skip
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
def test_a_gap_or_ratio_below_the_least_is_a_tie(settings, expected):
    assert ScoreJudge(**settings)(pool()[:]) == pytest.approx(expected, nan_ok=True)


def test_scores_of_zero_have_no_ratio():
    verdicts = ScoreJudge(min_ratio=1.5)(pool(scores=[[0.0, 2.0], [-1.0, 9.0, -2.0], [5.0, 1.0], [1.0, 1.0]])[:])
    assert verdicts == pytest.approx([math.nan, math.nan, 1.0, 0.5], nan_ok=True)


def test_rows_without_a_pair_get_no_label():
    rows = pool(pair=[[-1, -1], [0, 2], [0, 1], [0, 1]], skipped=["empty response", "", "", ""])
    counts = Counter()
    assert annotate(rows, ScoreJudge(), counts=counts)["prompt"][:] == ["p1"]
    assert sum(counts.values()) == 3


def test_a_text_beside_a_conversational_prompt_becomes_an_assistant_message():
    prompts = [[{"role": "user", "content": f"q{i}"}] for i in range(4)]
    labeled = annotate(pool(prompt=prompts), ScoreJudge())
    assert labeled[0]["chosen"] == [{"role": "assistant", "content": "b"}]
    assert labeled[0]["prompt"] == prompts[0]


def test_messages_stay_messages():
    responses = [[[{"role": "assistant", "content": t}] for t in row] for row in pool()["responses"]]
    prompts = [[{"role": "user", "content": f"q{i}"}] for i in range(4)]
    labeled = annotate(pool(prompt=prompts, responses=responses), ScoreJudge())
    assert labeled[1]["rejected"] == [{"role": "assistant", "content": "e"}]


def test_a_soft_verdict_gives_its_confidence():
    class Unsure:
        name = "unsure"

        def __call__(self, batch):
            return [0.3] * len(batch["prompt"])

    labeled = annotate(pool(), Unsure(), batch_size=3)
    assert labeled["chosen"][:] == ["b", "e", "g", "i"]
    assert labeled["label_confidence"][:] == pytest.approx([0.7] * 4)


def test_all_ties_leave_an_empty_set_with_the_same_columns():
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
        (lambda: annotate(Dataset.from_dict({"chosen": ["a"], "rejected": ["b"]}), ScoreJudge()), "labelled already"),
        (lambda: annotate(pool().remove_columns("prompt"), ScoreJudge()), "No column 'prompt'.*rename_column"),
        (lambda: annotate(pool(), ScoreJudge("votes")), "No column 'votes'.*ScoreJudge\\(column="),
        (lambda: annotate(pool(scores=[[1.0]] * 4), ScoreJudge()), "1 scores in a row whose pair is \\[0, 1\\]"),
        (lambda: ScoreJudge(min_gap=-1), "min_gap=-1 is negative"),
        (lambda: ScoreJudge(min_ratio=0.5), "min_ratio=0.5 is below 1"),
        (lambda: annotate(pool(), Wrong([0.5])), "'wrong' gave 1 verdicts on 4 rows"),
        (lambda: annotate(pool(), Wrong([0.5, 1.0, 7.0, 0.0])), "said 7.0 on row 2"),
    ],
)
def test_each_mistake_is_one_line_that_says_what_to_type(break_it, message):
    with pytest.raises(TrlRealError, match=message) as caught:
        break_it()
    assert "\n" not in str(caught.value)


def test_a_missing_column_can_be_caught_by_name():
    with pytest.raises(MissingColumnError):
        annotate(pool().remove_columns("pair"), ScoreJudge())
