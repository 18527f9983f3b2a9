"""
Key-value cache for continuous batching.

All rows write their next token into the same column, so a step costs one small copy per layer. A new prompt is put to
the left of that column, as with left padding; a finished row is overwritten by the last one, so that only unfinished
rows run through the model.
"""

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin


class Slots:
    """Cache of at most `n_rows` rows, with a window of rows and columns that the (text) model sees."""

    def __init__(self, config: Any, n_rows: int):
        self.n_rows, self.n_columns = n_rows, 0
        self.rows, self.begin, self.end, self.n_new = slice(0, 0), 0, 0, 0
        self.layers = [SlotLayer(self) for _ in range(config.num_hidden_layers)]
        self.cache = Cache(layers=self.layers)

    def show(self, rows: slice, begin: int, end: int, n_new: int) -> Cache:
        """Return the cache of some rows: of the columns from `begin` to `end`, the last `n_new` are new."""
        self.rows, self.begin, self.end, self.n_new = rows, begin, end, n_new
        return self.cache

    def spread(self, first: int, which: list[int], columns: slice) -> None:
        """Fill the rows from `first` on with copies of `first + which[0]`, `first + which[1]`, …"""
        if which != list(range(len(which))):
            source = torch.tensor(which) + first
            for states in self._states():
                states[first : first + len(which), :, columns] = states[source.to(states.device), :, columns]

    def move(self, sources: list[int], targets: list[int], columns: slice) -> None:
        """Copy rows over others."""
        for states in self._states() if sources else ():
            states[targets, :, columns] = states[sources, :, columns]

    def make_room(self, n_rows: int, columns: slice, at: int, n_columns: int) -> None:
        """Allocate `n_columns` columns, and move `columns` of the first rows to begin at `at`."""
        self.n_columns = n_columns
        for layer in self.layers:
            if layer.is_initialized:
                layer.keys, layer.values = (
                    _moved(states, n_rows, columns, at, n_columns) for states in (layer.keys, layer.values)
                )

    def _states(self) -> list[Tensor]:
        return [states for layer in self.layers if layer.is_initialized for states in (layer.keys, layer.values)]


class SlotLayer(CacheLayerMixin):
    """Keys and values of a layer, shape `(rows, heads, columns, d_head)`; the slots set the window."""

    is_sliding = False

    def __init__(self, slots: Slots):
        super().__init__()
        self.slots = slots

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Allocate memory in the precision of the states."""
        # zeros, since attention multiplies masked values by 0, and 0 times NaN is NaN
        self.keys, self.values = (
            states.new_zeros(self.slots.n_rows, states.shape[1], self.slots.n_columns, states.shape[3])
            for states in (key_states, value_states)
        )
        self.device, self.dtype = key_states.device, key_states.dtype
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write the new columns, and return all columns in the window."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        slots = self.slots
        for stored, new in ((self.keys, key_states), (self.values, value_states)):
            stored[slots.rows, :, slots.end - slots.n_new : slots.end] = new
        window = slice(slots.begin, slots.end)
        return self.keys[slots.rows, :, window], self.values[slots.rows, :, window]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return the number of columns in the window, and the offset."""
        return self.slots.end - self.slots.begin, 0

    def get_seq_length(self) -> int:
        """Return the number of columns before the new ones."""
        return self.slots.end - self.slots.begin - self.slots.n_new

    def get_max_length(self) -> int:
        """Return -1: memory is allocated when it is needed."""
        return -1


def _moved(states: Tensor, n_rows: int, columns: slice, at: int, n_columns: int) -> Tensor:
    new = states.new_zeros(states.shape[0], states.shape[1], n_columns, states.shape[3])
    new[:n_rows, :, at : at + columns.stop - columns.start] = states[:n_rows, :, columns]
    return new
