"""Whether packed sequences give what each gives alone, on this model."""

from collections.abc import Callable
from typing import Any

from torch import Tensor


def fits_window(config: Any, longest: int) -> bool:
    """Return whether no layer's window or chunk is shorter than the longest sequence; packing supports neither."""
    limits = (getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size"))
    return all(not limit or limit >= longest for limit in limits)


def made_up(vocab_size: int, lengths: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Make up sequences of tokens, one of each length, to check a model with."""
    return [tuple((7919 * i + 13 * n) % vocab_size for i in range(n)) for n in lengths]


def gives_the_same(
    together: Callable[[], Tensor], alone: Callable[[], Tensor], exact: bool, rough: float = 5e-2
) -> bool:
    """
    Return whether packing equals one sequence at a time. It silently does not if the model's own attention code
    ignores the segments, if it has biases, caps or sinks, or if layers have a state.

    Args:
        together: Function that runs the model on packed sequences; an error means that it cannot.
        alone: Function that returns the expected values.
        exact: Whether the model runs in float32.
        rough: Tolerance for lower precision, relative to the largest value.
    """
    try:
        found = together()
    except (TypeError, ValueError, RuntimeError, IndexError):
        return False
    expected = alone()
    return bool((found - expected).abs().max() <= (1e-3 if exact else rough) * expected.abs().max())
