"""Selectors of a round's pairs: a table of factories; every selector has `select(dataset, budget, history=…)`."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from datasets import Dataset

from trl_real.data.conversation import text_of
from trl_real.data.convert import from_rows, iterate
from trl_real.functional.bayesian_head import ACQUISITIONS
from trl_real.selection import strategies
from trl_real.selection.mixture.parts import MIXTURES
from trl_real.selection.record import SelectionRecord


class RoundSelector(Protocol):
    """Selector of the pairs worth labelling, given the labels so far."""

    @property
    def record(self) -> SelectionRecord: ...

    def select(self, dataset: Dataset, budget: int, *, history: Dataset | None = None) -> Dataset:
        """Return the pairs, with `pair`, `response_a`, `response_b` and the pool's columns."""
        ...


@dataclass
class Chooser:
    """Inputs of a selector's factory, in a round."""

    base: str  # Hub id or path of the model before alignment
    policy: Any  # the base with its adapter; a quantized base is read without it
    tokenizer: Any
    responses: str
    seed: int
    settings: dict[str, Any]  # more arguments of the selector
    revision: str | None  # of the base on the Hub


Factory = Callable[[str, Chooser], RoundSelector]


class WithoutLabeled:
    """
    Wrapper of a selector without a history that selects one pair per row: responses in labelled pairs are left out,
    and so are rows with fewer than two others.
    """

    def __init__(self, selector: Any, responses: str):
        self.selector, self.responses = selector, responses

    @property
    def record(self) -> SelectionRecord:
        """Record of the last selection."""
        return self.selector.record

    def select(self, dataset: Dataset, budget: int, *, history: Dataset | None = None) -> Dataset:
        """Select among the responses that are not in a labelled pair."""
        return self.selector.select(without_labeled(dataset, history, self.responses), budget)


def without_labeled(dataset: Dataset, history: Dataset | None, responses: str) -> Dataset:
    """Return a pool without the responses that stand in a labelled pair."""
    labeled: dict[str, set[str]] = {}
    for row in iterate(history) if history is not None else ():
        pair = {text_of(row["chosen"]), text_of(row["rejected"])}
        labeled.setdefault(repr(row["prompt"]), set()).update(pair)
    rows = []
    for row in iterate(dataset) if labeled else ():
        used = labeled.get(repr(row["prompt"]), set())
        free = [i for i, response in enumerate(row[responses] or []) if not _is_in(response, used)]
        of_responses = {name: values for name, values in row.items() if _one_each(values, row[responses])}
        rows.append({**row, **{name: [values[i] for i in free] for name, values in of_responses.items()}})
    return from_rows(rows, dataset.features) if labeled else dataset


def _is_in(response: Any, texts: set[str]) -> bool:
    return response is not None and text_of(response) in texts


def _one_each(values: Any, responses: list | None) -> bool:
    """Return whether a column has one value per response, such as scores."""
    return isinstance(values, list) and responses is not None and len(values) == len(responses)


def _gradient(name: str, chooser: Chooser) -> RoundSelector:
    from trl_real.selection.active.gradient import GradientPairSelector

    own = {"tokenizer": chooser.tokenizer, "responses": chooser.responses, "seed": chooser.seed}
    return GradientPairSelector(chooser.policy, **{**own, **chooser.settings})


def _margin(name: str, chooser: Chooser) -> RoundSelector:
    from trl_real.selection.active.margin import MarginPairSelector

    own = {"tokenizer": chooser.tokenizer, "responses": chooser.responses, "seed": chooser.seed}
    return MarginPairSelector(chooser.policy, strategy=name, **{**own, **chooser.settings})


def _head(name: str, chooser: Chooser) -> RoundSelector:
    from trl_real.selection.active.head import HeadPairSelector

    return HeadPairSelector(acquisition=name, **{**_of_base(chooser), **chooser.settings})


def _embedding(name: str, chooser: Chooser) -> RoundSelector:
    from trl_real.selection.selector import EmbeddingPairSelector

    selector = EmbeddingPairSelector(strategy=name, **{**_of_base(chooser), **chooser.settings})
    if name not in MIXTURES:
        return WithoutLabeled(selector, chooser.responses)
    from trl_real.rounds.race import RaceSelector

    return RaceSelector(selector, partial(without_labeled, responses=chooser.responses), chooser.responses)


def _of_base(chooser: Chooser) -> dict[str, Any]:
    """Return the arguments of a selector that embeds with the base: by name, or as it was quantized for training."""
    own: dict[str, Any] = {"responses": chooser.responses, "seed": chooser.seed}
    if not getattr(chooser.policy, "is_quantized", False):
        return {"model": chooser.base, "revision": chooser.revision, **own}
    chooser.policy.disable_adapter_layers()
    return {"model": chooser.policy, "tokenizer": chooser.tokenizer, **own}


COLORS = strategies.COLORS | {"certainty": "#E69F00"}

ROUND_SELECTORS: dict[str, Factory] = {
    "gradient": _gradient,
    "certainty": _margin,
    "uncertainty": _margin,
    **dict.fromkeys(ACQUISITIONS, _head),
    **dict.fromkeys((*strategies.STRATEGIES, *MIXTURES), _embedding),
}
