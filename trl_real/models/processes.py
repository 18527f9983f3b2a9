"""One pool, several processes: each runs a share of it, and all of them get the whole."""

from collections.abc import Hashable

import torch
from torch import Tensor, distributed


# Numbers that are sent at a time: 64 MB in float32.
BLOCK = 2**24


def my_share(keys: list[Hashable], divided: bool) -> set[Hashable]:
    """
    The part of different keys that is this process's.

    Args:
        keys: The same, in the same order, in all processes.
        divided: False where this process works alone, whatever others there are.
    """
    if not (divided and distributed.is_initialized()):
        return set(keys)
    return set(keys[distributed.get_rank() :: distributed.get_world_size()])


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
