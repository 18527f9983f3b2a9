"""Budget over a stream: the exact cut in two passes, or a threshold from a sample in one pass."""

import copy
import math
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, Features, IterableDataset

from trl_real.data.columns import POOL_COLUMNS, PREFERENCE_COLUMNS, to_columns
from trl_real.errors import TrlRealError
from trl_real.functional.geometry import Geometry
from trl_real.runtime.distributed import once
from trl_real.runtime.stream_shards import Chunks, map_chunks, typed
from trl_real.selection.annotation import to_own_columns
from trl_real.selection.engines import DESCRIPTION, Mapped
from trl_real.selection.fitting import fitted_geometry, geometry_of_stream
from trl_real.selection.pool import DatasetPool, cut, select_rows, without_cache
from trl_real.selection.record import SelectionRecord
from trl_real.selection.scorer import PairScorer
from trl_real.selection.scoring_columns import ScoringPass, columns_read, numbers, plain_rows, scoring_features


Selected = tuple[IterableDataset, SelectionRecord]

# Rows that `shuffle` holds in memory per row of the sample.
BUFFER = 10


def select_stream(
    selector: PairScorer,
    stream: IterableDataset,
    budget: float | int | None,
    *,
    shards: str | Path | None,
    sample: int | None,
    shard_rows: int,
    batch_size: int,
) -> Selected:
    """
    Select from a stream, by the exact cut (`shards`) or by a threshold (`sample`, `select_by_sample`).

    The exact cut keeps the same rows, with the same scores and record, as `select` on a `Dataset`. Its first pass
    saves the scores in the folder, one shard per chunk of rows, so that a restarted pass reads the stream again but
    embeds nothing twice; a geometry and half precision need one more pass each. The last pass is the returned stream,
    which joins rows and scores: keep the folder. A chunk of rows and a few floats per row are in memory.

    Args:
        selector: Strategy, model and settings.
        stream: Stream; for the exact cut it gives the same rows in the same order in each pass and each process.
        budget, shards, sample, batch_size: As in `EmbeddingPairSelector.select`.
        shard_rows: Number of rows per chunk.

    Returns:
        The kept rows as Python values, in the order of the stream, and the record.

    Raises:
        TrlRealError: If not exactly one of `shards` and `sample` is given, or a later pass reads other rows.
    """
    if (shards is None) == (sample is None):
        raise TrlRealError(
            "A budget ranks the whole pool, and a stream gives one row at a time. Type one of shards='a_folder' for "
            "the exact cut in two passes, or sample=1000 for a threshold in one pass."
        )
    if shards is not None:
        return select_rows(selector, StreamPool(selector, stream, Path(shards), shard_rows, batch_size), budget)
    assert sample is not None
    return select_by_sample(selector, stream, budget, sample, batch_size)


class StreamPool:
    """
    Rows of a stream, read in chunks, with the methods of `trl_real.selection.pool.Pool`.

    Args:
        selector: Selector that reads them.
        folder: Folder for the scores.
        stream, shard_rows, batch_size: As in `select_stream`.
    """

    def __init__(self, selector: PairScorer, stream: IterableDataset, folder: Path, shard_rows: int, batch_size: int):
        self.selector, self.folder, self.batch_size, self.once = selector, folder, batch_size, once
        self.plain, self.is_pool = plain_rows(selector, typed(stream))
        read, arrays = columns_read(selector, self.plain.column_names, self.is_pool)
        self.chunks = Chunks(self.plain, read, shard_rows, tuple(arrays))

    def fit(self, name: str) -> Geometry:
        return geometry_of_stream(self.selector, self.chunks, self.is_pool, name, self.folder)

    def score(self, scorer: PairScorer, rows: np.ndarray | None, name: str) -> Dataset:
        scoring = ScoringPass(without_cache(scorer), self.is_pool)
        settings: dict[str, Any] = {"batch_size": self.batch_size, "desc": DESCRIPTION, "only": rows}
        features = scoring_features(self.is_pool, len(scorer.parts))
        return map_chunks(scoring, self.chunks, features, self.folder / name, **settings)

    def join(self, added: Dataset, kept: np.ndarray) -> IterableDataset:
        """Return the kept rows as a stream that reads the input stream again."""
        features = Features({**self.plain.features, **added.features})
        return IterableDataset.from_generator(JoinedRows(self.chunks, added, kept), features=features)


class JoinedRows:
    """
    Generator of the kept rows of a stream, with the selector's columns: the last pass.

    Args:
        chunks: Chunks of the stream.
        added: The selector's columns, one row per row of the stream.
        kept: Numbers of the kept rows, ascending. Shape `(k,)`.
    """

    def __init__(self, chunks: Chunks, added: Dataset, kept: np.ndarray):
        self.chunks, self.added, self.kept = chunks, added, kept

    def __call__(self):
        """Yield the rows."""
        for start, batch in self.chunks.full_chunks():
            rows = self.kept[slice(*np.searchsorted(self.kept, (start, start + self.chunks.size)))].tolist()
            own = self.added[rows] if rows else {}
            for i, row in enumerate(rows):
                theirs = {name: values[row - start] for name, values in batch.items()}
                yield {**theirs, **{name: values[i] for name, values in own.items()}}


def select_by_sample(
    selector: PairScorer, stream: IterableDataset, budget: float | None, sample: int, batch_size: int
) -> Selected:
    """
    Keep the rows with scores up to the budget's quantile in a sample, about the budget's share of rows, in one pass.

    With `m` rows with a pair in the sample and the threshold at the `k`-th lowest score, the kept share of a long
    stream is distributed as Beta(k, m + 1 - k): mean `budget`, standard deviation `sqrt(budget (1 - budget) / m)`.
    The record has the threshold and the standard deviation (`settings["threshold"]`, `settings["share_error"]`); its
    counts and quantiles are of the sample.

    The sample is drawn from the first `11 * sample` rows: if the stream is sorted (by source, length or date), the
    threshold fits its beginning only. Rows are not embedded again in float32; a geometry is fitted to the sample.

    Args:
        selector: Selector without a set budget (`Strategy.budget`).
        stream: Stream of any length, also endless.
        budget: Share of the rows; None keeps all rows with a pair.
        sample: Number of rows to draw, by the selector's seed.
        batch_size: Number of rows per batch.

    Returns:
        A stream that scores the rows while it is read, and the record.

    Raises:
        TrlRealError: If the budget is a number of rows, the sample is too small for it, or the strategy has a set
            budget.
    """
    _check_sample(selector, budget, sample)
    plain, pool = plain_rows(selector, typed(stream))
    drawn = list(plain.shuffle(seed=selector.seed % 2**63, buffer_size=BUFFER * sample).take(sample))
    columns = {name: [row[name] for row in drawn] for name in plain.features}
    rows = Dataset.from_dict(columns, features=plain.features)
    selector.set_fitted({name: fitted_geometry(selector, rows, name) for name in selector.geometries})
    scored = DatasetPool(selector, rows, Mapped(None, batch_size)).score(selector, None, "sample")
    scores = numbers(scored, "_score")
    n_pairs = int(np.isfinite(scores).sum())
    share = 1.0 if budget is None else budget
    if not round(share * n_pairs):
        raise TrlRealError(
            f"budget={budget} of the {n_pairs} rows with a pair in the sample is 0 rows. "
            f"Type sample={math.ceil(100 / share)}."
        )
    kept, record = cut(selector, scored, budget, 0)
    threshold = math.inf if len(kept) == n_pairs else float(scores[kept].max())
    record.settings |= {"sample": len(rows), "threshold": threshold, "share_error": share_error(len(kept), n_pairs)}
    passing = BelowThreshold(copy.copy(selector), pool, threshold)
    features = selector.features(plain.features)
    removed = plain.column_names
    return plain.map(passing, batched=True, batch_size=batch_size, remove_columns=removed, features=features), record


def share_error(k: int, m: int) -> float:
    """
    Return the standard deviation of the share of a continuous distribution below the `k`-th lowest of `m` draws.

    The share is distributed as Beta(k, m + 1 - k). With `k = m` all rows are kept, and it is 0.
    """
    return 0.0 if k == m else math.sqrt(k * (m + 1 - k) / ((m + 1) ** 2 * (m + 2)))


class BelowThreshold:
    """
    Map that adds the selector's columns to a batch and drops rows with a score above a threshold, or without a pair.

    Args:
        selector: Fitted selector.
        pool: Whether the rows are a pool, not labelled pairs.
        threshold: Highest score to keep.
    """

    def __init__(self, selector: PairScorer, pool: bool, threshold: float):
        self.selector, self.pool, self.threshold = selector, pool, threshold

    def __call__(self, batch: dict[str, list]) -> dict[str, list]:
        """Return the kept rows with all columns."""
        rows, (choice,), _ = self.selector.annotate(to_columns(batch), self.pool)
        own = to_own_columns(rows, choice.pairs, choice.similarity)
        columns = {**batch, **{name: own[name] for name in (POOL_COLUMNS if self.pool else PREFERENCE_COLUMNS)}}
        stay = np.flatnonzero(choice.scores <= self.threshold)
        return {name: [values[i] for i in stay] for name, values in columns.items()}


def _check_sample(selector: PairScorer, budget: Any, sample: int) -> None:
    if isinstance(sample, bool) or not isinstance(sample, Integral) or sample < 1:
        raise TrlRealError(f"sample={sample!r} is not a number of rows. Type sample=1000.")
    if isinstance(budget, Integral):
        raise TrlRealError(
            f"budget={budget} is a number of rows, and a sample gives a share only. Give a share such as 0.25, or "
            "type shards='a_folder' instead of sample for the exact cut in two passes."
        )
    if selector.mixed or selector.rule.budget:
        raise TrlRealError(
            f"strategy={selector.strategy!r} compares rows with each other, and a threshold does not. "
            "Type shards='a_folder' instead of sample for the exact cut in two passes."
        )
