"""A model that embeds texts: given by name and loaded late, or a loaded model, or an object with `encode`."""

from typing import Any
from weakref import WeakSet, WeakValueDictionary

import torch

from trl_real.data.template import continued, templated
from trl_real.errors import TrlRealError
from trl_real.models.embed import Embedder, EmbedderOptions, Embeddings
from trl_real.models.lazy_model import LazyModel
from trl_real.models.load import pick_device, pinned, prepare_process
from trl_real.models.quantization import product_dtype
from trl_real.models.reader import CPU_TOKENS


# A loaded model is not pickled; a forked worker finds the one that it inherited here, by fingerprint.
_alive: WeakValueDictionary[str, "Encoder"] = WeakValueDictionary()
_with_model: WeakSet["Encoder"] = WeakSet()  # also those without a fingerprint yet


class Encoder(LazyModel):
    """
    A model that embeds texts and is loaded at the first call.

    It pickles as its settings and its fingerprint, without weights: `datasets` gets the same hash in every process,
    and another one when the weights change.

    Args:
        model: Hub id or path; a loaded `PreTrainedModel` or `PeftModel`; or an object with `encode(list[str])`.
        tokenizer, revision, dtype: As in `LazyModel`.
        device: By default the accelerator of this rank, else the CPU. A loaded model stays where it is.
        options: Options for reading and pooling.

    Raises:
        TrlRealError: If the model is of another type, has no tokenizer, or cannot read in context.
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
        self.options = options or EmbedderOptions()
        super().__init__(model, getattr(tokenizer, "tokenizer", tokenizer), revision, dtype, device)
        self.memoize = bool(self.name)  # a loaded model's weights may change
        self._embedders: dict[str, Embedder] = {}
        self.processor = tokenizer if hasattr(tokenizer, "image_processor") else None
        self.used: dict[str, Any] = {}
        if self.name:
            self.tokenizer = None  # its own is read
        else:
            _with_model.add(self)

    def _check(self) -> None:
        kind = type(self.model).__name__
        if self.has_backbone:
            self._check_tokenizer()
        elif not hasattr(self.model, "encode"):
            raise TrlRealError(f"model is a {kind}. Give a Hub id, a path, a loaded model or one with encode(texts).")
        elif self.options.context != "response":
            raise TrlRealError("context='prompt+response' needs a causal LM, not an encoder. Type context='response'.")

    @property
    def has_backbone(self) -> bool:
        """Whether this is a transformers (or PEFT) model, rather than an object with `encode` only."""
        return bool(self.name) or hasattr(self.model, "base_model")

    @property
    def label(self) -> str:
        """Name for the record, a local path in full."""
        return self._full_name or type(self.model).__name__

    def fingerprint(self) -> str:
        """Return the commit on the Hub (asked for once), or a digest of the weights as they are now."""
        if (self._fingerprint or "").startswith("sha256:") and self.name:
            self._fingerprint = None
        if self.name or self.model is not None:
            self._fingerprint = super().fingerprint()
            if self.model is not None:
                _alive[self._fingerprint] = self
        return self._fingerprint or ""

    def conversations(self, prompts: list[Any], texts: list[str], rank: int | None = None) -> list[str] | None:
        """
        Return each prompt of messages with its response as the chat template writes them, which training reads; None
        if the model has no chat template, or its template refuses one of them.
        """
        if not self.has_backbone:
            return None
        if self.name is None and self.model is None:
            self._adopt()
        tokenizer = self.load(rank=rank)[1]
        if not tokenizer.chat_template:
            return None
        try:
            return templated(tokenizer, list(map(continued, prompts, texts)), tokenize=False)
        except TrlRealError:
            return None

    def __call__(
        self, prompts: list[Any], texts: list[str], rank: int | None = None, images: list[list[Any]] | None = None
    ) -> Embeddings:
        """
        Embed responses. Prompts, and their images, are read with `context="prompt+response"` only; the worker's rank
        picks the device.

        Raises:
            TrlRealError: If the model was loaded in another process and is not available in this one, or if there are
                images and the model has no processor for them.
        """
        if images is not None and any(images):
            return self._with_images(prompts, texts, images, rank)
        prepare_process()
        if self.name is None and self.model is None:
            self._adopt()
        if not self.has_backbone:
            model: Any = self.model
            vectors = torch.as_tensor(model.encode(texts)).float().cpu() if texts else torch.zeros(0, 0)
            if len(vectors) != len(texts):
                raise TrlRealError(f"encode() returned {len(vectors)} vectors for {len(texts)} texts.")
            return Embeddings(vectors, torch.zeros(len(texts), dtype=torch.bool))
        embedder = self._embedder(rank)
        found = embedder(prompts, texts)
        self.used["batch_tokens"] = embedder.batch_tokens
        return found

    def _with_images(
        self, prompts: list[Any], texts: list[str], images: list[list[Any]], rank: int | None
    ) -> Embeddings:
        """Embed responses, those to prompts with images by the whole model."""
        from trl_real.models.embed_images import ImageEmbedder

        seen = [i for i, shown in enumerate(images) if shown]
        plain = [i for i, shown in enumerate(images) if not shown]
        parts = [self([prompts[i] for i in plain], [texts[i] for i in plain], rank)] if plain else []
        if self.name is None and self.model is None:
            self._adopt()
        model, _ = self.load(rank=rank)
        dtype = getattr(torch, self.dtype) if self.dtype else None
        embedder = ImageEmbedder(model, self._processor(), self.options, dtype)
        parts.append(embedder([prompts[i] for i in seen], [texts[i] for i in seen], [images[i] for i in seen]))
        order = torch.tensor([*plain, *seen]).argsort()
        return Embeddings(
            torch.cat([part.vectors for part in parts])[order],
            torch.cat([part.truncated for part in parts])[order],
            sum(part.n_tokens for part in parts),
            sum(part.seconds for part in parts),
        )

    def _processor(self) -> Any:
        """Return the processor of the model, loaded at first use."""
        if self.processor is None and self.name:
            from transformers import AutoProcessor

            revision = pinned(self.fingerprint())
            found = AutoProcessor.from_pretrained(self.name, trust_remote_code=False, **revision)
            self.processor = found if hasattr(found, "image_processor") else None
        if self.processor is None:
            raise TrlRealError(
                "context='prompt+response' on rows with images needs the processor of a vision-language model: give "
                "tokenizer=AutoProcessor.from_pretrained(…), or type context='response'."
            )
        return self.processor

    def _adopt(self) -> None:
        """Take the model that this process inherited; the settings stay this encoder's own."""
        if self._fingerprint not in _alive:
            for encoder in list(_with_model):
                encoder.fingerprint()
        inherited = _alive.get(self._fingerprint or "")
        if inherited is None or inherited.model is None:
            raise TrlRealError(
                "A loaded model cannot be sent to a new process (spawn). Give the selector a path or a Hub id."
            )
        self.model, self.tokenizer, self.processor = inherited.model, inherited.tokenizer, inherited.processor

    @property
    def settings(self) -> dict[str, Any]:
        """
        Settings for the record; `batch_tokens` is what this process used last, else what it would use. None if an
        accelerator has not been asked for its memory.
        """
        weights = getattr(self.model, "parameters", None)
        device = str(next(weights()).device) if weights else pick_device(self.device, None)
        tokens = self.options.batch_tokens or (CPU_TOKENS if device == "cpu" and self.has_backbone else None)
        bits = {"load_in_4bit": True} if product_dtype(self.model) else {}
        return {**vars(self.options), "batch_tokens": tokens, **self.used, "dtype": self.precision, **bits}

    @property
    def in_half_precision(self) -> bool:
        """Whether a copy in float32 could give other embeddings."""
        return self.dtype not in (None, "float32") and self.has_backbone

    def in_float32(self) -> "Encoder | None":
        """Return a copy that runs in float32, or None if this one does already."""
        if not self.in_half_precision:
            return None
        own = self.processor or self.tokenizer
        return Encoder(self.name or self.model, own, self.revision, "float32", self.device, self.options)

    def without_memo(self) -> "Encoder":
        """Return a copy without the cache of embeddings: a batch's, to the last bit, do not depend on earlier ones."""
        if not self.memoize:
            return self
        other = Encoder(self.name, None, self.revision, self.dtype, self.device, self.options)
        other.memoize, other._fingerprint, other.used = False, self._fingerprint, self.used
        return other

    def _embedder(self, rank: int | None) -> Embedder:
        device = pick_device(self.device, rank)
        model, tokenizer = self.load(rank=rank)
        embedder = self._embedders.get(device)
        if embedder is None or embedder.model is not model:
            dtype = getattr(torch, self.dtype) if self.dtype else None
            embedder = Embedder(model, tokenizer, dtype=dtype, options=self.options, memoize=self.memoize)
            self._embedders = {device: embedder}
        return embedder

    def __getstate__(self) -> dict[str, Any]:
        names = ("name", "revision", "dtype", "device", "options", "memoize")
        return {"_fingerprint": self.fingerprint(), **{name: self.__dict__[name] for name in names}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, model=None, tokenizer=None, processor=None, _embedders={}, used={})
