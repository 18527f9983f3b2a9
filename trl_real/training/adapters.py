"""PEFT adapters: create, save and load them on top of a base model."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

from accelerate import PartialState
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoProcessor, AutoTokenizer
from transformers.trainer_utils import set_seed

from trl_real.errors import TrlRealError, without_remote_code
from trl_real.models.load import adapter_base, load_adapter, pinned
from trl_real.reports.model_card import write_origin
from trl_real.runtime.devices import default_device


# Arguments of `from_pretrained` that a user's own come before.
SAFE_INIT = {"dtype": "float32", "trust_remote_code": False}
# Fields of a PEFT configuration that do not change what is learned.
NOT_SETTINGS = ("peft_version", "base_model_name_or_path", "inference_mode", "revision", "auto_mapping")


def default_lora() -> LoraConfig:
    """Return LoRA settings for all linear layers, without dropout, which adds noise to gradients."""
    return LoraConfig(r=16, lora_alpha=32, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM")


def adapter_settings(config: PeftConfig | None) -> dict[str, Any]:
    """Return the fields of an adapter's configuration that differ from PEFT's defaults, as plain values."""
    if config is None:
        return {"adapter": None}
    defaults = type(config)().to_dict()
    changed = {k: v for k, v in config.to_dict().items() if v != defaults.get(k) and k not in NOT_SETTINGS}
    plain = json.loads(json.dumps(changed, default=lambda v: sorted(map(str, v)) if isinstance(v, set) else str(v)))
    kind = getattr(config.peft_type, "value", config.peft_type)
    return {"adapter": kind, **{f"adapter.{name}": value for name, value in plain.items()}}


def revision_of(init: dict[str, Any] | None) -> str | None:
    """Return the revision among the arguments of `from_pretrained`, to load other files from the same one."""
    return (init or {}).get("revision")


def load_tokenizer(
    model: str, init: dict[str, Any] | None, trust_remote_code: bool = False, sees: bool = False
) -> Any:
    """
    Load the tokenizer that belongs to a model, given the arguments of the model's `from_pretrained`; if it `sees`
    images, its processor.
    """
    auto = AutoProcessor if sees else AutoTokenizer
    with without_remote_code(model):
        return auto.from_pretrained(model, revision=revision_of(init), trust_remote_code=trust_remote_code)


def as_full_model(model: str, output_dir: str | Path, init: dict[str, Any] | None = None) -> str:
    """
    Return the model's name; for an adapter, in a folder or on the Hub, the folder `OUTPUT_DIR.base`, with the merged
    model and a card that says what it was made of.

    DPO's reference is then the model with the adapter, and what is trained starts from it. It is merged before it is
    quantized, if it is: into 4-bit weights an adapter does not go without loss.
    """
    if adapter_base(model, pinned(revision_of(init))) is None:
        return model
    folder = Path(f"{str(output_dir).rstrip('/')}.base")
    with PartialState().main_process_first():
        if PartialState().is_main_process:
            merged, tokenizer = _load_merged(model, init)
            merged.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
            write_origin(folder, model)
    return str(folder)


def _load_merged(model: str, init: dict[str, Any] | None) -> tuple[Any, Any]:
    of_base = {**SAFE_INIT, **(init or {})}
    of_base.pop("quantization_config", None)
    loaded, tokenizer = load_adapter(model, pinned(of_base.pop("revision", None)), AutoModelForCausalLM, **of_base)
    return loaded.merge_and_unload(), tokenizer


def load_base(model: str, init: dict[str, Any] | None, cpu: bool) -> tuple[Any, Any]:
    """
    Load the base model, in float32 unless the arguments `init` of `from_pretrained` differ, and its tokenizer.

    Raises:
        TrlRealError: If an adapter is to be merged into a quantized base.
    """
    quantized = (init or {}).get("quantization_config") is not None
    place = {"device_map": {"": "cpu"}} if quantized and cpu else {}
    if adapter_base(model, pinned(revision_of(init))) is not None:
        if quantized:
            raise TrlRealError(
                f"{model!r} is an adapter, which cannot be merged into 4-bit weights without loss. Merge it first: "
                "PeftModel.merge_and_unload().save_pretrained(…), and give that folder; or leave out --load_in_4bit."
            )
        loaded, tokenizer = _load_merged(model, init)
    else:
        with without_remote_code(model):
            loaded = AutoModelForCausalLM.from_pretrained(model, **(SAFE_INIT | (init or {}) | place))
        tokenizer = load_tokenizer(model, init)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return loaded.to("cpu" if cpu else default_device()), tokenizer


def fresh_adapter(model: Any, config: PeftConfig, seed: int) -> PeftModel:
    """Return the model with a new adapter; its weights depend on the seed only."""
    set_seed(seed)
    return get_peft_model(model, config)


def save_adapter(model: PeftModel, folder: Path) -> None:
    """Write the adapter in one step: the folder is complete or absent."""
    new = folder.with_name(f".{folder.name}.new")
    shutil.rmtree(new, ignore_errors=True)
    model.save_pretrained(str(new), selected_adapters=["default"])
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(new, folder)


def with_adapter(model: Any, folder: Path, trainable: bool = False) -> PeftModel:
    """
    Return the model with an adapter from disk.

    Raises:
        TrlRealError: If the folder has no adapter.
    """
    if not (folder / "adapter_config.json").exists():
        raise TrlRealError(f"No adapter in {str(folder)!r}. Remove that round's folder to run the round again.")
    return PeftModel.from_pretrained(model, str(folder), is_trainable=trainable)
