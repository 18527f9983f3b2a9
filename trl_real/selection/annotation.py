"""Candidates and chosen pair of each row of a batch, and the columns that show them."""

import hashlib
import struct
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trl_real.data.columns import EMBEDDINGS
from trl_real.data.conversation import prompts_of
from trl_real.data.pairs import Candidates, pool_candidates, preference_candidates
from trl_real.errors import TrlRealError, check_columns
from trl_real.functional.design import by_response
from trl_real.functional.similarity import candidate_pairs, pair_similarity
from trl_real.selection.strategies import Score, Strategy, as_strategy, lowest


_NOT_VECTORS = "'embeddings' must have one vector per response, all of one length, in the order of the responses."
NOT_FINITE = "embedding not finite"


@dataclass
class Choice:
    """
    Pair that a strategy picks in each of `N` rows.

    Args:
        pairs: Indices into the row's responses, lower first; -1 without a pair. Shape `(N, 2)`, int32.
        similarity: Similarity of the two responses; NaN without a pair or embeddings. Shape `(N,)`, float32.
        scores: Score of the pair; NaN without a pair. Shape `(N,)`, float64.
        gaps: Lead of the pair over the second-best (`Strategy.gap`); infinite for one pair, or if
            not asked for. Shape `(N,)`, float64.
        differences: `N` differences of the pair's unit vectors, shape `(d,)`, float32; empty unless the strategy's
            budget reads them.
    """

    pairs: np.ndarray
    similarity: np.ndarray
    scores: np.ndarray
    gaps: np.ndarray
    differences: list[np.ndarray]


def gather_candidates(batch: dict[str, list], pool: bool, responses: str) -> list[Candidates]:
    """Return the candidates of each row of a pool or of labelled pairs, without the order of the labels."""
    n_rows = len(batch[responses if pool else "chosen"])
    prompts = batch.get("prompt") or [None] * n_rows
    if pool:
        rows = [pool_candidates(*row, responses) for row in zip(prompts, batch[responses], strict=True)]
    else:
        rows = [preference_candidates(*row) for row in zip(prompts, batch["chosen"], batch["rejected"], strict=True)]
    for row, prompt in zip(rows, prompts_of(batch, [row.prompt for row in rows]), strict=True):
        row.prompt = prompt
    return rows


def choose(
    rows: list[Candidates],
    vectors: list[Tensor],
    strategy: Strategy | Score,
    seed: int,
    gaps: bool = False,
    shown: list[Tensor] | None = None,
) -> Choice:
    """
    Apply a strategy to rows with any number of responses.

    Args:
        rows: Candidates; rows with a reason to skip are ignored.
        vectors: One tensor per row, with one vector per candidate. Shape `(K, d)`; `d = 0` if the strategy reads none.
        strategy: Record or function.
        seed: Seed of the draws.
        gaps: Whether to compute the gaps, which only half precision reads.
        shown: Vectors in which to measure the similarity; by default those of the strategy.
    """
    n, strategy = len(rows), as_strategy(strategy)
    choice = Choice(
        np.full((n, 2), -1, np.int32),
        np.full(n, np.nan, np.float32),
        np.full(n, np.nan),
        np.full(n, np.inf),
        [np.zeros(0, np.float32)] * n,
    )
    groups = defaultdict(list)
    for index, row in enumerate(rows):
        if not row.skipped:
            groups[len(row.texts)].append(index)
    for n_responses, members in groups.items():
        embeddings = torch.stack([vectors[i] for i in members])  # (N, K, d)
        draws = _draws([rows[i] for i in members], strategy, seed)  # (N, P)
        scores = checked_scores(strategy(embeddings, draws), draws.shape, f"Strategy {strategy.__name__}")
        picked = lowest(scores)
        first, second = candidate_pairs(n_responses)[:, picked]
        order = np.array([rows[i].indices for i in members])
        each = np.arange(len(members))
        choice.pairs[members] = np.stack([order[each, first.numpy()], order[each, second.numpy()]], axis=1)
        choice.scores[members] = scores[each, picked].numpy()
        if gaps and scores.shape[1] > 1:
            choice.gaps[members] = strategy.gap(embeddings, scores).numpy()
        if embeddings.shape[-1]:
            ends = embeddings[each, first], embeddings[each, second]
            seen = embeddings if shown is None else torch.stack([shown[i] for i in members])
            choice.similarity[members] = pair_similarity(seen[each, first], seen[each, second]).numpy()
            if strategy.budget:
                for i, difference in zip(members, by_response(*map(Tensor.double, ends)).float(), strict=True):
                    choice.differences[i] = difference.numpy()
    return choice


def given_vectors(rows: list[Candidates], batch: dict[str, Any]) -> list[Tensor]:
    """
    Return the embeddings in the column `embeddings`, one `(K, d)` tensor per row; NaN where a row has none.

    Raises:
        MissingColumnError: If the column is missing.
        TrlRealError: If it does not have one vector per response, all of one length.
    """
    fix = "Give EmbeddingPairSelector a model, or one vector per response in 'embeddings'."
    check_columns(batch, [EMBEDDINGS], fix)
    vectors = [_given_row(row, given) for row, given in zip(rows, batch[EMBEDDINGS], strict=True)]
    sizes = {v.shape[1] for v in vectors if len(v) and not v.isnan().all()}
    if len(sizes) > 1:
        raise TrlRealError(f"The vectors in 'embeddings' differ in length: {sorted(sizes)}. Embed with one model.")
    return vectors


def skip_nonfinite(rows: list[Candidates], vectors: list[Tensor]) -> list[int]:
    """Mark rows with an embedding that is not finite as skipped, and return their indices."""
    bad = [i for i, row in enumerate(rows) if not row.skipped and not torch.isfinite(vectors[i]).all()]
    for i in bad:
        rows[i].skipped = NOT_FINITE
    return bad


def response_keys(rows: list[Candidates], pairs: np.ndarray) -> np.ndarray:
    """Return a key of each response of the pairs, from its prompt and text; 0 without a pair. Shape `(N, 2)`."""
    keys = np.zeros(pairs.shape, np.int64)
    for i, (row, pair) in enumerate(zip(rows, pairs.tolist(), strict=True)):
        if pair[0] >= 0:
            texts = dict(zip(row.indices, row.texts, strict=True))
            each = (content_key(0, row.prompt, [texts[k]]) for k in pair)
            keys[i] = np.frombuffer(b"".join(each), dtype="<i8")
    return keys


def to_own_columns(rows: list[Candidates], pairs: np.ndarray, similarity: np.ndarray) -> dict[str, list]:
    """Return the columns that a selector adds, with the same types in every batch."""
    texts = [dict(zip(row.indices, row.texts, strict=True)) for row in rows]
    return {
        "pair": list(pairs),
        "response_a": [t.get(first, "") for t, first in zip(texts, pairs[:, 0].tolist(), strict=True)],
        "response_b": [t.get(second, "") for t, second in zip(texts, pairs[:, 1].tolist(), strict=True)],
        "similarity": list(similarity),
        "skipped": [row.skipped for row in rows],
    }


def check_seed(seed: Any) -> None:
    """Raise TrlRealError unless the seed is an integer of 64 bits."""
    if isinstance(seed, bool) or not isinstance(seed, Integral) or not -(2**63) <= int(seed) < 2**63:
        raise TrlRealError(f"seed={seed!r} is not a whole number of 64 bits. Type seed=42.")


def content_key(seed: int, prompt: Any, texts: list[str]) -> bytes:
    """Return a digest of the seed and a row's content, independent of the order of its responses."""
    digest = hashlib.blake2b(struct.pack("<q", seed) + _digest(repr(prompt)), digest_size=8)
    for text in sorted(_digest(text) for text in texts):
        digest.update(text)
    return digest.digest()


def _draws(rows: list[Candidates], strategy: Strategy, seed: int) -> Tensor:
    """Return uniform numbers in [0, 1) per candidate pair, from the seed and the content. Shape `(N, P)`."""
    n_pairs = len(rows[0].texts) * (len(rows[0].texts) - 1) // 2
    if not strategy.needs_draws:
        return torch.zeros(len(rows), n_pairs, dtype=torch.float64)
    pairs = candidate_pairs(len(rows[0].texts)).T.tolist()
    keys = [content_key(seed, row.prompt, [row.texts[i], row.texts[j]]) for row in rows for i, j in pairs]
    numbers = np.frombuffer(b"".join(keys), dtype="<u8") / 2.0**64
    return torch.from_numpy(numbers.reshape(len(rows), n_pairs))


def checked_scores(scores: Any, shape: Sequence[int], name: str) -> Tensor:
    """Return the scores in float64 after a check that there is one finite number per candidate pair."""
    shape = tuple(shape)
    if not isinstance(scores, Tensor) or tuple(scores.shape) != shape:
        found = tuple(scores.shape) if hasattr(scores, "shape") else type(scores).__name__
        raise TrlRealError(f"{name} must return a tensor (N, P), here {shape}; it returned {found}.")
    if not torch.isfinite(scores).all():
        raise TrlRealError(f"{name} returned scores that are not finite. Return a large number instead.")
    return scores.double()


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _given_row(row: Candidates, given: Any) -> Tensor:
    """Return the vectors of the row's candidates, NaN if the row has none. Shape `(K, d)`."""
    if row.skipped:
        return torch.zeros(0, 0)
    if given is None or any(i < len(given) and given[i] is None for i in row.indices):
        return torch.full((len(row.texts), 1), torch.nan)
    try:
        vectors = torch.from_numpy(np.array([np.asarray(given[i], np.float32) for i in row.indices]))
    except (IndexError, ValueError, TypeError) as error:
        raise TrlRealError(_NOT_VECTORS) from error
    if vectors.ndim != 2:
        raise TrlRealError(_NOT_VECTORS)
    return vectors
