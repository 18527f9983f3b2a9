"""Scores of the candidate pairs of a batch, from embeddings of its responses."""

from typing import Any, Literal

import numpy as np
import torch
from datasets import Features
from torch import Tensor

from trl_real.data.columns import OWN_FEATURES, POOL_COLUMNS, PREFERENCE_COLUMNS, is_pool
from trl_real.data.pairs import Candidates, drop_copies
from trl_real.errors import TrlRealError
from trl_real.functional.geometry import Geometry
from trl_real.models.embed import Context, EmbedderOptions
from trl_real.models.encoder import Encoder
from trl_real.models.load import prepare_process
from trl_real.selection.annotation import Choice, check_seed, choose, gather_candidates, given_vectors, skip_nonfinite
from trl_real.selection.strategies import Score, Strategy, as_strategy, split_geometry


# Part of the fingerprint: `datasets` hashes a selector's attributes, not its code.
ALGORITHM_VERSION = 1


class PairScorer:
    """
    Embedder and scorer of the pairs of a batch: base of `EmbeddingPairSelector`, which describes the arguments.

    Attributes:
        fitted (`Geometry`, *optional*): Fitted geometry; None before the fit.
    """

    def __init__(
        self,
        model: Any = None,
        *,
        strategy: str | Strategy | Score = "easy",
        tokenizer: Any = None,
        revision: str | None = None,
        context: Context = "response",
        layer: int = -1,
        max_length: int = 512,
        batch_tokens: int | None = None,
        dtype: str | torch.dtype | None = None,
        device: str | None = None,
        geometry: str = "raw",
        responses: str = "responses",
        seed: int = 42,
        include_bos: bool = False,
        include_eos: bool = False,
        on_nonfinite: Literal["error", "skip"] = "error",
    ):
        self.strategy, self.geometry = split_geometry(strategy, geometry)
        self.responses, self.seed, self.on_nonfinite = responses, seed, on_nonfinite
        options = EmbedderOptions(context, layer, max_length, batch_tokens, include_bos, include_eos)
        check_seed(seed)
        if on_nonfinite not in ("error", "skip"):
            raise TrlRealError(f"on_nonfinite={on_nonfinite!r} is not one of error, skip.")
        self.encoder: Encoder | None = None
        if model is not None and self.embeds:
            self.encoder = Encoder(model, tokenizer, revision, dtype, device, options)
        self.fitted: Geometry | None = None

    @property
    def rule(self) -> Strategy:
        """Record of the strategy."""
        return as_strategy(self.strategy)

    @property
    def embeds(self) -> bool:
        """Whether the strategy reads embeddings."""
        return self.rule.reads_embeddings

    def annotate(
        self, batch: dict[str, list], pool: bool, rank: int | None = None, row_ids: list[int] | None = None
    ) -> tuple[list[Candidates], Choice, dict[str, Any]]:
        """
        Return the candidates and the choice of each row of a batch, and the cost of the embeddings.

        Args:
            batch: Columns, as Python values.
            pool: Whether the batch is of a pool, not of labelled pairs.
            rank: Rank of the worker.
            row_ids: Row numbers for error messages; by default those in the batch.
        """
        prepare_process()
        rows = gather_candidates(batch, pool, self.responses)
        self._drop_copies(rows, rank)
        vectors, cost = self._vectors(rows, batch, rank)
        bad = skip_nonfinite(rows, vectors)
        if bad and self.on_nonfinite == "error":
            where = f"rows {[row_ids[i] for i in bad][:5]}" if row_ids else f"rows {bad[:5]} of this batch"
            raise TrlRealError(
                f"Embeddings of {where} are missing or contain NaN or infinity. "
                "Leave such rows out with on_nonfinite='skip', or embed in dtype='float32'."
            )
        gaps = self.encoder is not None and self.encoder.in_half_precision
        return rows, choose(rows, vectors, self.rule, self.seed, gaps), cost

    def features(self, features: Features) -> Features:
        """Return the features of a dataset after `map`, for `IterableDataset.map(features=…)`."""
        own = POOL_COLUMNS if is_pool(features, self.responses) else PREFERENCE_COLUMNS
        return Features({**features, **{name: OWN_FEATURES[name] for name in own}})

    def _drop_copies(self, rows: list[Candidates], rank: int | None) -> None:
        """Leave out responses that the model's chat template writes like an earlier one."""
        chats = [row for row in rows if isinstance(row.prompt, list) and row.texts]
        if self.encoder is None or not chats:
            return
        prompts = [row.prompt for row in chats for _ in row.texts]
        read = self.encoder.conversations(prompts, [text for row in chats for text in row.texts], rank)
        left = iter(read or ())
        for row in chats if read else ():
            drop_copies(row, [next(left) for _ in row.texts])

    def _vectors(self, rows: list[Candidates], batch: dict, rank: int | None) -> tuple[list[Tensor], dict[str, Any]]:
        """Return one `(K, d)` tensor per row, and their cost."""
        cost = {"n_tokens": 0, "seconds": 0.0, "truncated": np.zeros(len(rows), np.int32)}
        sizes = [len(row.texts) for row in rows]
        if not self.embeds:
            return [torch.zeros(size, 0) for size in sizes], cost
        if self.encoder is None:
            return [self._placed(v) for v in given_vectors(rows, batch)], cost
        texts = [text for row in rows for text in row.texts]
        prompts = [row.prompt for row in rows for _ in row.texts]
        found = self.encoder(prompts, texts, rank)
        cost.update(n_tokens=found.n_tokens, seconds=found.seconds)
        cost["truncated"] = np.array([int(part.sum()) for part in found.truncated.split(sizes)], np.int32)
        return [self._placed(part) for part in found.vectors.split(sizes)], cost

    def _placed(self, vectors: Tensor) -> Tensor:
        """Return the embeddings in the selector's geometry."""
        if self.geometry == "raw":
            return vectors
        if self.fitted is None:
            raise TrlRealError(
                f"geometry={self.geometry!r} is not fitted yet. Type selector.fit(dataset), or use select."
            )
        return self.fitted(vectors) if vectors.numel() else vectors

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "version": ALGORITHM_VERSION}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update({name: value for name, value in state.items() if name != "version"})
