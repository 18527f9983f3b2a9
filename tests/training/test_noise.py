"""Labels that can be wrong: soft labels from a column, and SPA's smoothing of uncertain pairs."""

import json
import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, CohereConfig, Gemma2Config, GraniteConfig
from trl import DPOConfig, DPOTrainer, TrlParser
from trl.trainer.dpo_trainer import DataCollatorForPreference

from support.tiny import save_tiny
from support.training import LORA, config, history, naive_log_probs, pairs, words
from trl_real import REALDPOConfig, REALDPOTrainer, TrlRealError
from trl_real.functional.preference import Head, extrapolated_log_probs, implicit_margin
from trl_real.training import forward_hooks
from trl_real.training.noise_window import NoiseWindow


MODES = ["plain", "lora", "precompute", "lora precompute", "reference", "streaming", "accumulation", "ld_alpha"]
BETA = 0.1


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    return save_tiny(tmp_path_factory.mktemp("model"), seed=1)


@pytest.fixture(scope="module")
def other(tmp_path_factory) -> str:
    """Another model's weights, as a reference from which the policy differs at once."""
    return save_tiny(tmp_path_factory.mktemp("other"), seed=2)


def short_pairs(n: int = 24) -> list[dict]:
    """Of few words, so that sums of log-probabilities in float32 are right to 1e-6."""
    return [
        {"prompt": f"{i}? ", "chosen": words(i, 1 + i % 2), "rejected": words(i + 50, 1 + i % 3)} for i in range(n)
    ]


def soft_pairs(n: int = 24) -> list[dict]:
    return [{**row, "label_confidence": [1.0, 0.9, 0.5, 0.75][i % 4]} for i, row in enumerate(short_pairs(n))]


# A naive reference: logits of the whole vocabulary, float64, one row at a time.


def naive_quantile(margins, share):
    """The order statistic number `share (h + 1)`, between two of them by the straight line."""
    ordered, place = sorted(margins), share / 100 * (len(margins) + 1)
    low = min(max(math.floor(place), 1), len(ordered))
    high = min(max(math.ceil(place), 1), len(ordered))
    return ordered[low - 1] + (place - math.floor(place)) * (ordered[high - 1] - ordered[low - 1])


def naive_loss(margin, flip):
    log_sigmoid = -np.logaddexp(0, -margin)
    return -(1 - flip) * log_sigmoid - flip * (log_sigmoid - margin)


class Checking(REALDPOTrainer):
    """Works out every step's loss from logits before it is taken, with the weights that it is taken at."""

    def training_step(self, model, inputs, num_items_in_batch=None):
        inputs = {name: value.clone() for name, value in inputs.items()}
        alpha = 1.0 if self.ld_alpha is None else self.ld_alpha
        policy = naive_log_probs([self.model], inputs, ld_alpha=alpha)
        reference = naive_log_probs([self.reference], inputs, ld_alpha=alpha)
        margin = BETA * ((policy[0] - reference[0]) - (policy[1] - reference[1]))
        flip = (
            1 - inputs["label_confidence"].double().numpy() if "label_confidence" in inputs else np.zeros(len(margin))
        )
        self.plain.append(naive_loss(margin, 0 * flip).mean())
        if self._noise is not None:
            flip = self.naive_smoothing(inputs, margin, reference, flip, alpha)
        self.expected.append(naive_loss(margin, flip).mean())
        loss = super().training_step(model, inputs, num_items_in_batch)
        self.found.append(loss.item() * self.current_gradient_accumulation_steps)
        return loss

    def naive_smoothing(self, inputs, margin, reference, flip, alpha):
        args, detected = self.args, margin
        if args.noise_extrapolation:
            extrapolated = naive_log_probs([self.model, self.reference], inputs, args.noise_extrapolation, alpha)
            detected = BETA * ((extrapolated[0] - reference[0]) - (extrapolated[1] - reference[1]))
        known, self.seen = self.seen[-args.noise_window :], [*self.seen, *detected]
        late = self.state.global_step >= args.noise_warmup * self.state.max_steps
        if len(known) < min(args.noise_window, 50):
            return flip
        threshold = naive_quantile(known, args.noise_share)
        self.thresholds.append(threshold)
        doubtful = (detected < threshold) & late
        self.flagged.append(doubtful.mean())
        smoothing = args.noise_smoothing * doubtful
        return flip * (1 - smoothing) + (1 - flip) * smoothing


def checking(mode, folder, model, other, rows, kind=REALDPOConfig, **changes):
    """A trainer in a mode, which is given the reference's weights for its own sums."""
    dataset = Dataset.from_list(rows)
    given = {"peft_config": LORA} if "lora" in mode else {}
    reference = AutoModelForCausalLM.from_pretrained(other if mode == "reference" else model)
    if mode == "reference":
        given["ref_model"] = AutoModelForCausalLM.from_pretrained(other)
    settings = {"precompute_ref_log_probs": "precompute" in mode, "gradient_checkpointing": False, **changes}
    settings |= {"accumulation": {"gradient_accumulation_steps": 3}, "ld_alpha": {"ld_alpha": 0.4}}.get(mode, {})
    if mode == "streaming":
        dataset = dataset.to_iterable_dataset()
    trainer = Checking(model, args=config(folder, kind, **settings), train_dataset=dataset, **given)
    trainer.reference = reference.eval()
    for name in ("found", "expected", "plain", "flagged", "thresholds", "seen"):
        setattr(trainer, name, [])
    return trainer


# Soft labels.


@pytest.mark.parametrize(("mode", "kind"), [*((mode, REALDPOConfig) for mode in MODES), ("plain", DPOConfig)])
def test_loss_with_label_confidence_equals_a_hand_computation(mode, kind, model, other, tmp_path):
    trainer = checking(mode, tmp_path, model, other, soft_pairs(), kind)
    trainer.train()
    assert trainer.found == pytest.approx(trainer.expected, rel=1e-6, abs=1e-6)
    assert max(np.abs(np.array(trainer.found) - trainer.plain)) > 1e-3, "the confidences changed nothing"
    confidences = [log["label_confidence"] for log in trainer.state.log_history if "label_confidence" in log]
    assert len(confidences) == 3 and all(0.5 <= c <= 1 for c in confidences)


@pytest.mark.parametrize("mode", ["plain", "lora"])
def test_certain_labels_equal_dpotrainer_for_every_loss(mode, model, tmp_path):
    def run(trainer, rows, loss_type):
        given = {"peft_config": LORA} if mode == "lora" else {}
        args = config(tmp_path, loss_type=loss_type, shared_prompts=False)
        logs = history(trainer(model, args=args, train_dataset=Dataset.from_list(rows), **given))
        return [{k: v for k, v in log.items() if k != "label_confidence"} for log in logs]

    for loss_type in ("sigmoid", "ipo"):
        sure = run(REALDPOTrainer, [{**row, "label_confidence": 1.0} for row in pairs(8)], loss_type)
        assert sure == run(DPOTrainer, pairs(8), loss_type)


def test_gradient_equals_that_of_the_two_sided_loss(model, other, tmp_path):
    trainer = checking("reference", tmp_path, model, other, soft_pairs(8), max_steps=1, max_grad_norm=0.0)
    seen = {}

    def step(trained, inputs, num_items_in_batch=None):
        policy = AutoModelForCausalLM.from_pretrained(model)
        logps = []
        for net in (policy, trainer.reference):
            logits = net(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits[:, :-1]
            labels = inputs["input_ids"][:, 1:, None]
            per_token = logits.log_softmax(-1).gather(2, labels)[..., 0] * inputs["completion_mask"][:, 1:]
            logps += per_token.sum(1).chunk(2)
        margin = BETA * ((logps[0] - logps[2]) - (logps[1] - logps[3]))
        flip = 1 - inputs["label_confidence"]
        loss = -(1 - flip) * margin.sigmoid().log() - flip * (-margin).sigmoid().log()
        loss.mean().backward()
        result = REALDPOTrainer.training_step(trainer, trained, inputs, num_items_in_batch)
        seen.update({name: (p.grad.clone(), q.grad) for (name, p), q in
                     zip(trainer.model.named_parameters(), policy.parameters(), strict=True)})  # fmt: skip
        return result

    trainer.training_step = step
    trainer.train()
    assert len(seen) > 10
    for name, (ours, theirs) in seen.items():
        assert torch.allclose(ours, theirs, atol=1e-5, rtol=1e-3), name


def test_custom_collator_gets_no_unknown_column(model, tmp_path):
    class Own(DataCollatorForPreference):
        def torch_call(self, examples):
            assert {"prompt_ids", "chosen_ids", "rejected_ids"} == set(examples[0])
            return super().torch_call(examples)

    args, rows = config(tmp_path), Dataset.from_list(soft_pairs(8))
    own = REALDPOTrainer(model, args=args, train_dataset=rows, data_collator=Own(pad_token_id=0))
    assert history(own) == history(REALDPOTrainer(model, args=args, train_dataset=rows))


def test_model_does_not_get_the_confidence_column(model, tmp_path):
    def forbid(_module, _args, kwargs):
        assert "label_confidence" not in kwargs

    args = config(tmp_path, precompute_ref_log_probs=True)
    trainer = REALDPOTrainer(
        model, args=args, train_dataset=Dataset.from_list(soft_pairs(8)), peft_config=LORA, eval_dataset=None
    )
    trainer.model.register_forward_pre_hook(forbid, with_kwargs=True)
    trainer.train()
    assert trainer.evaluate(Dataset.from_list(soft_pairs(5)))["eval_loss"] > 0, "precomputed with the column"


@pytest.mark.parametrize("wrong", [0.49, 1.01, -1.0, float("nan"), None, "sure", True])
def test_invalid_confidence_gets_a_one_line_error_with_its_row(wrong, model, tmp_path):
    values = [0.9, 1.0, 0.5, 1 + 1e-7, wrong, 0.7] if not isinstance(wrong, str | bool) else [wrong] * 6
    row = 0 if isinstance(wrong, str | bool) else 4
    rows = Dataset.from_list(
        [{**pair, "label_confidence": value} for pair, value in zip(pairs(6), values, strict=True)]
    )
    line = rf"'label_confidence' is {wrong!r} in row {row} of .*not a number in \[0\.5, 1\]"
    with pytest.raises(TrlRealError, match=line + ".*remove_columns") as raised:
        REALDPOTrainer("no-such-model", args=config(tmp_path), train_dataset=rows)
    assert "\n" not in str(raised.value) and "the training set" in str(raised.value)
    with pytest.raises(TrlRealError, match="the evaluation set held_out"):
        REALDPOTrainer(
            "no-such-model",
            args=config(tmp_path),
            train_dataset=Dataset.from_list(pairs()),
            eval_dataset={"held_out": rows},
        )
    stream = REALDPOTrainer(
        model, args=config(tmp_path, per_device_train_batch_size=6), train_dataset=rows.to_iterable_dataset()
    )
    with pytest.raises(TrlRealError, match=line):
        stream.train()


@pytest.mark.parametrize(
    "settings",
    [
        {"loss_type": "ipo"},
        {"loss_type": ["sigmoid", "sft"]},
        {"f_divergence_type": "js_divergence"},
        {"use_weighting": True},
    ],
)
def test_confidence_that_the_loss_ignores_gets_a_one_line_error(settings, model, tmp_path):
    rows = Dataset.from_list(soft_pairs(4))
    with pytest.raises(TrlRealError, match=r"below 1 .* ignored .*Type loss_type='sigmoid'.*remove_columns") as raised:
        REALDPOTrainer("no-such-model", args=config(tmp_path, **settings), train_dataset=rows)
    assert "\n" not in str(raised.value)
    stream = REALDPOTrainer(model, args=config(tmp_path, **settings), train_dataset=rows.to_iterable_dataset())
    with pytest.raises(TrlRealError, match="would be ignored"):
        stream.train()


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
    assert ours[4]["loss"] != theirs[4]["loss"] or ours[5]["loss"] != theirs[5]["loss"]


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


# Settings.


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("noise_smoothing", [0.5, -0.1, float("nan"), "a", True]),
        ("noise_share", [0, 100, -5, float("nan")]),
        ("noise_extrapolation", [-0.5, float("inf"), float("nan")]),
        ("noise_warmup", [1, -0.1]),
        ("noise_window", [0, 10.5, -1]),
    ],
)
def test_number_out_of_range_gets_a_one_line_error(name, values, tmp_path):
    for value in values:
        with pytest.raises(TrlRealError, match=f"^{name}=.* is not ") as raised:
            config(tmp_path, **{"noise_smoothing": 0.1, name: value})
        assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("settings", "fix"),
    [
        ({"label_smoothing": 0.1}, r"loss_type=\['sigmoid'\] does not read it.*loss_type='robust'.*label_confidence"),
        ({"label_smoothing": 0.1, "loss_type": ["ipo", "sft"]}, "does not read it"),
        ({"discopop_tau": 0.1}, "Type loss_type='discopop'"),
        ({"f_alpha_divergence_coef": 0.2}, "Type f_divergence_type='alpha_divergence'"),
        ({"noise_extrapolation": 0.5}, "Type noise_smoothing=0.1"),
        ({"noise_share": 20.0}, "Type noise_smoothing=0.1"),
        ({"noise_warmup": 0.0}, "Type noise_smoothing=0.1"),
        ({"noise_window": 100}, "Type noise_smoothing=0.1"),
        ({"noise_smoothing": 0.1, "loss_type": "ipo"}, "Type loss_type='sigmoid'"),
        ({"noise_smoothing": 0.1, "loss_type": ["sigmoid", "sft"]}, "Type loss_type='sigmoid'"),
        ({"noise_smoothing": 0.1, "f_divergence_type": "forward_kl"}, "Type loss_type='sigmoid'"),
        ({"noise_smoothing": 0.1, "use_weighting": True}, "Type loss_type='sigmoid'"),
    ],
)
def test_unused_setting_gets_a_one_line_error(settings, fix, tmp_path):
    with pytest.raises(TrlRealError, match=f"would be ignored: .*{fix}") as raised:
        config(tmp_path, **settings)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "settings",
    [
        *(
            {"label_smoothing": 0.1, "loss_type": loss}
            for loss in ("robust", "exo_pair", "aot", ["sft", "aot_unpaired"])
        ),
        {"loss_type": "discopop", "discopop_tau": 0.1},
        {"f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": 0.2},
        {"noise_smoothing": 0, "noise_share": 10, "noise_window": 512},
        {
            "noise_smoothing": 0.1,
            "noise_share": 20,
            "noise_extrapolation": 1,
            "noise_warmup": 0,
            "loss_type": "sigmoid",
        },
    ],
)
def test_used_setting_is_accepted(settings, tmp_path):
    config(tmp_path, **settings)


def test_window_too_short_for_its_share_gets_a_one_line_error(tmp_path):
    with pytest.raises(TrlRealError, match="noise_window=512 is too short .* Type noise_window=1000 or more"):
        config(tmp_path, noise_smoothing=0.1, noise_share=0.1)
    with pytest.raises(TrlRealError, match="Type noise_window=20 or more"):
        config(tmp_path, noise_smoothing=0.1, noise_share=95, noise_window=19)


def test_flags_and_yaml_give_the_same_settings(tmp_path):
    written = {
        "noise_smoothing": 0.1,
        "noise_share": 20,
        "noise_extrapolation": 0.5,
        "noise_warmup": 0,
        "noise_window": 99,
    }
    lines = ["output_dir: out", "use_cpu: true", "loss_type: sigmoid", *(f"{k}: {v}" for k, v in written.items())]
    (tmp_path / "run.yaml").write_text("\n".join(lines))
    flags = [part for name, value in written.items() for part in (f"--{name}", str(value))]
    for arguments in (["--config", str(tmp_path / "run.yaml")], ["--output_dir", "out", "--use_cpu", *flags]):
        (args,) = TrlParser(REALDPOConfig).parse_args_and_config(arguments)
        assert {name: getattr(args, name) for name in written} == written
    for arguments in (["--label_smoothing", "0.1"], ["--noise_share", "20"]):
        with pytest.raises(TrlRealError, match="would be ignored"):
            TrlParser(REALDPOConfig).parse_args_and_config(["--output_dir", "out", "--use_cpu", *arguments])


# A run that is killed.

KILLED = """
import json, os, signal, sys
import torch
from datasets import Dataset
from transformers import TrainerCallback
from trl_real import REALDPOConfig, REALDPOTrainer

class Kill(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 13:
            os.kill(os.getpid(), signal.SIGKILL)

torch.set_num_threads(1)
folder, model, settings, resume = sys.argv[1], sys.argv[2], json.loads(sys.argv[3]), sys.argv[4] == "resume"
args = REALDPOConfig(folder, **settings)
trainer = REALDPOTrainer(
    model, args=args, train_dataset=Dataset.from_parquet(folder + "/pairs.parquet"),
    callbacks=[] if resume else [Kill()],
)
trainer.train(resume_from_checkpoint=resume)
json.dump([trainer.state.log_history, trainer.selected_rows.tolist()], open(folder + "/history.json", "w"))
"""


def test_killed_run_resumes_to_the_same_result(model, tmp_path):
    rows = Dataset.from_list([{**row, "label_confidence": 1 - 0.1 * (i % 3)} for i, row in enumerate(pairs(40))])
    rows.to_parquet(tmp_path / "pairs.parquet")
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
    (tmp_path / "killed.py").write_text(KILLED)
    command = [sys.executable, str(tmp_path / "killed.py"), str(tmp_path), model, json.dumps(settings)]
    killed = subprocess.run([*command, "kill"], capture_output=True, text=True, timeout=300)
    assert killed.returncode == -9, killed.stderr[-2000:]
    assert not (tmp_path / "history.json").exists() and (tmp_path / "checkpoint-10/noise_window.json").exists()
    resumed = subprocess.run([*command, "resume"], capture_output=True, text=True, timeout=300)
    assert resumed.returncode == 0, resumed.stderr[-2000:]
    logs, selected = json.loads((tmp_path / "history.json").read_text())
    whole = REALDPOTrainer(model, args=REALDPOConfig(str(tmp_path / "whole"), **settings), train_dataset=rows)
    whole.train()

    def curve(logs):
        names = ("loss", "noise/flagged", "noise/threshold", "rewards/margins", "label_confidence")
        return [{name: log.get(name) for name in names} for log in logs if "loss" in log]

    assert curve(logs) == curve(whole.state.log_history) and len(curve(logs)) == 16
    assert selected == whole.selected_rows.tolist()
    assert sum(log["noise/flagged"] for log in curve(logs)[10:]) > 0, "nothing was flagged after the kill"
