"""Several processes at one job: joining them, sharing the work out, and telling all of them what one found."""

import os
from collections.abc import Callable, Hashable, Sequence
from datetime import timedelta
from typing import TypeVar

import torch
from torch import Tensor, distributed

from trl_real.errors import TrlRealError


K, T = TypeVar("K"), TypeVar("T")

# Numbers that are sent at a time: 64 MB in float32.
BLOCK = 2**24
# Processes wait for the slowest one; a launcher ends them all when one dies.
PATIENCE = timedelta(days=7)


def join() -> None:
    """Become one of the processes that `accelerate launch` or `torchrun` started, where one of them did."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not distributed.is_initialized():
        from accelerate import PartialState

        PartialState(cpu=not torch.cuda.is_available(), timeout=PATIENCE)


def rank() -> int:
    """Number of this process, from 0; 0 for one that is alone."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def share(items: Sequence[T]) -> Sequence[T]:
    """The part of `items`, the same in all processes, that is this process's: every `world_size`-th."""
    return items[rank() :: distributed.get_world_size()] if distributed.is_initialized() else items


def is_mine(number: int) -> bool:
    """Whether the job of that number is this process's: `share` where it is not known how many there will be."""
    return not distributed.is_initialized() or number % distributed.get_world_size() == rank()


def wait() -> None:
    """Until all processes have come here."""
    if distributed.is_initialized():
        distributed.barrier()


def my_share(keys: list[Hashable], divided: bool) -> set[Hashable]:
    """
    The part of different keys that is this process's.

    Args:
        keys: The same, in the same order, in all processes.
        divided: False where this process works alone, whatever others there are.
    """
    return set(share(keys) if divided else keys)


def once(function: Callable[[], T]) -> T:
    """
    What `function` returns in the first process, in all of them; all wait for it.

    Raises:
        TrlRealError: In all of them, if it does so in the first.
    """
    if not distributed.is_initialized():
        return function()
    told: list = [None, None]
    if rank() == 0:
        try:
            told[0] = function()
        except TrlRealError as error:
            told[1] = error
    distributed.broadcast_object_list(told, src=0)
    if told[1] is not None:
        raise told[1]
    return told[0]


def gather(mine: dict[K, T]) -> dict[K, T]:
    """The entries of all processes, in all of them; all wait for the last one."""
    if not distributed.is_initialized():
        return mine
    parts: list = [None] * distributed.get_world_size()
    distributed.all_gather_object(parts, mine)
    return {key: value for part in parts for key, value in part.items()}


def sum_over_processes(rows: Tensor, device: torch.device) -> None:
    """
    Add up, in place, what all processes hold: exact where all but one of them hold zeros. One alone keeps its own.

    Args:
        rows: Of the same shape in all processes. Shape `(n, d)`.
        device: One that the group's backend sends from.
    """
    for block in rows.split(max(1, BLOCK // rows.shape[1])) if distributed.is_initialized() else ():
        moved = block.to(device)
        distributed.all_reduce(moved)
        block.copy_(moved)
