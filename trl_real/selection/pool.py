"""A selection over a whole pool: one pass that scores every row, a cut on one float a row, and the record."""

import copy
import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import safetensors.torch
import torch
from datasets import Dataset, Features, List, Value, concatenate_datasets
from datasets.fingerprint import Hasher

from trl_real.data.columns import EMBEDDINGS, POOL_COLUMNS, PREFERENCE_COLUMNS, check_own_columns, is_pool, to_columns
from trl_real.data.whole import write_whole
from trl_real.errors import TrlRealError
from trl_real.functional.geometry import GEOMETRIES, Geometry
from trl_real.selection.annotation import content_key, gather_candidates, to_own_columns
from trl_real.selection.budget import HALF_PRECISION_BAND, budget_rows, budget_size, rows_in_doubt
from trl_real.selection.engines import Engine, Sharded
from trl_real.selection.record import SelectionRecord, describe_similarity
from trl_real.selection.strategies import set_budget


if TYPE_CHECKING:
    from trl_real.selection.selector import EmbeddingPairSelector

GEOMETRY_SAMPLE = 1000

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

    def __init__(self, selector: "EmbeddingPairSelector", pool: bool):
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
    selector: "EmbeddingPairSelector", dataset: Dataset, budget: float | int | None, engine: Engine
) -> tuple[Dataset, SelectionRecord]:
    """
    Score every row, keep those that the budget buys.

    Args:
        selector: Strategy, model and settings.
        dataset: A pool or labelled pairs, in any format.
        budget: As in `EmbeddingPairSelector.select`.
        engine: How the rows are scored.

    Returns:
        The kept rows, in the dataset's format, and the record.
    """
    pool = is_pool(dataset.column_names, selector.responses)
    own = POOL_COLUMNS if pool else PREFERENCE_COLUMNS
    check_own_columns(dataset.column_names, own)
    plain = dataset.with_format(None).remove_columns([name for name in own if name in dataset.column_names])
    scored = _score(selector, plain, pool, engine, "scores")
    scored, rescored = _settle_doubts(selector, plain, scored, pool, budget, engine)
    kept, record = engine.once(lambda: _cut(selector, scored, budget, len(rescored)))
    added = scored.remove_columns(list(SCORING_FEATURES))
    if len(plain):
        chosen = concatenate_datasets([plain, added], axis=1).select(kept)
    else:  # concatenate_datasets forgets the columns of what is empty
        features = Features({**plain.features, **added.features})
        chosen = Dataset.from_dict({name: [] for name in features}, features=features)
    if dataset.format["type"]:
        chosen = chosen.with_format(dataset.format["type"], **dataset.format["format_kwargs"])
    return chosen, record


def _cut(selector, scored: Dataset, budget, n_rescored: int) -> tuple[np.ndarray, SelectionRecord]:
    """Numbers of the rows that the budget buys, ascending, and the record."""
    scores = _numbers(scored, "_score")
    size = budget_size(budget, int(np.isfinite(scores).sum()))
    differences = _vectors(scored, "_difference") if set_budget(selector.scorer) else []
    kept = budget_rows(selector.scorer, scores, differences, size)
    return kept, _record(selector, budget, scored, kept, n_rescored)


def fitted_geometry(selector: "EmbeddingPairSelector", dataset: Dataset, folder: Path | None = None) -> Geometry:
    """
    The selector's geometry, fitted to the responses of up to 1,000 rows: those with the lowest digests of seed and
    content.

    Args:
        selector: With a geometry other than raw.
        dataset: A pool or labelled pairs.
        folder: Where it is kept, so that a run that goes on has the same to the last bit.

    Raises:
        TrlRealError: If no row has a pair.
    """
    pool = is_pool(dataset.column_names, selector.responses)
    keys: list[tuple[bytes, int]] = []
    plain = dataset.with_format(None)
    wanted = [name for name in ("prompt", selector.responses, "chosen", "rejected") if name in plain.column_names]
    for start, batch in enumerate(plain.select_columns(wanted).iter(1000)):
        rows = gather_candidates(batch, pool, selector.responses)
        keys += [
            (content_key(selector.seed, row.prompt, row.texts), 1000 * start + i)
            for i, row in enumerate(rows)
            if not row.skipped
        ]
    if not keys:
        raise TrlRealError(f"geometry={selector.geometry!r}, but no row has two responses to fit it to.")
    keys = sorted(keys)[:GEOMETRY_SAMPLE]
    sample = plain.select([row for _, row in keys])
    plain_selector = copy.copy(selector)
    plain_selector.geometry, plain_selector.fitted = "raw", None
    if folder is None:
        return _fit(selector, plain_selector, sample, pool)
    digest = hashlib.blake2b(repr([selector.geometry, Hasher.hash(plain_selector), keys]).encode(), digest_size=8)
    file = folder / f"geometry-{digest.hexdigest()}.safetensors"
    if not file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(file, safetensors.torch.save(_fit(selector, plain_selector, sample, pool)._asdict()))
    return Geometry(**safetensors.torch.load(file.read_bytes()))


def _fit(selector, plain_selector, sample: Dataset, pool: bool) -> Geometry:
    batch = to_columns(sample[:])
    vectors, _ = plain_selector._vectors(gather_candidates(batch, pool, selector.responses), batch, None)
    vectors = [v for v in vectors if torch.isfinite(v).all()]
    if not vectors:
        raise TrlRealError(f"geometry={selector.geometry!r}, but every embedding of the sample holds NaN or infinity.")
    fitted = GEOMETRIES[selector.geometry](torch.cat(vectors).double())
    return Geometry(fitted.shift.float(), fitted.matrix.float())


def _score(selector, plain: Dataset, pool: bool, engine: Engine, name: str) -> Dataset:
    own = selector.features(plain.features)
    names = POOL_COLUMNS if pool else PREFERENCE_COLUMNS
    read = [selector.responses] if pool else ["chosen", "rejected"]
    read = [column for column in ("prompt", *read, EMBEDDINGS) if column in plain.column_names]
    plain = plain.select_columns(read)
    if EMBEDDINGS in read and selector.encoder is None and selector.embeds:
        plain = plain.with_format("numpy", columns=[EMBEDDINGS], output_all_columns=True)
    features = Features({**{name: own[name] for name in names}, **SCORING_FEATURES})
    if not len(plain):
        return Dataset.from_dict({name: [] for name in features}, features=features)
    if selector.encoder is not None and isinstance(engine, Sharded):
        selector = copy.copy(selector)
        selector.encoder = selector.encoder.forgetful()
    return engine(ScoringPass(selector, pool), plain, features, name)


def _settle_doubts(
    selector, plain: Dataset, scored: Dataset, pool: bool, budget, engine: Engine
) -> tuple[Dataset, np.ndarray]:
    """Embed rows near a decision again in float32, until no decision hangs on half precision."""
    exact = copy.copy(selector)
    exact.encoder = selector.encoder and selector.encoder.in_float32()
    settled = np.zeros(0, int)
    if exact.encoder is None:
        return scored, settled
    band = HALF_PRECISION_BAND
    while True:
        scores = _numbers(scored, "_score")
        doubtful = engine.once(lambda: np.setdiff1d(_doubtful(scored, budget, band), settled))  # noqa: B023
        if not len(doubtful):
            return scored, settled
        again = _score(exact, plain.select(doubtful), pool, engine, f"again-{len(settled)}")
        again = _with_cost_of(scored.select(doubtful), again)
        worst = float(np.abs(_numbers(again, "_score") - scores[doubtful]).max())
        band = max(band, 1.5 * worst) if worst < 1 else band
        order = np.arange(len(scored))
        order[doubtful] = len(scored) + np.arange(len(doubtful))
        scored = concatenate_datasets([scored, again]).select(order).flatten_indices()
        settled = np.union1d(settled, doubtful)


def _doubtful(scored: Dataset, budget, band: float) -> np.ndarray:
    scores = _numbers(scored, "_score")
    size = budget_size(budget, int(np.isfinite(scores).sum()))
    return rows_in_doubt(scores, _numbers(scored, "_gap"), size, band)


def _with_cost_of(first: Dataset, again: Dataset) -> Dataset:
    """Rows scored again, with the tokens and seconds of both passes."""
    for name in ("_n_tokens", "_seconds"):
        both = _numbers(first, name) + _numbers(again, name)
        again = again.remove_columns(name).add_column(name, both, feature=SCORING_FEATURES[name])
    return again.select_columns(first.column_names)


def _record(selector, budget, scored: Dataset, kept: np.ndarray, n_rescored: int) -> SelectionRecord:
    reasons, counts = np.unique(np.asarray(scored.with_format("arrow")["skipped"]), return_counts=True)
    skipped = {reason: int(n) for reason, n in zip(reasons.tolist(), counts, strict=True) if reason}
    similarity = _numbers(scored, "similarity")
    encoder = selector.encoder
    options = vars(encoder.options) if encoder else {}
    settings = {**options, "dtype": encoder.precision} if encoder else {}
    name = selector.strategy if isinstance(selector.strategy, str) else _name_of(selector.strategy)
    return SelectionRecord(
        strategy=name,
        budget=budget,
        seed=selector.seed,
        model=encoder.label if encoder else ("column 'embeddings'" if selector.embeds else None),
        revision=encoder.identity() if encoder else None,
        settings={**settings, "geometry": selector.geometry} if selector.embeds else {},
        n_rows=len(scored),
        n_kept=len(kept),
        n_not_chosen=len(scored) - len(kept) - sum(skipped.values()),
        skipped=skipped,
        n_responses=int(_numbers(scored, "_n_responses").sum()),
        n_truncated=int(_numbers(scored, "_n_truncated").sum()),
        n_rescored=n_rescored,
        tokens=int(_numbers(scored, "_n_tokens").sum()),
        seconds=round(float(_numbers(scored, "_seconds").sum()), 3),
        **describe_similarity(similarity, similarity[kept]),
    )


def _numbers(dataset: Dataset, column: str) -> np.ndarray:
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
