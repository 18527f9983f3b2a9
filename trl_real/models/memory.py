"""Smaller batches after the device has run out of memory."""

import logging
import traceback
from collections.abc import Callable
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size

from trl_real.runtime.devices import free_memory


logger = logging.getLogger(__name__)

ACCELERATOR_TOKENS = 16384  # default number of tokens in a forward pass, except on a CPU
LEAST_TOKENS = 512

P = ParamSpec("P")
T = TypeVar("T")


def tokens_that_fit(config: Any, device: torch.device, bytes_per_number: int, backward: bool) -> int:
    """
    Return how many tokens of a forward pass fit into half of the device's free memory, from 512 to 16384; 16384 if it
    does not tell what is free. A token is counted as its largest layer's inputs and products, of all layers with a
    backward pass. What is wrong with that is corrected when memory runs out.
    """
    free = free_memory(device)
    if free is None:
        return ACCELERATOR_TOKENS
    hidden = config.hidden_size
    numbers = 12 * hidden + 4 * (getattr(config, "intermediate_size", None) or 4 * hidden)
    layers = config.num_hidden_layers if backward else 1
    fit = free // 2 // (numbers * layers * bytes_per_number)
    return max(LEAST_TOKENS, min(ACCELERATOR_TOKENS, fit))


def halved(size: int, unit: str, error: RuntimeError) -> int:
    """Return half of a batch size, with a warning, after a lack of memory; raise other errors, and at a size of 1."""
    if size < 2 or not should_reduce_batch_size(error):
        raise error
    traceback.clear_frames(error.__traceback__)  # they hold the tensors of the pass that failed
    clear_device_cache(garbage_collection=True)
    logger.warning("Out of memory at %d %s; continuing with %d.", size, unit, size // 2)
    return size // 2


def halves_batches(call: Callable[Concatenate[Any, P], T]) -> Callable[Concatenate[Any, P], T]:
    """
    Decorate a method that reads texts in passes of `self.batch_tokens` tokens: after a lack of memory it runs again
    with half of them, which stays for later calls.
    """

    @wraps(call)
    def repeated(self: Any, *args: P.args, **kwargs: P.kwargs) -> T:
        while True:
            try:
                return call(self, *args, **kwargs)
            except RuntimeError as error:
                self.batch_tokens = halved(self.batch_tokens, "tokens in a forward pass", error)

    return repeated
