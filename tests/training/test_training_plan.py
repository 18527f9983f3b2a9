"""The plan of a training: its tokens are those that the steps read, its FLOP those that PyTorch counts."""

import json

import pytest
import torch
from datasets import Dataset
from torch.utils.flop_counter import FlopCounterMode
from trl import DPOTrainer

from support.tiny import save_tiny
from support.training import as_messages, config, pairs
from trl_real import REALDPOTrainer, TrlRealError
from trl_real.cli.main import main
from trl_real.selection.planning.hardware import HARDWARE
from trl_real.training.adapters import default_lora
from trl_real.training.plan import plan_training


pytestmark = pytest.mark.usefixtures("one_thread")

LONG = "Please tell me in a few words what you know about rain, water and tea. "
ROWS = [{**row, "prompt": LONG + row["prompt"]} for row in pairs(6)]
FLAGS = {"hardware": "h100", "max_steps": 1, "per_device_train_batch_size": 6}


def attention(query, key, *_, **__) -> int:
    batch, heads, length, size = query
    return 4 * batch * heads * length * key[2] * size


# What PyTorch leaves out on a CPU, by the shapes of its arguments.
UNCOUNTED = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: lambda _, *rest, **__: 2 * attention(*rest),
    torch.ops.aten.addmm_: lambda _, left, right, **__: 2 * left[0] * left[1] * right[1],
}


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    return save_tiny(tmp_path_factory.mktemp("model"), seed=1)


def planned(model, folder, rows=ROWS, peft_config=None, **changes):
    changes = {"gradient_checkpointing": False, **FLAGS, **changes}
    device = {name: changes.pop(name) for name in ("hardware", "n_devices") if name in changes}
    return plan_training(model, Dataset.from_list(rows), config(folder, **changes), peft_config, **device)


@pytest.mark.parametrize("layout", [dict, as_messages])
@pytest.mark.parametrize(
    ("cut", "adapter", "close"),
    [
        ({}, None, 0.02),
        ({"max_length": 110}, None, 0.02),
        ({"max_length": 60, "truncation_mode": "keep_end"}, None, 0.02),
        ({}, default_lora, 0.03),
    ],
)
def test_tokens_and_flop_are_those_of_a_step(layout, cut, adapter, close, model, tmp_path):
    rows = [layout(row) for row in ROWS]
    plan = planned(model, tmp_path, rows, adapter and adapter(), hardware="cpu", **cut)
    for kind, cost in ((DPOTrainer, plan.padded), (REALDPOTrainer, plan.shared)):
        trainer = kind(
            model,
            args=config(tmp_path, gradient_checkpointing=False, per_device_train_batch_size=6, **cut),
            train_dataset=Dataset.from_list(rows),
            peft_config=adapter and adapter(),
        )
        inputs, read = trainer.data_collator(list(trainer.train_dataset)), []
        _ = getattr(trainer, "shared_prompts", None)
        trainer.model.get_input_embeddings().register_forward_hook(
            lambda _m, args, _o, read=read: read.append(args[0])
        )
        with FlopCounterMode(display=False, custom_mapping=UNCOUNTED) as counted:
            trainer.compute_loss(trainer.model.train(), inputs).backward()
        n_models = 2 if adapter else 1  # the reference is the same model without the adapter
        assert n_models * cost.tokens == sum(tokens.numel() for tokens in read)
        assert cost.flops == pytest.approx(counted.get_total_flops(), rel=close), kind
        if kind is DPOTrainer:
            assert plan.real_tokens == inputs["attention_mask"].sum()


def test_plan_grows_with_epochs_and_shrinks_with_what_is_saved(model, tmp_path):
    one, two = (planned(model, tmp_path, max_steps=-1, num_train_epochs=n) for n in (1, 2))
    assert two.shared.flops == pytest.approx(2 * one.shared.flops) and (one.n_steps, two.n_steps) == (1, 2)
    less = planned(model, tmp_path, max_steps=-1, num_train_epochs=2, precompute_ref_log_probs=True)
    assert less.shared.flops < two.shared.flops and less.shared.memory < two.shared.memory
    more = planned(model, tmp_path, max_steps=-1, num_train_epochs=2, gradient_checkpointing=True)
    assert more.shared.flops > two.shared.flops and more.shared.memory < two.shared.memory
    half = planned(model, tmp_path, max_steps=-1, num_train_epochs=2, bf16=True)
    assert half.shared.flops == two.shared.flops and half.shared.seconds < two.shared.seconds
    halved = planned(model, tmp_path, max_steps=-1, num_train_epochs=2, n_devices=2)
    assert halved.n_steps == 1 and halved.shared.seconds == pytest.approx(two.shared.seconds / 2)


def test_nothing_to_train_on_is_an_error(model, tmp_path):
    with pytest.raises(TrlRealError, match="empty"):
        planned(model, tmp_path, rows=[{"prompt": "a", "chosen": "b", "rejected": "c"}][:0])
    with pytest.raises(TrlRealError, match="max_length=3"):
        planned(model, tmp_path, max_length=3)


def test_command_prints_the_plan_and_writes_nothing(model, tmp_path, capsys):
    data = tmp_path / "labels.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    argv = ["train", "--plan", "--dataset", str(data), "--model", model, "--hardware", "h100", "--bf16", "False"]
    assert main([*argv, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["n_pairs"] == 6 and found["hardware"] == HARDWARE["h100"].name
    assert found["shared"]["tokens"] < 0.5 * found["padded"]["tokens"]
    assert main(argv) == 0
    assert "prompts read once" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == [data]
