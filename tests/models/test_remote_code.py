"""No verb runs the code of a model's repository, whatever is typed or piped in."""

import io
import json

import pytest
from datasets import Dataset

from support.rounds import pool, prompts
from support.tiny import save_tiny
from support.training import pairs
from trl_real.cli.main import main
from trl_real.data.files import save


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
