"""Soft labels from a column: the loss equals a hand computation, and without doubt it is DPOTrainer's."""

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM
from trl import DPOConfig, DPOTrainer
from trl.trainer.dpo_trainer import DataCollatorForPreference

from support.noise import BETA, MODES, checking, soft_pairs
from support.training import LORA, config, history, pairs
from trl_real import REALDPOConfig, REALDPOTrainer, TrlRealError


pytestmark = pytest.mark.usefixtures("one_thread")


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
