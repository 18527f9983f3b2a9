"""TRL's shapes of preferences with images train with a selection, on the rows that the selector keeps."""

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from trl import DPOTrainer

from support.training import as_messages, config, pairs
from support.vision import as_parts, save_vlm, tiny_processor, tiny_vlm, with_pictures
from trl_real import EmbeddingPairSelector, REALDPOTrainer
from trl_real.cli.main import main
from trl_real.selection.record import SelectionRecord


pytestmark = pytest.mark.usefixtures("one_thread")
LORA = LoraConfig(r=4, task_type="CAUSAL_LM", target_modules=["q_proj", "v_proj"])


def text_with_marks(row: dict) -> dict:
    return {**row, "prompt": f"<image>{row['prompt']}"}


SHAPES = {
    "messages, images": lambda n: with_pictures([as_messages(row) for row in pairs(n)]),
    "messages, image": lambda n: with_pictures([as_messages(row) for row in pairs(n)], "image"),
    "parts": lambda n: with_pictures([as_parts(row) for row in pairs(n)]),
    "some rows without images": lambda n: with_pictures([as_messages(row) for row in pairs(n)], none=n // 2),
    "texts": lambda n: with_pictures([text_with_marks(row) for row in pairs(n)]),
}


@pytest.fixture(scope="module")
def vlm(tmp_path_factory):
    return save_vlm(tmp_path_factory.mktemp("vlm"))


@pytest.mark.parametrize("adapter", [None, LORA])
@pytest.mark.parametrize("shape", SHAPES)
def test_shape_trains_on_the_rows_that_the_selector_keeps(shape, adapter, vlm, tmp_path):
    rows = SHAPES[shape](8)
    args = config(tmp_path, selection_strategy="easy", selection_budget=0.5, max_steps=2)
    trainer = REALDPOTrainer(vlm, args=args, train_dataset=rows, processing_class=tiny_processor(),
                             peft_config=adapter)  # fmt: skip
    selector = EmbeddingPairSelector(tiny_vlm(), tokenizer=tiny_processor())
    expected = selector.select(rows.add_column("number", range(8)), 0.5)
    assert trainer.selected_rows.tolist() == expected["number"][:] and len(trainer.train_dataset) == 4
    before = {name: weight.clone() for name, weight in trainer.model.named_parameters()}
    trainer.train()
    assert any(not torch.equal(weight, before[name]) for name, weight in trainer.model.named_parameters())
    assert trainer.selection_record.n_kept == 4


def test_without_a_selection_losses_are_those_of_trl(vlm, tmp_path):
    losses = []
    for kind, folder in ((DPOTrainer, "trl"), (REALDPOTrainer, "real")):
        rows = SHAPES["messages, images"](6)
        args = config(tmp_path / folder, max_steps=2)
        trainer = kind(vlm, args=args, train_dataset=rows, processing_class=tiny_processor())
        trainer.train()
        losses.append([log["loss"] for log in trainer.state.log_history if "loss" in log])
    assert losses[0] == losses[1]


def test_confidences_reach_the_loss_of_rows_with_images(vlm, tmp_path):
    rows = SHAPES["messages, images"](4).add_column("label_confidence", [0.6] * 4)
    trainer = REALDPOTrainer(
        vlm, args=config(tmp_path, max_steps=1), train_dataset=rows, processing_class=tiny_processor()
    )
    trainer.train()
    assert trainer.state.log_history[0]["label_confidence"] == pytest.approx(0.6)


def test_command_line_selects_and_trains(vlm, tmp_path, capsys):
    SHAPES["messages, images"](6).save_to_disk(tmp_path / "labels")
    out = str(tmp_path / "out")
    flags = "--max_steps 1 --per_device_train_batch_size 2 --bf16 False --report_to none --selection_strategy easy"
    argv = ["train", "--dataset", str(tmp_path / "labels"), "--model", vlm, "--output_dir", out, *flags.split()]
    assert main([*argv, "--selection_budget", "4"]) == 0
    assert SelectionRecord.load(out).n_kept == 4
    assert (tmp_path / "out" / "processor_config.json").exists()


def test_a_text_model_refuses_images(tmp_path):
    from support.tiny import save_tiny, tiny_tokenizer

    rows: Dataset = SHAPES["messages, images"](4)
    with pytest.raises(ValueError, match="vision"):
        REALDPOTrainer(save_tiny(tmp_path / "m"), args=config(tmp_path), train_dataset=rows,
                       processing_class=tiny_tokenizer())  # fmt: skip
