"""Tests of the win rate that is measured during training."""

import json

import pytest
from datasets import Dataset
from trl import DPOTrainer

from support.tiny import save_tiny, tiny_model, tiny_tokenizer
from support.training import config, pairs
from trl_real import REALDPOTrainer, TrlRealError
from trl_real.evaluation.callback import PICTURE, WIN_RATES_FILE, WinRateCallback
from trl_real.evaluation.compare import compare
from trl_real.evaluation.plots import history_figure
from trl_real.models.generate import generate_responses


pytestmark = pytest.mark.usefixtures("one_thread")

PROMPTS = [f"What is number {i}?" for i in range(12)]
SHORT = {"max_new_tokens": 6, "temperature": 0.0}


class Counted:
    """Takes the longer text, and counts what it is asked."""

    name = "longer"

    def __init__(self):
        self.n_asked = 0

    def __call__(self, batch):
        self.n_asked += len(batch["prompt"])
        return [float(len(a) > len(b)) for a, b in zip(batch["response_a"], batch["response_b"], strict=True)]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    return save_tiny(tmp_path_factory.mktemp("model"))


def trained(model, folder, callback, kind=REALDPOTrainer, sets=None, **changes):
    held_out = Dataset.from_list(pairs(6)[4:])
    settings = {"max_steps": 4, "eval_strategy": "steps", "eval_steps": 2, "save_strategy": "no", **changes}
    trainer = kind(
        model,
        args=config(folder, **settings),
        train_dataset=Dataset.from_list(pairs(4)),
        eval_dataset=sets or held_out,
        callbacks=[callback],
    )
    trainer.train()
    return trainer


def test_win_rate_equals_compare_on_the_model_responses(model, tmp_path):
    callback = WinRateCallback(PROMPTS, ["some words"] * 12, Counted(), **SHORT)
    trainer = trained(model, tmp_path, callback, learning_rate=0.0)
    written = [texts[0] for texts in generate_responses(tiny_model(), tiny_tokenizer(), PROMPTS, seed=42, **SHORT)]
    expected = compare(PROMPTS, written, ["some words"] * 12, Counted())
    assert [row["step"] for row in callback.history] == [2, 4]
    for row in callback.history:
        assert row["win_rate"] == expected.rates["win_rate"] and row["completion_length"] == expected.model_length
    logged = [row for row in trainer.state.log_history if "eval_win_rate" in row]
    assert [row["step"] for row in logged] == [2, 4]
    assert {"eval_win_rate_low", "eval_win_rate_high", "eval_completion_length"} <= set(logged[0])
    lines = [json.loads(line) for line in (tmp_path / WIN_RATES_FILE).read_text().splitlines()]
    assert [line["win_rate"] for line in lines] == [row["win_rate"] for row in callback.history]
    assert (tmp_path / PICTURE).stat().st_size > 5000


def test_at_most_n_fixed_prompts_are_judged_and_only_at_evaluation(model, tmp_path):
    judge = Counted()
    callback = WinRateCallback(PROMPTS, [f"words {i}" for i in range(12)], judge, n=5, **SHORT)
    assert len(callback.prompts) == 5
    again = WinRateCallback(PROMPTS[::-1], [f"words {i}" for i in range(12)][::-1], judge, n=5, **SHORT)
    assert set(zip(again.prompts, again.baseline, strict=True)) == set(
        zip(callback.prompts, callback.baseline, strict=True)
    )
    held_out = Dataset.from_list(pairs(6)[4:])
    trained(model, tmp_path, callback, sets={"one": held_out, "other": held_out})
    assert judge.n_asked == 10 and len(callback.history) == 2  # once a step, however many sets there are


@pytest.mark.parametrize("kind", [REALDPOTrainer, DPOTrainer])
def test_any_trainer_can_choose_the_best_model_by_win_rate(kind, model, tmp_path):
    callback = WinRateCallback(PROMPTS[:4], ["some words"] * 4, Counted(), **SHORT)
    best = {"metric_for_best_model": "eval_win_rate", "load_best_model_at_end": True, "save_strategy": "steps"}
    trainer = trained(model, tmp_path, callback, kind, save_steps=2, **best)
    assert trainer.state.best_metric == max(row["win_rate"] for row in callback.history)


def test_custom_generation_works_and_a_resumed_run_keeps_its_history(model, tmp_path):
    asked = []

    def served(prompts):
        asked.append(prompts)
        return [f"an answer to {prompt}" for prompt in prompts]

    callback = WinRateCallback(PROMPTS, ["x"] * 12, Counted(), n=3, generate=served)
    trained(model, tmp_path, callback, save_strategy="steps", save_steps=2)
    assert [len(prompts) for prompts in asked] == [3, 3] and callback.history[0]["win_rate"] == 1.0
    second = WinRateCallback(PROMPTS, ["x"] * 12, Counted(), n=3, generate=served)
    trainer = REALDPOTrainer(
        model,
        args=config(tmp_path, max_steps=6, eval_strategy="steps", eval_steps=2, save_strategy="no"),
        train_dataset=Dataset.from_list(pairs(4)),
        eval_dataset=Dataset.from_list(pairs(6)[4:]),
        callbacks=[second],
    )
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert [row["step"] for row in second.history] == [2, 4, 6]
    third = WinRateCallback(PROMPTS, ["x"] * 12, Counted(), n=3, generate=served)
    third.on_train_begin(trainer.args, trainer.state, None)  # step 4 was judged before the kill and after it
    assert third.history == second.history


def test_plot_accepts_a_single_point_and_unknown_values():
    row = {"step": 2, "win_rate": None, "win_rate_low": None, "win_rate_high": None, "n": 0}
    row |= {"completion_length": 3.0, "baseline_length": 4.0}
    for rows in ([row], [row, {**row, "step": 4, "win_rate": 0.4, "win_rate_low": 0.2, "win_rate_high": 0.6}]):
        assert len(history_figure(rows).axes) == 2


def test_mistakes_are_reported_before_training():
    with pytest.raises(TrlRealError, match="1 completions for 2 prompts"):
        WinRateCallback(["a", "b"], ["x"], Counted())
    with pytest.raises(TrlRealError, match="n=0"):
        WinRateCallback(["a"], ["x"], Counted(), n=0)
