"""Models whose base is quantized (QLoRA): what they compute in, and bitsandbytes' layers on a CPU."""

from typing import Any

import torch
from torch import nn

from trl_real.errors import TrlRealError


def product_dtype(model: Any) -> torch.dtype | None:
    """Return the precision of the products of a base in 4 bits; None for other models, whose weights have it."""
    config: Any = getattr(getattr(model, "config", None), "quantization_config", None)
    return config.bnb_4bit_compute_dtype if getattr(config, "load_in_4bit", False) else None


def check_float32(model: Any, weights: torch.dtype) -> None:
    """Raise TrlRealError if a quantized model, whose other weights have this precision, cannot run in float32."""
    found = {weights, product_dtype(model) or weights} - {torch.float32}
    if getattr(model, "is_quantized", False) and found:
        name = str(found.pop()).removeprefix("torch.")
        raise TrlRealError(
            f"The model is quantized and computes in {name}, so that nothing can be read in float32, which mixtures, "
            "i_optimal and dtype='float32' need. Load it with dtype='float32' (--dtype float32)."
        )


def keep_unpacked(model: nn.Module) -> None:
    """
    Keep the 4-bit layers of bitsandbytes as they were loaded. On a CPU with bfloat16 instructions, a pass without
    gradients packs them in place, with coarser scales, for a product without a backward pass: later gradients are
    wrong without an error, and so is the digest of the weights (bitsandbytes 0.50).
    """
    layers: list[Any] = [module for module in model.modules() if hasattr(module, "support_avx512bf16_for_cpu")]
    for layer in layers:
        layer.support_avx512bf16_for_cpu = False
        if getattr(getattr(layer.weight, "quant_state", None), "packing_format_for_cpu", False):
            layer.state_dict()  # writes the weights back
