"""Work for an accelerator is prepared by a thread while the device is busy with what came before."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar


S = TypeVar("S")
T = TypeVar("T")


def ahead(make: Callable[[S], T], items: Iterable[S]) -> Iterator[T]:
    """Yield `make(item)` for each item, in order; the next one is made in a thread. Its errors are raised here."""
    with ThreadPoolExecutor(1, "trl_real_ahead") as thread:
        pending = None
        for item in items:
            following = thread.submit(make, item)
            if pending is not None:
                yield pending.result()
            pending = following
        if pending is not None:
            yield pending.result()
