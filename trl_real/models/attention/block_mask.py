"""Who attends to whom in a row of tokens, as flex attention reads it: by blocks, and by a function of two indices."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask

from trl_real.models.packing import Segment


BLOCK = 128  # tokens


def block_mask(segments: Sequence[Segment], n_before: int, device: torch.device) -> BlockMask:
    """Return who attends to whom, for flex attention; arguments and errors as in `seen_by`."""
    first, end = (bounds.to(device, torch.int32) for bounds in seen_by(segments, n_before))
    low = torch.arange(0, len(first) - n_before, BLOCK, device=device)[:, None]
    some = (first < end) & (first < low + BLOCK) & (end > low)
    all_of_them = (first <= low) & (end >= low + BLOCK)
    some, full = (
        nn.functional.pad(seen, (0, -len(first) % BLOCK)).unflatten(1, (-1, BLOCK)) for seen in (some, all_of_them)
    )
    some, full = some.any(2), full.all(2)  # (blocks of queries, blocks of keys)

    def sees(_batch: Any, _head: Any, query: Tensor, key: Tensor) -> Tensor:
        return (first[key] <= query) & (query < end[key])

    lengths = (len(first) - n_before, len(first))
    return BlockMask.from_kv_blocks(*_listed(some & ~full), *_listed(full), BLOCK, sees, lengths)


def _listed(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """Return the number of true entries in each row, and their columns, followed by the others."""
    order = blocks.int().argsort(dim=1, descending=True, stable=True)
    return blocks.sum(1, dtype=torch.int32)[None, None], order.int()[None, None]


def seen_by(segments: Sequence[Segment], n_before: int) -> tuple[Tensor, Tensor]:
    """
    Return by which tokens each token is attended to: those from a first one to before an end.

    Args:
        segments: Segments of a row of `T` tokens. Those that continue a segment follow it directly.
        n_before: Number of tokens of an earlier pass, `C`, to which the prefixes belong; 0 if they are the row's own.

    Returns:
        First and end for each token, those of the earlier pass before the row's. Shape `(C + T,)` each.

    Raises:
        ValueError: If the segments are in another order.
    """
    lengths = torch.tensor([segment.length for segment in segments for _ in range(segment.count)], dtype=torch.long)
    own = torch.arange(int(lengths.sum()))
    first = torch.cat([torch.zeros(n_before, dtype=torch.long), own])
    end = torch.cat([torch.zeros(n_before, dtype=torch.long), lengths.cumsum(0).repeat_interleave(lengths)])
    ends: dict[int, int] = {}  # by the start of what is continued
    for segment in segments:
        for part in segment.prefix:
            if ends.get(part.start, segment.start if n_before else part.stop) != segment.start:
                raise ValueError(f"the segment at {segment.start} does not follow those that share its prefix")
            if n_before and part.start not in ends:
                first[part] = segment.start
            ends[part.start] = end[part] = segment.stop
    return first, end
