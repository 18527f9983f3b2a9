"""Checks of user input: lists of numbers and ids become arrays, or raise an error of one line."""

from collections.abc import Sequence, Sized
from typing import Any

import numpy as np

from trl_real.errors import TrlRealError


# Largest distance outside [0, 1] that counts as float32 rounding of a probability.
ROUNDING = 1e-6
NUMBER = int | float | np.number | None
Numbers = Sequence[float | None] | Sequence[float] | np.ndarray


def as_preferences(preferences: Numbers, name: str = "preferences") -> np.ndarray:
    """
    Convert preferences to float64, None to NaN; clip values outside [0, 1] by at most 1e-6 (rounding). Shape `(N,)`.

    Raises:
        TrlRealError: If a value is not a number, or further out of range.
    """
    values = as_vector(preferences, name)
    wrong = np.flatnonzero((values < -ROUNDING) | (values > 1 + ROUNDING))
    if wrong.size:
        raise TrlRealError(
            f"{name} row {wrong[0]} is {values[wrong[0]]:g}, not a probability in [0, 1]. "
            "From AlpacaEval's coding (1 baseline, 2 model, 1.5 or 0 draw): turn 0 into 1.5 and subtract 1."
        )
    return values.clip(0, 1)


def as_vector(values: Numbers, name: str) -> np.ndarray:
    """
    Convert numbers to float64, None to NaN. Shape `(N,)`.

    Raises:
        TrlRealError: If a value is not a number, or the list is not flat; the message does not repeat the value.
    """
    try:
        vector = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        wrong = [f"row {i} is a {type(v).__name__}" for i, v in enumerate(values) if not isinstance(v, NUMBER)]
        found = wrong[0] if wrong else f"are a {type(values).__name__}"
        raise TrlRealError(f"{name} {found}, not a number. Give a flat list of numbers, one a row.") from None
    if vector.ndim != 1:
        raise TrlRealError(f"{name} have shape {vector.shape}. Give a flat list of numbers, one a row.")
    return vector


def as_groups(clusters: Sequence[Any] | None, n: int, name: str = "clusters") -> np.ndarray:
    """
    Number clusters in order of appearance; without clusters each row is its own cluster. Shape `(N,)`.

    Raises:
        TrlRealError: If the number of ids is not the number of rows, or an id is missing or cannot be compared.
    """
    if clusters is None:
        return np.arange(n)
    clusters = clusters.tolist() if hasattr(clusters, "tolist") else list(clusters)
    check_count(clusters, n, name)
    wrong = [row for row, key in enumerate(clusters) if key is None or key != key or isinstance(key, list | dict)]
    if wrong:
        found = type(clusters[wrong[0]]).__name__
        raise TrlRealError(f"{name} row {wrong[0]} is a {found}. Give every row the id or the text of its prompt.")
    numbers = {key: number for number, key in enumerate(dict.fromkeys(clusters))}
    return np.array([numbers[key] for key in clusters], dtype=int)


def as_lengths(lengths: Numbers, judged: np.ndarray, name: str) -> np.ndarray:
    """
    Return the lengths, in characters, of the judged rows. Shape `(n,)`.

    Raises:
        TrlRealError: If the number of lengths is not the number of rows, or a judged row's is missing or negative.
    """
    values = as_vector(lengths, name)
    check_count(values, len(judged), name)
    wrong = np.flatnonzero(judged & ~((values >= 0) & np.isfinite(values)))
    if wrong.size:
        raise TrlRealError(f"{name} row {wrong[0]} is {values[wrong[0]]:g}. Give the number of characters, 0 or more.")
    return values[judged]


def check_count(values: Sized, n: int, name: str, other: str = "preferences") -> None:
    """Raise `TrlRealError` if there are not `n` values."""
    if len(values) != n:
        raise TrlRealError(f"{len(values)} {name} came with {n} {other}. Give one a row, in the same order.")


def check_confidence(confidence: float) -> None:
    """Raise `TrlRealError` if the confidence level is not in (0, 1)."""
    if not 0 < confidence < 1:
        raise TrlRealError(f"confidence is {confidence}. Give a level between 0 and 1, such as confidence=0.95.")
