"""Fit of a selector's geometry to a sample of the pool, drawn by seed and content."""

import copy
import hashlib
import heapq
from pathlib import Path

import safetensors.torch
import torch
from datasets import Dataset
from datasets.fingerprint import Hasher

from trl_real.data.columns import is_pool, to_columns
from trl_real.errors import TrlRealError
from trl_real.functional.geometry import GEOMETRIES, Geometry
from trl_real.runtime.atomic_files import write_atomic
from trl_real.runtime.stream_shards import Chunks
from trl_real.selection.annotation import content_key, gather_candidates
from trl_real.selection.scorer import PairScorer


GEOMETRY_SAMPLE = 1000

Keys = list[tuple[bytes, int]]


def fitted_geometry(selector: PairScorer, dataset: Dataset, name: str, folder: Path | None = None) -> Geometry:
    """
    Fit a geometry to the responses of up to 1,000 rows: those with the lowest digests of seed and content.

    Args:
        selector: Selector that reads the rows.
        dataset: Pool or labelled pairs.
        name: Name in `GEOMETRIES`.
        folder: Folder to save the geometry in, so that a restarted run uses the same bits.

    Raises:
        TrlRealError: If no row has a pair.
    """
    pool = is_pool(dataset.column_names, selector.responses)
    plain = dataset.with_format(None)
    wanted = [name for name in ("prompt", selector.responses, "chosen", "rejected") if name in plain.column_names]
    keys: Keys = []
    for number, batch in enumerate(plain.select_columns(wanted).iter(1000)):
        keys = _lowest_keys(selector, pool, keys, batch, 1000 * number)
    return _geometry(selector, name, pool, keys, plain.select([row for _, row in keys]), folder)


def geometry_of_stream(selector: PairScorer, chunks: Chunks, pool: bool, name: str, folder: Path) -> Geometry:
    """
    Fit the same geometry as `fitted_geometry` in one pass that holds a chunk and 1,000 rows in memory.

    Args:
        selector, name, folder: As in `fitted_geometry`.
        chunks: Chunks of a pool or labelled pairs, with the columns that the selector reads.
        pool: Whether the rows are a pool.

    Raises:
        TrlRealError: If no row has a pair.
    """
    keys: Keys = []
    held: dict[int, dict] = {}
    for start, rows in chunks:
        keys = _lowest_keys(selector, pool, keys, rows.with_format(None)[:], start)
        held = {row: held[row] if row in held else rows[row - start] for _, row in keys}
    columns = {name: [held[row][name] for _, row in keys] for name in chunks.features}
    sample = Dataset.from_dict(columns, features=chunks.features)
    return _geometry(selector, name, pool, keys, sample, folder)


def _lowest_keys(selector, pool: bool, keys: Keys, batch: dict[str, list], start: int) -> Keys:
    """Return the lowest keys so far with their row numbers, ascending."""
    found = [
        (content_key(selector.seed, row.prompt, row.texts), start + i)
        for i, row in enumerate(gather_candidates(batch, pool, selector.responses))
        if not row.skipped
    ]
    return heapq.nsmallest(GEOMETRY_SAMPLE, keys + found)


def _geometry(selector, name: str, pool: bool, keys: Keys, sample: Dataset, folder: Path | None) -> Geometry:
    if not keys:
        raise TrlRealError(f"geometry={name!r}, but no row has two responses to fit it to.")
    plain_selector = copy.copy(selector)
    plain_selector.geometry, plain_selector.fitted = "raw", None
    if folder is None:
        return _fit(selector, name, sample, pool)
    digest = hashlib.blake2b(repr([name, Hasher.hash(plain_selector), keys]).encode(), digest_size=8)
    file = folder / f"geometry-{digest.hexdigest()}.safetensors"
    if not file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(file, safetensors.torch.save(_fit(selector, name, sample, pool)._asdict()))
    return Geometry(**safetensors.torch.load(file.read_bytes()))


def _fit(selector, name: str, sample: Dataset, pool: bool) -> Geometry:
    batch = to_columns(sample[:])
    vectors, _ = selector._vectors(gather_candidates(batch, pool, selector.responses), batch, None)
    vectors = [v for v in vectors if torch.isfinite(v).all()]
    if not vectors:
        raise TrlRealError(f"geometry={name!r}, but no embedding of the sample is finite.")
    fitted = GEOMETRIES[name](torch.cat(vectors).double())
    return Geometry(fitted.shift.float(), fitted.matrix.float())
