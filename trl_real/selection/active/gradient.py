"""ActiveDPO's selection: the pairs whose implicit-reward gradients are the most uncertain given what was labelled."""

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
from trl_real.selection.active.base import ActiveSelector, Picks, Reading, checked_cap, cosines
from trl_real.selection.active.gradient_shards import gradients_in_shards
from trl_real.selection.active.pool import ActivePool


class PairRows:
    """
    Features of pairs, formed when they are looked at: what `greedy_design` reads of a tensor of shape `(P, d)`, in
    the memory of the `n` vectors that the pairs share.

    Args:
        vectors: Of responses, shape `(n, d)`, or of whole pairs.
        ends: Responses of each pair, shape `(P, 2)`; None where the vectors are those of pairs.
        normalize: As for `pair_features`; vectors of whole pairs know "pair" and None.
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
        """Blocks of rows, one at a time."""
        return (self[torch.arange(start, min(start + size, len(self)))] for start in range(0, len(self), size))


class GradientPairSelector(ActiveSelector):
    r"""
    ActiveDPO (arXiv 2505.19241): pick, one after the other, the pair with the largest
    `phi^T V^-1 phi`, `V = lambda I + sum phi phi^T` over the labelled and the picked pairs, where
    `phi = g(x, y_1) - g(x, y_2)` and `g` is the gradient of the implicit reward in the policy's LoRA parameters
    (`trl_real.models.gradients.GradientFeatures`).

    What the paper leaves open, and what is done here: gradients are scaled to length 1 response by response, after
    the projection; those of labelled pairs are computed again, at the policy as it is now, as the theory has it; a
    prompt may be picked more than once. Neither reference model nor `beta` matters, and neither is asked for.

    The vectors of the responses are held as one float32 matrix `(n, d)`, 32 KB a response at 8,192 numbers; features
    of pairs are formed in blocks.

    ```python
    selector = GradientPairSelector(policy, tokenizer=tokenizer)
    labelled = annotate(selector.select(pool, 50), judge)
    more = selector.select(pool, 50, history=labelled)
    ```

    `uncertainty` is `phi^T V^-1 phi` when the pair was picked; `similarity` the cosine of the two gradients (NaN
    where differences alone were computed). `record.settings["information"]` is what all picks together told, the
    growth of `log det V`, in nats.

    Args:
        model (`PeftModel` or `str`):
            The policy; its own LoRA adapter is the one measured. Or a path or Hub id of an adapter, loaded on first
            use.
        tokenizer (*optional*): Of a loaded model.
        revision (`str`, *optional*): Branch, tag or commit on the Hub.
        projection (`str`, *optional*, defaults to `"count_sketch"`): A name in `PROJECTIONS`.
        projection_dim (`int`, *optional*, defaults to `8192`): Numbers a gradient is projected to; None for all.
        normalize (`str`, *optional*, defaults to `"response"`):
            What has length 1: each response's gradient, each `"pair"`'s difference, or nothing (None): un-normalised
            gradients are long where responses are.
        ridge (`float`, *optional*, defaults to `1.0`): `lambda`, in units of squared features.
        max_per_prompt (`int`, *optional*): Pairs of one prompt that a selection may pick.
        max_length (`int`, *optional*, defaults to `512`): Tokens of a response that are scored, and of a prompt read.
        batch_tokens (`int`, *optional*): Tokens in a pass; by default 1024 on a CPU and 16384 elsewhere.
        all_processes (`bool`, *optional*, defaults to `False`):
            Under `torchrun` or `accelerate launch`, whether all processes call `select` together: each computes its
            share of the vectors, and all of them pick the same pairs.
        shards (`str`, *optional*):
            Folder in which the vectors are kept in parts, so that a selection that was killed goes on there, shared
            out among the processes of a launcher. Vectors of responses only: whole pairs are not computed then.
        dtype (`str`, *optional*): Precision of the matrix products.
        device (`str`, *optional*): For a model given by name; a loaded one stays where it is.
        responses (`str`, *optional*, defaults to `"responses"`): Column that holds the list of responses.
        seed (`int`, *optional*, defaults to `42`): Of the projection.

    Raises:
        TrlRealError: If a setting is out of range, or a loaded model has no LoRA adapter that is on.
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
        super().__init__(responses, seed)
        if all_processes and shards is not None:
            raise TrlRealError("With shards all processes share the work already. Leave all_processes out.")
        self.options = GradientOptions(projection, projection_dim, max_length, batch_tokens, seed, all_processes)
        self.shards = shards
        self.normalize, self.ridge, self.max_per_prompt = normalize, ridge, checked_cap(max_per_prompt)
        nothing = torch.zeros(0, 1)
        pair_features(nothing, nothing, normalize)  # raises if there is no such normalisation
        greedy_design(nothing, 0, ridge=ridge)  # and if the ridge is out of range
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
        reading.settings = {**settings, "passes": features.method}
        return reading

    def _pairs_are_cheaper(self, pool: ActivePool) -> bool:
        """Whether a backward pass a pair, which reads its prompt once, is less work than one a response."""
        return (
            self.shards is None
            and self.normalize != "response"
            and 2 * (len(pool.row) + len(pool.labelled)) <= len(pool.texts)
        )

    def _read_responses(self, pool: ActivePool, features: GradientFeatures) -> Reading:
        found = self._found(pool, features)
        usable = (found.n_scored > 0) & (found.norms > 0) & found.norms.isfinite()
        if self.normalize == "response":  # once, in place, and not a pair at a time
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

    def _found(self, pool: ActivePool, features: GradientFeatures) -> Gradients:
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
        truncated[ends[found.truncated.numpy()]] = True  # of a pair: one of the two at least
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
        told = {"information": round(float(design.gains.sum()), 6), "log_det": round(design.log_det, 6)}
        return Picks(free[design.indices].numpy(), design.scores.numpy(), told)

    def _identity(self) -> dict[str, Any]:
        known = self.model.identity
        return {"model": known["model"], "revision": known["revision"]}
