"""Options shared by several verbs, settings from YAML, and output."""

import argparse
import json
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

from trl_real.errors import TrlRealError


PART = "split, or a part of it, such as 'train[:1000]'"


def add_common(parser: argparse.ArgumentParser, output: bool = True, split: str = PART) -> None:
    """Add `--dataset`, `--split`, `--output_dir`, `--config` and `--json`, the same for every verb."""
    parser.add_argument("--dataset", help="Hub id, saved folder, or a Parquet, JSONL or CSV file")
    parser.add_argument("--split", help=split)
    if output:
        parser.add_argument("--output_dir", help="folder for the output, to give to the next command")
    add_config(parser)


def add_source(parser: argparse.ArgumentParser) -> None:
    """Add `--source`."""
    names = "hh_rlhf, shp, ultrafeedback, ultrafeedback_binarized or alpaca_eval"
    parser.add_argument("--source", help=f"format to convert the dataset from: {names}")


def add_config(parser: argparse.ArgumentParser) -> None:
    """Add `--config` and `--json`."""
    parser.add_argument(
        "--config", metavar="FILE.yaml", help="settings by the names of these flags; flags have priority"
    )
    parser.add_argument("--json", action="store_true", help="print the result as one JSON object")


def config_flags(parser: argparse.ArgumentParser, path: str) -> list[str]:
    """
    Convert the settings of a YAML file to flags, so that the parser checks them like flags.

    The file has one `name: value` per line, with the name of a flag or of its destination; a null value is ignored.

    Raises:
        TrlRealError: If the file cannot be read or names a setting that the verb does not have.
    """
    import yaml

    try:
        settings = yaml.safe_load(Path(path).read_text(encoding="utf-8")) or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise TrlRealError(f"Cannot read the settings in {path!r}: {' '.join(str(error).split())}") from error
    if not isinstance(settings, dict):
        raise TrlRealError(f"{path!r} holds a {type(settings).__name__}. Write one 'name: value' per line.")
    actions = {action.dest: action for action in parser._actions}
    actions |= {flag.removeprefix("--"): action for flag, action in parser._option_string_actions.items()}
    known = {name: action for name, action in actions.items() if action.dest not in ("help", "config")}
    flags: list[str] = []
    for name, value in settings.items():
        if name not in known:
            raise TrlRealError(f"{path!r} sets {name!r}; there are {', '.join(sorted(known))}.")
        flags += _as_flag(known[name], name, value)
    return flags


def _as_flag(action: argparse.Action, name: str, value: Any) -> list[str]:
    flag = action.option_strings[-1]
    if value is None or value == []:
        return []
    if action.nargs == 0:  # a switch, by its flag or by its destination
        if not isinstance(value, bool):
            raise TrlRealError(f"{name!r} is {value!r}. Write true or false.")
        if isinstance(action, argparse.BooleanOptionalAction):
            return [action.option_strings[not value]]
        return [flag] if value is (True if flag == f"--{name}" else action.const) else []
    if action.nargs is None:  # joined, so that a value may begin with a dash
        return [f"{flag}={value}"]
    return [flag, *map(str, value if isinstance(value, list) else [value])]


def require(args: argparse.Namespace, *names: str) -> None:
    """Raise `TrlRealError` for the first of these options that is given neither by flag nor in the settings file."""
    for name in names:
        if getattr(args, name) is None:
            raise TrlRealError(f"--{name} is missing. Type: trl-real {args.verb} --{name} …, or see --help.")


def number(text: str) -> float | int:
    """Parse a budget: an integer is a number of rows, any other number is a share."""
    try:
        return int(text)
    except ValueError:
        return float(text)


def locked(run: Callable[..., Any]) -> Callable[..., Any]:
    """Let a verb hold the lock of its `--output_dir`, if it has one and writes to it."""

    @wraps(run)
    def held(args: argparse.Namespace, *more: Any) -> Any:
        if not args.output_dir or getattr(args, "plan", False):
            return run(args, *more)
        from trl_real.runtime.run_lock import run_lock

        with run_lock(args.output_dir):
            return run(args, *more)

    return held


def say(message: str) -> None:
    """Print a message on standard error."""
    sys.stderr.write(message.rstrip() + "\n")


def result(args: argparse.Namespace, values: dict[str, Any], plain: str) -> None:
    """Print the result on standard output: as one JSON object with `--json`, else as text."""
    text = json.dumps(values, ensure_ascii=False, default=str) if args.json else plain
    sys.stdout.write(text.rstrip() + "\n")
