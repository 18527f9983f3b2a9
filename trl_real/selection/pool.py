"""Selection over a whole pool: score every row in one pass, cut by one score per row, and make the record."""

import copy
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol, TypeVar

import numpy as np
import pyarrow.compute as pc
from datasets import Dataset, Features, concatenate_datasets

from trl_real.selection.engines import Engine, Sharded
from trl_real.selection.fitting import fitted_geometry
from trl_real.selection.half_precision import decide, settle_doubts
from trl_real.selection.mixture.parts import MIXTURE_VERSIONS
from trl_real.selection.mixture.rows import decide_mixture, kept_by_part, rows_of_parts
from trl_real.selection.mixture.shares import Taken
from trl_real.selection.record import SelectionRecord, describe_similarity
from trl_real.selection.scorer import PairScorer
from trl_real.selection.scoring_columns import (
    SCORING_FEATURES,
    ScoringPass,
    columns_read,
    numbers,
    plain_rows,
    scoring_features,
)
from trl_real.selection.strategies import strategy_name


T = TypeVar("T")


class Pool(Protocol):
    """Rows to select from: `DatasetPool` or `trl_real.selection.streaming.StreamPool`."""

    def once(self, function: Callable[[], T]) -> T:
        """Return `function()`, that of the first process if processes share the work."""

    def fit(self, name: str) -> Any:
        """Return the geometry of this name, fitted to the rows with the lowest digests."""

    def score(self, scorer: PairScorer, rows: np.ndarray | None, name: str) -> Dataset:
        """Score the rows with these numbers, ascending (None for all), and save the scores under `name`."""

    def join(self, added: Dataset, kept: np.ndarray) -> Any:
        """Return the kept rows with the selector's columns."""


def select_rows(selector: PairScorer, pool: Pool, budget: float | int | None) -> tuple[Any, SelectionRecord]:
    """
    Fit the geometry, score every row, and keep the rows in the budget.

    Args:
        selector: Strategy, model and settings; a geometry other than raw is fitted again.
        pool: Rows to select from.
        budget: Budget as in `EmbeddingPairSelector.select`.

    Returns:
        The kept rows in the order of the pool, and the record.
    """
    if selector.geometries:
        selector.set_fitted({name: pool.once(partial(pool.fit, name)) for name in selector.geometries})
    scored = pool.score(selector, None, "scores")
    if selector.mixed:
        taken, record = pool.once(lambda: cut_mixture(selector, scored, budget))
        return pool.join(rows_of_parts(selector, scored, taken), taken.rows), record
    scored, n_rescored = settle_doubts(selector, scored, budget, pool.score, pool.once)
    kept, record = pool.once(lambda: cut(selector, scored, budget, n_rescored))
    return pool.join(scored.remove_columns(list(SCORING_FEATURES)), kept), record


class DatasetPool:
    """
    Rows of a `Dataset`, with the methods of `Pool`.

    Args:
        selector: Selector that reads them.
        dataset: Pool or labelled pairs, in any format.
        engine: Engine of the scoring pass.
    """

    def __init__(self, selector: PairScorer, dataset: Dataset, engine: Engine):
        self.selector, self.dataset, self.engine = selector, dataset, engine
        self.plain, self.is_pool = plain_rows(selector, dataset)
        self.once = engine.once

    def fit(self, name: str) -> Any:
        return fitted_geometry(self.selector, self.dataset, name, self.engine.folder)

    def score(self, scorer: PairScorer, rows: np.ndarray | None, name: str) -> Dataset:
        read, arrays = columns_read(scorer, self.plain.column_names, self.is_pool)
        plain = (self.plain if rows is None else self.plain.select(rows)).select_columns(read)
        if arrays:
            plain = plain.with_format("numpy", columns=arrays, output_all_columns=True)
        features = scoring_features(self.is_pool, len(scorer.parts))
        if not len(plain):
            return Dataset.from_dict({name: [] for name in features}, features=features)
        scorer = without_cache(scorer) if isinstance(self.engine, Sharded) else scorer
        return self.engine(ScoringPass(scorer, self.is_pool), plain, features, name)

    def join(self, added: Dataset, kept: np.ndarray) -> Dataset:
        """Return the kept rows with the selector's columns, in the dataset's format."""
        if len(self.plain):
            chosen = concatenate_datasets([self.plain, added], axis=1).select(kept)
        else:  # concatenate_datasets drops the columns of an empty dataset
            features = Features({**self.plain.features, **added.features})
            chosen = Dataset.from_dict({name: [] for name in features}, features=features)
        form = self.dataset.format
        return chosen.with_format(form["type"], **form["format_kwargs"]) if form["type"] else chosen


def cut(
    selector: PairScorer, scored: Dataset, budget: float | int | None, n_rescored: int
) -> tuple[np.ndarray, SelectionRecord]:
    """Return the numbers of the rows in the budget, ascending, and the record."""
    kept = decide(selector, scored, budget).kept
    return kept, _record(selector, budget, scored, kept, n_rescored)


def cut_mixture(selector: PairScorer, scored: Dataset, budget: float | int | None) -> tuple[Taken, SelectionRecord]:
    """Return the rows that each part of a mixture takes, and the record."""
    taken = decide_mixture(selector, scored, budget)
    record = _record(selector, budget, scored, taken.rows, 0)
    record.settings["parts"] = kept_by_part(selector, taken)
    if selector.strategy in MIXTURE_VERSIONS:
        record.settings["version"] = MIXTURE_VERSIONS[selector.strategy]
    return taken, record


def without_cache(selector: PairScorer) -> PairScorer:
    """Return a copy without the embedding cache, so that scores do not depend on earlier batches."""
    selector = copy.copy(selector)
    selector.encoder = selector.encoder and selector.encoder.without_memo()
    return selector


def _record(selector, budget, scored: Dataset, kept: np.ndarray, n_rescored: int) -> SelectionRecord:
    counts = pc.value_counts(scored.select_columns("skipped").with_format("arrow")[:]["skipped"]).to_pylist()
    skipped = {count["values"]: count["counts"] for count in sorted(counts, key=str) if count["values"]}
    similarity = numbers(scored, "similarity")
    encoder = selector.encoder
    settings = encoder.settings if encoder else {}
    if (used := numbers(scored, "_batch_tokens")).any():  # also by other processes
        settings["batch_tokens"] = int(used[used > 0].min())
    return SelectionRecord(
        strategy=strategy_name(selector.strategy),
        budget=budget,
        seed=selector.seed,
        model=encoder.label if encoder else ("column 'embeddings'" if selector.embeds else None),
        revision=encoder.fingerprint() if encoder else None,
        settings={**settings, **({} if selector.mixed else {"geometry": selector.geometry})}
        if selector.embeds
        else {},
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
