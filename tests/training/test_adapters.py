"""An adapter's folder is a model: its base with the adapter."""

import json
import logging

import pytest
import torch
from peft import get_peft_model
from transformers import AutoModelForCausalLM

from support.tiny import save_tiny, tiny_tokenizer
from support.training import LORA
from trl_real import TrlRealError
from trl_real.models.load import load_model, resolve_revision
from trl_real.training.adapters import as_full_model, is_adapter, load_base


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
    assert is_adapter(folder) and not is_adapter(str(tmp_path / "base"))
    full = as_full_model(folder, tmp_path / "out")
    with caplog.at_level(logging.WARNING):
        loaded = [
            AutoModelForCausalLM.from_pretrained(full),
            load_base(folder, None, cpu=True)[0],
            load_model(folder, resolve_revision(folder, None), None, "cpu")[0],
        ]
    for model in loaded:
        torch.testing.assert_close(model.eval()(IDS).logits, expected, atol=1e-4, rtol=1e-4)
    assert caplog.text.count(f"{folder!r} is an adapter: its base {str(tmp_path / 'base')!r}") == 3
    assert as_full_model(full, tmp_path / "other") == full


def test_a_base_that_is_gone_is_one_line(adapter, tmp_path):
    folder, _ = adapter
    config = tmp_path / "adapter" / "adapter_config.json"
    config.write_text(
        json.dumps({**json.loads(config.read_text()), "base_model_name_or_path": str(tmp_path / "gone")})
    )
    with pytest.raises(TrlRealError, match="is an adapter, and its base .*gone.* cannot be loaded"):
        load_base(folder, None, cpu=True)
