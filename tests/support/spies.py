"""What a verb of the command line hands to the functions that do its work."""

import argparse
import inspect
from collections.abc import Callable
from dataclasses import is_dataclass
from importlib import import_module
from pathlib import Path
from types import UnionType
from typing import Any, get_args

from datasets import Dataset


class Reached(BaseException):
    """The last spied call was reached; nothing of it is run."""


class Calls:
    """Spies on functions and classes: their arguments are kept, by the names in their signatures."""

    def __init__(self, monkeypatch):
        self.monkeypatch, self.found = monkeypatch, []

    def spy(self, target: str, through: bool = False, gives: Callable[..., Any] | None = None) -> None:
        """Spy on `module:name`: call it, return what `gives` returns, or stop the verb there."""
        home, _, name = target.partition(":")
        owner = import_module(home)
        *parents, name = name.split(".")
        for parent in parents:
            owner = getattr(owner, parent)
        original = getattr(owner, name)
        signature = inspect.signature(original)

        def spied(*args: Any, **kwargs: Any) -> Any:
            bound = signature.bind(*args, **kwargs).arguments
            self.found.append({key: value for key, value in bound.items() if key != "self"})
            for key, value in bound.items():
                kind = signature.parameters[key].annotation
                assert _is_of(value, kind), f"{name}: {key}={value!r} is no {kind}"
            if through:
                return original(*args, **kwargs)
            if gives is None:
                raise Reached
            return gives(*args, **kwargs)

        self.monkeypatch.setattr(owner, name, spied)

    def values(self) -> list[Any]:
        """Return the plain values in all arguments, at any depth."""
        return [value for call in self.found for value in _plain(call)]


def _is_of(value: Any, kind: Any) -> bool:
    """Return whether a value is of an annotated class, or of one of several; other annotations are not looked at."""
    kinds = get_args(kind) if isinstance(kind, UnionType) else (kind,)
    if value is None or {Any, inspect.Parameter.empty} & set(kinds) or not all(type(each) is type for each in kinds):
        return True
    return isinstance(value, (*kinds, int) if float in kinds else kinds)


def _plain(value: Any, depth: int = 4) -> list[Any]:
    if isinstance(value, str | int | float | Path):
        return [str(value) if isinstance(value, Path) else value]
    if isinstance(value, dict):
        value = list(value.values())
    elif isinstance(value, Dataset):
        value = list(value[0].values())
    elif is_dataclass(value) or type(value).__module__.startswith("trl_real.labeling"):
        value = list(vars(value).values())
    if isinstance(value, list | tuple | range) and depth:
        return [item for part in value for item in _plain(part, depth - 1)]
    return []


def another(action: argparse.Action) -> tuple[list[str], list[Any]]:
    """Return an argument for a flag, unlike its default, and the values that must arrive."""
    flag = action.option_strings[0]
    if isinstance(action, argparse.BooleanOptionalAction):
        return [f"--no-{action.dest}"], [False]
    if action.nargs == 0:
        return [flag], [action.const]
    if action.choices:
        text = next(choice for choice in action.choices if choice != action.default)
        return [flag, text], [text]
    text = f"another_{action.dest}"
    for tried in ("11", "0.375"):
        try:
            if action.type is not None:
                action.type(tried)
                text = tried
                break
        except (ValueError, argparse.ArgumentTypeError):
            continue
    value = action.type(text) if action.type else text
    n = action.nargs if isinstance(action.nargs, int) else 1
    return [flag, *[text] * n], [value] * n
