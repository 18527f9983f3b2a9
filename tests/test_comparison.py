"""Claims about `trl_real.evaluation.comparison`."""

import json
import math
from pathlib import Path

import pytest
from datasets import Dataset, DatasetDict
from tiny import save_tiny, tiny_model, tiny_tokenizer

from trl_real.errors import MissingColumnError, TrlRealError
from trl_real.evaluation.comparison import compare
from trl_real.functional.win_rate import win_rate


ALPACA_EVAL = Path(__file__).parents[2] / "shared" / "data" / "alpaca_eval"


class LongerIsBetter:
    """A judge that is sure, fair to both positions, and writes down what it was shown."""

    name = "longer"

    def __init__(self):
        self.batches = []

    def __call__(self, batch):
        self.batches.append(batch)
        pairs = zip(batch["response_a"], batch["response_b"], strict=True)
        return [(len(a) > len(b)) + 0.5 * (len(a) == len(b)) for a, b in pairs]


@pytest.fixture
def dataset() -> Dataset:
    return Dataset.from_dict(
        {
            "prompt": ["p1", "p1", "p2", "p3", "p4"],
            "response": ["long one", "b", "same", "longer", "abc"],
            "baseline_response": ["short", "bb", "same", "long", "xyz"],
            "topic": ["t1", "t2", "t3", "t4", "t5"],
        }
    )


def test_rates_are_those_of_the_verdicts_clustered_by_prompt(dataset):
    def judge(batch):
        return [0.9, 0.2, 0.4, 0.5]

    judge.name, judge.seed = "fixed", 7
    comparison = compare(dataset, judge, confidence=0.9)
    assert comparison.rates == win_rate(
        [0.9, 0.2, 0.5, 0.4, 0.5],
        clusters=dataset["prompt"],
        confidence=0.9,
        lengths=[8, 1, 4, 6, 3],
        baseline_lengths=[5, 2, 4, 4, 3],
    )
    assert (comparison.model, comparison.baseline, comparison.judge) == ("response", "baseline_response", "fixed")
    assert (comparison.model_length, comparison.baseline_length) == (22 / 5, 18 / 5)
    assert (comparison.confidence, comparison.seed) == (0.9, 7)


def test_identical_completions_are_ties_without_a_question(dataset):
    judge = LongerIsBetter()
    comparison = compare(dataset, judge)
    assert comparison.n_identical == 1
    assert [topic for batch in judge.batches for topic in batch["topic"]] == ["t1", "t2", "t4", "t5"]
    alike = dataset.map(lambda row: {"response": row["baseline_response"]})
    never_asked = compare(alike, lambda batch: pytest.fail("asked about identical completions"))
    assert never_asked.rates["n_ties"] == never_asked.n_identical == 5


def test_judge_sees_the_contracts_columns_and_all_others(dataset):
    judge = LongerIsBetter()
    renamed = dataset.rename_columns({"prompt": "question", "response": "ours", "baseline_response": "theirs"})
    compare(renamed, judge, model="ours", baseline="theirs", prompt="question")
    (batch,) = judge.batches
    assert set(batch) == {"prompt", "response_a", "response_b", "question", "ours", "theirs", "topic"}
    assert batch["prompt"] == ["p1", "p1", "p3", "p4"]
    assert batch["response_a"] == ["long one", "b", "longer", "abc"]
    assert batch["response_b"] == ["short", "bb", "long", "xyz"]


def test_swapping_model_and_baseline_mirrors_the_rates(dataset):
    one = compare(dataset, LongerIsBetter()).rates
    other = compare(dataset, LongerIsBetter(), model="baseline_response", baseline="response").rates
    assert other["win_rate"] == pytest.approx(1 - one["win_rate"])
    assert (other["ci_low"], other["ci_high"]) == pytest.approx((1 - one["ci_high"], 1 - one["ci_low"]))
    assert (other["n_wins"], other["n_losses"]) == (one["n_losses"], one["n_wins"])


def test_messages_are_compared_by_their_assistant_turns(dataset):
    def as_dialogue(row):
        user = {"role": "user", "content": "a question that is long and counts for nothing"}
        return {
            "prompt": [user],
            "response": [user, {"role": "assistant", "content": row["response"]}],
            "baseline_response": [{"role": "assistant", "content": row["baseline_response"]}],
        }

    rows = [{**row, **as_dialogue(row)} for row in dataset]
    dialogues = compare(Dataset.from_list(rows), LongerIsBetter())
    one_prompt = dataset.map(lambda row: {"prompt": "the same"})
    assert dialogues.to_dict() == compare(one_prompt, LongerIsBetter()).to_dict()


def test_rows_judged_in_many_calls_keep_their_order():
    n = 600
    texts = {"prompt": [str(i) for i in range(n)], "response": ["a"] * n, "baseline_response": ["b"] * n}
    judge = LongerIsBetter()

    def graded(batch):
        judge(batch)
        return [int(prompt) / n for prompt in batch["prompt"]]

    dataset = Dataset.from_dict(texts)
    comparison = compare(dataset, graded)
    assert len(judge.batches) > 1
    assert comparison.rates["win_rate"] == pytest.approx((n - 1) / 2 / n)
    assert comparison.judge == "graded"
    assert compare(dataset.to_iterable_dataset(), graded).rates == comparison.rates


def test_a_verdict_that_failed_is_neither_win_nor_loss(dataset):
    rates = compare(dataset, lambda batch: [None, float("nan"), 1, 0.5]).rates
    assert (rates["n_failed"], rates["n_wins"], rates["n_ties"], rates["n_losses"]) == (2, 1, 2, 0)


def test_summary_and_dict_are_for_people_and_json(dataset):
    comparison = compare(dataset, LongerIsBetter())
    first, second = comparison.summary().split("\n")
    assert first.startswith("win rate 0.60 [") and first.endswith("(n=5: 2 wins, 1 losses, 2 ties, 0 failed)")
    assert "response against baseline_response, judged by longer" in second and "characters" in second
    values = json.loads(json.dumps(comparison.to_dict(), allow_nan=False))
    assert values["rates"]["n_wins"] == 2 and values["judge"] == "longer"


def test_no_rows_and_no_verdicts_do_not_crash(dataset):
    empty = compare(dataset.select([]), LongerIsBetter())
    assert empty.rates["n_total"] == 0 and math.isnan(empty.model_length)
    failed = compare(dataset.select([0, 1]), lambda batch: [None, None])
    assert failed.rates["n_failed"] == 2
    for comparison in (empty, failed):
        assert "win rate nan" in comparison.summary()
        json.dumps(comparison.to_dict(), allow_nan=False)


def test_what_is_wrong_is_named(dataset):
    judge = LongerIsBetter()
    with pytest.raises(MissingColumnError, match="'answer'.*model='…'"):
        compare(dataset, judge, model="answer")
    with pytest.raises(MissingColumnError, match="'question'.*prompt='…'"):
        compare(dataset, judge, prompt="question")
    with pytest.raises(TrlRealError, match="both 'response'"):
        compare(dataset, judge, baseline="response")
    with pytest.raises(TrlRealError, match="of type object is no policy"):
        compare(dataset, judge, model=object())
    with pytest.raises(TrlRealError, match=r"dataset\['test'\]"):
        compare(DatasetDict({"test": dataset}), judge)
    with pytest.raises(TrlRealError, match="Row 1 of 'response' is of type NoneType"):
        compare(dataset.map(lambda row, i: {"response": None if i == 1 else "x"}, with_indices=True), judge)
    with pytest.raises(TrlRealError, match="2 verdicts for 4 rows"):
        compare(dataset, lambda batch: [1, 0])
    with pytest.raises(TrlRealError, match="preferences row 3 is 2"):
        compare(dataset, lambda batch: [1, 0, 2, 0])


def test_agrees_with_the_alpaca_eval_leaderboard_on_real_responses():
    if not ALPACA_EVAL.exists():
        pytest.skip(f"needs the AlpacaEval data in {ALPACA_EVAL}")
    pandas = pytest.importorskip("pandas")
    rows = pandas.read_parquet(ALPACA_EVAL / "multi_response.parquet")
    board = pandas.read_parquet(ALPACA_EVAL / "leaderboard.parquet")
    board = board[board.has_responses & (board.benchmark == "alpaca_eval_2")]
    pool = Dataset.from_dict({"prompt": rows.prompt, "baseline_response": rows.baseline_response})
    for published in board.nlargest(4, "win_rate").itertuples():
        index = [list(models).index(published.model) for models in rows.models]
        dataset = pool.add_column("response", [texts[i] for texts, i in zip(rows.responses, index, strict=True)])
        dataset = dataset.add_column("score", [scores[i] for scores, i in zip(rows.scores, index, strict=True)])
        comparison = compare(dataset, lambda batch: [score - 1 for score in batch["score"]])
        assert 100 * comparison.rates["win_rate"] == pytest.approx(published.win_rate, abs=1e-6)
        assert (comparison.rates["n_wins"], comparison.rates["n_ties"]) == (published.n_wins, published.n_draws)
        assert int(comparison.model_length) == published.avg_length


def test_two_policies_write_their_completions_first(tmp_path):
    rows = Dataset.from_dict({"prompt": ["one", "two", "three"]})

    def longer(batch):
        pairs = zip(batch["response_a"], batch["response_b"], strict=True)
        return [0.5 if len(a) == len(b) else float(len(a) > len(b)) for a, b in pairs]

    model, other, tokenizer = tiny_model(0), save_tiny(tmp_path, seed=1), tiny_tokenizer()
    sampling = {"tokenizer": tokenizer, "max_new_tokens": 8, "seed": 3}
    found = compare(rows, longer, model=model, baseline=other, **sampling)
    assert (
        found.rates["n_total"] == 3
        and found.to_dict() == compare(rows, longer, model=model, baseline=other, **sampling).to_dict()
    )
    itself = compare(rows, longer, model=other, baseline=other, **sampling)
    assert itself.n_identical == 3 and itself.rates["win_rate"] == 0.5


def test_a_policy_without_a_tokenizer_or_a_thing_that_is_none():
    rows = Dataset.from_dict({"prompt": ["one"], "baseline_response": ["x"]})
    with pytest.raises(TrlRealError, match="needs its tokenizer"):
        compare(rows, lambda batch: [1.0], model=tiny_model())
    with pytest.raises(TrlRealError, match="of type int is no policy"):
        compare(rows, lambda batch: [1.0], model=7)
