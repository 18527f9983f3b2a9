"""What an efficiency study found: curves, savings and the rest, made from the cells of its run folder."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from trl_real.functional.statistics.agreement_by_similarity import AgreementBin
from trl_real.functional.statistics.label_savings import Saving, ValueWithInterval


class Metric(NamedTuple):
    """
    A figure on the test pairs.

    Args:
        title: For people.
        sign: 1 if more is better, -1 if less is.
        untrained: Its value without a label.
        meaning: One sentence.
    """

    title: str
    sign: int
    untrained: float
    meaning: str


# What the other arms are set against.
RANDOM = "random"

METRICS = {
    "loss": Metric("test loss", -1, math.log(2), "-log sigmoid(margin), in nats a pair (REAL, Eq. 11)"),
    "margin": Metric("test margin", 1, 0.0, "reward of the chosen less that of the rejected (REAL, Eq. 10)"),
    "accuracy": Metric("test accuracy", 1, 0.5, "share of the test pairs whose chosen response has the higher reward"),
}

# What a figure came from; the report says which.
ENGINES = {
    "frozen": "a Bradley-Terry model on frozen embeddings (a fast first look, not a trained policy)",
    "dpo": "DPO training of the model itself",
}


class Curve(NamedTuple):
    """
    A metric against labels.

    Args:
        n_labels: Labels at each point, ascending (mean over seeds).
        points: Mean over seeds and test pairs, and the ends of the bootstrap's interval.
    """

    n_labels: list[float]
    points: list[ValueWithInterval]


@dataclass
class Study:
    """
    Results of a study. Mappings by metric have the keys of `METRICS`; within them, keys are arms: a strategy, or a
    strategy and the geometry it measures in, such as `"easy@centered"`. `"random"` is what the others are set against.

    Args:
        title: Such as the dataset's name.
        engine: A key of `ENGINES`.
        arms: In the order in which they are shown; `"random"` among them.
        budgets: Shares of the pool, or numbers of pairs, ascending.
        seeds: Of the cells.
        n_pool: Rows that could be labelled (mean over seeds).
        n_test: Test pairs, the same for every cell.
        confidence: Level of all intervals.
        curves: By metric and arm: the model trained on each budget, against labels paid for. "Trained to the end".
        differences: By metric and arm but random: arm minus random at each budget, with a paired interval.
        savings: By metric and arm but random: one a level of the random curve.
        unlearned: By metric: levels without a saving, since random was not measurably better than no label there.
        run_curves: By metric and arm: along the training at the largest budget below the whole pool, against
            labels seen (REAL, Fig. 2); empty for frozen features.
        run_savings: The savings of these curves.
        rewards: By arm: the trainer's log of the largest such budget's first seed; empty for frozen features.
        agreement: By what the second opinion is, the share of labels it agrees with, by similarity.
        histograms: By arm: `edges`, `pool` and `kept` as in a `SelectionRecord`; none for random.
        examples: By arm: pairs at the cut, dicts with `where`, `similarity`, `prompt` (text) and `texts`
            (name, text).
        drift: Rows `{"labels": …, "relative_l2": …, "cosine": …, "spearman": …, "jaccard": …}`.
        tuning: Rows `{"arm": …, "budget": …, "chosen": …, "loss": …, "loss_if_best": …}`: what each cell's
            regularisation (frozen) or learning rate and step (dpo) were, and what an oracle would have reached.
        recipe: Facts by name: model, revision, data, sizes, versions, seconds.
        n_done, n_cells: Cells that are in the results, and all.
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
