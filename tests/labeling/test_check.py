"""Tests of checking a judge on labelled pairs before it labels."""

import json
import math

import numpy as np
import pyarrow.parquet as pq
import pytest
from datasets import Dataset

from support.judge_server import MODEL, JudgeServer, probability
from support.shared_data import DATA, needs_data
from trl_real import MissingColumnError, TrlRealError
from trl_real.functional.statistics.calibration import (
    brier_score,
    calibration_error,
    calibration_temperature,
    log_loss,
)
from trl_real.functional.statistics.intervals import wilson_interval
from trl_real.labeling.agreement import gold_agreement
from trl_real.labeling.chat.judge import ChatJudge, calibrated
from trl_real.labeling.check import check_judge
from trl_real.labeling.people.votes import VotesJudge, pair_key
from trl_real.labeling.verdicts import Verdict


def longer(batch):
    return [0.8 if len(a) > len(b) else 0.2 for a, b in zip(batch["response_a"], batch["response_b"], strict=True)]


def preferences(n: int = 60, longer_wins: int = 45) -> Dataset:
    texts = [(f"long answer number {i}", f"no {i}") for i in range(n)]
    rows = [(a, b) if i < longer_wins else (b, a) for i, (a, b) in enumerate(texts)]
    return Dataset.from_dict(
        {"prompt": [f"p{i}" for i in range(n)], "chosen": [a for a, _ in rows], "rejected": [b for _, b in rows]}
    )


def test_accuracy_and_length_are_reported_and_sides_do_not_reveal_the_label():
    seen = []

    def judge(batch):
        seen.extend(batch["response_a"])
        return longer(batch)

    found = check_judge(preferences(), judge)
    assert (found.n, found.accuracy, found.n_undecided) == (60, 0.75, 0)
    assert found.ci_low < 0.75 < found.ci_high
    assert (found.prefers_longer, found.label_prefers_longer) == (1.0, 0.75)
    n_chosen_first = len(set(seen) & set(preferences()["chosen"]))
    assert 15 < n_chosen_first < 45
    always_first = check_judge(preferences(), lambda batch: [0.9] * len(batch["prompt"]))
    assert always_first.accuracy == pytest.approx(0.5, abs=0.2) and "is not better than a coin" in always_first.words()


def test_pairs_with_ties_and_a_gold_preference():
    rows = {
        "prompt": ["p"] * 7,
        "response_a": ["aaa", "b", "ccc", "same", "e", None, "g"],
        "response_b": ["a", "bbb", "c", "same", "eee", "f", None],
        "preference": [1.0, 0.0, 0.5, 1.0, None, 1.0, 0.0],
    }
    found = check_judge(Dataset.from_dict(rows), longer)
    assert (found.n, found.accuracy, found.n_label_ties, found.n_skipped) == (2, 1.0, 1, 4)


UNDECIDED = [0.8, 0.3, 0.6, 0.5, None, 0.5, 0.9, 0.1]
GOLD = [1.0, 1.0, 1.0, 1.0, 0.0, 0.5, 0.5, 0.0]  # decided by both: three of four agree


def test_pairs_that_one_side_left_undecided_count_apart():
    sides = {f"response_{side}": [f"{side} {i}" for i in range(8)] for side in "ab"}
    rows = Dataset.from_dict({"prompt": ["p"] * 8, **sides, "preference": GOLD})
    found = check_judge(rows, lambda batch: UNDECIDED, confidence=0.8)
    assert (found.n, found.accuracy, found.n_undecided, found.n_label_ties) == (4, 0.75, 2, 2)
    assert (found.ci_low, found.ci_high) == pytest.approx(wilson_interval(3, 4, 0.8))
    known = [i for i in range(8) if UNDECIDED[i] is not None]
    p, t = (np.array([values[i] for i in known]) for values in (UNDECIDED, GOLD))
    assert found.loss == pytest.approx(-np.mean(t * np.log(p) + (1 - t) * np.log(1 - p)))
    assert found.brier == pytest.approx(np.mean((p - t) ** 2)) and found.calibrated_loss <= found.loss
    assert (found.verdicts.n_failed, found.verdicts.n_ties) == (1, 2)
    ours, theirs = ([Verdict(math.nan if p is None else p) for p in values] for values in (UNDECIDED, GOLD))
    agreement = gold_agreement(ours, theirs)
    assert (agreement.n, agreement.n_agree, agreement.n_undecided, agreement.rate) == (4, 3, 2, 0.75)
    assert (agreement.ci_low, agreement.ci_high) == pytest.approx(wilson_interval(3, 4, 0.95))
    twice = agreement + agreement
    assert (twice.n, twice.n_agree, twice.n_undecided, twice.rate) == (8, 6, 4, 0.75)
    assert math.isnan(gold_agreement(ours[3:4], theirs[3:4]).rate)


def test_the_calibration_temperature_is_the_one_with_the_lowest_loss():
    draws = np.random.default_rng(0)
    true = draws.uniform(0.05, 0.95, 4000)
    targets = (draws.random(4000) < true).astype(float)
    logits = np.log(true / (1 - true))
    for sharpness in (0.5, 1.0, 3.0):  # probabilities that are less or more sure than they should be
        said = 1 / (1 + np.exp(-sharpness * logits))
        found = calibration_temperature(said, targets)
        assert found == pytest.approx(sharpness, rel=0.1)
        grid = [log_loss(said, targets, t) for t in np.geomspace(0.1, 10, 300)]
        assert log_loss(said, targets, found) <= min(grid) + 1e-6
    assert [calibrated(p, 3.0) for p in (0.0, 0.5, 1.0)] == [0.0, 0.5, 1.0]
    assert calibrated(0.9, 2.0) == pytest.approx(1 / (1 + math.exp(-math.log(9) / 2)))
    assert math.isnan(calibration_temperature(np.array([]), np.array([])))


def test_brier_score_and_calibration_error_of_a_table_to_check_by_eye():
    probabilities, targets = np.array([0.9, 0.9, 0.2, 0.5]), np.array([1.0, 0.0, 0.0, 0.5])
    assert brier_score(probabilities, targets) == pytest.approx((0.01 + 0.81 + 0.04 + 0) / 4)
    # Sure by 0.9 twice and right once; sure by 0.8 once and right; a coin.
    assert calibration_error(probabilities, targets) == pytest.approx((2 * 0.4 + 0.2 + 0) / 4)
    assert calibration_error(1 - probabilities, 1 - targets) == pytest.approx(0.25)
    assert math.isnan(brier_score(np.array([]), np.array([])))


def test_chat_judge_is_checked_and_calibrated(tmp_path):
    texts = [(f"one {i}", f"two {i}") for i in range(80)]
    judged = [(a, b) if probability(a, b) > 0.5 else (b, a) for a, b in texts]
    better = [pair[::-1] if i % 5 == 0 else pair for i, pair in enumerate(judged)]  # a fifth of the labels differs
    dataset = Dataset.from_dict(
        {"prompt": ["p"] * 80, "chosen": [a for a, _ in better], "rejected": [b for _, b in better]}
    )
    with JudgeServer(bias=0.05) as server:
        judge = ChatJudge(MODEL, base_url=server.url, cache=tmp_path / "c.sqlite")
        found = judge.check(dataset)
        assert found.accuracy == pytest.approx(0.8, abs=0.03) and found.verdicts.position_bias == pytest.approx(
            0.05, abs=0.02
        )
        assert found.calibration < 1 and found.calibrated_loss < found.loss  # it was less sure than it was right
        sharper = ChatJudge(MODEL, base_url=server.url, cache=tmp_path / "c.sqlite", calibration=found.calibration)
        assert sharper.check(dataset).calibration == pytest.approx(1, abs=0.01)
        assert "position bias +0.0" in found.words() and found.to_dict()["verdicts"]["n_both"] == 80


def test_prompt_of_full_dialogues_is_extracted():
    rows = {
        "chosen": ["\n\nHuman: hi\n\nAssistant: hello there friend", "\n\nHuman: x\n\nAssistant: y y y"],
        "rejected": ["\n\nHuman: hi\n\nAssistant: no", "\n\nHuman: x\n\nAssistant: z"],
    }
    seen = []

    def judge(batch):
        seen.extend(batch["prompt"])
        return longer(batch)

    assert check_judge(Dataset.from_dict(rows), judge).accuracy == 1.0
    assert seen == ["\n\nHuman: hi\n\nAssistant:", "\n\nHuman: x\n\nAssistant:"]


def test_mistakes_get_a_one_line_error():
    with pytest.raises(MissingColumnError, match="Give 'prompt', 'chosen' and 'rejected', or"):
        check_judge(Dataset.from_dict({"prompt": ["x"]}), longer)
    with pytest.raises(TrlRealError, match="No row has a prompt, two different responses"):
        check_judge(Dataset.from_dict({"prompt": ["x"], "chosen": ["a"], "rejected": ["a"]}), longer)
    rows = {"prompt": ["x"], "response_a": ["a"], "response_b": ["b"], "preference": [2.0]}
    with pytest.raises(TrlRealError, match="Row 0 of 'preference' is 2.0. Give 1 if response_a is better"):
        check_judge(Dataset.from_dict(rows), longer)


@needs_data("labelled_pairs")
def test_results_on_real_labelled_pairs_equal_a_naive_computation():
    table = pq.read_table(DATA / "labelled_pairs" / "labelled_pairs.parquet").to_pandas()
    for source, rows in table.groupby("source"):
        rows = rows[rows.label.notna()]
        preference = rows.label.map({1: 1.0, 2: 0.0, 0: 0.5})
        columns = {"prompt": rows.prompt, "response_a": rows.response_1, "response_b": rows.response_2}
        dataset = Dataset.from_dict({name: list(c) for name, c in {**columns, "preference": preference}.items()})
        found = check_judge(dataset, longer)
        lengths = rows.response_1.str.len() > rows.response_2.str.len()
        decided = (rows.label > 0) & (rows.response_1 != rows.response_2)
        naive = (lengths == (rows.label == 1))[decided]
        assert (found.n, found.accuracy) == (len(naive), pytest.approx(naive.mean())), source
        assert found.n_label_ties == int((rows.label == 0)[rows.response_1 != rows.response_2].sum())


def voted(path, n: int = 60, accuracies=(0.95, 0.95, 0.95)) -> Dataset:
    """Pairs in which the longer response is the better one for people, and a file of their votes."""
    rng, lines = np.random.default_rng(3), []
    rows = [{"prompt": f"p{i}", "response_a": "long text" * (1 + i % 2), "response_b": "text" * 3} for i in range(n)]
    for i, row in enumerate(rows):
        longer_side, other = ("a", "b") if len(row["response_a"]) > len(row["response_b"]) else ("b", "a")
        for who, accuracy in enumerate(accuracies):
            verdict = longer_side if rng.random() < accuracy else other
            key, mirror = pair_key(*row.values()), pair_key(row["prompt"], row["response_b"], row["response_a"])
            vote = {"key": key, "mirror": mirror, "annotator": f"ann{who}", "verdict": verdict, "shown_first": "a"}
            lines.append({**vote, "row": i, "seconds": 1.0})
    path.write_text("\n".join(map(json.dumps, lines)) + "\n")
    return Dataset.from_list(rows)


def test_votes_of_several_annotators_add_the_alternative_annotator_test(tmp_path):
    pairs = voted(tmp_path / "votes.jsonl")
    found = check_judge(pairs, longer, people=VotesJudge(tmp_path / "votes.jsonl"), epsilon=0.15)
    assert found.annotators.verdict == "may" and found.annotators.epsilon == 0.15 and found.accuracy > 0.9
    assert "this judge may replace them" in found.words().splitlines()[-1]
    assert found.to_dict()["annotators"]["n_annotators"] == 3
    swapped = pairs.rename_columns({"response_a": "response_b", "response_b": "response_a"})
    again = check_judge(swapped, longer, people=VotesJudge(tmp_path / "votes.jsonl"), epsilon=0.15)
    assert again.annotators == found.annotators and again.accuracy == found.accuracy

    def shorter(batch):
        return [1 - p for p in longer(batch)]

    assert check_judge(pairs, shorter, people=VotesJudge(tmp_path / "votes.jsonl")).annotators.verdict == "may not"
    assert check_judge(preferences(), longer).annotators is None


def test_pairs_without_texts_cannot_be_checked_by_votes(tmp_path):
    voted(tmp_path / "votes.jsonl")
    with pytest.raises(MissingColumnError, match="response_a"):
        check_judge(Dataset.from_dict({"prompt": ["x"]}), longer, people=VotesJudge(tmp_path / "votes.jsonl"))
