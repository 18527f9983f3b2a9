"""Base class of the readers: objects that run texts through a model and generate nothing."""

from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from trl_real.errors import TrlRealError
from trl_real.models.attention.exactness import fits_window, gives_the_same
from trl_real.models.attention.segments import attentions_for
from trl_real.models.load import is_forked
from trl_real.models.memory import tokens_that_fit
from trl_real.models.quantization import keep_unpacked, product_dtype
from trl_real.runtime.devices import computes_ahead, send


CPU_TOKENS = 1024  # default number of tokens in a forward pass on a CPU
MAX_HELD = 2**26  # numbers that wait on the device; a quarter of a gigabyte


class ModelReader:
    """
    Reads texts with a model: device, precision, length check, progress bar, and the choice between packed and padded
    forward passes.

    A subclass implements `_run_packed(work)` and `_run_padded(work)`, which yield what `_run` yields, and `_trial()`,
    two functions that read made-up sequences, packed and one at a time: packing is used if their results are equal,
    with the first name of `ATTENTIONS` for the device that makes them so.
    Its call has an argument `progress`: whether to show a progress bar, from the third second on.

    Args:
        model: Model in evaluation or training mode; its mode is restored after each call.
        tokenizer: Tokenizer of the model.
        body: Part of the model that runs, by default the model itself.
        batch_tokens: Number of tokens in a forward pass; by default `cpu_tokens` on a CPU, elsewhere as many as fit
            (`tokens_that_fit`).
        dtype: Precision of the matrix products (autocast); by default the weights'.
        cpu_tokens: Default number of tokens in a forward pass on a CPU (its caches).
    """

    desc, item = "Scoring", "text"  # for the progress bar and for messages
    counts_tokens = False  # whether the progress bar counts tokens rather than items
    has_backward = False  # whether activations of all layers are kept
    _trial: Callable[[], tuple[Callable[[], Tensor], Callable[[], Tensor]]]
    _run_packed: Callable[[list], Iterator[tuple]]
    _run_padded: Callable[[list], Iterator[tuple]]

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        body: nn.Module | None = None,
        batch_tokens: int | None = None,
        dtype: torch.dtype | None = None,
        cpu_tokens: int = CPU_TOKENS,
    ):
        self.model, self.tokenizer, self.body = model, tokenizer, model if body is None else body
        keep_unpacked(self.body)
        weights = next(self.body.parameters())
        config: Any = self.body.config
        self.device, self.config = weights.device, config.get_text_config()
        kind = self.device, weights.element_size()
        self.batch_tokens = batch_tokens or (
            cpu_tokens if self.device.type == "cpu" else tokens_that_fit(self.config, *kind, self.has_backward)
        )
        self.cast_to = dtype if dtype not in (None, weights.dtype) else None
        self.sum_in = torch.promote_types(weights.dtype, torch.float32)
        self.exact = self.cast_to is None and (product_dtype(model) or weights.dtype) == self.sum_in
        self.packs_well: bool | None = None
        self.attentions = attentions_for(self.device)
        self.attention = self.attentions[0]

    @property
    def max_tokens(self) -> int | None:
        """Number of tokens that the model reads, None if its config does not say."""
        return getattr(self.config, "max_position_embeddings", None)

    def _longest(self, work: list) -> int:
        """Return the number of tokens of the longest sequence: a prompt and one of its responses."""
        return max(len(item.prompt) + max(map(len, item.responses)) for item in work)

    def check_length(self, work: list, fix: str) -> None:
        """Raise an error that ends with `fix` if a sequence is longer than the model reads."""
        longest = self._longest(work) if work else 0
        if self.max_tokens and longest > self.max_tokens:
            raise TrlRealError(f"A {self.item} has {longest} tokens, but the model reads {self.max_tokens}. {fix}")

    @contextmanager
    def passes(self, work: list, total: int, progress: bool) -> Iterator[Iterator[tuple]]:
        """
        Enter evaluation mode and the precision, and yield an iterator over forward passes that moves a progress bar of
        length `total`; a forked worker shows none. On leaving, the model's own attention is restored, also after an
        error in the caller's loop.
        """
        unit = "tok" if self.counts_tokens else self.item
        bar = tqdm(total=total, unit=unit, desc=self.desc, leave=False, delay=2, disable=is_forked() or not progress)
        with self._mode(), bar, closing(self._run(work)) as steps:
            yield self._counted(steps, bar)

    def _counted(self, steps: Iterator[tuple], bar: tqdm) -> Iterator[tuple]:
        for step in steps:
            yield step
            bar.update(step[2] if self.counts_tokens else len(set(step[0])))

    @contextmanager
    def _mode(self) -> Iterator[None]:
        with evaluating(self.model), self._autocast():
            yield

    def _autocast(self) -> AbstractContextManager:
        return torch.autocast(self.device.type, self.cast_to) if self.cast_to else nullcontext()

    def _logits_at(self, places: list[int], **inputs: Any) -> Tensor:
        """Return the logits at a few positions of each row. Shape `(B, len(places), V)`."""
        kept = send(places, self.device)
        logits = self.body(**inputs, use_cache=False, logits_to_keep=kept).logits
        return logits if logits.shape[1] == len(places) else logits[:, kept]

    def _run(self, work: list) -> Generator[tuple, None, None]:
        """Yield sequence numbers, their values and the number of tokens, one forward pass at a time."""
        if not work:
            return
        if self.packs_well is None:
            self.packs_well = self._is_exact(*self._trial())
        packs = self.packs_well and fits_window(self.config, self._longest(work))
        yield from self._run_packed(work) if packs else self._run_padded(work)

    def _is_exact(self, together: Callable[[], Tensor], alone: Callable[[], Tensor], rough: float = 5e-2) -> bool:
        """Return whether packing is exact with one of the device's attentions, which is used from now on."""
        for name in self.attentions:
            self.attention = name
            if gives_the_same(together, alone, self.exact, rough):
                return True
        return False


def brought(passes: Iterator[tuple]) -> Iterator[tuple[list[int], Tensor, int]]:
    """
    Yield sequence numbers, their values on the CPU and the number of tokens, of many passes at a time: to bring values
    from an accelerator is to wait for it.
    """
    ids: list[int] = []
    held: list[Tensor] = []
    n_tokens = n_held = 0
    for more, values, n_read in passes:
        ids, held, n_tokens, n_held = ids + more, [*held, values], n_tokens + n_read, n_held + values.numel()
        if n_held > MAX_HELD or not computes_ahead(values.device):
            yield ids, torch.cat(held).cpu(), n_tokens
            ids, held, n_tokens, n_held = [], [], 0, 0
    if held:
        yield ids, torch.cat(held).cpu(), n_tokens


def check_lengths(max_length: int, batch_tokens: int | None) -> None:
    """Raise an error if a length is below 1."""
    for name, value in (("max_length", max_length), ("batch_tokens", batch_tokens)):
        if value is not None and value < 1:
            raise TrlRealError(f"{name}={value} reads nothing. Give at least 1 (the default suits most models).")


def without_peft(model: Any) -> nn.Module:
    """Return the transformers model inside a PEFT model, adapter layers included, or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def language_part(backbone: Any) -> nn.Module:
    """Return the language model inside the backbone of a vision-language model, or the backbone itself."""
    return backbone if backbone.config.get_text_config() is backbone.config else backbone.get_decoder()


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Switch off gradients and dropout; afterwards each module is in its own mode again."""
    in_training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        for module in in_training:
            module.training = True
