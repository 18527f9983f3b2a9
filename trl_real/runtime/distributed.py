"""Several processes at one job: joining them, sharing the work out, and telling all of them what one found."""

import os
import sys
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from trl_real.errors import TrlRealError


if TYPE_CHECKING:
    import torch

K, T = TypeVar("K"), TypeVar("T")

# Numbers that are sent at a time: 64 MB in float32.
BLOCK = 2**24
# Processes wait for the slowest one; a launcher ends them all when one dies.
PATIENCE = timedelta(days=7)


def join() -> None:
    """Become one of the processes that `accelerate launch` or `torchrun` started, where one of them did."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and _group() is None:
        import torch
        from accelerate import PartialState

        PartialState(cpu=not torch.cuda.is_available(), timeout=PATIENCE)


def rank() -> int:
    """Number of this process, from 0; 0 for one that is alone."""
    group = _group()
    return group.get_rank() if group else 0


def share(items: Sequence[T], together: bool = True) -> Sequence[T]:
    """
    The part of some items that is this process's: every `world_size`-th.

    Args:
        items: The same, in the same order, in all processes.
        together: False where this process works alone, whatever others there are.
    """
    group = _group(together)
    return items[group.get_rank() :: group.get_world_size()] if group else items


def is_mine(number: int) -> bool:
    """Whether the job of that number is this process's: `share` where it is not known how many there will be."""
    group = _group()
    return group is None or number % group.get_world_size() == group.get_rank()


def wait() -> None:
    """Until all processes have come here."""
    group = _group()
    if group:
        group.barrier()


def once(function: Callable[[], T], together: bool = True) -> T:
    """
    What `function` returns in the first process, in all of them; all wait for it.

    Args:
        function: Called in the first process alone.
        together: As in `share`.

    Raises:
        TrlRealError: In all of them, if it does so in the first.
    """
    group = _group(together)
    if group is None:
        return function()
    told: list = [None, None]
    if group.get_rank() == 0:
        try:
            told[0] = function()
        except TrlRealError as error:
            told[1] = error
    group.broadcast_object_list(told, src=0)
    if told[1] is not None:
        raise told[1]
    return told[0]


def gather(mine: dict[K, T], together: bool = True) -> dict[K, T]:
    """
    The entries of all processes, in all of them; all wait for the last one.

    Args:
        mine: Of this process.
        together: As in `share`.
    """
    group = _group(together)
    if group is None:
        return mine
    parts: list = [None] * group.get_world_size()
    group.all_gather_object(parts, mine)
    return {key: value for part in parts for key, value in part.items()}


def sum_over_processes(rows: "torch.Tensor", device: "torch.device") -> None:
    """
    Add up, in place, what all processes hold: exact where all but one of them hold zeros. One alone keeps its own.

    Args:
        rows: Of the same shape in all processes. Shape `(n, d)`.
        device: One that the group's backend sends from.
    """
    group = _group()
    for block in rows.split(max(1, BLOCK // rows.shape[1])) if group else ():
        moved = block.to(device)
        group.all_reduce(moved)
        block.copy_(moved)


def _group(together: bool = True) -> Any:
    """`torch.distributed` where processes are joined, else None; torch is not loaded to find that out."""
    distributed = sys.modules.get("torch.distributed") if together else None
    return distributed if distributed and distributed.is_initialized() else None
