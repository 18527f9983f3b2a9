"""Policies as a base model and an adapter on disk."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.trainer_utils import set_seed

from trl_real.errors import TrlRealError


NOT_SETTINGS = ("peft_version", "base_model_name_or_path", "inference_mode", "revision", "auto_mapping")


def default_lora() -> LoraConfig:
    """LoRA on all linear layers, without dropout: gradients of a dropped-out adapter are noise."""
    return LoraConfig(r=16, lora_alpha=32, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM")


def adapter_settings(config: PeftConfig | None) -> dict[str, Any]:
    """An adapter's configuration as settings of a run: plain values, of what is not as PEFT has it by itself."""
    if config is None:
        return {"adapter": None}
    usual = type(config)().to_dict()
    given = {k: v for k, v in config.to_dict().items() if v != usual.get(k) and k not in NOT_SETTINGS}
    plain = json.loads(json.dumps(given, default=lambda v: sorted(map(str, v)) if isinstance(v, set) else str(v)))
    kind = getattr(config.peft_type, "value", config.peft_type)
    return {"adapter": kind, **{f"adapter.{name}": value for name, value in plain.items()}}


def revision_of(init: dict[str, Any] | None) -> str | None:
    """Branch, tag or commit among the arguments of `from_pretrained`, for what else is loaded from there."""
    return (init or {}).get("revision")


def load_base(model: str, init: dict[str, Any] | None, cpu: bool) -> tuple[Any, Any]:
    """
    The base model and its tokenizer.

    Args:
        model: Hub id or path.
        init: Of `from_pretrained`, float32 weights by default.
        cpu: Whether to stay on the CPU.
    """
    loaded = AutoModelForCausalLM.from_pretrained(model, **{"dtype": "float32", **(init or {})})
    device = "cuda" if torch.cuda.is_available() and not cpu else "cpu"
    tokenizer = AutoTokenizer.from_pretrained(model, revision=revision_of(init))
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return loaded.to(device), tokenizer


def fresh_adapter(model: Any, config: PeftConfig, seed: int) -> PeftModel:
    """The model with a new adapter, whose weights hang on the seed alone."""
    set_seed(seed)
    return get_peft_model(model, config)


def save_adapter(model: PeftModel, folder: Path) -> None:
    """Write the adapter: all of it, or nothing."""
    new = folder.with_name(f".{folder.name}.new")
    shutil.rmtree(new, ignore_errors=True)
    model.save_pretrained(str(new), selected_adapters=["default"])
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(new, folder)


def with_adapter(model: Any, folder: Path, trainable: bool = False) -> PeftModel:
    """
    The model with an adapter from disk.

    Raises:
        TrlRealError: If there is none.
    """
    if not (folder / "adapter_config.json").exists():
        raise TrlRealError(f"No adapter in {str(folder)!r}. Remove that round's folder to have it made again.")
    return PeftModel.from_pretrained(model, str(folder), is_trainable=trainable)
