"""A budget over a stream: the exact cut, in two passes, or a threshold from a sample, in one."""

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

# Rows that a sample is drawn from, for each of its own: what `shuffle` holds in memory.
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
    The rows of a stream that a budget keeps, as a stream.

    Args:
        selector, stream, budget: As in `EmbeddingPairSelector.select`.
        shards: Folder for the scores of the exact cut (`select_exactly`).
        sample: Rows to take a threshold from (`select_by_sample`).
        shard_rows: Rows that are held and kept at a time.
        batch_size: Rows of a batch.

    Returns:
        The kept rows as Python values, in their old order, and the record.

    Raises:
        TrlRealError: If there is neither a folder nor a sample, or both, or as the two ways have it.
    """
    if (shards is None) == (sample is None):
        raise TrlRealError(
            "A budget ranks the whole pool, which a stream does not show. Type shards='a_folder' for the exact cut in "
            "two passes, or sample=1000 for a threshold and one pass; one of the two."
        )
    if shards is not None:
        return select_exactly(selector, stream, budget, Path(shards), shard_rows, batch_size)
    assert sample is not None
    return select_by_sample(selector, stream, budget, sample, batch_size)


def select_exactly(
    selector: PairScorer,
    stream: IterableDataset,
    budget: float | int | None,
    folder: Path,
    shard_rows: int,
    batch_size: int,
) -> Selected:
    """
    What `select` keeps of the same rows in a `Dataset`, by the same scores, cut and record.

    The first pass scores the stream and leaves the scores in `folder`, a shard of them a chunk of rows, so that a pass
    that was killed reads the stream again but embeds nothing twice; a geometry, and half precision, read it once more
    each. The last pass is the stream that is returned, which joins rows and scores while it is read: `folder` must
    stay. In memory are a chunk of rows and a few floats a row.

    Args:
        selector, budget: As in `select`.
        stream: With the same rows in the same order each time; every process has all of it.
        folder, shard_rows, batch_size: As in `select_stream`.

    Raises:
        TrlRealError: If the stream is not the same again, or as `select`.
    """
    return select_rows(selector, StreamPool(selector, stream, folder, shard_rows, batch_size), budget)


class StreamPool:
    """
    The rows of a stream, read in chunks; scores stay in a folder.

    Args:
        selector: Selector that reads them.
        stream: Stream with the same rows in the same order each time.
        folder: Folder for the scores.
        shard_rows: Rows of a chunk.
        batch_size: Rows of a batch.
    """

    def __init__(self, selector: PairScorer, stream: IterableDataset, folder: Path, shard_rows: int, batch_size: int):
        self.selector, self.folder, self.batch_size, self.once = selector, folder, batch_size, once
        self.plain, self.is_pool = plain_rows(selector, typed(stream))
        read, arrays = columns_read(selector, self.plain.column_names, self.is_pool)
        self.chunks = Chunks(self.plain, read, shard_rows, tuple(arrays))

    def fit(self) -> Geometry:
        """Return the geometry, fitted to the rows with the lowest digests."""
        return geometry_of_stream(self.selector, self.chunks, self.is_pool, self.folder)

    def score(self, scorer: PairScorer, rows: np.ndarray | None, name: str) -> Dataset:
        """Score rows by their numbers, ascending; None for all."""
        scoring = ScoringPass(without_cache(scorer), self.is_pool)
        settings: dict[str, Any] = {"batch_size": self.batch_size, "desc": DESCRIPTION, "only": rows}
        return map_chunks(scoring, self.chunks, scoring_features(self.is_pool), self.folder / name, **settings)

    def join(self, added: Dataset, kept: np.ndarray) -> IterableDataset:
        """Return the kept rows as a stream that reads this one again."""
        features = Features({**self.plain.features, **added.features})
        return IterableDataset.from_generator(JoinedRows(self.chunks, added, kept), features=features)


class JoinedRows:
    """
    The last pass over a stream: its kept rows with the selector's columns.

    Args:
        chunks: Of the stream, read before.
        added: The selector's columns, a row a row of the stream.
        kept: Numbers of the kept rows, ascending. Shape `(k,)`.
    """

    def __init__(self, chunks: Chunks, added: Dataset, kept: np.ndarray):
        self.chunks, self.added, self.kept = chunks, added, kept

    def __call__(self):
        """The rows, one by one."""
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
    About the budget's share of the rows, in one pass: those whose score is no higher than the share's quantile in a
    sample.

    With `m` rows that have a pair in the sample and a threshold at the `k`-th lowest score, the kept share of a long
    stream is distributed as Beta(k, m + 1 - k): `budget`, and `sqrt(budget (1 - budget) / m)` for standard deviation.
    The record says both (`settings["threshold"]`, `settings["share_error"]`); its counts and quantiles are of the
    sample, since nobody has seen the stream.

    The sample comes from the first `11 * sample` rows: where a stream is sorted by something (source, length, date)
    the threshold fits its beginning only. Half precision is used as it is, and a geometry is fitted to the sample.

    Args:
        selector: With a strategy that scores each row by itself.
        stream: May be endless.
        budget: A share; None keeps all rows with a pair.
        sample: Rows to draw, by the selector's seed.
        batch_size: Rows of a batch.

    Returns:
        A stream that scores the rows while it is read, of unknown length, and the record.

    Raises:
        TrlRealError: If the budget is a number of rows, or the sample too small for it, or the strategy has a budget
            of its own.
    """
    _check_sample(selector, budget, sample)
    plain, pool = plain_rows(selector, typed(stream))
    drawn = plain.shuffle(seed=selector.seed % 2**63, buffer_size=BUFFER * sample).take(sample)
    rows = _to_dataset(list(drawn), plain.features)
    if selector.geometry != "raw" and selector.embeds:
        selector.fitted = fitted_geometry(selector, rows)
    scored = DatasetPool(selector, rows, Mapped(None, batch_size)).score(selector, None, "sample")
    scores = numbers(scored, "_score")
    n_pairs = int(np.isfinite(scores).sum())
    share = 1.0 if budget is None else budget
    if not round(share * n_pairs):
        raise TrlRealError(
            f"budget={budget} of the {n_pairs} rows with a pair in the sample is none. "
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
    Standard deviation of the share of a continuous distribution below the `k`-th lowest of `m` draws from it.

    That share is distributed as Beta(k, m + 1 - k). With `k = m` there is no cut: 0.
    """
    return 0.0 if k == m else math.sqrt(k * (m + 1 - k) / ((m + 1) ** 2 * (m + 2)))


class BelowThreshold:
    """
    A map that adds the selector's columns to a batch and leaves out the rows that score above a threshold.

    Args:
        selector: Fitted.
        pool: Whether the rows are a pool, or labelled pairs.
        threshold: Highest score that stays; rows without a pair never do.
    """

    def __init__(self, selector: PairScorer, pool: bool, threshold: float):
        self.selector, self.pool, self.threshold = selector, pool, threshold

    def __call__(self, batch: dict[str, list]) -> dict[str, list]:
        """The rows that stay, with all of their columns."""
        rows, choice, _ = self.selector.annotate(to_columns(batch), self.pool)
        own = to_own_columns(rows, choice)
        columns = {**batch, **{name: own[name] for name in (POOL_COLUMNS if self.pool else PREFERENCE_COLUMNS)}}
        stay = np.flatnonzero(choice.scores <= self.threshold)
        return {name: [values[i] for i in stay] for name, values in columns.items()}


def _check_sample(selector: PairScorer, budget: Any, sample: int) -> None:
    if isinstance(sample, bool) or not isinstance(sample, Integral) or sample < 1:
        raise TrlRealError(f"sample={sample!r} is no number of rows. Type sample=1000.")
    if isinstance(budget, Integral):
        raise TrlRealError(
            f"budget={budget} rows cannot be told from a sample. Give a share such as 0.25, or type shards='a_folder' "
            "instead of sample for the exact cut in two passes."
        )
    if selector.rule.budget:
        raise TrlRealError(
            f"strategy={selector.strategy!r} weighs rows against each other, which no threshold does. "
            "Type shards='a_folder' instead of sample for the exact cut in two passes."
        )


def _to_dataset(rows: list[dict], features: Features) -> Dataset:
    return Dataset.from_dict({name: [row[name] for row in rows] for name in features}, features=features)
