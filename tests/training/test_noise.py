"""SPA's smoothing of uncertain pairs: every step equals a hand computation."""

import math
import os
import signal

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    CohereConfig,
    Gemma2Config,
    GraniteConfig,
    TrainerCallback,
)
from trl import DPOConfig, DPOTrainer

from support.crashes import in_child
from support.noise import BETA, MODES, checking, naive_quantile, short_pairs, soft_pairs
from support.training import LORA, config, history, pairs
from trl_real import REALDPOConfig, REALDPOTrainer, TrlRealError
from trl_real.functional.preference import Head, extrapolated_log_probs, implicit_margin
from trl_real.training import forward_hooks
from trl_real.training.noise.window import NoiseWindow


pytestmark = pytest.mark.usefixtures("one_thread")


# Which pairs are doubtful.


@pytest.mark.parametrize("n_processes", [1, 2])
@pytest.mark.parametrize(("share", "size"), [(10, 512), (5, 64), (33, 50), (90, 100), (2, 512)])
def test_stationary_margins_have_the_given_share_flagged(share, size, n_processes):
    window, flagged = NoiseWindow(size, share), []
    margins = np.random.default_rng(share).standard_normal(40_000).reshape(-1, n_processes, 4 // n_processes)
    for step in margins:
        threshold, everyone = window.threshold, np.concatenate(list(step))
        if threshold is not None:
            flagged.extend(everyone < threshold)
        window.add(everyone)
    assert len(flagged) > 39_000 and np.mean(flagged) == pytest.approx(share / 100, abs=0.01)


def test_processes_share_one_window_in_rank_order():
    one, two = NoiseWindow(60, 20), NoiseWindow(60, 20)
    for step in np.random.default_rng(0).standard_normal((30, 2, 3)):
        one.add(step.reshape(-1))
        two.add(np.concatenate(list(step)))
        assert one.threshold == two.threshold
    assert list(one.margins) == list(two.margins) and len(one.margins) == 60


@pytest.mark.parametrize("share", [3, 10, 50, 97])
def test_the_threshold_is_the_order_statistic(share):
    margins = np.random.default_rng(1).standard_normal(80)
    window = NoiseWindow(70, share)
    window.add(margins)
    assert window.threshold == pytest.approx(naive_quantile(margins[10:], share), abs=1e-12)


def test_too_few_or_equal_margins_flag_nothing():
    window = NoiseWindow(512, 10)
    window.add([0.0] * 49)
    assert window.threshold is None
    window.add([0.0])
    assert window.threshold == 0.0, "no zero is below it"
    window.add([math.nan, math.inf, -math.inf])
    assert len(window.margins) == 50


def test_window_state_is_restored(tmp_path):
    window, again = NoiseWindow(60, 10), NoiseWindow(60, 10)
    window.add(np.random.default_rng(2).standard_normal(100).astype(np.float32))
    window.save(tmp_path / "checkpoint-3")
    again.load(tmp_path / "checkpoint-3")
    assert again.margins == window.margins and again.threshold == window.threshold
    assert [file.name for file in (tmp_path / "checkpoint-3").iterdir()] == ["noise_window.json"]
    again.load(None)
    assert not again.margins


def test_extrapolation_flags_other_pairs_than_the_margin():
    """Both gain by training, B more than A; but B gains where another word gains more, so that more of it loses."""
    law = torch.tensor([[0.38, 0.31, 0.31], [0.40, 0.59, 0.01]]).log()
    head, reference = Head(torch.eye(3)), torch.zeros(2, 3)
    label, rejected = torch.zeros(2, dtype=torch.long), torch.zeros(2)
    flags = []
    for strength in (0.0, 2.0):
        chosen = extrapolated_log_probs(law, reference, label, head, head, strength)
        margin = implicit_margin(chosen, rejected, torch.full((2,), -math.log(3)), rejected, BETA)
        flags.append((margin < margin.mean()).tolist())
    assert flags == [[True, False], [False, True]]


# Smoothing in the trainer.

QUICK = {"noise_smoothing": 0.2, "noise_share": 50.0, "noise_window": 12, "max_steps": 12}


@pytest.mark.parametrize(
    ("mode", "strength", "changes"),
    [
        *((mode, 0.0, {}) for mode in ("plain", "precompute", "lora precompute")),
        *((mode, 0.5, {}) for mode in MODES if mode != "precompute"),
        ("reference", 0.5, {"precompute_ref_log_probs": True}),
    ],
)
def test_every_training_step_equals_a_hand_computation(mode, strength, changes, model, other, tmp_path):
    trainer = checking(mode, tmp_path, model, other, short_pairs(), noise_extrapolation=strength, **QUICK, **changes)
    trainer.train()
    assert trainer.found == pytest.approx(trainer.expected, rel=1e-6, abs=1e-6)
    assert 0.05 < np.mean(trainer.flagged) < 0.9
    assert max(np.abs(np.array(trainer.found) - trainer.plain)) > 1e-4, "nothing was smoothed"
    logs = [log["noise/threshold"] for log in trainer.state.log_history if "noise/threshold" in log]
    if mode != "accumulation":
        assert logs == pytest.approx(trainer.thresholds, abs=1e-5)
        flagged = [log["noise/flagged"] for log in trainer.state.log_history if "noise/flagged" in log]
        assert flagged[-len(logs) :] == pytest.approx(trainer.flagged) and sum(flagged[: -len(logs)]) == 0


def test_soft_labels_are_also_smoothed(model, other, tmp_path):
    trainer = checking("reference", tmp_path, model, other, soft_pairs(), **QUICK)
    trainer.train()
    assert trainer.found == pytest.approx(trainer.expected, rel=1e-6, abs=1e-6) and sum(trainer.flagged) > 0


def test_flagging_every_pair_equals_conservative_dpo(model, tmp_path):
    rows = short_pairs(12)
    changes = {"noise_smoothing": 0.2, "noise_warmup": 0.0, "noise_window": 10_000, "noise_share": 50.0}
    doubting = REALDPOTrainer(model, args=config(tmp_path / "a", **changes), train_dataset=Dataset.from_list(rows))
    doubting._noise.margins.extend([1e9] * 5_000)  # what the stream before had: far above any margin to come
    doubting._noise.load = lambda folder: None  # a run that begins would forget them
    losses = [[log["loss"] for log in history(doubting) if "loss" in log]]
    soft = Dataset.from_list([{**row, "label_confidence": 0.8} for row in rows])
    conservative = REALDPOTrainer(model, args=config(tmp_path / "b"), train_dataset=soft)
    losses.append([log["loss"] for log in history(conservative) if "loss" in log])
    flagged = [log["noise/flagged"] for log in doubting.state.log_history if "noise/flagged" in log]
    assert set(flagged) == {1.0}
    assert losses[0] == pytest.approx(losses[1], abs=1e-6) and len(losses[0]) == 3


@pytest.mark.parametrize("mode", ["plain", "lora"])
@pytest.mark.parametrize("strength", [0.0, 0.5])
def test_training_during_warm_up_equals_dpotrainer_exactly(mode, strength, model, tmp_path):
    given = {"peft_config": LORA} if mode == "lora" else {}
    rows, noise = Dataset.from_list(pairs(24)), {"noise_share": 60.0, "noise_window": 4, "noise_smoothing": 0.4}
    args = config(tmp_path, max_steps=20, noise_extrapolation=strength, shared_prompts=False, **noise)
    ours = history(REALDPOTrainer(model, args=args, train_dataset=rows, **given))
    args = config(tmp_path, DPOConfig, max_steps=20)
    theirs = history(DPOTrainer(model, args=args, train_dataset=rows, **given))
    ours = [{name: x for name, x in log.items() if not name.startswith("noise/")} for log in ours]
    assert ours[:4] == theirs[:4], "20 % of 20 steps"
    assert ours[4]["loss"] != theirs[4]["loss"], "the first step after it"


def test_zero_smoothing_flags_nothing(model, tmp_path):
    rows = Dataset.from_list(pairs(24))
    logs = history(REALDPOTrainer(model, args=config(tmp_path), train_dataset=rows))
    assert not any(name.startswith("noise/") for log in logs for name in log)


def test_extrapolation_computes_and_changes_no_gradient(model, other, tmp_path):
    """The loss of a step with nothing flagged has the gradient of DPO: detection leaves no trace in it."""

    def gradients(**changes):
        given = {"ref_model": AutoModelForCausalLM.from_pretrained(other)}
        args = config(tmp_path, max_steps=1, max_grad_norm=0.0, **changes)
        trainer = REALDPOTrainer(model, args=args, train_dataset=Dataset.from_list(pairs(4)), **given)
        step, kept = trainer.training_step, {}

        def keeping(*arguments, **keywords):
            loss = step(*arguments, **keywords)
            kept.update({name: p.grad.clone() for name, p in trainer.model.named_parameters()})
            return loss

        trainer.training_step = keeping
        trainer.train()
        return kept

    plain = gradients()
    noisy = gradients(noise_smoothing=0.2, noise_extrapolation=0.5)
    assert plain and all(torch.equal(plain[name], noisy[name]) for name in plain)


def test_bfloat16_head_is_recognized_as_a_plain_product(model, tmp_path):
    """Logits of a sure policy are large, and rounding them moves its log-probabilities by percents."""
    sure = AutoModelForCausalLM.from_pretrained(model)
    with torch.no_grad():
        sure.get_output_embeddings().weight.mul_(100)
    args = config(tmp_path, noise_smoothing=0.1, noise_extrapolation=0.5, bf16=True)
    REALDPOTrainer(sure, args=args, train_dataset=Dataset.from_list(pairs(8)), peft_config=LORA).train()


SIZES = {"vocab_size": 304, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "pad_token_id": 0}


SIZES |= {"num_attention_heads": 4, "num_key_value_heads": 2, "bos_token_id": None, "eos_token_id": 2}


@pytest.mark.parametrize(
    "made",
    [GraniteConfig(**SIZES, logits_scaling=3.0), CohereConfig(**SIZES, logit_scale=0.4)],
    ids=["Granite", "Cohere"],
)
def test_logits_with_a_constant_scale_are_extrapolated(made, model, tmp_path, monkeypatch):
    args = config(tmp_path, noise_smoothing=0.1, noise_extrapolation=0.5)
    settings = {"args": args, "train_dataset": Dataset.from_list(pairs(8)), "peft_config": LORA}
    settings["processing_class"] = AutoTokenizer.from_pretrained(model)
    REALDPOTrainer(AutoModelForCausalLM.from_config(made), **settings).train()
    monkeypatch.setattr(forward_hooks, "logit_scale", lambda config: 1.0)  # a scale that it does not know
    with pytest.raises(TrlRealError, match="up to a constant scale, .* Type noise_extrapolation=0") as raised:
        REALDPOTrainer(AutoModelForCausalLM.from_config(made), **settings).train()
    assert "\n" not in str(raised.value)


def test_capped_logits_are_refused_before_a_step_and_only_with_extrapolation(model, tmp_path):
    rows, tokenizer = Dataset.from_list(pairs(8)), AutoTokenizer.from_pretrained(model)

    def trainer(**changes):
        capped = AutoModelForCausalLM.from_config(Gemma2Config(**SIZES, head_dim=8))
        args = config(tmp_path, noise_smoothing=0.1, **changes)
        return REALDPOTrainer(capped, args=args, train_dataset=rows, peft_config=LORA, processing_class=tokenizer)

    trainer().train()
    with pytest.raises(TrlRealError, match=r"caps them \(final_logit_softcapping=30\). Type noise_extrapolation=0"):
        trainer(noise_extrapolation=0.5)


def test_full_training_on_precomputed_references_cannot_extrapolate(model, tmp_path):
    args = config(tmp_path, noise_smoothing=0.1, noise_extrapolation=0.5, precompute_ref_log_probs=True)
    with pytest.raises(TrlRealError, match="Type precompute_ref_log_probs=False, or give a ref_model"):
        REALDPOTrainer("no-such-model", args=args, train_dataset=Dataset.from_list(pairs(4)))


# A run that is killed.


class Kill(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 13:
            os.kill(os.getpid(), signal.SIGKILL)


def test_killed_run_resumes_to_the_same_result(model, tmp_path):
    rows = Dataset.from_list([{**row, "label_confidence": 1 - 0.1 * (i % 3)} for i, row in enumerate(pairs(40))])
    settings = {
        **{"use_cpu": True, "bf16": False, "report_to": "none", "learning_rate": 1e-2, "logging_steps": 1},
        **{"per_device_train_batch_size": 2, "disable_tqdm": True, "save_strategy": "steps", "save_steps": 10},
        **{
            "selection_strategy": "easy",
            "selection_budget": 0.5,
            "noise_extrapolation": 0.5,
            **QUICK,
            "max_steps": 16,
        },
    }

    def trained(folder, callback=None, resume=None):
        args = REALDPOConfig(str(folder), **settings)
        trainer = REALDPOTrainer(model, args=args, train_dataset=rows, callbacks=[callback] if callback else None)
        trainer.train(resume_from_checkpoint=resume)
        return trainer

    assert in_child(lambda: trained(tmp_path / "killed", Kill()), tmp_path)[0] == -signal.SIGKILL
    assert (tmp_path / "killed/checkpoint-10/noise_window.json").exists()
    resumed, whole = trained(tmp_path / "killed", resume=True), trained(tmp_path / "whole")

    def curve(trainer):
        names = ("loss", "noise/flagged", "noise/threshold", "rewards/margins", "label_confidence")
        return [{name: log.get(name) for name in names} for log in trainer.state.log_history if "loss" in log]

    assert curve(resumed) == curve(whole) and len(curve(whole)) == 16
    assert resumed.selected_rows.tolist() == whole.selected_rows.tolist()
    assert sum(log["noise/flagged"] for log in curve(resumed)[10:]) > 0, "nothing was flagged after the kill"
