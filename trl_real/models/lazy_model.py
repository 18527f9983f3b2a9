"""A judge's model: by name, loaded when it is first needed, or as it is."""

import hashlib
import os
from collections.abc import Callable
from functools import cached_property
from typing import Any

import torch

from trl_real.errors import TrlRealError
from trl_real.models.load import checked_dtype, object_digest, pick_device, prepare_process, resolve_revision


class LateModel:
    """
    A model with its tokenizer, that is loaded when it is asked for and stays with whoever holds this.

    Given by name, it pickles to names; a loaded model does not travel.

    Args:
        model: Hub id or path, or a loaded model.
        tokenizer: For a loaded model; beside a name, one that is taken instead of the model's own.
        revision: Branch, tag or commit, for a Hub id.
        dtype: Precision, float32 where None and the model is given by name, else that of the weights.
        device: By default the accelerator, else the CPU. A loaded model stays where it is.

    Raises:
        TrlRealError: If it is no model, a loaded one has no tokenizer, or float32 is asked of lower weights.
    """

    def __init__(self, model: Any, tokenizer: Any, revision: str | None, dtype: Any, device: str | None):
        named = isinstance(model, str | os.PathLike)
        kind = type(model).__name__
        if not named and not (hasattr(model, "config") and hasattr(model, "dtype")):
            raise TrlRealError(f"model is a {kind}. Give a Hub id, a path or a loaded model.")
        if not named and tokenizer is None:
            raise TrlRealError(
                f"A loaded {kind} needs its tokenizer: give tokenizer=AutoTokenizer.from_pretrained(…)."
            )
        self.path = os.fspath(model) if named else None
        self.loaded, self.tokenizer = None if named else model, tokenizer
        self.revision, self.dtype, self.device = revision, checked_dtype(dtype), device
        self.label = shown_name(self.path or getattr(model.config, "_name_or_path", "")) or kind
        if not named and self.dtype == "float32" != self.precision:
            raise TrlRealError(
                f"The loaded model's weights are {self.precision}: leave dtype out, or load in float32."
            )

    @property
    def precision(self) -> str:
        """Of the weights."""
        return (self.dtype or "float32") if self.path else str(self.loaded.dtype).removeprefix("torch.")

    @property
    def cast_to(self) -> torch.dtype | None:
        """What a loaded model's matrix products run in, None for its own precision."""
        return getattr(torch, self.dtype) if self.path is None and self.dtype not in (None, self.precision) else None

    @property
    def identity(self) -> dict[str, str]:
        """What its answers hang on: name, weights, tokenizer and template, precision."""
        if self.path is None:
            revision = object_digest(self.loaded, self.tokenizer)
            return {"model": self.label, "revision": revision, "dtype": self.dtype or self.precision}
        own = {} if self.tokenizer is None else {"tokenizer": _digest(self.tokenizer)}
        return {"model": self.label, "revision": self._commit, "dtype": self.precision, **own}

    def load(self, loader: Callable[..., tuple[Any, Any]]) -> tuple[Any, Any]:
        """
        The model and the tokenizer.

        Args:
            loader: Loads by name, revision, dtype and device, as `trl_real.models.load.load_causal_lm` does.
        """
        prepare_process()
        if self.path is None:
            return self.loaded, self.tokenizer
        model, tokenizer = loader(self.path, self._commit, self.dtype, pick_device(self.device, None))
        return model, self.tokenizer or tokenizer

    @cached_property
    def _commit(self) -> str:
        return resolve_revision(self.path, self.revision)

    def __getstate__(self) -> dict[str, Any]:
        if self.path is None:
            raise TrlRealError("A loaded model does not travel to a new process. Give the judge a path or a Hub id.")
        return self.__dict__


def shown_name(model: str) -> str:
    """A model's name as it stands beside labels, which travel: of a local folder, the last part of its path."""
    return os.path.basename(model.rstrip("/")) if os.path.isabs(model) or os.path.isdir(model) else model


def _digest(tokenizer: Any) -> str:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    vocabulary = backend.to_str() if backend is not None else sorted(tokenizer.get_vocab().items())
    return hashlib.sha256(repr([vocabulary, tokenizer.chat_template]).encode()).hexdigest()[:12]
