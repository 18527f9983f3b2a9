"""Options that several verbs share, settings from YAML, and where words and data go."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from trl_real.errors import TrlRealError


PART = "split, or a part of it, such as 'train[:1000]'"


def add_common(parser: argparse.ArgumentParser, output: bool = True, split: str = PART) -> None:
    """`--dataset`, `--split`, `--output_dir`, `--config` and `--json`, the same for every verb."""
    parser.add_argument("--dataset", help="Hub id, saved folder, or a Parquet, JSONL or CSV file")
    parser.add_argument("--split", help=split)
    if output:
        parser.add_argument("--output_dir", help="folder to write; the next command reads it")
    add_config(parser)


def add_config(parser: argparse.ArgumentParser) -> None:
    """`--config` and `--json`."""
    parser.add_argument("--config", metavar="FILE.yaml", help="settings by the names of these flags; flags win")
    parser.add_argument("--json", action="store_true", help="print the result as one JSON object")


def config_flags(parser: argparse.ArgumentParser, path: str) -> list[str]:
    """
    The settings of a YAML file as flags, so that they are read and refused as flags are.

    Args:
        parser: Of the verb.
        path: Of the file: a value a line, by the name of a flag or of what it sets; null leaves it out.

    Raises:
        TrlRealError: If the file cannot be read or names a setting that the verb does not have.
    """
    import yaml

    try:
        settings = yaml.safe_load(Path(path).read_text(encoding="utf-8")) or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise TrlRealError(f"Cannot read the settings in {path!r}: {' '.join(str(error).split())}") from error
    if not isinstance(settings, dict):
        raise TrlRealError(f"{path!r} holds a {type(settings).__name__}. Write one 'name: value' a line.")
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
    if action.nargs == 0:  # a switch, by its own name or by what it sets
        if not isinstance(value, bool):
            raise TrlRealError(f"{name!r} is on or off, not {value!r}. Write true or false.")
        if isinstance(action, argparse.BooleanOptionalAction):
            return [action.option_strings[not value]]
        return [flag] if value is (True if flag == f"--{name}" else action.const) else []
    if action.nargs is None:  # joined, so that a value may begin with a dash
        return [f"{flag}={value}"]
    return [flag, *map(str, value if isinstance(value, list) else [value])]


def require(args: argparse.Namespace, *names: str) -> None:
    """
    Check that options were given, by flag or by file.

    Raises:
        TrlRealError: Naming the first one that was not.
    """
    for name in names:
        if getattr(args, name) is None:
            raise TrlRealError(f"--{name} is missing. Type: trl-real {args.verb} --{name} …, or see --help.")


def number(text: str) -> float | int:
    """A whole number as int, else a float: budgets are rows or shares by their type."""
    try:
        return int(text)
    except ValueError:
        return float(text)


def say(words: str) -> None:
    """Words for a person, on standard error."""
    sys.stderr.write(words.rstrip() + "\n")


def result(args: argparse.Namespace, values: dict[str, Any], plain: str) -> None:
    """The result, on standard output: as one JSON object with `--json`, else as text."""
    text = json.dumps(values, ensure_ascii=False, default=str) if args.json else plain
    sys.stdout.write(text.rstrip() + "\n")
