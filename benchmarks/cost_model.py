"""
Equations behind the tables of docs/scale.md: gradients, generation, and labels by models and by people.

Symbols as in `trl_real.selection.planning.cost`.
"""

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from trl_real.selection.planning.cost import HOUR, ModelShape, forward_flops, seconds_of
from trl_real.selection.planning.hardware import BYTES, Hardware


class GradientTokens(NamedTuple):
    """
    Tokens of a gradient job.

    Args:
        forward: That are read: a prompt once, and its responses.
        backward: That are gone back through: a prompt once a response (`normalize="response"`), or once a pair.
        scored: Whose log-probabilities are summed: those of the responses.
    """

    forward: float
    backward: float
    scored: float


class Writing(NamedTuple):
    """
    A generation job.

    Args:
        prompts: How many.
        prompt: Tokens of one.
        responses: How many, over all prompts.
        response: Tokens of one.
        batch: Responses at a time, with no place empty.
    """

    prompts: float
    prompt: float
    responses: float
    response: float
    batch: int


class Decoding(NamedTuple):
    """
    Seconds on one device.

    Args:
        prefill: For reading the prompts.
        decode: For writing the responses.
        bound: What the writing waits for most: `"weights"` (memory), `"products"` or `"launches"`.
    """

    prefill: float
    decode: float
    bound: str


def mean_context(lengths: Sequence[float]) -> float:
    """
    Tokens that a token shares its sequence with, `sum T^2 / sum T`: long sequences hold more of the tokens.

    Args:
        lengths: Of the sequences, in tokens.
    """
    return sum(length * length for length in lengths) / max(1, sum(lengths))


def gradient_flops(shape: ModelShape, tokens: GradientTokens, context: float = 0.0, rank: int = 8) -> float:
    """
    FLOP of gradients in a LoRA adapter on all linear layers, whose base weights are frozen.

    There: `2 (P + P_lora)` a token. Back: `2 (P + P_lora)` for the gradients of the layers' inputs, and `2 P_lora` for
    the adapter's own. The `2 P` that training would spend on the gradients of the weights is not spent: factor 4 in
    place of 6. Attention goes back through two products for each of its two. The head reads scored tokens only, there
    and back. Projection is `d`-free and left out.

    Args:
        shape: Of the model.
        tokens: Of the job.
        context: As in `forward_flops`.
        rank: Of the adapter.
    """
    adapter = rank * shape.per_rank
    there = forward_flops(shape, tokens.forward, context) + 2 * adapter * tokens.forward
    back = tokens.backward * (2 * shape.active + 8 * shape.n_layers * shape.attention * context + 4 * adapter)
    return there + back + 4 * shape.head * tokens.scored


def step_bytes(shape: ModelShape, batch: int, context: float, dtype: str) -> float:
    """
    Bytes that are read for one more token in each row of a batch: the weights once (of experts, all), and the keys
    and values of each row: `(layers + P_head) w + 2 L kv c batch w`.
    """
    return BYTES[dtype] * (shape.layers + shape.head + 2 * shape.n_layers * shape.kv * context * batch)


def step_flops(shape: ModelShape, batch: int, context: float) -> float:
    """FLOP of one more token in each row of a batch, the LM head among them."""
    return forward_flops(shape, batch, context) + 2 * shape.head * batch


def generation_seconds(shape: ModelShape, job: Writing, device: Hardware, dtype: str) -> Decoding:
    """
    Seconds to write responses on one device: each prompt is read once, and each of `responses * response / batch`
    steps takes as long as the slower of its reads and its products, and what each layer costs beside.

    Args:
        shape: Of the model.
        job: What is written.
        device: Where.
        dtype: Of weights and products.
    """
    context = job.prompt + job.response / 2
    reads = step_bytes(shape, job.batch, context, dtype) / (device.bandwidth * device.shares.bandwidth)
    products = seconds_of(step_flops(shape, job.batch, context), device, dtype, shape.width, "decode")
    beside = shape.n_layers * device.shares.layer_seconds
    steps = job.responses * job.response / job.batch
    prompts = forward_flops(shape, job.prompts * job.prompt, job.prompt)
    waits = {"weights": reads, "products": products, "launches": beside}
    return Decoding(
        prefill=seconds_of(prompts, device, dtype, shape.width, "padded"),
        decode=steps * (max(reads, products) + beside),
        bound=max(waits, key=waits.__getitem__),
    )


class JudgePrice(NamedTuple):
    """
    A model that is paid by the token.

    Args:
        read: USD a million tokens that it reads.
        written: USD a million tokens that it writes.
        orders: Questions a pair; 2 asks in both orders.
        template: Tokens of the instructions.
        answer: Tokens of an answer.
    """

    read: float
    written: float
    orders: int = 2
    template: int = 250
    answer: int = 1


def judge_money(pairs: float, prompt: float, response: float, judge: JudgePrice) -> float:
    """USD for the labels of `pairs` by a model, whose question holds a prompt and two responses of so many tokens."""
    asked = judge.template + prompt + 2 * response
    return pairs * judge.orders * (asked * judge.read + judge.answer * judge.written) / 1e6


def people_money(pairs: float, seconds: float, wage: float) -> float:
    """USD for labels by people who take `seconds` a pair and earn `wage` USD an hour."""
    return pairs * seconds / HOUR * wage


def read_rate(seconds: float = 0.5, clock: Callable[[], float] = time.perf_counter) -> float:
    """Return the bytes per second that this machine's CPU reads in products of one row with 256 MB of weights."""
    row, weights = torch.rand(1, 4096), torch.rand(16384, 4096)
    torch.nn.functional.linear(row, weights)
    started, n = clock(), 0
    while (spent := clock() - started) < seconds or not n:
        torch.nn.functional.linear(row, weights)
        n += 1
    return 4.0 * weights.numel() * n / spent
