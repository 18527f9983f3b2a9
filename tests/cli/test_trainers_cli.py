"""`trl-real train --trainer`: each trainer trains, and refuses the flags of the others."""

import json
from pathlib import Path

import pytest
import yaml
from datasets import Dataset
from transformers import AutoTokenizer

from support.command_line import fails
from support.project import MODEL, page_blocks
from support.tiny import save_tiny
from support.training import pairs
from trl_real.cli.main import main
from trl_real.training.trainers import TRAINERS


FLAGS = "--max_steps 2 --save_steps 1 --per_device_train_batch_size 2 --bf16 False --report_to none".split()


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("model"))


@pytest.fixture
def data(tmp_path):
    Dataset.from_list([{**row, "label_confidence": 0.75} for row in pairs(6)]).to_json(tmp_path / "labels.jsonl")
    return str(tmp_path / "labels.jsonl")


@pytest.mark.parametrize("adapter", [[], ["--use_peft", "--lora_r", "4", "--lora_target_modules", "all-linear"]])
@pytest.mark.parametrize("trainer", TRAINERS)
def test_each_trainer_trains_evaluates_and_resumes(trainer, adapter, model, data, tmp_path, capsys):
    out = tmp_path / "out"
    argv = ["train", "--trainer", trainer, "--dataset", data, "--eval_dataset", data, "--eval_strategy", "steps",
            "--eval_steps", "1", "--model", model, "--output_dir", str(out), *FLAGS, *adapter, "--json"]  # fmt: skip
    assert main(argv) == 0
    metrics = json.loads(capsys.readouterr().out)
    assert metrics["output_dir"] == str(out) and {"train_loss", "eval_loss"} <= set(metrics)
    merged = not adapter or trainer == "reward"
    assert (out / ("model.safetensors" if merged else "adapter_model.safetensors")).exists()
    assert main(argv) == 0  # nothing is left to train
    assert json.loads(capsys.readouterr().out)["epoch"] == metrics["epoch"]
    assert "learning_rate=" in fails(capsys, *argv[:-1], "--learning_rate", "0.5")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--trainer reward --beta 0.5", "--beta belongs to --trainer dpo and kto, not to reward. Leave it out."),
        ("--trainer reward --selection_strategy easy", "--selection_strategy belongs to --trainer dpo, not to reward"),
        ("--trainer kto --noise_smoothing=0.1", "--noise_smoothing belongs to --trainer dpo, not to kto"),
        ("--trainer kto --center_rewards_coefficient 0.01", "belongs to --trainer reward, not to kto"),
        ("--desirable_weight 2", "--desirable_weight belongs to --trainer kto, not to dpo. Leave it out."),
        ("--trainer reward --plan", "--plan estimates the cost of --trainer dpo, not of reward. Leave it out."),
        ("--trainer rewards", "--trainer: No trainer 'rewards'; there are dpo, reward, kto. Did you mean reward?"),
        ("--trainer kto --lerning_rate 1", "There is no flag --lerning_rate. Did you mean --learning_rate?"),
    ],
)
def test_flags_of_other_trainers_are_refused(flags, message, data, tmp_path, capsys):
    out = str(tmp_path / "out")
    assert message in fails(
        capsys, "train", "--dataset", data, "--model", "user/m", "--output_dir", out, *flags.split()
    )


def test_trainer_in_a_settings_file(model, data, tmp_path, capsys):
    settings = {"trainer": "reward", "dataset": data, "model": model, "output_dir": str(tmp_path / "out")}
    more = {"max_steps": 1, "bf16": False, "report_to": "none", "per_device_train_batch_size": 2}
    file = tmp_path / "train.yaml"
    file.write_text(yaml.safe_dump(settings | more))
    assert main(["train", "--config", str(file)]) == 0
    assert json.loads((tmp_path / "out" / "config.json").read_text())["architectures"] == [
        "LlamaForSequenceClassification"
    ]
    file.write_text(yaml.safe_dump(settings | more | {"beta": 0.1}))
    capsys.readouterr()
    assert "--beta belongs to --trainer dpo and kto" in fails(capsys, "train", "--config", str(file))
    file.write_text(yaml.safe_dump(settings | {"trainer": "ppo"}))
    assert "No trainer 'ppo'" in fails(capsys, "train", "--config", str(file))


@pytest.mark.parametrize("trainer", TRAINERS)
def test_chat_makes_messages_for_every_trainer(trainer, model, data, tmp_path):
    argv = ["train", "--chat", "--trainer", trainer, "--dataset", data, "--model", model]
    assert main([*argv, "--output_dir", str(tmp_path / "out"), *FLAGS]) == 0
    assert AutoTokenizer.from_pretrained(tmp_path / "out").chat_template  # of a reward model, since it read messages


def test_the_page_runs_from_labels_to_a_comparison_by_the_trained_reward_model(model, tmp_path, monkeypatch, capsys):
    from support.project import ROOT

    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    commands = page_blocks("trainers.md", "bash")[0].replace("\\\n", " ").replace(MODEL, model).splitlines()
    small = {"train": [*FLAGS[:-2], "--max_steps", "1"], "win-rate": ["--max_new_tokens", "4", "--split", "train[:4]"]}
    for command in commands:
        _, verb, *flags = command.split()
        assert main([verb, *flags, *small.get(verb, [])]) == 0, capsys.readouterr().err
    rates = json.loads(Path("runs/compared/comparison.json").read_text())
    assert rates["n_prompts"] == 4 and str(rates["judge"]).startswith("reward:rewards")
