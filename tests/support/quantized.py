"""Models in 4 bits, for which bitsandbytes has to be installed; it also runs on CPUs."""

from importlib.util import find_spec

import pytest
from transformers import BitsAndBytesConfig


needs_bitsandbytes = pytest.mark.skipif(
    find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed: pip install bitsandbytes"
)


def quantization(dtype: str = "float32") -> BitsAndBytesConfig:
    """Return TRL's configuration for `--load_in_4bit`."""
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)
