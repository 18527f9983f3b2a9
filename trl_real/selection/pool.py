"""A selection over a whole pool: one pass that scores every row, a cut on one float a row, and the record."""

import copy
from collections.abc import Callable
from typing import TypeVar

import numpy as np
import pyarrow.compute as pc
from datasets import (
    Dataset,
    Features,
    IterableDataset,
    List,
    Value,
    concatenate_datasets,
)

from trl_real.data.columns import (
    EMBEDDINGS,
    OWN_FEATURES,
    POOL_COLUMNS,
    PREFERENCE_COLUMNS,
    check_own_columns,
    is_pool,
    to_columns,
)
from trl_real.selection.annotation import to_own_columns
from trl_real.selection.budget import HALF_PRECISION_BAND, budget_rows, budget_size, rows_in_doubt
from trl_real.selection.engines import Engine, Sharded
from trl_real.selection.fitting import fitted_geometry
from trl_real.selection.record import SelectionRecord, describe_similarity
from trl_real.selection.scorer import PairScorer
from trl_real.selection.strategies import set_budget


Rows = TypeVar("Rows", Dataset, IterableDataset)
Score = Callable[[PairScorer, np.ndarray | None, str], Dataset]

# Columns of the scoring pass that do not outlive it; the cost of a batch stands in its first row.
SCORING_FEATURES = {
    "_score": Value("float64"),
    "_gap": Value("float64"),
    "_difference": List(Value("float32")),
    "_n_responses": Value("int32"),
    "_n_truncated": Value("int32"),
    "_n_tokens": Value("int64"),
    "_seconds": Value("float64"),
}


class ScoringPass:
    """The map behind `select`: the selector's columns and, beside them, what the budget and the record need."""

    def __init__(self, selector: PairScorer, pool: bool):
        self.selector, self.pool = selector, pool

    def __call__(self, rows, row_ids: list[int], rank: int | None = None) -> dict[str, list]:
        """Score a batch; `row_ids` are the rows' numbers in the dataset."""
        rows_, choice, cost = self.selector.annotate(to_columns(rows), self.pool, rank, row_ids)
        own = to_own_columns(rows_, choice)
        once = [1] + [0] * (len(rows_) - 1)
        return {
            **{name: own[name] for name in (POOL_COLUMNS if self.pool else PREFERENCE_COLUMNS)},
            "_score": choice.scores,
            "_gap": choice.gaps,
            "_difference": choice.differences,
            "_n_responses": [len(row.texts) for row in rows_],
            "_n_truncated": cost["truncated"],
            "_n_tokens": [cost["n_tokens"] * first for first in once],
            "_seconds": [cost["seconds"] * first for first in once],
        }


def select_from(
    selector: PairScorer, dataset: Dataset, budget: float | int | None, engine: Engine
) -> tuple[Dataset, SelectionRecord]:
    """
    Fit the geometry, score every row, keep those that the budget buys.

    Args:
        selector: Strategy, model and settings; a geometry other than raw is fitted anew.
        dataset: A pool or labelled pairs, in any format.
        budget: As in `EmbeddingPairSelector.select`.
        engine: How the rows are scored.

    Returns:
        The kept rows, in the dataset's format, and the record.
    """
    plain, pool = plain_rows(selector, dataset)
    if selector.geometry != "raw" and selector.embeds:
        selector.fitted = engine.once(lambda: fitted_geometry(selector, dataset, engine.folder))

    def score(scorer: PairScorer, rows: np.ndarray | None, name: str) -> Dataset:
        return score_rows(scorer, plain if rows is None else plain.select(rows), pool, engine, name)

    added, kept, record = ranked(selector, budget, score, engine.once)
    if len(plain):
        chosen = concatenate_datasets([plain, added], axis=1).select(kept)
    else:  # concatenate_datasets forgets the columns of what is empty
        features = Features({**plain.features, **added.features})
        chosen = Dataset.from_dict({name: [] for name in features}, features=features)
    if dataset.format["type"]:
        chosen = chosen.with_format(dataset.format["type"], **dataset.format["format_kwargs"])
    return chosen, record


def plain_rows(selector: PairScorer, dataset: Rows) -> tuple[Rows, bool]:
    """The rows as Python values, less the selector's columns of an earlier run, and whether they are a pool."""
    pool = is_pool(dataset.column_names, selector.responses)
    own = POOL_COLUMNS if pool else PREFERENCE_COLUMNS
    check_own_columns(dataset.column_names, own)
    return dataset.with_format(None).remove_columns([name for name in own if name in dataset.column_names]), pool


def ranked(
    selector: PairScorer, budget: float | int | None, score: Score, once: Callable
) -> tuple[Dataset, np.ndarray, SelectionRecord]:
    """
    Score every row and cut, wherever the rows are.

    Args:
        selector: Strategy, model and settings.
        budget: As in `EmbeddingPairSelector.select`.
        score: Scores all rows, or those of the numbers it is given.
        once: Makes all processes have what the first one found.

    Returns:
        The selector's columns, a row a row of the pool; the numbers of the kept rows, ascending; and the record.
    """
    scored = score(selector, None, "scores")
    scored, rescored = _settle_doubts(selector, scored, budget, score, once)
    kept, record = once(lambda: cut(selector, scored, budget, len(rescored)))
    return scored.remove_columns(list(SCORING_FEATURES)), kept, record


def cut(selector, scored: Dataset, budget, n_rescored: int) -> tuple[np.ndarray, SelectionRecord]:
    """Numbers of the rows that the budget buys, ascending, and the record."""
    scores = numbers(scored, "_score")
    size = budget_size(budget, int(np.isfinite(scores).sum()))
    differences = _vectors(scored, "_difference") if set_budget(selector.scorer) else []
    kept = budget_rows(selector.scorer, scores, differences, size)
    return kept, _record(selector, budget, scored, kept, n_rescored)


def columns_read(selector: PairScorer, columns: list[str], pool: bool) -> tuple[list[str], list[str]]:
    """Those of a pool's columns that a selector reads, and those of them that it reads as arrays."""
    read = [selector.responses] if pool else ["chosen", "rejected"]
    read = [column for column in ("prompt", *read, EMBEDDINGS) if column in columns]
    given = EMBEDDINGS in read and selector.encoder is None and selector.embeds
    return read, [EMBEDDINGS] if given else []


def scoring_features(pool: bool) -> Features:
    """Of what a `ScoringPass` gives."""
    names = POOL_COLUMNS if pool else PREFERENCE_COLUMNS
    return Features({**{name: OWN_FEATURES[name] for name in names}, **SCORING_FEATURES})


def forgetful(selector: PairScorer) -> PairScorer:
    """The selector, such that what a batch gives hangs on no batch before it: for scores that are kept in parts."""
    selector = copy.copy(selector)
    selector.encoder = selector.encoder and selector.encoder.without_memo()
    return selector


def score_rows(selector: PairScorer, plain: Dataset, pool: bool, engine: Engine, name: str) -> Dataset:
    """A `ScoringPass` over all rows of a dataset, by an engine that calls it `name`."""
    read, arrays = columns_read(selector, plain.column_names, pool)
    plain = plain.select_columns(read)
    if arrays:
        plain = plain.with_format("numpy", columns=arrays, output_all_columns=True)
    features = scoring_features(pool)
    if not len(plain):
        return Dataset.from_dict({name: [] for name in features}, features=features)
    if isinstance(engine, Sharded):
        selector = forgetful(selector)
    return engine(ScoringPass(selector, pool), plain, features, name)


def _settle_doubts(selector, scored: Dataset, budget, score: Score, once: Callable) -> tuple[Dataset, np.ndarray]:
    """Embed rows near a decision again in float32, until no decision hangs on half precision."""
    exact = copy.copy(selector)
    exact.encoder = selector.encoder and selector.encoder.in_float32()
    settled = np.zeros(0, int)
    if exact.encoder is None:
        return scored, settled
    band = HALF_PRECISION_BAND
    while True:
        scores = numbers(scored, "_score")
        doubtful = once(lambda: np.setdiff1d(_doubtful(scores, scored, budget, band), settled))  # noqa: B023
        if not len(doubtful):
            return scored, settled
        again = score(exact, doubtful, f"again-{len(settled)}")
        again = _with_cost_of(scored.select(doubtful), again)
        worst = float(np.abs(numbers(again, "_score") - scores[doubtful]).max())
        band = max(band, 1.5 * worst) if worst < 1 else band
        order = np.arange(len(scored))
        order[doubtful] = len(scored) + np.arange(len(doubtful))
        scored = concatenate_datasets([scored, again]).select(order).flatten_indices()
        settled = np.union1d(settled, doubtful)


def _doubtful(scores: np.ndarray, scored: Dataset, budget, band: float) -> np.ndarray:
    size = budget_size(budget, int(np.isfinite(scores).sum()))
    return rows_in_doubt(scores, numbers(scored, "_gap"), size, band)


def _with_cost_of(first: Dataset, again: Dataset) -> Dataset:
    """Rows scored again, with the tokens and seconds of both passes."""
    for name in ("_n_tokens", "_seconds"):
        both = numbers(first, name) + numbers(again, name)
        again = again.remove_columns(name).add_column(name, both, feature=SCORING_FEATURES[name])
    return again.select_columns(first.column_names)


def _record(selector, budget, scored: Dataset, kept: np.ndarray, n_rescored: int) -> SelectionRecord:
    counts = pc.value_counts(scored.select_columns("skipped").with_format("arrow")[:]["skipped"]).to_pylist()
    skipped = {count["values"]: count["counts"] for count in sorted(counts, key=str) if count["values"]}
    similarity = numbers(scored, "similarity")
    encoder = selector.encoder
    options = vars(encoder.options) if encoder else {}
    settings = {**options, "dtype": encoder.precision} if encoder else {}
    name = selector.strategy if isinstance(selector.strategy, str) else _name_of(selector.strategy)
    return SelectionRecord(
        strategy=name,
        budget=budget,
        seed=selector.seed,
        model=encoder.label if encoder else ("column 'embeddings'" if selector.embeds else None),
        revision=encoder.fingerprint() if encoder else None,
        settings={**settings, "geometry": selector.geometry} if selector.embeds else {},
        n_rows=len(scored),
        n_kept=len(kept),
        n_not_chosen=len(scored) - len(kept) - sum(skipped.values()),
        skipped=skipped,
        n_responses=int(numbers(scored, "_n_responses").sum()),
        n_truncated=int(numbers(scored, "_n_truncated").sum()),
        n_rescored=n_rescored,
        tokens=int(numbers(scored, "_n_tokens").sum()),
        seconds=round(float(numbers(scored, "_seconds").sum()), 3),
        **describe_similarity(similarity, similarity[kept]),
    )


def numbers(dataset: Dataset, column: str) -> np.ndarray:
    """A numeric column as one array, without a pass through Python."""
    if not len(dataset):
        return np.zeros(0)
    return dataset.select_columns(column).with_format("arrow")[:][column].to_numpy()


def _vectors(dataset: Dataset, column: str) -> list[np.ndarray]:
    """A column of lists, as views of what lies in the file."""
    if not len(dataset):
        return []
    chunks = dataset.select_columns(column).with_format("arrow")[:][column].chunks
    return [
        vector
        for lists in chunks
        for vector in np.split(lists.flatten().to_numpy(), np.diff(lists.offsets.to_numpy()).cumsum()[:-1])
    ]


def _name_of(function) -> str:
    function = getattr(function, "func", function)
    return f"{function.__module__}.{getattr(function, '__qualname__', type(function).__name__)}"
