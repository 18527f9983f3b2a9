"""Scores of the candidate pairs of a batch, from embeddings of its responses."""

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import torch
from datasets import Features
from torch import Tensor

from trl_real.data.columns import OWN_FEATURES, POOL_COLUMNS, PREFERENCE_COLUMNS, is_pool
from trl_real.data.images import images_of
from trl_real.data.pairs import Candidates, drop_copies
from trl_real.errors import TrlRealError
from trl_real.functional.geometry import Geometry
from trl_real.models.embed import Context, EmbedderOptions
from trl_real.models.encoder import Encoder
from trl_real.models.load import prepare_process
from trl_real.selection.annotation import Choice, check_seed, choose, gather_candidates, given_vectors, skip_nonfinite
from trl_real.selection.mixture.parts import Part, is_mixture, mixture_name, parts_of
from trl_real.selection.strategies import Score, Strategy


# Part of the fingerprint: `datasets` hashes a selector's attributes, not its code.
ALGORITHM_VERSION = 2


class PairScorer:
    """
    Embedder and scorer of the pairs of a batch: base of `EmbeddingPairSelector`, which describes the arguments.

    Attributes:
        fitted (`Geometry`, *optional*): Fitted geometry; None before the fit. Of a mixture, a dict by name.
    """

    def __init__(
        self,
        model: Any = None,
        *,
        strategy: str | Strategy | Score | Mapping[Any, float] = "easy",
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
        self.parts = parts_of(strategy, geometry)
        self.strategy, self.geometry = self.parts[0].strategy, self.parts[0].geometry
        self.mixed = is_mixture(strategy)
        if self.mixed:
            self.strategy, self.geometry = mixture_name(strategy), "raw"
        self.responses, self.seed, self.on_nonfinite = responses, seed, on_nonfinite
        options = EmbedderOptions(context, layer, max_length, batch_tokens, include_bos, include_eos)
        check_seed(seed)
        if on_nonfinite not in ("error", "skip"):
            raise TrlRealError(f"on_nonfinite={on_nonfinite!r} is not one of error, skip.")
        self.encoder: Encoder | None = None
        if model is not None and self.embeds:
            self.encoder = Encoder(model, tokenizer, revision, "float32" if self.exact else dtype, device, options)
        self.fitted: Geometry | dict[str, Geometry] | None = None

    @property
    def rule(self) -> Strategy:
        """Record of the strategy, of a mixture that of its first part."""
        return self.parts[0].rule

    @property
    def embeds(self) -> bool:
        """Whether the strategy reads embeddings."""
        return any(part.rule.reads_embeddings for part in self.parts)

    @property
    def reads_images(self) -> bool:
        """Whether embeddings depend on a row's images: a response alone has none."""
        return self.encoder is not None and self.encoder.options.context == "prompt+response"

    @property
    def exact(self) -> bool:
        """Whether every row is embedded in float32, whatever the dtype."""
        return self.mixed or self.rule.exact

    @property
    def geometries(self) -> list[str]:
        """Geometries to fit before the selection."""
        return sorted({part.geometry for part in self.parts if part.rule.reads_embeddings} - {"raw"})

    def set_fitted(self, found: dict[str, Geometry]) -> None:
        """Keep the fitted geometries, by name."""
        self.fitted = found if self.mixed else found.get(self.geometry)

    def annotate(
        self, batch: dict[str, list], pool: bool, rank: int | None = None, row_ids: list[int] | None = None
    ) -> tuple[list[Candidates], list[Choice], dict[str, Any]]:
        """
        Return the candidates and each part's choice in every row of a batch, and the cost of the embeddings.

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
        shown = vectors if self.mixed else None  # one scale of similarity for all parts
        placed = ((part, [self._placed(v, part) for v in vectors]) for part in self.parts)
        return rows, [choose(rows, own, part.rule, self.seed, gaps, shown) for part, own in placed], cost

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
        cost = {"n_tokens": 0, "seconds": 0.0, "truncated": np.zeros(len(rows), np.int32), "batch_tokens": 0}
        sizes = [len(row.texts) for row in rows]
        if not self.embeds:
            return [torch.zeros(size, 0) for size in sizes], cost
        if self.encoder is None:
            return given_vectors(rows, batch), cost
        texts = [text for row in rows for text in row.texts]
        prompts = [row.prompt for row in rows for _ in row.texts]
        shown = images_of(batch) if self.reads_images else [[] for _ in rows]
        images = [each for row, each in zip(rows, shown, strict=True) for _ in row.texts]
        found = self.encoder(prompts, texts, rank, images)
        used = self.encoder.used.get("batch_tokens", 0)
        cost.update(n_tokens=found.n_tokens, seconds=found.seconds, batch_tokens=used)
        cost["truncated"] = np.array([int(part.sum()) for part in found.truncated.split(sizes)], np.int32)
        return list(found.vectors.split(sizes)), cost

    def _placed(self, vectors: Tensor, part: Part) -> Tensor:
        """Return the embeddings in the geometry of a part."""
        if part.geometry == "raw" or not vectors.numel() or not part.rule.reads_embeddings:
            return vectors
        fitted = self.fitted.get(part.geometry) if isinstance(self.fitted, dict) else self.fitted
        if fitted is None:
            raise TrlRealError(
                f"geometry={part.geometry!r} is not fitted yet. Type selector.fit(dataset), or use select."
            )
        return fitted(vectors)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "version": ALGORITHM_VERSION}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update({name: value for name, value in state.items() if name != "version"})
