"""Smaller batches after the device has run out of memory."""

import logging
import traceback
from collections.abc import Callable
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size


logger = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")


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
