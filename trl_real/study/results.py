"""Results of an efficiency study: curves, savings and further facts, from the cells of its run folder."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from trl_real.functional.statistics.agreement_by_similarity import AgreementBin
from trl_real.functional.statistics.label_savings import Saving, ValueWithInterval


class Metric(NamedTuple):
    """
    Metric on the test pairs.

    Args:
        title: Readable name.
        sign: 1 if higher is better, -1 if lower is better.
        untrained: Value without labels.
        meaning: Definition in one sentence.
    """

    title: str
    sign: int
    untrained: float
    meaning: str


# Arm that the other arms are compared with.
RANDOM = "random"
WITH_PROMPT = "with_prompt_"  # prefix of the drift of prompts with their responses

METRICS = {
    "loss": Metric("test loss", -1, math.log(2), "-log sigmoid(margin), in nats per pair (REAL, Eq. 11)"),
    "margin": Metric("test margin", 1, 0.0, "reward of the chosen minus that of the rejected (REAL, Eq. 10)"),
    "accuracy": Metric(
        "test accuracy", 1, 0.5, "share of test pairs in which the chosen response has the higher reward"
    ),
}

# Method behind the values; the report names it.
ENGINES = {
    "frozen": "a Bradley-Terry model on frozen embeddings (a fast first look, not a trained policy)",
    "dpo": "DPO training of the model itself",
}


class Curve(NamedTuple):
    """
    Metric against labels.

    Args:
        n_labels: Number of labels at each point, ascending (mean over seeds).
        points: Mean over seeds and test pairs, with the bootstrap interval.
    """

    n_labels: list[float]
    points: list[ValueWithInterval]


@dataclass
class Study:
    """
    Results of a study. Mappings by metric have the keys of `METRICS`; within them, keys are arms: a strategy, or a
    strategy and its geometry, such as `"easy@centered"`. The other arms are compared with `"random"`.

    Args:
        title: Title, such as the name of the dataset.
        engine: Key of `ENGINES`.
        arms: Arms in display order, `"random"` included.
        budgets: Shares of the pool, or numbers of pairs, ascending.
        seeds: Seeds of the cells.
        n_pool: Number of rows that could be labelled (mean over seeds).
        n_test: Number of test pairs, the same for every cell.
        confidence: Confidence level of all intervals.
        curves: Values of the models trained to the end on each budget, against labels paid for, by metric and arm.
        differences: Arm minus random at each budget, with a paired interval, by metric and arm except random.
        savings: Savings, one per level of the random curve, by metric and arm except random.
        unlearned: Levels without a saving, because random was not measurably better than no labels, by metric.
        run_curves: Values during training at the largest budget below the whole pool, against labels seen (REAL,
            Fig. 2), by metric and arm; empty for frozen features.
        run_savings: Savings of these curves.
        rewards: Log of the trainer at this budget and the first seed, by arm; empty for frozen features.
        agreement: Agreement of a second opinion with the labels in bins of similarity, by second opinion.
        histograms: `edges`, `pool` and `kept` as in a `SelectionRecord`, by arm; none for random.
        examples: Pairs at the cut, by arm: dicts with `where`, `similarity`, `prompt` (text) and `texts`
            (name, text).
        drift: Rows `{"labels": …, "relative_l2": …, "cosine": …, "spearman": …, "jaccard": …}`, and the same measures
            of prompts with their responses, with the prefix `WITH_PROMPT` (REAL, App. B.1: both panels).
        tuning: Rows `{"arm": …, "budget": …, "chosen": …, "loss": …, "loss_if_best": …}`: the ridge (frozen) or
            learning rate (dpo) of each arm and budget, and the loss of the best choice on the test pairs.
        recipe: Facts by name: model, revision, data, sizes, versions, seconds.
        n_done, n_cells: Number of finished cells, and of all cells.
    """

    title: str
    engine: str
    arms: list[str]
    budgets: list[float | int]
    seeds: list[int]
    n_pool: float
    n_test: int
    confidence: float = 0.95
    curves: Mapping[str, Mapping[str, Curve]] = field(default_factory=dict)
    differences: Mapping[str, Mapping[str, list[ValueWithInterval]]] = field(default_factory=dict)
    savings: Mapping[str, Mapping[str, list[Saving]]] = field(default_factory=dict)
    unlearned: Mapping[str, list[float]] = field(default_factory=dict)
    run_curves: Mapping[str, Mapping[str, Curve]] = field(default_factory=dict)
    run_savings: Mapping[str, Mapping[str, list[Saving]]] = field(default_factory=dict)
    rewards: Mapping[str, list[dict[str, Any]]] = field(default_factory=dict)
    agreement: Mapping[str, list[AgreementBin]] = field(default_factory=dict)
    histograms: Mapping[str, Mapping[str, Sequence[float]]] = field(default_factory=dict)
    examples: Mapping[str, list[dict[str, Any]]] = field(default_factory=dict)
    drift: list[dict[str, float]] = field(default_factory=list)
    tuning: list[dict[str, Any]] = field(default_factory=list)
    recipe: Mapping[str, Any] = field(default_factory=dict)
    n_done: int = 0
    n_cells: int = 0
