"""
What a job costs before it runs: operations, bytes, seconds and money as functions of numbers.

Symbols: `P` weights that every token is multiplied with, `P_head` those of the LM head, `L` layers, `a` width of
attention (heads times their size), `T` tokens, `c` tokens that a token attends over on average, `w` bytes a number.
A multiply-add is two operations (FLOP). Norms, activations, softmax and the tokenizer are left out.
"""

from typing import NamedTuple, TypeVar

import numpy as np

from trl_real.selection.planning.hardware import BYTES, Hardware


Number = TypeVar("Number", float, np.ndarray)

HOUR = 3600.0  # seconds
SCORE_BYTES = 8  # the one number a row that the cut looks at: float64
ROW_BYTES = 64  # of a row in the work folder beside its texts: id, pair, similarity, score, gap, counts


class ModelShape(NamedTuple):
    """
    The counts that a model's cost hangs on.

    Args:
        total: All weights, each counted once.
        layers: Those of the backbone without its embedding tables.
        active: Those of `layers` that a token is multiplied with, `P`: fewer than `layers` where it meets a few of
            many experts only.
        head: Those of the LM head, `P_head`, whether or not it shares them with the embedding table.
        n_layers: `L`.
        width: Hidden size.
        attention: Heads times their size, `a`.
        kv: Key and value heads times their size.
        per_rank: Weights that LoRA adds on all linear layers, for each unit of its rank.
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
    FLOP of a pass through the backbone, `T (2 P + 4 L a c)`: each weight is multiplied and added once a token, and in
    each layer the query meets `c` keys, the weights of attention `c` values. No LM head: embeddings need none.

    Args:
        shape: Of the model.
        tokens: `T`.
        context: `c`, of whole sequences; kernels that skip the masked half do half of that part.
    """
    return tokens * (2 * shape.active + 4 * shape.n_layers * shape.attention * context)


def weight_bytes(shape: ModelShape, dtype: str) -> float:
    """Bytes of the weights on each device."""
    return shape.total * BYTES[dtype]


def seconds_of(flops: float, device: Hardware, dtype: str, width: int, job: str = "packed") -> float:
    """
    `FLOP / (peak * MFU)`, in seconds on one device; `n` take an n-th: they do not wait for each other.

    Args:
        flops: Of the job.
        device: Where.
        dtype: Of the products.
        width: Hidden size of the model.
        job: A share in `Shares`: `"packed"`, `"padded"`, `"backward"` or `"decode"`.
    """
    return flops / (device.peak(dtype) * device.mfu(width, job))


def money_of(seconds: float, price: float) -> float:
    """USD for so many seconds of a device, over all devices, at `price` USD a device and hour."""
    return seconds / HOUR * price


def folder_bytes(rows: float, text: float) -> float:
    """
    Bytes of the work folder of a selection, before compression.

    Args:
        rows: Rows of the pool.
        text: Bytes of a pair's two texts.
    """
    return rows * (ROW_BYTES + text)


def feature_bytes(vectors: float, dim: int, dtype: str = "float32") -> float:
    """Bytes of one feature vector of `dim` numbers a response: `4 d` in float32, `2 d` in bfloat16."""
    return vectors * dim * BYTES[dtype]
