"""Counts of a model's weights from its config alone, and the speed of this machine's matrix products."""

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from trl_real.errors import TrlRealError, without_remote_code
from trl_real.models.load import adapter_base, pinned
from trl_real.selection.planning.cost import ModelShape
from trl_real.selection.planning.hardware import HARDWARE, Hardware


EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts")  # name in each model family
ROWS = 1024  # tokens of a packed pass on a CPU


def empty_model(model: str, revision: str | None = None) -> nn.Module:
    """
    Make a causal LM from its config alone, on the meta device, without weights.

    Args:
        model: Hub id or path.
        revision: Branch, tag or commit.

    Raises:
        TrlRealError: If the config cannot be loaded.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    model, revision = _base_of(model, revision)
    try:
        config = AutoConfig.from_pretrained(model, revision=revision, trust_remote_code=False)
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config, dtype=torch.float32, trust_remote_code=False).eval()
    except (OSError, ValueError) as error:
        with without_remote_code(model):
            if "trust_remote_code" in str(error):
                raise
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise TrlRealError(
            f"No config of a causal LM in {model!r} ({reason}). Give a saved model's folder or a Hub id."
        ) from error


def tokenizer_of(model: str, revision: str | None = None) -> Any:
    """Load a model's tokenizer; arguments and errors as in `empty_model`."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(model, revision=revision, trust_remote_code=False)
    except (OSError, ValueError) as error:
        if (base := _base_of(model, revision))[0] != model:
            return tokenizer_of(*base)
        raise TrlRealError(
            f"No tokenizer in {model!r}. Save it there: tokenizer.save_pretrained({model!r})."
        ) from error


def _base_of(model: str, revision: str | None) -> tuple[str, str | None]:
    """Return the name and revision of an adapter's base, whose shape it has; those given for another model."""
    if (base := adapter_base(model, pinned(revision))) is None:
        return model, revision
    return base[0], base[1].get("revision")


def model_shape(model: Any) -> ModelShape:
    """Count the weights of a causal LM of transformers, also on the meta device, by their role."""
    config, backbone = model.config.get_text_config(), model.base_model
    tables = {id(p) for m in backbone.modules() if isinstance(m, nn.Embedding) for p in m.parameters()}
    layers = {name: p for name, p in backbone.named_parameters() if id(p) not in tables}
    heads = config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    matrices = [p for p in layers.values() if p.ndim == 2]
    return ModelShape(
        total=sum(p.numel() for p in model.parameters()),
        layers=sum(p.numel() for p in layers.values()),
        active=round(sum(p.numel() * _share(name, config) for name, p in layers.items())),
        head=config.vocab_size * config.hidden_size,
        n_layers=config.num_hidden_layers,
        width=config.hidden_size,
        attention=heads * size,
        kv=(getattr(config, "num_key_value_heads", None) or heads) * size,
        per_rank=sum(sum(p.shape) for p in matrices),
    )


def matmul_rate(width: int, dtype: str, seconds: float = 1.0, clock: Callable[[], float] = time.perf_counter) -> float:
    """
    Return the FLOP per second that this CPU reaches in `(1024, width) @ (width, 4 width)`, with torch's threads.

    Args:
        width: Hidden size of a model; above 1,024 the rate is that of 1,024.
        dtype: Precision of the matrices.
        seconds: Time to measure for.
        clock: Clock in seconds; `time.process_time` does not count other programs.
    """
    width = min(width, ROWS)
    left, right = (torch.rand(*size).to(getattr(torch, dtype)) for size in ((ROWS, width), (width, 4 * width)))
    left @ right  # warm-up
    started, n = clock(), 0
    while (spent := clock() - started) < seconds or not n:
        left @ right
        n += 1
    return 8.0 * ROWS * width * width * n / spent


def this_cpu(width: int, dtype: str, seconds: float = 1.0, clock: Callable[[], float] = time.perf_counter) -> Hardware:
    """
    Return the row `"cpu"` of `HARDWARE` with the measured rate of this machine, and the price of one core per torch
    thread. CPUs of one price differ by a factor of 5 and more, mostly in bfloat16, which some do not support.

    Args:
        width, dtype, seconds, clock: As in `matmul_rate`.
    """
    table, threads = HARDWARE["cpu"], torch.get_num_threads()
    rate = matmul_rate(width, dtype, seconds, clock)
    name = f"this CPU (threads: {threads}, {rate / 1e9:.0f} GFLOP/s in {dtype})"
    source = "matrix products measured now; the share is of another CPU, the price an assumption"
    speed: dict[str, Any] = {"single" if dtype == "float32" else "half": rate}
    return table._replace(name=name, **speed, price=table.price * threads, source=source)


def _share(name: str, config: Any) -> float:
    """Return the share of a parameter's experts that a token uses; 1 without experts."""
    experts = next((getattr(config, key) for key in EXPERTS if getattr(config, key, None)), None)
    used = getattr(config, "num_experts_per_tok", None)
    return used / experts if experts and used and ".experts." in f".{name}." else 1.0
