"""A model given by name, which is loaded when it is first needed, or a loaded model."""

import os
from typing import Any

import torch

from trl_real.errors import TrlRealError
from trl_real.models.load import (
    checked_dtype,
    load_model,
    object_digest,
    pick_device,
    prepare_process,
    resolve_revision,
)
from trl_real.runtime.digests import sha256


class LazyModel:
    """
    A model with its tokenizer, loaded at the first call of `load`.

    Given by name, it pickles as its settings, without weights; a loaded model cannot be pickled.

    Args:
        model: Hub id, path or loaded model.
        tokenizer: Tokenizer of a loaded model; next to a name, it replaces the model's own.
        revision: Branch, tag or commit, for a Hub id.
        dtype: Precision; by default float32 for a model given by name, else that of the weights.
        device: By default the accelerator, else the CPU. A loaded model stays where it is.

    Raises:
        TrlRealError: If this is not a model, a loaded one has no tokenizer, or float32 is asked of lower weights.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any = None,
        revision: str | None = None,
        dtype: str | torch.dtype | None = None,
        device: str | None = None,
    ):
        self.name: str | None = os.fspath(model) if isinstance(model, str | os.PathLike) else None
        self.model, self.tokenizer = None if self.name else model, tokenizer
        self.revision, self.dtype, self.device = revision, checked_dtype(dtype), device
        self._fingerprint: str | None = None
        if self.name is None:
            self._check()

    def _check(self) -> None:
        """Refuse a loaded model that is not supported."""
        if not (hasattr(self.model, "config") and hasattr(self.model, "dtype")):
            raise TrlRealError(f"model is a {type(self.model).__name__}. Give a Hub id, a path or a loaded model.")
        self._check_tokenizer()
        if self.dtype == "float32" != self.weights_dtype:
            raise TrlRealError(
                f"The loaded model's weights are {self.weights_dtype}: leave dtype out, or load in float32."
            )

    def _check_tokenizer(self) -> None:
        if self.tokenizer is None:
            raise TrlRealError(
                f"A loaded {type(self.model).__name__} needs its tokenizer: "
                "give tokenizer=AutoTokenizer.from_pretrained(…)."
            )

    @property
    def label(self) -> str:
        """Name for records and messages, without the path of a local folder."""
        name = self._full_name
        is_local = os.path.isabs(name) or os.path.isdir(name)
        return (os.path.basename(name.rstrip("/")) if is_local else name) or type(self.model).__name__

    @property
    def _full_name(self) -> str:
        path: str = getattr(getattr(self.model, "config", None), "_name_or_path", "")
        return self.name or path

    @property
    def weights_dtype(self) -> str:
        """Precision of the weights."""
        if self.name:
            return self.dtype or "float32"
        return str(getattr(self.model, "dtype", "float32")).removeprefix("torch.")

    @property
    def precision(self) -> str:
        """Precision of the matrix products."""
        return self.dtype or self.weights_dtype

    @property
    def cast_to(self) -> torch.dtype | None:
        """Precision to cast the matrix products of a loaded model to, None for that of its weights."""
        return None if self.precision == self.weights_dtype else getattr(torch, self.precision)

    @property
    def identity(self) -> dict[str, str]:
        """Everything that the model's answers depend on: name, weights, tokenizer and template, precision."""
        own = {"tokenizer": _digest(self.tokenizer)} if self.name and self.tokenizer is not None else {}
        return {"model": self.label, "revision": self.fingerprint(), "dtype": self.precision, **own}

    def fingerprint(self) -> str:
        """Return the commit on the Hub or a digest of the folder (computed once), or one of the loaded weights."""
        if self.name is None:
            return object_digest(self.model, self.tokenizer)
        self._fingerprint = self._fingerprint or resolve_revision(self.name, self.revision)
        return self._fingerprint

    def load(
        self, auto_class: str = "AutoModelForCausalLM", adapters: bool = False, rank: int | None = None
    ) -> tuple[Any, Any]:
        """
        Return the model and its tokenizer; arguments as in `load_model`, and the rank of this worker, which picks the
        device.
        """
        prepare_process()
        if self.name is None:
            return self.model, self.tokenizer
        device = pick_device(self.device, rank)
        model, tokenizer = load_model(self.name, self.fingerprint(), self.dtype, device, auto_class, adapters)
        return model, self.tokenizer or tokenizer

    def __getstate__(self) -> dict[str, Any]:
        if self.name is None:
            raise TrlRealError("A loaded model cannot be sent to a new process. Give the judge a path or a Hub id.")
        return self.__dict__


def _digest(tokenizer: Any) -> str:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    vocabulary = backend.to_str() if backend is not None else sorted(tokenizer.get_vocab().items())
    return sha256([vocabulary, tokenizer.chat_template]).hex()[:12]
