"""The warm start: its training data, its output, and DPO with it as the reference."""

import json
import shutil

import pytest
import torch
import trl.trainer.base_trainer
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM
from trl import SFTConfig

from support.tiny import save_tiny
from trl_real import MissingColumnError, REALDPOConfig, REALDPOTrainer, TrlRealError
from trl_real.cli.main import main
from trl_real.models.load import weights_digest
from trl_real.training.warm_start import demonstrations, warm_start


TEXT = [{"prompt": f"Question {i % 5}? ", "chosen": f"answer {i % 7}", "rejected": f"no {i}"} for i in range(12)]
FLAGS = ["--max_steps", "2", "--per_device_train_batch_size", "2", "--bf16", "False", "--report_to", "none"]


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("base"), seed=1)


def messages(row: dict) -> dict:
    both = {name: [{"role": "assistant", "content": row[name]}] for name in ("chosen", "rejected")}
    return {"prompt": [{"role": "user", "content": row["prompt"]}], **both}


def dialogue(row: dict) -> dict:
    row = messages(row)
    return {name: row["prompt"] + row[name] for name in ("chosen", "rejected")}


def config(folder, **changes):
    return SFTConfig(
        str(folder), use_cpu=True, bf16=False, max_steps=2, per_device_train_batch_size=2, learning_rate=1e-2,
        report_to="none", save_strategy="no", disable_tqdm=True, **changes,
    )  # fmt: skip


def tensors(folder) -> dict[str, torch.Tensor]:
    return AutoModelForCausalLM.from_pretrained(folder).state_dict()


@pytest.mark.parametrize("layout", [dict, messages, dialogue], ids=["text", "messages", "dialogues"])
def test_trains_on_each_chosen_response_once_and_on_no_rejected_one(layout):
    rows = [layout(row) for row in (*TEXT, *TEXT[:4])]
    found = demonstrations(Dataset.from_list(rows))
    assert set(found.column_names) == {"prompt", "completion"}
    said = [
        row["completion"] if isinstance(row["completion"], str) else row["completion"][0]["content"] for row in found
    ]
    assert said == [row["chosen"] for row in TEXT]


def test_rejected_responses_are_ignored():
    with_others = Dataset.from_list([{**row, "rejected": "x"} for row in TEXT])
    assert demonstrations(Dataset.from_list(TEXT))[:] == demonstrations(with_others)[:]
    assert demonstrations(Dataset.from_list(TEXT).remove_columns("rejected"))[:] == demonstrations(with_others)[:]


@pytest.mark.parametrize("adapter", [None, LoraConfig(r=4, task_type="CAUSAL_LM")], ids=["full", "lora"])
def test_output_is_a_complete_trained_model(adapter, base, tmp_path):
    warm_start(base, Dataset.from_list(TEXT), config(tmp_path / "sft"), peft_config=adapter)
    before, after = tensors(base), tensors(tmp_path / "sft")
    assert before.keys() == after.keys()
    assert any(not torch.equal(before[name], after[name]) for name in before)
    assert not (tmp_path / "sft" / "adapter_config.json").exists()


@pytest.mark.parametrize("adapter", [None, LoraConfig(r=4, task_type="CAUSAL_LM")], ids=["full", "lora"])
def test_dpo_after_warm_start_uses_it_as_reference(adapter, base, tmp_path):
    warm_start(base, Dataset.from_list(TEXT), config(tmp_path / "sft"), peft_config=adapter)
    args = REALDPOConfig(
        str(tmp_path / "dpo"), use_cpu=True, bf16=False, max_steps=2, per_device_train_batch_size=2, logging_steps=1,
        report_to="none", save_strategy="no", learning_rate=1e-2, disable_tqdm=True,
    )  # fmt: skip
    trainer = REALDPOTrainer(str(tmp_path / "sft"), args=args, train_dataset=Dataset.from_list(TEXT))
    assert weights_digest(trainer.ref_model) == weights_digest(AutoModelForCausalLM.from_pretrained(tmp_path / "sft"))
    trainer.train()
    first = trainer.state.log_history[0]
    assert first["rewards/margins"] == pytest.approx(0, abs=1e-5) and first["loss"] == pytest.approx(0.6931, abs=1e-4)


def test_sft_command_followed_by_dpo(base, tmp_path, capsys):
    Dataset.from_list(TEXT).to_parquet(tmp_path / "pairs.parquet")
    argv = ["--dataset", str(tmp_path / "pairs.parquet"), *FLAGS, "--json"]
    assert (
        main(["sft", "--model", base, "--output_dir", str(tmp_path / "sft"), *argv, "--use_peft", "--lora_r", "4"])
        == 0
    )
    out, err = capsys.readouterr()
    assert json.loads(out)["output_dir"] == str(tmp_path / "sft") and "Next: trl-real train --dataset" in err
    assert main(["train", "--model", str(tmp_path / "sft"), "--output_dir", str(tmp_path / "dpo"), *argv]) == 0
    assert json.loads(capsys.readouterr().out)["train_loss"] > 0


def test_interrupted_run_resumes(base, tmp_path):
    args = config(tmp_path / "sft")
    args.save_strategy, args.save_steps = "steps", 1
    warm_start(base, Dataset.from_list(TEXT), args)
    whole = tensors(tmp_path / "sft")
    for lost in ([], ["checkpoint-2"]):  # killed before the model was saved, and before its last step
        for folder in lost:
            shutil.rmtree(tmp_path / "sft" / folder)
        (tmp_path / "sft" / "model.safetensors").unlink()
        again = warm_start(base, Dataset.from_list(TEXT), args)
        assert again.state.global_step == 2
        found = tensors(tmp_path / "sft")
        assert all(torch.equal(whole[name], found[name]) for name in whole)


def test_adapter_run_resumes_and_unknown_checkpoint_is_reported(base, tmp_path, caplog):
    args, rows = config(tmp_path / "sft"), Dataset.from_list(TEXT)
    args.save_strategy, args.save_steps = "steps", 1
    adapter = LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM")
    for _ in range(2):
        assert warm_start(base, rows, args, peft_config=adapter).state.global_step == 2
    (tmp_path / "sft" / "run_settings.json").unlink()
    warm_start(base, rows, args, peft_config=adapter)
    assert "are unknown" in caplog.text and not (tmp_path / "sft" / "run_settings.json").exists()


def test_no_telemetry_is_sent(base, tmp_path, monkeypatch):
    sent = []
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setattr(trl.trainer.base_trainer, "send_telemetry", lambda **report: sent.append(report))
    warm_start(base, Dataset.from_list(TEXT), config(tmp_path / "sft"))
    assert sent == []


def test_mistakes_get_a_one_line_error():
    with pytest.raises(MissingColumnError, match="No column 'chosen'"):
        demonstrations(Dataset.from_dict({"prompt": ["x"]}))
    with pytest.raises(MissingColumnError, match="No column 'rejected'"):
        demonstrations(Dataset.from_dict({"chosen": ["x"]}))
    with pytest.raises(TrlRealError, match="no preferences to learn from"):
        demonstrations(Dataset.from_list(TEXT).select([]))
