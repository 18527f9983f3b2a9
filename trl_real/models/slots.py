"""
Keys and values of rows that come and go while a batch is decoded.

All rows write their next token into the same column, so a step costs one small copy a layer. A prompt that comes in
lies to the left of that column, as with padding on the left; a row that leaves is overwritten by the last one, so
that only rows that are being written run through the model.
"""

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin


class Slots:
    """
    The window of rows and columns that the model sees, and the layers behind it.

    Args:
        config: Of the (text) model.
        n_rows: Rows at a time, at most.
    """

    def __init__(self, config: Any, n_rows: int):
        self.n_rows, self.n_columns = n_rows, 0
        self.rows, self.begin, self.end, self.n_new = slice(0, 0), 0, 0, 0
        self.layers = [SlotLayer(self) for _ in range(config.num_hidden_layers)]
        self.cache = Cache(layers=self.layers)

    def show(self, rows: slice, begin: int, end: int, n_new: int) -> Cache:
        """The cache as it is for some rows: of the columns from `begin` to `end` the last `n_new` are new."""
        self.rows, self.begin, self.end, self.n_new = rows, begin, end, n_new
        return self.cache

    def spread(self, first: int, which: list[int], columns: slice) -> None:
        """Let the rows from `first` on be copies of `first + which[0]`, `first + which[1]`, …"""
        if which != list(range(len(which))):
            source = torch.tensor(which) + first
            for states in self._states():
                states[first : first + len(which), :, columns] = states[source.to(states.device), :, columns]

    def move(self, sources: list[int], targets: list[int], columns: slice) -> None:
        """Overwrite rows by others."""
        for states in self._states() if sources else ():
            states[targets, :, columns] = states[sources, :, columns]

    def make_room(self, n_rows: int, columns: slice, at: int, n_columns: int) -> None:
        """New memory of `n_columns` columns, with `columns` of the first rows moved to begin at `at`."""
        self.n_columns = n_columns
        for layer in self.layers:
            if layer.is_initialized:
                layer.keys, layer.values = (
                    _moved(states, n_rows, columns, at, n_columns) for states in (layer.keys, layer.values)
                )

    def _states(self) -> list[Tensor]:
        return [states for layer in self.layers if layer.is_initialized for states in (layer.keys, layer.values)]


class SlotLayer(CacheLayerMixin):
    """A layer's keys and values, shape `(rows, heads, columns, d_head)`; reads and writes where the slots say."""

    is_sliding = False

    def __init__(self, slots: Slots):
        super().__init__()
        self.slots = slots

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Take memory, in the precision of what comes."""
        # zeros, since attention multiplies what it does not see by nothing, and nothing times NaN is NaN
        self.keys, self.values = (
            states.new_zeros(self.slots.n_rows, states.shape[1], self.slots.n_columns, states.shape[3])
            for states in (key_states, value_states)
        )
        self.device, self.dtype = key_states.device, key_states.dtype
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write what is new, and give all that the rows see."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        slots = self.slots
        for kept, new in ((self.keys, key_states), (self.values, value_states)):
            kept[slots.rows, :, slots.end - slots.n_new : slots.end] = new
        seen = slice(slots.begin, slots.end)
        return self.keys[slots.rows, :, seen], self.values[slots.rows, :, seen]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Columns that are seen, and the first of them."""
        return self.slots.end - self.slots.begin, 0

    def get_seq_length(self) -> int:
        """Columns before the new ones."""
        return self.slots.end - self.slots.begin - self.slots.n_new

    def get_max_length(self) -> int:
        """No end: memory is made as it is needed."""
        return -1


def _moved(states: Tensor, n_rows: int, columns: slice, at: int, n_columns: int) -> Tensor:
    new = states.new_zeros(states.shape[0], states.shape[1], n_columns, states.shape[3])
    new[:n_rows, :, at : at + columns.stop - columns.start] = states[:n_rows, :, columns]
    return new
