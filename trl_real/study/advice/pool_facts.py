"""What a pool looks like before any label: how alike its responses are, who wrote them, how long they are."""

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
from datasets import Dataset
from torch import Tensor

from trl_real.functional.similarity import candidate_similarity
from trl_real.study.pool import StudyPool


WRITERS = ("models", "model", "writers", "generators")  # columns that say who wrote each response
COPIES = 0.999  # similarity of near-copies


@dataclass
class PoolFacts:
    """
    Facts about a pool.

    Args:
        n_rows: Number of rows with a pair.
        n_skipped: Number of rows without one.
        n_responses: Mean number of different responses per row.
        n_writers: Number of writers in the first column of `WRITERS` that is there; None without.
        characters: Median length of a response.
        repeated: Share of the responses that stand in more than one row.
        similarity: Quantiles `p05`, `median`, `p95` of the similarity of two responses to a prompt.
        near_copies: Share of the pairs that are nearly the same to the model.
    """

    n_rows: int
    n_skipped: int
    n_responses: float
    n_writers: int | None
    characters: float
    repeated: float
    similarity: dict[str, float]
    near_copies: float

    def words(self) -> str:
        """Return the facts in one sentence."""
        writers = "" if self.n_writers is None else f" by {self.n_writers} writers"
        repeated = f", {self.repeated:.0%} of them in several rows" if self.repeated >= 0.01 else ""
        copies = f", {self.near_copies:.0%} near-copies" if self.near_copies >= 0.01 else ""
        return (
            f"The pool has {self.n_rows:,} rows with {self.n_responses:.1f} responses each{writers}{repeated}, of "
            f"{self.characters:,.0f} characters (median); two responses to a prompt have a similarity of "
            f"{self.similarity['median']:.2f} (5 to 95 %: {self.similarity['p05']:.2f} to "
            f"{self.similarity['p95']:.2f}){copies}."
        )


def pool_facts(dataset: Dataset, pool: StudyPool, vectors: list[Tensor]) -> PoolFacts:
    """
    Collect the facts.

    Args:
        dataset: The pool as it came.
        pool: Its rows with a pair.
        vectors: Embeddings of the first rows of the pool, `(K, d)` each.
    """
    texts = [text for row in pool.rows for text in row.texts]
    n_rows_of = Counter(text for row in pool.rows for text in set(row.texts))
    each = [candidate_similarity(v[None].double())[0].numpy() for v in vectors]
    similar = np.concatenate(each) if each else np.zeros(0)
    quantiles = np.nanquantile(similar, [0.05, 0.5, 0.95]).tolist()
    return PoolFacts(
        n_rows=len(pool),
        n_skipped=len(dataset) - len(pool),
        n_responses=len(texts) / len(pool),
        n_writers=_writers(dataset),
        characters=float(np.median([len(text) for text in texts])),
        repeated=float(np.mean([n_rows_of[text] > 1 for text in texts])),
        similarity=dict(zip(("p05", "median", "p95"), quantiles, strict=True)),
        near_copies=float((similar > COPIES).mean()),
    )


def _writers(dataset: Dataset) -> int | None:
    name = next((name for name in WRITERS if name in dataset.column_names), None)
    if name is None:
        return None
    found: set[Any] = set()
    for value in dataset.with_format(None)[name]:
        found.update(value if isinstance(value, list) else [value])
    return len(found - {None})
