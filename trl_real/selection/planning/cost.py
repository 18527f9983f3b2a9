"""
Cost of a job before it runs: operations, bytes, seconds and money.

Symbols: `P` weights that each token is multiplied with, `P_head` weights of the LM head, `L` layers, `a` width of
attention (heads times their size), `T` tokens, `c` tokens that a token attends to on average, `w` bytes per number.
A multiply-add is two operations (FLOP). Norms, activations, softmax and the tokenizer are not counted.
"""

from typing import NamedTuple, TypeVar

import numpy as np

from trl_real.selection.planning.hardware import BYTES, Hardware


Number = TypeVar("Number", float, np.ndarray)

HOUR = 3600.0  # seconds
SCORE_BYTES = 8  # score of a row, float64
ROW_BYTES = 64  # row in the work folder without its texts: id, pair, similarity, score, gap, counts


class ModelShape(NamedTuple):
    """
    Counts of a model that its cost depends on.

    Args:
        total: Number of all weights, shared ones counted once.
        layers: Weights of the backbone without its embedding tables.
        active: Weights of `layers` that a token is multiplied with, `P`; fewer than `layers` in a mixture of experts.
        head: Weights of the LM head, `P_head`, also if shared with the embedding table.
        n_layers: Number of layers, `L`.
        width: Hidden size.
        attention: Number of heads times their size, `a`.
        kv: Number of key and value heads times their size.
        per_rank: Weights that LoRA adds on all linear layers per unit of rank.
    """

    total: int
    layers: int
    active: int
    head: int
    n_layers: int
    width: int
    attention: int
    kv: int
    per_rank: int


def forward_flops(shape: ModelShape, tokens: Number, context: Number | float = 0.0) -> Number:
    """
    Return the FLOP of a pass through the backbone without the LM head, `T (2 P + 4 L a c)`: a multiply-add per weight
    and token, and in each layer `c` keys and `c` values per query.

    Args:
        shape: Counts of the model.
        tokens: Number of tokens, `T`.
        context: Mean attended tokens, `c`, of whole sequences; kernels that skip the masked half do half of this part.
    """
    return tokens * (2 * shape.active + 4 * shape.n_layers * shape.attention * context)


def weight_bytes(shape: ModelShape, dtype: str) -> float:
    """Return the bytes of the weights on each device."""
    return shape.total * BYTES[dtype]


def seconds_of(flops: float, device: Hardware, dtype: str, width: int, job: str = "packed") -> float:
    """
    Return the seconds on one device, `FLOP / (peak * MFU)`; `n` devices need an n-th.

    Args:
        flops: Operations of the job.
        device: Device that runs the job.
        dtype: Precision of the matrix products.
        width: Hidden size of the model.
        job: Field of `Shares`: `"packed"`, `"padded"`, `"backward"` or `"decode"`.
    """
    return flops / (device.peak(dtype) * device.mfu(width, job))


def money_of(seconds: float, price: float) -> float:
    """Return the USD for device seconds, summed over devices, at `price` USD per device and hour."""
    return seconds / HOUR * price


def folder_bytes(rows: float, text: float) -> float:
    """Return the bytes of a selection's work folder before compression, with `text` bytes per pair of texts."""
    return rows * (ROW_BYTES + text)


def feature_bytes(vectors: float, dim: int, dtype: str = "float32") -> float:
    """Return the bytes of feature vectors of `dim` numbers: `4 d` per vector in float32, `2 d` in bfloat16."""
    return vectors * dim * BYTES[dtype]
