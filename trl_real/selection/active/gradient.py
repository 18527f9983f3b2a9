"""ActiveDPO's selection: pairs with the most uncertain implicit-reward gradients, given the labelled pairs."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor

from trl_real.errors import TrlRealError
from trl_real.functional.design import greedy_design, pair_features
from trl_real.models.adapters import active_adapter
from trl_real.models.gradients import GradientFeatures, GradientOptions, Gradients
from trl_real.models.lazy_model import LazyModel
from trl_real.selection.active.base import ActiveSelector, Picks, Reading, cosines
from trl_real.selection.active.gradient_shards import gradients_in_shards
from trl_real.selection.active.pool import ActivePool


class PairRows:
    """
    Features of pairs, shape `(P, d)`, computed on access from the `n` vectors that the pairs share; for
    `greedy_design`.

    Args:
        vectors: Vectors of responses, shape `(n, d)`, or of whole pairs.
        ends: Responses of each pair, shape `(P, 2)`; None for vectors of whole pairs.
        normalize: As in `pair_features`; "pair" or None for vectors of whole pairs.
    """

    def __init__(self, vectors: Tensor, ends: Tensor | None, normalize: str | None):
        self.vectors, self.ends, self.normalize = vectors, ends, normalize
        self.dtype, self.shape = vectors.dtype, torch.Size((len(self), vectors.shape[1]))

    def __len__(self) -> int:
        return len(self.vectors) if self.ends is None else len(self.ends)

    def __getitem__(self, rows: Any) -> Tensor:
        if self.ends is None:
            first = self.vectors[rows]
            return pair_features(first, torch.zeros_like(first), self.normalize)
        first, second = self.ends[rows].unbind(-1)
        return pair_features(self.vectors[first], self.vectors[second], self.normalize)

    def split(self, size: int) -> list[Tensor] | Any:
        """Yield blocks of rows."""
        return (self[torch.arange(start, min(start + size, len(self)))] for start in range(0, len(self), size))


class GradientPairSelector(ActiveSelector):
    r"""
    Selector of ActiveDPO (arXiv 2505.19241). It picks pairs in turn, each with the largest `phi^T V^-1 phi`,
    `V = lambda I + sum phi phi^T` over the labelled and the picked pairs, where `phi = g(x, y_1) - g(x, y_2)` and `g`
    is the gradient of the implicit reward in the policy's LoRA parameters
    (`trl_real.models.gradients.GradientFeatures`).

    Choices that the paper leaves open: the gradient of each response is scaled to length 1 after the projection;
    gradients of labelled pairs are computed again with the current policy, as in the theory; a prompt may be picked
    more than once. The result depends neither on the reference model nor on `beta`.

    The vectors of the responses are one float32 matrix `(n, d)` in memory, 32 KB per response with 8,192 numbers.

    ```python
    selector = GradientPairSelector(policy, tokenizer=tokenizer)
    labelled = annotate(selector.select(pool, 50), judge)
    more = selector.select(pool, 50, history=labelled)
    ```

    `uncertainty` is `phi^T V^-1 phi` when the pair was picked; `similarity` is the cosine of the two gradients (NaN if
    only differences were computed). `record.settings["information"]` is the growth of `log det V` over all picks, in
    nats.

    Args:
        model (`PeftModel` or `str`):
            Policy with the LoRA adapter of which the gradients are taken, or path or Hub id of an adapter, loaded on
            first use.
        tokenizer (*optional*): Tokenizer of a loaded model.
        revision (`str`, *optional*): Branch, tag or commit on the Hub.
        projection (`str`, *optional*, defaults to `"count_sketch"`): Name in `PROJECTIONS`.
        projection_dim (`int`, *optional*, defaults to `8192`): Length of a projected gradient; None for all of it.
        normalize (`str`, *optional*, defaults to `"response"`):
            Vectors scaled to length 1: the gradient of each `"response"`, the difference of each `"pair"`, or none
            (None; long responses then have long gradients).
        ridge (`float`, *optional*, defaults to `1.0`): `lambda`, in units of squared features.
        max_per_prompt (`int`, *optional*): Maximum number of pairs per prompt in one selection.
        max_length (`int`, *optional*, defaults to `512`): Number of tokens to read per response and per prompt.
        batch_tokens (`int`, *optional*): Tokens per pass; by default 1024 on a CPU, elsewhere as many as fit,
            16384 at most.
        all_processes (`bool`, *optional*, defaults to `False`):
            Whether all processes of `torchrun` or `accelerate launch` call `select` together: each computes its share
            of the vectors, and all pick the same pairs.
        shards (`str`, *optional*):
            Folder to save the vectors in, shard by shard: a killed selection continues there, and the processes of a
            launcher share the work. With shards, vectors are of responses only, not of whole pairs.
        dtype (`str`, *optional*): Precision of the matrix products.
        device (`str`, *optional*): Device of a model given by name; a loaded model is not moved.
        responses (`str`, *optional*, defaults to `"responses"`): Column with the list of responses.
        seed (`int`, *optional*, defaults to `42`): Seed of the projection.

    Raises:
        TrlRealError: If a setting is out of range, or a loaded model has no active LoRA adapter.
    """

    strategy = "gradient"
    unusable = "gradient not finite, or no token to score"

    def __init__(
        self,
        model: Any,
        *,
        tokenizer: Any = None,
        revision: str | None = None,
        projection: str | None = "count_sketch",
        projection_dim: int | None = 8192,
        normalize: str | None = "response",
        ridge: float = 1.0,
        max_per_prompt: int | None = None,
        max_length: int = 512,
        batch_tokens: int | None = None,
        all_processes: bool = False,
        shards: str | os.PathLike | None = None,
        dtype: Any = None,
        device: str | None = None,
        responses: str = "responses",
        seed: int = 42,
    ):
        super().__init__(responses, seed, max_per_prompt)
        if all_processes and shards is not None:
            raise TrlRealError("With shards all processes share the work already. Leave all_processes out.")
        self.options = GradientOptions(projection, projection_dim, max_length, batch_tokens, seed, all_processes)
        self.shards, self.normalize, self.ridge = shards, normalize, ridge
        nothing = torch.zeros(0, 1)
        pair_features(nothing, nothing, normalize)  # raises if the normalization is unknown
        greedy_design(nothing, 0, ridge=ridge)  # raises if the ridge is out of range
        if not isinstance(model, str | os.PathLike):
            active_adapter(model)
        self.model = LazyModel(model, tokenizer, revision, dtype, device)

    def _read(self, pool: ActivePool, plain: Dataset) -> Reading:
        model, tokenizer = self.model.load(adapters=True)
        features = GradientFeatures(model, tokenizer, self.options, self.model.cast_to)
        settings = {
            **{name: getattr(self.options, name) for name in ("projection", "projection_dim", "max_length")},
            "normalize": self.normalize,
            "ridge": self.ridge,
            "dtype": self.model.dtype or self.model.precision,
            "fingerprint": features.projection.fingerprint,
        }
        read = self._read_pairs if self._pairs_are_cheaper(pool) else self._read_responses
        reading = read(pool, features)
        reading.settings = {**settings, "passes": features.method, "batch_tokens": features.batch_tokens}
        return reading

    def _pairs_are_cheaper(self, pool: ActivePool) -> bool:
        """Return whether a backward pass per pair, which reads the prompt once, is less work than one per response."""
        return (
            self.shards is None
            and self.normalize != "response"
            and 2 * (len(pool.row) + len(pool.labelled)) <= len(pool.texts)
        )

    def _read_responses(self, pool: ActivePool, features: GradientFeatures) -> Reading:
        found = self._gradients(pool, features)
        usable = (found.n_scored > 0) & (found.norms > 0) & found.norms.isfinite()
        if self.normalize == "response":  # in place, once per response
            found.vectors.div_(found.norms[:, None].clamp_min(torch.finfo(found.vectors.dtype).tiny))
        labelled = pool.labelled[usable[pool.labelled].all(1).numpy()]
        normalize = None if self.normalize == "response" else self.normalize
        history = PairRows(found.vectors, torch.from_numpy(labelled), normalize)
        return Reading(
            ~usable[pool.ends].all(1).numpy(),
            found.truncated.numpy(),
            found.n_tokens,
            found.seconds,
            cosines(found.vectors, pool.ends),
            values=(PairRows(found.vectors, torch.from_numpy(pool.ends), normalize), history),
        )

    def _gradients(self, pool: ActivePool, features: GradientFeatures) -> Gradients:
        if self.shards is None:
            return features(pool.prompts, pool.texts)
        names = ("projection", "projection_dim", "max_length", "seed")
        settings = {name: getattr(self.options, name) for name in names}
        return gradients_in_shards(
            features, {**self.model.identity, **settings}, pool.prompts, pool.texts, Path(self.shards)
        )

    def _read_pairs(self, pool: ActivePool, features: GradientFeatures) -> Reading:
        ends = np.concatenate([pool.ends, pool.labelled])
        first, second = ([pool.texts[i] for i in side] for side in ends.T.tolist())
        found = features.differences([pool.prompts[i] for i in ends[:, 0]], first, second)
        usable = (found.n_scored > 0) & found.norms.isfinite()
        n = len(pool.ends)
        truncated = np.zeros(len(pool.texts), bool)
        truncated[ends[found.truncated.numpy()]] = True  # at least one of the two
        parts = found.vectors[:n], found.vectors[n:][usable[n:]]
        values = tuple(PairRows(part, None, self.normalize) for part in parts)
        return Reading(~usable[:n].numpy(), truncated, found.n_tokens, found.seconds, values=values)

    def _pick(self, pool: ActivePool, reading: Reading, k: int) -> Picks:
        features, history = reading.values
        free = torch.from_numpy(np.flatnonzero(pool.free))
        candidates: Any  # what `greedy_design` reads of a tensor
        if features.ends is None:
            candidates = PairRows(features.vectors[free], None, features.normalize)
        else:
            candidates = PairRows(features.vectors, features.ends[free], features.normalize)
        design = greedy_design(
            candidates,
            k,
            ridge=self.ridge,
            history=history[torch.arange(len(history))] if len(history) else None,
            max_per_prompt=self.max_per_prompt,
            prompts=torch.from_numpy(pool.groups[pool.row[free.numpy()]]),
        )
        settings = {"information": round(float(design.gains.sum()), 6), "log_det": round(design.log_det, 6)}
        return Picks(free[design.indices].numpy(), design.scores.numpy(), settings)

    def _identity(self) -> dict[str, Any]:
        identity = self.model.identity
        return {"model": identity["model"], "revision": identity["revision"]}
