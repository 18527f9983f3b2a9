"""An adapter's folder is a model: its base with the adapter."""

import json
import logging
import subprocess
import sys

import pytest
import torch
from peft import get_peft_model
from transformers import AutoModelForCausalLM

from support.hub_server import HubServer
from support.tiny import save_tiny, tiny_tokenizer
from support.training import LORA
from trl_real import TrlRealError
from trl_real.models.load import adapter_base, load_model, resolve_revision
from trl_real.reports.model_card import origin_of
from trl_real.selection.planning.model_shape import empty_model, tokenizer_of
from trl_real.training import adapters
from trl_real.training.adapters import as_full_model, load_base


IDS = torch.tensor([[5, 6, 7, 8]])


@pytest.fixture
def adapter(tmp_path):
    """Return the folder of an adapter that changes its base, and the logits of both together."""
    base = save_tiny(tmp_path / "base", seed=1)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), LORA)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, 0, 0.1, generator=torch.Generator().manual_seed(0))
    model.save_pretrained(tmp_path / "adapter")
    tiny_tokenizer().save_pretrained(tmp_path / "adapter")
    return str(tmp_path / "adapter"), model.eval()(IDS).logits


def test_every_way_of_loading_gives_the_base_with_the_adapter_and_says_so(adapter, tmp_path, caplog):
    folder, expected = adapter
    base = str(tmp_path / "base")
    assert adapter_base(folder, {}) == (base, {}) and adapter_base(base, {}) is None
    full = as_full_model(folder, tmp_path / "out")
    with caplog.at_level(logging.WARNING):
        loaded = [
            AutoModelForCausalLM.from_pretrained(full),
            load_base(folder, None, cpu=True)[0],
            load_model(folder, resolve_revision(folder, None), None, "cpu")[0],
            load_model(folder, resolve_revision(folder, None), None, "cpu", adapters=True)[0],
        ]
    for model in loaded:
        torch.testing.assert_close(model.eval()(IDS).logits, expected, atol=1e-4, rtol=1e-4)
    assert caplog.text.count(f"{folder!r} is an adapter: its base {str(tmp_path / 'base')!r}") == 4
    assert empty_model(folder).num_parameters() == loaded[0].num_parameters()  # for `--plan`
    assert as_full_model(full, tmp_path / "other") == full


def test_an_adapter_without_a_tokenizer_has_that_of_its_base(adapter, tmp_path):
    folder, _ = adapter
    (tmp_path / "adapter" / "tokenizer.json").unlink()
    (tmp_path / "adapter" / "tokenizer_config.json").unlink()
    found = [
        load_base(folder, None, cpu=True)[1],
        load_model(folder, resolve_revision(folder, None), None, "cpu")[1],
        load_model(folder, resolve_revision(folder, None), None, "cpu", adapters=True)[1],
        tokenizer_of(folder),
    ]
    assert all(tokenizer.chat_template == tiny_tokenizer().chat_template for tokenizer in found)


ON_THE_HUB = """
import json, sys
from pathlib import Path
import torch
from huggingface_hub import HfApi
from transformers import AutoModelForCausalLM
from trl_real.models.load import load_model, resolve_revision
from trl_real.training.adapters import as_full_model, load_base
from trl_real.reports.model_card import origin_of

home, ids = Path(sys.argv[1]), torch.tensor([[5, 6, 7, 8]])
config = home / "adapter" / "adapter_config.json"
config.write_text(json.dumps({**json.loads(config.read_text()), "base_model_name_or_path": "user/base"}))
for name in ("base", "adapter"):
    HfApi().create_repo(f"user/{name}")
    HfApi().upload_folder(repo_id=f"user/{name}", folder_path=str(home / name))
revision = resolve_revision("user/adapter", None)
found = [
    load_model("user/adapter", revision, None, "cpu")[0],
    load_model("user/adapter", revision, None, "cpu", adapters=True)[0],
    load_base("user/adapter", None, cpu=True)[0],
    AutoModelForCausalLM.from_pretrained(as_full_model("user/adapter", home / "out")),
]
print(json.dumps([model.eval()(ids).logits.tolist() for model in found]))
"""


def test_an_adapter_on_the_hub_is_a_model(adapter, tmp_path):
    _, expected = adapter
    with HubServer() as hub:
        argv = [sys.executable, "-c", ON_THE_HUB, str(tmp_path)]
        done = subprocess.run(argv, env=hub.environment(tmp_path / "home"), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    for logits in json.loads(done.stdout):
        torch.testing.assert_close(torch.tensor(logits), expected, atol=1e-4, rtol=1e-4)
    assert done.stderr.count("'user/adapter' is an adapter: its base 'user/base' is loaded with it") == 4
    assert origin_of(str(tmp_path / "out.base")) == "user/adapter"


def test_a_base_that_is_gone_is_one_line(adapter, tmp_path):
    folder, _ = adapter
    config = tmp_path / "adapter" / "adapter_config.json"
    config.write_text(
        json.dumps({**json.loads(config.read_text()), "base_model_name_or_path": str(tmp_path / "gone")})
    )
    with pytest.raises(TrlRealError, match="is an adapter, and its base .*gone.* cannot be loaded"):
        load_base(folder, None, cpu=True)


@pytest.mark.parametrize("sees", [False, True])
@pytest.mark.parametrize("revision", [None, "v2"])
def test_the_tokenizer_is_of_the_models_revision(revision, sees, monkeypatch):
    asked = []
    for auto in (adapters.AutoTokenizer, adapters.AutoProcessor):
        monkeypatch.setattr(auto, "from_pretrained", lambda *args, **kwargs: asked.append((args, kwargs)))
    adapters.load_tokenizer("user/model", {"dtype": "float32", "revision": revision}, sees=sees)
    assert asked == [(("user/model",), {"revision": revision, "trust_remote_code": False})]


@pytest.mark.parametrize("pad", ["<|pad|>", None])
def test_a_base_without_a_padding_token_pads_with_its_end(pad, tmp_path):
    folder, tokenizer = save_tiny(tmp_path / "model"), tiny_tokenizer()
    tokenizer.pad_token = pad
    tokenizer.save_pretrained(folder)
    assert load_base(folder, None, cpu=True)[1].pad_token == (pad or "<|im_end|>")
