"""Cost of a selection before it runs, from a sample of the pool and the model's config."""

import math
import time
from collections.abc import Sequence
from numbers import Integral
from typing import Any, NamedTuple

import numpy as np
from datasets import Dataset

from trl_real.data.columns import EMBEDDINGS, is_pool
from trl_real.data.pairs import Candidates, ready_pairs
from trl_real.errors import TrlRealError
from trl_real.models.embed import Embedder
from trl_real.models.packing import Tree
from trl_real.selection.annotation import gather_candidates
from trl_real.selection.budget import budget_size, check_budget
from trl_real.selection.planning.cost import ModelShape, forward_flops
from trl_real.selection.planning.hardware import Hardware, hardware_named
from trl_real.selection.planning.model_shape import empty_model, model_shape, this_cpu, tokenizer_of
from trl_real.selection.planning.plan_record import Estimate, SelectionPlan
from trl_real.selection.selector import EmbeddingPairSelector


PLAN_SAMPLE = 1000


class Sample(NamedTuple):
    """
    Counts of `n` sampled rows.

    Args:
        pairs: 1 for a row with a pair, else 0. Shape `(n,)`.
        responses: Number of responses that can be in a pair. Shape `(n,)`.
        text_bytes: Bytes of the two texts that are written. Shape `(n,)`.
        tokens: Number of tokens that the model reads. Shape `(n,)`.
        context: Mean number of tokens that a token attends to. Shape `(n,)`.
        truncated: Number of truncated responses.
        seconds: Time of the tokenizer.
    """

    pairs: np.ndarray
    responses: np.ndarray
    text_bytes: np.ndarray
    tokens: np.ndarray
    context: np.ndarray
    truncated: int
    seconds: float


def plan_selection(
    selector: EmbeddingPairSelector,
    dataset: Dataset,
    budget: float | int | None = None,
    *,
    hardware: str | Hardware = "cpu",
    n_devices: int = 1,
    price: float | None = None,
    price_per_label: float | None = None,
) -> SelectionPlan:
    """
    Estimate the cost of `selector.select(dataset, budget)`. Loads no weights and writes nothing.

    Up to 1,000 rows are drawn by the selector's seed and tokenized as in the selection; weights are counted from the
    model's config. Not counted: equal responses, which run once; rows that half precision embeds again
    (`SelectionPlan.again`); the time to load data and model; padding, if the model cannot read packed sequences.

    Args:
        selector: Strategy, model and settings.
        dataset: Pool or labelled pairs.
        budget: As in `EmbeddingPairSelector.select`.
        hardware: Name in `trl_real.selection.planning.hardware.HARDWARE` (`"cpu"` measures this machine for a second),
            or a record.
        n_devices: Number of devices, which share the pool.
        price: USD per device and hour; by default that of the hardware.
        price_per_label: USD per label.

    Raises:
        TooFewPairsError: If the budget is more than the number of pairs, and every row was read.
        TrlRealError: If a number is out of range, the pool is empty, or the model is not a causal LM.
    """
    dataset = ready_pairs(dataset, selector.responses)
    _check_arguments(len(dataset), budget, n_devices, price=price, price_per_label=price_per_label)
    device = hardware_named(hardware) if isinstance(hardware, str) else hardware
    embedder, shape = _read_model(selector)
    encoder = selector.encoder if shape else None
    dtype = encoder.precision if encoder else "float32"
    rows = sampled_rows(len(dataset), selector.seed)
    batch = dataset.with_format(None).select(rows)[:]
    sample = _sample(selector, batch, embedder)
    if hardware == "cpu" and shape:
        device = this_cpu(shape.width, dtype)
    counts = ("pairs", "responses", "tokens", "text_bytes")
    totals: dict[str, Any] = {name: total_of(getattr(sample, name), len(dataset)) for name in counts}
    return SelectionPlan(
        n_rows=len(dataset),
        n_sample=len(rows),
        **totals,
        truncation_rate=sample.truncated / max(1.0, float(sample.responses.sum())),
        model=encoder.label if encoder else None,
        shape=shape,
        dtype=dtype,
        flops=total_of(forward_flops(shape, sample.tokens, sample.context) if shape else [0.0], len(dataset)),
        hardware=device,
        n_devices=n_devices,
        tokenizing=sample.seconds * len(dataset) / len(rows),
        kept_width=(shape.width if shape else _given_width(batch)) * sum(bool(p.rule.budget) for p in selector.parts),
        price=device.price if price is None else price,
        labels=_labels(budget, totals["pairs"].value, exact=len(rows) == len(dataset)),
        price_per_label=price_per_label,
        again=_again(selector, sample.responses),
    )


def sampled_rows(n_rows: int, seed: int) -> np.ndarray:
    """Return up to 1,000 row numbers, drawn without replacement, ascending. Shape `(n,)`."""
    if n_rows <= PLAN_SAMPLE:
        return np.arange(n_rows)
    return np.sort(np.random.default_rng(seed).choice(n_rows, PLAN_SAMPLE, replace=False))


def total_of(values: Sequence[float] | np.ndarray, n_rows: int) -> Estimate:
    """
    Return the total over `N = n_rows` rows, `N mean(x)`, from the values of `n` rows drawn without replacement, with
    its standard error `N sqrt((1 - n / N) var(x) / n)`.
    """
    values, n = np.asarray(values, float), len(values)
    spread = values.var(ddof=1) if n > 1 else 0.0
    return Estimate(n_rows * float(values.mean()), n_rows * math.sqrt(max(0.0, 1 - n / n_rows) * spread / n))


def _check_arguments(n_rows: int, budget: float | int | None, n_devices: int, **prices: float | None) -> None:
    check_budget(budget)
    if not n_rows:
        raise TrlRealError("The dataset is empty. Give one with rows.")
    if n_devices < 1:
        raise TrlRealError(f"n_devices={n_devices} is not positive. Give at least 1.")
    for name, value in prices.items():
        if value is not None and not 0 <= value < math.inf:
            raise TrlRealError(f"{name}={value} is not a price. Give USD, 0 or more.")


def _read_model(selector: EmbeddingPairSelector) -> tuple[Embedder | None, ModelShape | None]:
    """Return the embedder, to tokenize only since its model may have no weights, and the model's counts."""
    encoder = selector.encoder
    if not selector.embeds or encoder is None:
        return None, None
    if not encoder.has_backbone:
        raise TrlRealError(
            f"A plan needs a causal LM, and the model is of class {encoder.label}. Give a Hub id or a path as model."
        )
    model: Any = empty_model(encoder.name, encoder.revision) if encoder.name else encoder.model
    tokenizer = tokenizer_of(encoder.name, encoder.revision) if encoder.name else encoder.tokenizer
    causal_lm = model.get_base_model() if hasattr(model, "get_base_model") else model
    return Embedder(model, tokenizer, encoder.options), model_shape(causal_lm)


def _sample(selector: EmbeddingPairSelector, batch: dict[str, list], embedder: Embedder | None) -> Sample:
    pool = is_pool(batch, selector.responses)
    rows = gather_candidates(batch, pool, selector.responses)
    started = time.perf_counter()
    trees, truncated = _trees(rows, embedder) if embedder else ([Tree((), [], []) for _ in rows], 0)
    seconds = time.perf_counter() - started if embedder else 0.0
    lengths = [np.mean([len(text.encode()) for text in row.texts] or [0]) for row in rows]
    tokens = np.array([float(tree.n_tokens) for tree in trees])
    return Sample(
        pairs=np.array([float(not row.skipped) for row in rows]),
        responses=np.array([float(len(row.texts)) for row in rows]),
        text_bytes=2.0 * pool * np.array(lengths),
        tokens=tokens,
        context=np.array([_attended(tree) for tree in trees]) / np.maximum(tokens, 1),
        truncated=truncated,
        seconds=seconds,
    )


def _trees(rows: list[Candidates], embedder: Embedder) -> tuple[list[Tree], int]:
    """Return the tokens of each row, its prompt once, and the number of truncated responses; checked like a batch."""
    asked = [(row.prompt, text) for row in rows for text in row.texts]
    sequences, truncated = embedder._tokenize(*map(list, zip(*asked, strict=True))) if asked else ([], [])
    found: list[Tree] = []
    left = iter(sequences)
    for row in rows:
        own = [next(left) for _ in row.texts]
        found.append(Tree(own[0][0] if own else (), [response for _, response in own], []))
    embedder.check_trees([tree for tree in found if tree.responses])
    return found, sum(truncated)


def _attended(tree: Tree) -> int:
    """Return the number of attended tokens, summed over the tokens of a row's prompt and responses."""
    n = len(tree.prompt)
    return n * n + sum(len(response) * (n + len(response)) for response in tree.responses)


def _given_width(batch: dict[str, list]) -> int:
    """Return the length of the vectors in the column `embeddings`; 0 without one."""
    rows = filter(None, batch.get(EMBEDDINGS, ()))
    return next((len(vector) for row in rows for vector in row if vector is not None), 0)


def _again(selector: EmbeddingPairSelector, responses: np.ndarray) -> str:
    """Return, in words, the rows that half precision embeds again (`trl_real.selection.half_precision`)."""
    if selector.exact:
        return ""
    rows = "the rows of the budget and those that compete with them" if selector.rule.budget else "rows near the cut"
    return rows + (", and rows with two close pairs," if responses.max() > 2 else "") + " are"


def _labels(budget: float | int | None, pairs: float, exact: bool) -> int:
    """Return the number of labels in the budget; with an exact number of pairs, check the budget like `select`."""
    if exact or budget is None:
        return budget_size(budget, round(pairs))
    return min(int(budget), round(pairs)) if isinstance(budget, Integral) else round(budget * pairs)
