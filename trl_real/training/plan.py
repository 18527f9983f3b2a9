"""Cost of a DPO training before it runs: TRL's padded step beside the one that reads shared prompts once."""

import math
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from datasets import Dataset
from peft import LoraConfig, PeftConfig
from trl import DPOConfig
from trl.data_utils import maybe_extract_prompt

from trl_real.data.chat import as_chat
from trl_real.errors import TrlRealError
from trl_real.models.read_once import lay_out
from trl_real.models.sequences import Ids, pad, tokenize_pairs
from trl_real.selection.planning.cost import ModelShape, forward_flops, seconds_of
from trl_real.selection.planning.hardware import BYTES, Hardware, hardware_named
from trl_real.selection.planning.model_shape import empty_model, model_shape, this_cpu, tokenizer_of
from trl_real.selection.planning.plan import sampled_rows
from trl_real.selection.planning.plan_record import shown_bytes, shown_seconds


WORDS = 32_768  # whose logits TRL's head computes together
WAYS = ("padded", "shared")


class Batch(NamedTuple):
    """
    Counts of a batch, read in one way.

    Args:
        tokens: Number of tokens that the model reads.
        attended: Number of tokens that they attend to, summed.
        scored: Number of tokens that the head reads.
    """

    tokens: float
    attended: float
    scored: float


class Cost(NamedTuple):
    """
    Cost of a training, in one way.

    Args:
        tokens: Number of tokens that the policy reads.
        flops: Operations, with the reference's.
        seconds: Time of the steps, in sum over devices divided by their number.
        memory: Peak bytes on each device: weights, gradients, optimizer, and what the largest batch keeps.
    """

    tokens: float
    flops: float
    seconds: float
    memory: float


@dataclass(frozen=True)
class TrainingPlan:
    """
    Estimated cost of a training.

    Args:
        n_pairs (`int`): Number of pairs in the training set.
        n_steps (`int`): Number of optimizer steps.
        real_tokens (`float`): Number of tokens of all rows, without padding.
        padded (`Cost`): Cost of TRL's step.
        shared (`Cost`): Cost of the step with `shared_prompts`.
        model (`str`): Name of the model.
        hardware (`Hardware`): Device.
        n_devices (`int`): Number of devices.
    """

    n_pairs: int
    n_steps: int
    real_tokens: float
    padded: Cost
    shared: Cost
    model: str
    hardware: Hardware
    n_devices: int

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        values = asdict(self)
        ways = {way: getattr(self, way)._asdict() for way in WAYS}
        return {**values, **ways, "hardware": self.hardware.name}

    def summary(self) -> str:
        """Return a few lines of text."""
        rows = [f"{'':24}{'tokens':>14}{'FLOP':>12}{'time':>12}{'memory':>12}"]
        for name, cost in (("TRL's step", self.padded), ("prompts read once", self.shared)):
            time, memory = shown_seconds(cost.seconds), shown_bytes(cost.memory)
            rows.append(f"{name:24}{cost.tokens:14,.0f}{cost.flops:12.3g}{time:>12}{memory:>12}")
        ratios = [f"{after / before:.2f}" for before, after in zip(self.padded, self.shared, strict=True)]
        rows.append(f"{'ratio':24}{ratios[0]:>14}{ratios[1]:>12}{ratios[2]:>12}{ratios[3]:>12}")
        device = f"{self.n_devices} x {self.hardware.name} ({self.hardware.source})"
        head = f"{self.model}: {self.n_pairs:,} pairs, {self.n_steps:,} steps, {self.real_tokens:,.0f} tokens unpadded"
        return "\n".join([head, *rows, f"on {device}"])


def plan_training(
    model: str,
    dataset: Dataset,
    args: DPOConfig,
    peft_config: PeftConfig | None = None,
    *,
    hardware: str = "cpu",
    n_devices: int = 1,
) -> TrainingPlan:
    """
    Estimate the cost of a training. Loads no weights and writes nothing.

    Up to 1,000 pairs are drawn by the seed, tokenized and put into batches as in the training. Not counted: a
    selection, evaluation, loading and saving. Attention is counted whole, also where a kernel skips its masked half.

    Args:
        model: Hub id or path.
        dataset: Preference data, in any of TRL's forms.
        args: Arguments of the trainer.
        peft_config: Configuration of the adapter.
        hardware: Name in `trl_real.selection.planning.hardware.HARDWARE`; `"cpu"` measures this machine for a second.
        n_devices: Number of devices, which share each step's batches.

    Raises:
        TrlRealError: If the dataset is empty, no row has a label within `max_length`, or the model is no causal LM.
    """
    if not len(dataset):
        raise TrlRealError("The training set is empty. Give one with rows.")
    dataset = as_chat(dataset) if getattr(args, "as_messages", False) else dataset
    shape, dtype = model_shape(empty_model(model)), "bfloat16" if args.bf16 else "float32"
    device = this_cpu(shape.width, dtype) if hardware == "cpu" else hardware_named(hardware)
    drawn = np.random.default_rng(args.seed).permutation(sampled_rows(len(dataset), args.seed))
    pairs = _tokenized(model, dataset.select(drawn), args)
    size = args.per_device_train_batch_size
    batches = [_batch(pairs[i : i + size], on_cpu=hardware == "cpu") for i in range(0, len(pairs), size)]
    per_step = size * args.gradient_accumulation_steps * n_devices
    n_steps = args.max_steps if args.max_steps > 0 else math.ceil(args.num_train_epochs * len(dataset) / per_step)
    factor = n_steps * per_step / len(pairs)  # times that each drawn pair is trained on
    rank = peft_config.r if isinstance(peft_config, LoraConfig) else None
    costs = {}
    for i, way in enumerate(WAYS):
        flops = factor * sum(_flops(shape, batch[i], args, rank, 1 / factor) for batch in batches)
        seconds = seconds_of(flops, device, dtype, shape.width, "backward") / n_devices
        memory = max(_bytes(shape, batch[i], args, rank) for batch in batches)
        costs[way] = Cost(factor * sum(batch[i].tokens for batch in batches), flops, seconds, memory)
    real = factor * sum(len(row) for pair in pairs for row, _ in pair)
    return TrainingPlan(len(dataset), n_steps, real, **costs, model=model, hardware=device, n_devices=n_devices)


def _tokenized(model: str, dataset: Dataset, args: DPOConfig) -> list[tuple[tuple[Ids, int], ...]]:
    """Return both rows of each pair, cut as TRL's collator cuts them, each with the length of its prompt."""
    rows = [maybe_extract_prompt(row) for row in dataset]
    tokenizer, prompts = tokenizer_of(model), [row["prompt"] for row in rows]
    sides = [tokenize_pairs(tokenizer, prompts, [row[name] for row in rows], 10**9) for name in ("chosen", "rejected")]
    length = args.max_length or 10**9
    pairs = []
    for pair in zip(*sides, strict=True):
        whole = [(side.prompt + side.response, len(side.prompt)) for side in pair]
        if args.truncation_mode == "keep_end":
            pairs.append(tuple((ids[-length:], max(0, n - max(0, len(ids) - length))) for ids, n in whole))
        elif min(n for _, n in whole) < length:
            pairs.append(tuple((ids[:length], n) for ids, n in whole))
    if not pairs:
        raise TrlRealError(f"No prompt is shorter than max_length={args.max_length}. Type a larger one.")
    return pairs


def _batch(pairs: list[tuple[tuple[Ids, int], ...]], on_cpu: bool) -> tuple[Batch, Batch]:
    """Count a batch, read padded and read once."""
    rows = [pair[side] for side in (0, 1) for pair in pairs]
    tokens, mask = pad([ids for ids, _ in rows])
    prompts = torch.tensor([n for _, n in rows])[:, None]
    labelled = (torch.arange(1, tokens.shape[1]) >= prompts) & mask[:, 1:].bool()
    n_rows, length = tokens.shape
    n_labels = int(labelled.sum())
    padded = Batch(tokens.numel(), n_rows * length**2, n_rows * (length - 1) if on_cpu else n_labels)
    found = lay_out(tokens, mask, labelled)
    if found is None:
        return padded, padded
    before = (
        segment.count * segment.length * (segment.length + sum(part.stop - part.start for part in segment.prefix))
        for segment in found[0].segments
    )
    return padded, Batch(len(found[0].tokens), sum(before), n_labels)


def _flops(shape: ModelShape, batch: Batch, args: DPOConfig, rank: int | None, once: float) -> float:
    """
    Return the FLOP of a training step on a batch, and of its reference: in every step, or `once` if precomputed.

    A backward pass is twice a forward pass, without the products for the gradients of weights that are frozen; the
    head computes its logits again in the backward pass.
    """
    there = forward_flops(shape, batch.tokens, batch.attended / batch.tokens)
    weights = 0.0 if rank else 2.0 * shape.active * batch.tokens
    back = 2.0 * there - 2.0 * shape.active * batch.tokens + weights
    adapter = 6.0 * (rank or 0) * shape.per_rank * batch.tokens
    head = 2.0 * shape.head * batch.scored
    reference = (there + head) * (once if args.precompute_ref_log_probs else 1.0)
    again = there if args.gradient_checkpointing else 0.0
    return there + back + adapter + again + head * (3.0 if rank else 4.0) + reference


def _bytes(shape: ModelShape, batch: Batch, args: DPOConfig, rank: int | None) -> float:
    """
    Return the peak bytes of a step: weights of policy and reference, gradients and Adam's two moments in float32, what
    layers keep for the backward pass (about `9.5 d` numbers and the three of an MLP, measured on a Llama; with
    checkpointing one layer's and the inputs of all), and the head's tile of logits with its copies.
    """
    trained = rank * shape.per_rank if rank else shape.total
    copies = 1 if rank or args.precompute_ref_log_probs else 2
    mlp = shape.active / shape.n_layers / shape.width - 2 * (shape.attention + shape.kv)
    kept, inputs = 9.5 * shape.width + mlp, shape.width * shape.n_layers
    layers = kept + inputs if args.gradient_checkpointing else kept * shape.n_layers
    tile = min(batch.scored, 4096) * min(WORDS, shape.head / shape.width) * 5
    width = BYTES["bfloat16" if args.bf16 else "float32"]
    return 4.0 * (copies * shape.total + 3 * trained) + width * layers * batch.tokens + 4.0 * tile
