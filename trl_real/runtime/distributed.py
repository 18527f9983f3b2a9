"""Work shared by several processes: join them, split the work, and exchange results."""

import os
import sys
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from trl_real.errors import TrlRealError
from trl_real.runtime.devices import accelerator


if TYPE_CHECKING:
    import torch

K = TypeVar("K")
T = TypeVar("T")

# Numbers sent at a time: 64 MB in float32.
BLOCK = 2**24
# Processes wait for the slowest one; when one fails, the launcher ends them all.
TIMEOUT = timedelta(days=7)


def init_distributed() -> None:
    """Join the processes started by `accelerate launch` or `torchrun`; do nothing in a single process."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and _group() is None:
        from accelerate import PartialState

        PartialState(cpu=accelerator() is None, timeout=TIMEOUT)


def rank() -> int:
    """Return the index of this process, from 0; 0 for a single process."""
    group = _group()
    return group.get_rank() if group else 0


def share(items: Sequence[T], all_processes: bool = True) -> Sequence[T]:
    """
    Return the items for this process: every `world_size`-th of the items, which are equal in all processes. If not
    `all_processes` call this, return all items.
    """
    group = _group(all_processes)
    return items[group.get_rank() :: group.get_world_size()] if group else items


def is_mine(number: int) -> bool:
    """Return whether the item with this number is for this process: `share` for an unknown number of items."""
    group = _group()
    return group is None or number % group.get_world_size() == group.get_rank()


def wait() -> None:
    """Wait until all processes get here."""
    group = _group()
    if group:
        group.barrier()


def once(function: Callable[[], T], all_processes: bool = True) -> T:
    """
    Call a function in the first process and return its result in all processes. If not `all_processes` call this, this
    process calls the function itself.

    Raises:
        TrlRealError: In all processes, if the function raises it in the first one.
    """
    group = _group(all_processes)
    if group is None:
        return function()
    result_and_error: list = [None, None]
    if group.get_rank() == 0:
        try:
            result_and_error[0] = function()
        except TrlRealError as error:
            result_and_error[1] = error
    group.broadcast_object_list(result_and_error, src=0)
    result, raised = result_and_error
    if raised is not None:
        raise raised
    return result


def gather(entries: dict[K, T], all_processes: bool = True) -> dict[K, T]:
    """Return the entries of all processes, in all processes. If not `all_processes` call this, return `entries`."""
    group = _group(all_processes)
    if group is None:
        return entries
    parts: list = [None] * group.get_world_size()
    group.all_gather_object(parts, entries)
    return {key: value for part in parts for key, value in part.items()}


def sum_over_processes(rows: "torch.Tensor", device: "torch.device") -> None:
    """
    Add up the rows of all processes, of equal shape `(n, d)`, in place; exact if every element is nonzero in at most
    one process. The group's backend sends from `device`.
    """
    group = _group()
    for block in rows.split(max(1, BLOCK // rows.shape[1])) if group else ():
        moved = block.to(device)
        group.all_reduce(moved)
        block.copy_(moved)


def _group(all_processes: bool = True) -> Any:
    """
    Return `torch.distributed` if this process is in a group, else None; a single process does not import torch.

    `accelerate.PartialState` does not fit here: for a group made without a launcher's environment variables, it counts
    one process.
    """
    distributed = sys.modules.get("torch.distributed") if all_processes else None
    return distributed if distributed and distributed.is_initialized() else None
