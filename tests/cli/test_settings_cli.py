"""Settings from flags and YAML files, including the trainer's, and the settings that an output folder records."""

import pytest
import yaml
from datasets import Dataset

from support.command_line import fails
from trl_real import REALDPOConfig, TrlRealError
from trl_real.cli.main import main


@pytest.mark.parametrize(
    ("verb", "settings", "flags"),
    [
        ("active", {"selectors": "random", "seeds": 1}, ["--selectors", "random", "--seeds", "1"]),
        ("active", {"seeds": [1, 2], "judge": None}, ["--seeds", "1", "2"]),
        ("active", {"continue": True}, ["--continue"]),
        ("active", {"restart": False}, ["--continue"]),
        ("active", {"continue": False}, []),
        ("active", {"seeds": [], "human": False, "min_gap": -1e-5}, ["--min_gap=-1e-05"]),
        ("study", {"title": "-RMB"}, ["--title=-RMB"]),
        ("push", {"private": False}, ["--no-private"]),
        ("push", {"private": True}, ["--private"]),
        ("label", {"model": "m", "price": [1, 2.5]}, ["--model", "m", "--price", "1", "2.5"]),
        ("label", {"min_gap": "1e-2"}, ["--min_gap", "0.01"]),
        ("study", {"engine": "dpo", "budgets": [0.5, 1.0, 100]}, "--engine dpo --budgets 0.5 1.0 100".split()),
    ],
    ids=str,
)
def test_yaml_setting_equals_the_flag(verb, settings, flags, tmp_path):
    from importlib import import_module

    from trl_real.cli.main import _parse

    config = tmp_path / "settings.yaml"
    config.write_text(yaml.safe_dump(settings))
    module = import_module(f"trl_real.cli.{verb}")
    by_file = vars(_parse(verb, module, ["--config", str(config)]))
    assert {**by_file, "config": None} == vars(_parse(verb, module, flags))


@pytest.mark.parametrize("value", ["'true'", "1", "on please"])
def test_yaml_switch_is_true_or_false(value, tmp_path, capsys):
    config = tmp_path / "settings.yaml"
    config.write_text(f"human: {value}")
    assert "Write true or false." in fails(capsys, "active", "--config", str(config))


def test_yaml_setting_is_refused_where_the_flag_is(tmp_path, capsys):
    config = tmp_path / "settings.yaml"
    config.write_text("engine: DPO")
    assert "invalid choice: 'DPO'" in fails(capsys, "study", "--config", str(config))


def test_model_is_loaded_with_the_settings_of_the_trl_model_config():
    from trl import ModelConfig

    from trl_real import REALDPOConfig
    from trl_real.cli.train import set_model_init_kwargs

    def told(given=None, **model):
        config = REALDPOConfig("x", use_cpu=True, bf16=False, model_init_kwargs=given)
        set_model_init_kwargs(config, ModelConfig(**model))
        return config.model_init_kwargs

    assert told() is None
    asked = {"model_revision": "v2", "dtype": "bfloat16", "attn_implementation": "eager"}
    assert told(**asked) == {"revision": "v2", "dtype": "bfloat16", "attn_implementation": "eager"}
    assert told({"dtype": "float32"}, **asked)["dtype"] == "float32"
    assert told(load_in_4bit=True)["quantization_config"].load_in_4bit


@pytest.mark.parametrize("verb", ["train", "sft"])
def test_model_that_cannot_be_loaded_as_requested_is_an_error(verb, tmp_path, model, capsys):
    rows = {"prompt": ["a", "b"], "chosen": [" yes", " sure"], "rejected": [" no", " never"]}
    Dataset.from_dict(rows).to_json(str(tmp_path / "pairs.jsonl"))
    argv = [verb, "--dataset", tmp_path / "pairs.jsonl", "--model", model, "--output_dir", tmp_path / "out"]
    assert main([*map(str, argv), "--attn_implementation", "nonsense", "--max_steps", "1", "--bf16", "False"]) == 1
    told = capsys.readouterr().err.strip().splitlines()[-1]
    assert "nonsense" in told and str(tmp_path / "out.error.txt") in told


def test_evaluation_without_labels_gets_a_one_line_error(tmp_path, capsys):
    Dataset.from_dict({"prompt": ["a"], "chosen": ["b"], "rejected": ["c"]}).to_json(str(tmp_path / "pairs.jsonl"))
    argv = ["train", "--dataset", str(tmp_path / "pairs.jsonl"), "--model", "m", "--output_dir", str(tmp_path / "out")]
    assert main([*argv, "--eval_strategy", "steps", "--eval_steps", "1", "--bf16", "False"]) == 2
    assert "--eval_strategy steps needs --eval_dataset" in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["train", "sft"])
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--num_train_epochs", "4"], "num_train_epochs=1.0, not 4.0"),
        (["--use_peft", "--lora_r", "2"], "adapter=None, not 'LORA'"),
        (["--dataset", "other.parquet"], "--dataset '4 rows, "),
        (["--per_device_train_batch_size", "4", "--logging_steps", "3", "--save_total_limit", "2"], None),
        (["--dataset", "copy.parquet"], None),
    ],
    ids=str,
)
def test_output_folder_of_another_training_is_refused(
    verb, flags, message, tmp_path, model, capsys, caplog, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    rows = [{"prompt": f"q{i}? ", "chosen": f"yes {i}", "rejected": f"no, not {i}"} for i in range(4)]
    for name, part in (("pairs", rows), ("copy", rows), ("other", rows[::-1])):
        Dataset.from_list(part).to_parquet(f"{name}.parquet")
    argv = [verb, "--dataset", "pairs.parquet", "--model", model, "--output_dir", "out", "--num_train_epochs", "1"]
    argv += ["--per_device_train_batch_size", "2", "--bf16", "False", "--report_to", "none"]
    assert main(argv) == 0
    capsys.readouterr()
    if message is None:
        assert main([*argv, *flags]) == 0
        assert "The run has already reached its last step, 2: nothing to train." in caplog.text
    else:
        assert f"'out' holds a training with {message}" in fails(capsys, *argv, *flags)


@pytest.mark.parametrize("verb", ["train", "sft"])
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("env:\n  LD_PRELOAD: x.so\n", "sets 'env'"),
        ("a: [", "Cannot read the settings"),
        ("- a\n", "holds a list"),
        ("\x00", "Cannot read the settings"),
    ],
)
def test_a_settings_file_of_the_trainer_sets_no_environment(verb, text, message, tmp_path, capsys):
    (tmp_path / "settings.yaml").write_text(text)
    flags = ["--dataset", "x", "--model", "m", "--output_dir", tmp_path / "out"]
    assert message in fails(capsys, verb, "--config", tmp_path / "settings.yaml", *flags)


def test_a_key_comes_from_a_file(tmp_path):
    pytest.importorskip("openai", reason="openai is not installed")
    from trl_real.labeling.chat.server import Endpoint

    file, settings = tmp_path / "key", {"base_url": "http://127.0.0.1:1/v1", "cache": tmp_path / "answers.sqlite"}
    file.write_text("sk-secret\n")
    assert Endpoint("m", api_key_file=str(file), **settings).requests.client.api_key == "sk-secret"
    for wrong in ({"api_key_file": str(tmp_path / "none")}, {"api_key_file": str(file), "api_key": "x"}):
        with pytest.raises(TrlRealError):
            Endpoint("m", **wrong, **settings)
    assert (tmp_path / "answers.sqlite").stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("way", ["flag", "equals", "file"])
def test_a_training_budget_of_1_is_refused_since_it_has_two_meanings(way, tmp_path, capsys):
    (tmp_path / "s.yaml").write_text("selection_budget: 1\n")
    given = {
        "flag": ["--selection_budget", "1"],
        "equals": ["--selection-budget=1"],
        "file": ["--config", str(tmp_path / "s.yaml")],
    }
    argv = ["train", "--dataset", "d", "--model", "m", "--output_dir", str(tmp_path / "out")]
    assert main([*argv, "--selection_strategy", "easy", *given[way]]) == 2
    assert "could mean every pair or, as in select, one row. Type 1.0" in capsys.readouterr().err
    with pytest.raises(TrlRealError, match="Type 1.0 for every pair"):
        REALDPOConfig(str(tmp_path), selection_strategy="easy", selection_budget=1, bf16=False, use_cpu=True)
