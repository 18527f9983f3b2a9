"""Where embeddings come from: a name, a loaded model, an encoder; loaded late, never pickled, known by its weights."""

import os
from typing import Any
from weakref import WeakSet, WeakValueDictionary

import torch

from trl_real.errors import TrlRealError
from trl_real.models.embed import Embedder, EmbedderOptions, Embeddings
from trl_real.models.load import (
    checked_dtype,
    is_forked,
    load_causal_lm,
    object_digest,
    pick_device,
    prepare_process,
    resolve_revision,
)


# A loaded model does not travel; a forked worker finds the one that it inherited here.
_alive: WeakValueDictionary[str, "Encoder"] = WeakValueDictionary()
_with_model: WeakSet["Encoder"] = WeakSet()  # whether or not anyone has asked for their identity


class Encoder:
    """
    Embeds texts with a model that may not be loaded yet.

    Pickled and hashed it holds settings and the model's identity, no weights: `datasets` gets the same fingerprint in
    every process, and another one when the weights change.

    Args:
        model: Hub id or path; a loaded `PreTrainedModel` or `PeftModel`; or an object with `encode(list[str])`.
        tokenizer: For a loaded model.
        revision: Branch, tag or commit, for a Hub id.
        dtype: Precision; float32 where None and the model is given by name, else that of the weights.
        device: By default the accelerator of this rank, else the CPU. A loaded model stays where it is.
        options: How to read and pool.

    Raises:
        TrlRealError: If the model is nothing of the kind, has no tokenizer, or cannot read in context.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any = None,
        revision: str | None = None,
        dtype: str | torch.dtype | None = None,
        device: str | None = None,
        options: EmbedderOptions | None = None,
    ):
        self.name = os.fspath(model) if isinstance(model, str | os.PathLike) else None
        self.model = None if self.name else model
        self.tokenizer = tokenizer
        self.revision, self.dtype, self.device = revision, checked_dtype(dtype), device
        self.options = options or EmbedderOptions()
        self._identity: str | None = None
        self.memoize = bool(self.name)  # a loaded model's weights may change
        self._embedders: dict[str, Embedder] = {}
        self._check()
        if self.model is not None:
            _with_model.add(self)

    def _check(self) -> None:
        kind = type(self.model).__name__
        if self.name:
            return
        if self.has_backbone and self.tokenizer is None:
            raise TrlRealError(
                f"A loaded {kind} needs its tokenizer: give tokenizer=AutoTokenizer.from_pretrained(…)."
            )
        if not self.has_backbone and not hasattr(self.model, "encode"):
            raise TrlRealError(f"model is a {kind}. Give a Hub id, a path, a loaded model or one with encode(texts).")
        if not self.has_backbone and self.options.context != "response":
            raise TrlRealError("context='prompt+response' needs a causal LM, not an encoder. Type context='response'.")

    @property
    def has_backbone(self) -> bool:
        """Whether it is a transformers (or PEFT) model, rather than an object with `encode` only."""
        return bool(self.name) or hasattr(self.model, "base_model")

    @property
    def label(self) -> str:
        """A name for the record."""
        if self.name:
            return self.name
        config = getattr(self.model, "config", None)
        return getattr(config, "_name_or_path", "") or type(self.model).__name__

    @property
    def precision(self) -> str:
        """The dtype that it embeds in, for the record."""
        return self.dtype or str(getattr(self.model, "dtype", "float32")).removeprefix("torch.")

    def identity(self) -> str:
        """The commit on the Hub (asked for once), or a digest of the weights as they are now."""
        if self.name and (self._identity is None or self._identity.startswith("sha256:")):
            self._identity = resolve_revision(self.name, self.revision)
        elif self.model is not None:
            self._identity = object_digest(self.model, self.tokenizer)
            _alive[self._identity] = self
        return self._identity

    def __call__(self, prompts: list[Any], texts: list[str], rank: int | None = None) -> Embeddings:
        """
        Embed texts.

        Args:
            prompts: One a text; read with `context="prompt+response"` only.
            texts: Responses.
            rank: Of this worker; picks the device.

        Raises:
            TrlRealError: If the model was loaded in another process and did not come along.
        """
        prepare_process()
        if self.name is None and self.model is None:
            self._adopt()
        if not self.has_backbone:
            vectors = torch.as_tensor(self.model.encode(texts)).float().cpu() if texts else torch.zeros(0, 0)
            if len(vectors) != len(texts):
                raise TrlRealError(f"encode() returned {len(vectors)} vectors for {len(texts)} texts.")
            return Embeddings(vectors, torch.zeros(len(texts), dtype=torch.bool))
        return self._embedder(rank)(prompts, texts, progress=not is_forked())

    def _adopt(self) -> None:
        """Take the model that this process inherited; the settings stay this encoder's own."""
        if self._identity not in _alive:
            for encoder in list(_with_model):
                encoder.identity()
        known = _alive.get(self._identity)
        if known is None or known.model is None:
            raise TrlRealError(
                "A loaded model does not travel to a new process (spawn). Give the selector a path or a Hub id."
            )
        self.model, self.tokenizer = known.model, known.tokenizer

    def in_float32(self) -> "Encoder | None":
        """The same model in float32, or None if it cannot differ."""
        if self.dtype in (None, "float32") or not self.has_backbone:
            return None
        if self.name:
            return Encoder(self.name, None, self.revision, "float32", self.device, self.options)
        return Encoder(self.model, self.tokenizer, None, "float32", self.device, self.options)

    def forgetful(self) -> "Encoder":
        """The same model without a memory: what a batch gives, to the last bit, hangs on no batch before it."""
        if not self.memoize:
            return self
        other = Encoder(self.name, None, self.revision, self.dtype, self.device, self.options)
        other.memoize, other._identity = False, self._identity
        return other

    def _embedder(self, rank: int | None) -> Embedder:
        device = pick_device(self.device, rank)
        if self.name:
            model, tokenizer = load_causal_lm(self.name, self.identity(), self.dtype, device)
        else:
            model, tokenizer = self.model, self.tokenizer
        known = self._embedders.get(device)
        if known is None or known.model is not model:
            dtype = getattr(torch, self.dtype) if self.dtype else None
            known = Embedder(model, tokenizer, dtype=dtype, options=self.options, memoize=self.memoize)
            self._embedders = {device: known}
        return known

    def __getstate__(self) -> dict[str, Any]:
        identity = self.identity() if self.name or self.model is not None else self._identity
        names = ("name", "revision", "dtype", "device", "options", "memoize")
        return {"_identity": identity, **{name: self.__dict__[name] for name in names}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, model=None, tokenizer=None, _embedders={})
