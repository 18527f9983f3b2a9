"""How the pairs of a round can be chosen: one table of makers, all with `select(dataset, budget, history=…)`."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from datasets import Dataset

from trl_real.data.conversation import text_of
from trl_real.data.convert import from_rows, iterate
from trl_real.functional.bayesian_head import ACQUISITIONS
from trl_real.selection import strategies
from trl_real.selection.record import SelectionRecord


class RoundSelector(Protocol):
    """Chooses pairs that are worth a label, given what was labelled."""

    @property
    def record(self) -> SelectionRecord: ...

    def select(self, dataset: Dataset, budget: int, *, history: Dataset | None = None) -> Dataset:
        """The pairs, with `pair`, `response_a`, `response_b` and the pool's columns."""
        ...


@dataclass
class Chooser:
    """
    What a maker may use.

    Args:
        base: Hub id or path of the model before alignment.
        policy: The current policy: the base with its adapter.
        tokenizer: Of both.
        responses: Column of the responses.
        seed: Of the round's draws.
        settings: Further arguments of the selector.
        revision: Of the base on the Hub.
    """

    base: str
    policy: Any
    tokenizer: Any
    responses: str
    seed: int
    settings: dict[str, Any] = field(default_factory=dict)
    revision: str | None = None


Maker = Callable[[str, Chooser], RoundSelector]


class Memoryless:
    """
    A selector that takes one pair a row and knows no history: responses that stood in a labelled pair are left out,
    and so are rows with fewer than two others.

    Args:
        selector: With `select(dataset, budget)` and `record`.
        responses: Column of the responses.
    """

    def __init__(self, selector: Any, responses: str):
        self.selector, self.responses = selector, responses

    @property
    def record(self) -> SelectionRecord:
        """Of the last selection."""
        return self.selector.record

    def select(self, dataset: Dataset, budget: int, *, history: Dataset | None = None) -> Dataset:
        """Choose among the responses that were in no labelled pair."""
        labeled: dict[str, set[str]] = {}
        for row in iterate(history) if history is not None else ():
            pair = {text_of(row["chosen"]), text_of(row["rejected"])}
            labeled.setdefault(repr(row["prompt"]), set()).update(pair)
        rows = []
        for row in iterate(dataset):
            known = labeled.get(repr(row["prompt"]), set())
            places = [i for i, response in enumerate(row[self.responses] or []) if not _stood(response, known)]
            of_responses = {name: values for name, values in row.items() if _one_each(values, row[self.responses])}
            rows.append({**row, **{name: [values[i] for i in places] for name, values in of_responses.items()}})
        return self.selector.select(from_rows(rows, dataset.features) if labeled else dataset, budget)


def _stood(response: Any, known: set[str]) -> bool:
    return response is not None and text_of(response) in known


def _one_each(values: Any, responses: list | None) -> bool:
    """Whether a column has one value a response, as scores do."""
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

    own = {"revision": chooser.revision, "responses": chooser.responses, "seed": chooser.seed}
    return HeadPairSelector(chooser.base, acquisition=name, **{**own, **chooser.settings})


def _embedding(name: str, chooser: Chooser) -> RoundSelector:
    from trl_real.selection.selector import EmbeddingPairSelector

    own = {"revision": chooser.revision, "responses": chooser.responses, "seed": chooser.seed}
    selector = EmbeddingPairSelector(chooser.base, strategy=name, **{**own, **chooser.settings})
    return Memoryless(selector, chooser.responses)


COLORS = strategies.COLORS | {"certainty": "#E69F00"}

ROUND_SELECTORS: dict[str, Maker] = {
    "gradient": _gradient,
    "certainty": _margin,
    "uncertainty": _margin,
    **dict.fromkeys(ACQUISITIONS, _head),
    **dict.fromkeys(strategies.STRATEGIES, _embedding),
}
