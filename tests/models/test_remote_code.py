"""No verb runs the code of a model's repository or loads a pickle file, whatever is typed or piped in."""

import ast
import io
import json

import pytest
import torch
from datasets import Dataset
from peft import get_peft_model

from support.project import ROOT
from support.rounds import pool, prompts
from support.tiny import save_tiny, tiny_model
from support.training import LORA, pairs
from trl_real import TrlRealError
from trl_real.cli.main import main
from trl_real.data.files import save
from trl_real.models.load import ALLOW_PICKLE, load_model
from trl_real.training.adapters import as_full_model


CODE = """
from pathlib import Path
Path({trace!r}).write_text("ran")
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
class Config(LlamaConfig):
    model_type = "own"
class Model(LlamaForCausalLM):
    config_class = Config
Tokenizer = PreTrainedTokenizerFast
"""
TRAINING = ["--max_steps", "1", "--report_to", "none"]
VERBS = {
    "select": ["select", "--dataset", "POOL", "--model"],
    "plan": ["select", "--plan", "--dataset", "POOL", "--model"],
    "reward": ["label", "--dataset", "SELECTED", "--judge", "reward", "--model"],
    "chat": ["label", "--dataset", "SELECTED", "--judge", "chat", "--model"],
    "implicit": ["label", "--dataset", "SELECTED", "--judge", "implicit_reward", "--model"],
    "train": ["train", "--dataset", "LABELS", *TRAINING, "--model"],
    "sft": ["sft", "--dataset", "LABELS", *TRAINING, "--model"],
    "win-rate": ["win-rate", "--dataset", "LABELS", "--baseline", "chosen", "--judge", "chat", "--model"],
    "active": ["active", "--dataset", "POOL", "--budget", "2", "--rounds", "1", *TRAINING, "--model"],
    "self-annotate": [
        "self-annotate", "--seed_labels", "LABELS", "--prompts", "PROMPTS", "--n_prompts", "2", *TRAINING, "--model"
    ],
    "study": ["study", "--dataset", "LABELS", "--n_test", "4", "--seeds", "0", "--model"],
    "study dpo": ["study", "--engine", "dpo", "--dataset", "LABELS", "--n_test", "4", "--seeds", "0", "--model"],
}  # fmt: skip


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """A pool, a selection, labels, and a model whose repository brings its own code."""
    folder = tmp_path_factory.mktemp("given")
    save(pool(), folder / "POOL")
    two = {
        "response_a": [row[0] for row in pool()["responses"]],
        "response_b": [row[1] for row in pool()["responses"]],
    }
    save(Dataset.from_dict({**pool()[:], **two, "pair": [[0, 1]] * 14}), folder / "SELECTED")
    save(Dataset.from_list(pairs()), folder / "LABELS")
    save(prompts(8), folder / "PROMPTS")
    save_tiny(folder / "model")
    (folder / "model/own.py").write_text(CODE.format(trace=str(folder / "trace")))
    config = json.loads((folder / "model/config.json").read_text())
    classes = {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}
    classes["AutoModelForSequenceClassification"] = "own.Model"
    (folder / "model/config.json").write_text(json.dumps({**config, "model_type": "own", "auto_map": classes}))
    file = folder / "model/tokenizer_config.json"
    own = {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": [None, "own.Tokenizer"]}}
    file.write_text(json.dumps({**json.loads(file.read_text()), **own}))
    return folder


@pytest.fixture(scope="module")
def pickled(tmp_path_factory):
    """A model whose weights are a pickle file."""
    folder = tmp_path_factory.mktemp("pickled")
    save_tiny(folder)
    torch.save(tiny_model().state_dict(), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    return folder


@pytest.mark.parametrize("verb", [verb for verb in VERBS if verb != "plan"])
def test_pickle_files_are_loaded_only_on_request(verb, given, pickled, tmp_path, capsys):
    argv = [str(given / part) if (given / part).exists() else part for part in VERBS[verb]]
    assert main([*argv, str(pickled), "--output_dir", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert "are pickle files (pytorch_model.bin)" in said and "type --allow_pickle" in said


def test_pickle_files_are_loaded_on_request(given, pickled, tmp_path, monkeypatch):
    monkeypatch.setenv(ALLOW_PICKLE, "")  # restored at the end
    argv = ["select", "--dataset", str(given / "POOL"), "--model", str(pickled), "--output_dir", str(tmp_path / "out")]
    assert main([*argv, "--allow_pickle"]) == 0


def test_an_adapter_on_pickle_files_is_refused(pickled, tmp_path):
    get_peft_model(tiny_model(), LORA).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": str(pickled)}))
    for load in (as_full_model, lambda folder, _: load_model(folder, "sha256:x", None, "cpu", adapters=True)):
        with pytest.raises(TrlRealError, match="are pickle files"):
            load(str(tmp_path), tmp_path / "out")


@pytest.mark.parametrize("verb", VERBS)
def test_a_piped_yes_runs_nothing(verb, given, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n" * 100))
    argv = [str(given / part) if (given / part).exists() else part for part in VERBS[verb]]
    status = main([*argv, str(given / "model"), "--output_dir", str(tmp_path / "out")])
    assert not (given / "trace").exists(), "the repository's code ran"
    assert status == 2
    said = [
        line for line in capsys.readouterr().err.splitlines() if "needs Python code from its own repository" in line
    ]
    assert len(said) == 1 and "load model and tokenizer yourself with trust_remote_code=True" in said[0]


LOADS = ("from_pretrained", "from_config")
FROM_A_FILE_OF_OUR_OWN = {"demo/model.py"}  # made a moment before
READS_NO_CODE = ("PeftModel", "PeftConfig", "GenerationConfig")


def test_every_load_says_that_no_code_may_run():
    """transformers asks on the terminal where `trust_remote_code` is not given."""
    found = []
    for file in sorted((ROOT / "trl_real").rglob("*.py")):
        for call in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.func.attr in LOADS:
                told = "trust_remote_code" in ast.unparse(call) or "SAFE_INIT" in ast.unparse(call)
                if not told and not ast.unparse(call.func).startswith(READS_NO_CODE):
                    found.append(str(file.relative_to(ROOT / "trl_real")))
    assert set(found) == FROM_A_FILE_OF_OUR_OWN
