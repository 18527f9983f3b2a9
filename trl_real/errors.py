"""Errors for mistakes of the user: each message is one line with what was found and what to type."""

import math
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from numbers import Integral, Real


class TrlRealError(ValueError):
    """Mistake in the input or the settings that the user can fix; the command line prints it and exits with 2."""

    def __reduce__(self):
        # Pickle by message, because constructors of subclasses take other arguments.
        return _restore, (type(self), self.args)


class MissingColumnError(TrlRealError):
    """A required column is missing."""

    def __init__(self, column: str, found: Iterable[str], fix: str):
        super().__init__(f"No column {column!r} in the dataset; it has {sorted(found)}. {fix}")


def check_columns(found: Collection[str], names: Iterable[str], fix: str) -> None:
    """Raise `MissingColumnError` for the first of `names` that is not found."""
    for name in names:
        if name not in found:
            raise MissingColumnError(name, found, fix)


class TooFewPairsError(TrlRealError):
    """A budget is larger than the number of pairs; `room` is the number of pairs."""

    def __init__(self, message: str, room: int):
        super().__init__(message)
        self.room = room

    def __reduce__(self):
        return type(self), (*self.args, self.room)


class PickledWeightsError(TrlRealError):
    """The weights of a model are pickle files, which may hold code."""


class MissingExtraError(ImportError, TrlRealError):
    """An optional dependency is not installed."""

    def __init__(self, package: str, extra: str):
        super().__init__(f"{package} is not installed. Type: pip install 'trl-real[{extra}]'")


def check_budget(budget: float | int | None, n_rows: int | None = None) -> None:
    """
    Check that the value is a budget, for a pool of `n_rows` rows or of any size.

    Raises:
        TrlRealError: If it is not None, a share in (0, 1] or a positive number of rows.
        TooFewPairsError: If the pool has fewer rows.
    """
    if budget is None:
        return
    if isinstance(budget, bool) or not isinstance(budget, Real):
        raise TrlRealError(f"budget={budget!r} is not a number. Give a share such as 0.25, or a number of rows.")
    if isinstance(budget, Integral) and budget < 1:
        raise TrlRealError(f"budget={budget} keeps no row. Give a positive number of rows, or a share such as 0.25.")
    if not isinstance(budget, Integral) and not 0 < budget <= 1:
        raise TrlRealError(
            f"budget={budget} is out of range: a float is a share in (0, 1], an int a number of rows. "
            f"Type 0.25 for a quarter of the rows" + (f", {int(budget)} for rows." if 1 < budget < math.inf else ".")
        )
    if n_rows and isinstance(budget, Integral) and budget > n_rows:
        raise TooFewPairsError(
            f"budget={budget}, but the dataset has only {n_rows} rows. Type budget={n_rows} or None.", n_rows
        )


@contextmanager
def needs_extra(package: str, extra: str) -> Iterator[None]:
    """Raise `MissingExtraError` for imports that fail in this block."""
    try:
        yield
    except ImportError as error:
        raise MissingExtraError(package, extra) from error


@contextmanager
def without_remote_code(model: str) -> Iterator[None]:
    """
    Raise a `TrlRealError` in this block for a model that needs code from its own repository, or a package that is not
    installed.
    """
    try:
        yield
    except ImportError as error:  # transformers says what to install
        raise TrlRealError(" ".join(str(error).split())) from error
    except ValueError as error:
        if "trust_remote_code" not in str(error):
            raise
        raise TrlRealError(
            f"{str(model)!r} needs Python code from its own repository, which is never run here. If you trust that "
            "code, load model and tokenizer yourself with trust_remote_code=True, and give them in place of the name."
        ) from error


def _restore(kind: type[TrlRealError], args: tuple) -> TrlRealError:
    error = kind.__new__(kind)
    error.args = args
    return error
