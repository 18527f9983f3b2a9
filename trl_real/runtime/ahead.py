"""Reading in parts: while an accelerator reads a part of the rows, a thread tokenizes the next."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from trl_real.runtime.devices import computes_ahead


PART = 1024  # responses; a few passes of an accelerator

R = TypeVar("R")
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


def made_ahead(
    device: torch.device, make: Callable[[list[int]], T], prompts: Sequence[Any], size: int | None = None
) -> Iterator[tuple[list[int], T]]:
    """
    Yield row numbers and what `make` returns for them: all rows together for a CPU, which would compute no faster;
    for an accelerator parts of at least `size` rows (by default `PART`), each made while the caller is at the last.

    Args:
        device: Device that will read the rows.
        make: Function of row numbers, called in a thread, such as one that tokenizes.
        prompts: Prompt of each row. Rows of one prompt are in one part, which reads it once; None is no prompt.
        size: Least number of rows.
    """
    if not computes_ahead(device) or len(prompts) <= (size or PART):
        rows = list(range(len(prompts)))
        yield rows, make(rows)
        return
    together: dict[Any, list[int]] = {}
    for i, prompt in enumerate(prompts):
        together.setdefault(i if prompt is None else repr(prompt), []).append(i)
    parts: list[list[int]] = [[]]
    for rows in together.values():
        if len(parts[-1]) >= (size or PART):
            parts.append([])
        parts[-1] += rows
    yield from zip(parts, ahead(make, parts), strict=True)


def read_in_parts(
    device: torch.device, make: Callable[[list[int]], T], read: Callable[[T], R], prompts: Sequence[Any]
) -> R:
    """
    Return `read(make(rows))`, a dataclass, of all rows, as parts (`made_ahead`) give it: tensors have the values of
    each row at its place, numbers are sums, and `seconds` is the time that all took.
    """
    started = time.perf_counter()
    found: list[tuple[list[int], Any]] = [(rows, read(made)) for rows, made in made_ahead(device, make, prompts)]
    whole = found[0][1]
    values: dict[str, Any] = {}
    for name in (field.name for field in fields(whole)) if len(found) > 1 else ():
        parts = [(rows, getattr(part, name)) for rows, part in found]
        first = parts[0][1]
        if isinstance(first, Tensor):
            values[name] = first.new_empty(len(prompts), *first.shape[1:])
            for rows, part in parts:
                values[name][rows] = part
        elif not isinstance(first, str):
            values[name] = sum(part for _, part in parts)
    if hasattr(whole, "seconds"):
        values["seconds"] = time.perf_counter() - started
    return replace(whole, **values)


def picked(rows: list[int], *columns: Sequence[Any]) -> list[list[Any]]:
    """Return the values of some rows of each column."""
    return [[column[i] for i in rows] for column in columns]
