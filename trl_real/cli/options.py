"""Options shared by several verbs, settings from YAML, and output."""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

from trl_real.cli.checks import CONTEXTS, DTYPES, one_of, whole
from trl_real.cli.parser import did_you_mean
from trl_real.errors import TrlRealError
from trl_real.runtime.atomic_files import read_json, without_nan, write_json
from trl_real.runtime.run_folder import check_settings


PART = "split, or a part of it, such as 'train[:1000]'"
QUICK = 1.0  # seconds; a step that took less was finished by an earlier start
COMMAND_FILE = "command.json"  # in the output folder of a verb
SOURCES = ("hh_rlhf", "shp", "ultrafeedback", "ultrafeedback_binarized", "alpaca_eval")


def add_common(parser: argparse.ArgumentParser, output: bool = True, split: str = PART) -> None:
    """Add `--dataset`, `--split`, `--output_dir` and those of `add_config`, the same for every verb."""
    parser.add_argument("--dataset", help="Hub id, saved folder, or a Parquet, JSONL or CSV file")
    parser.add_argument("--split", help=split)
    if output:
        parser.add_argument("--output_dir", help="folder for the output, to give to the next command")
    add_config(parser)


def add_source(parser: argparse.ArgumentParser) -> None:
    """Add `--source`."""
    about = f"format to convert the dataset from: {', '.join(SOURCES)}"
    parser.add_argument("--source", type=one_of("source", SOURCES), help=about)


def add_embedding(parser: argparse.ArgumentParser, length: str = "--max_length") -> None:
    """Add the flags of an embedder; `length` is the name of the one that limits the tokens of a response."""
    parser.add_argument(
        "--context", type=one_of("context", CONTEXTS), default="response", help="response (default) or prompt+response"
    )
    parser.add_argument("--layer", type=int, default=-1, help="layer of the hidden states; -1 (default) is the last")
    parser.add_argument(
        length, type=whole(1), default=512, help="maximum tokens of a response to embed (default: 512)"
    )
    parser.add_argument("--batch_tokens", type=whole(1), help="tokens per forward pass of the embedder")
    parser.add_argument(
        "--dtype", type=one_of("dtype", DTYPES), help="dtype of the embedder: float32 (default), bfloat16 or float16"
    )
    parser.add_argument("--device", help="device, such as cpu or cuda:0")


def add_chat(parser: argparse.ArgumentParser) -> None:
    """Add `--chat`."""
    about = "chat models: read text prompts as messages of the user, and text responses as messages of the assistant"
    parser.add_argument("--chat", action="store_true", help=about)


def rows_of(args: argparse.Namespace, rows: Any, **columns: str) -> Any:
    """Return rows as they are, or with `--chat` as messages; `columns` are arguments of `as_chat`."""
    from trl_real.data.chat import as_chat

    return as_chat(rows, **columns) if args.chat else rows


def add_config(parser: argparse.ArgumentParser) -> None:
    """Add `--config`, `--json`, `--allow_pickle` and `--verbose`."""
    parser.add_argument(
        "--config", metavar="FILE.yaml", help="settings by the names of these flags; flags have priority"
    )
    parser.add_argument("--json", action="store_true", help="print the result as one JSON object")
    parser.add_argument(
        "--allow_pickle", action="store_true", help="load weights from pickle files (.bin), which may hold code"
    )
    parser.add_argument(
        "--verbose", action="store_true", help="show the progress bars and warnings of other libraries"
    )


def read_settings(path: str) -> dict[str, Any]:
    """
    Return the settings of a YAML file, one `name: value` per line.

    Raises:
        TrlRealError: If the file cannot be read, or holds something else.
    """
    import yaml

    try:
        settings = yaml.safe_load(Path(path).read_text(encoding="utf-8")) or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise TrlRealError(f"Cannot read the settings in {path!r}: {' '.join(str(error).split())}") from error
    if not isinstance(settings, dict):
        raise TrlRealError(f"{path!r} holds a {type(settings).__name__}. Write one 'name: value' per line.")
    return settings


def config_flags(parser: argparse.ArgumentParser, path: str) -> list[str]:
    """
    Convert the settings of a YAML file to flags, so that the parser checks them like flags.

    The file has one `name: value` per line, with the name of a flag or of its destination; a null value is ignored.

    Raises:
        TrlRealError: If the file cannot be read or names a setting that the verb does not have.
    """
    settings = read_settings(path)
    actions = {action.dest: action for action in parser._actions}
    actions |= {flag.removeprefix("--"): action for flag, action in parser._option_string_actions.items()}
    known = {name: action for name, action in actions.items() if action.dest not in ("help", "config")}
    flags: list[str] = []
    for written, value in settings.items():
        name = str(written).replace("-", "_") if written not in known else written
        if name not in known:
            meant = did_you_mean(name, known)
            raise TrlRealError(f"{path!r} sets {written!r}; there are {', '.join(sorted(known))}.{meant}")
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
    if isinstance(value, dict):
        value = [f"{key}={json.dumps(part)}" for key, part in value.items()]
    return [flag, *map(str, value if isinstance(value, list) else [value])]


def require(args: argparse.Namespace, *names: str) -> None:
    """Raise `TrlRealError` for the first of these options that is given neither by flag nor in the settings file."""
    for name in names:
        if getattr(args, name) is None:
            raise TrlRealError(f"--{name} is missing. Type: trl-real {args.verb} --{name} …, or see --help.")


def check_output(args: argparse.Namespace, kind: str, *names: str, **more: Any) -> dict[str, Any]:
    """
    Refuse an output folder that the verb wrote with other settings.

    Args:
        args: Parsed flags, with `output_dir`.
        kind: Kind of the output, for the message.
        *names: Flags that the output depends on.
        **more: Further settings.

    Returns:
        The settings, for `keep_settings`.

    Raises:
        TrlRealError: If a setting differs; names the first one.
    """
    values = {name: getattr(args, name) for name in names} | more
    settings = {name: value for name, value in values.items() if value is not None}
    file = Path(args.output_dir).expanduser() / COMMAND_FILE
    if file.exists():
        check_settings(read_json(file), json.loads(json.dumps(settings)), args.output_dir, kind)
    elif file.parent.is_dir() and any(file.parent.iterdir()):
        say(f"Replacing the earlier output in {args.output_dir}, whose settings are not known.")
    return settings


def keep_settings(args: argparse.Namespace, settings: dict[str, Any]) -> None:
    """Write the settings that `check_output` returned into the output folder."""
    write_json(Path(args.output_dir).expanduser() / COMMAND_FILE, settings)


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


class TimeLeft:
    """
    One line before each step of a long run, with the time left.

    Args:
        total: Number of steps.
    """

    def __init__(self, total: int):
        self.total, self.done, self.worked, self.seconds = total, 0, 0, 0.0
        self.since = time.monotonic()

    def tell(self, title: str, done: int) -> None:
        """Print the title of the next step; `done` steps are finished, of which quick ones were there before."""
        now = time.monotonic()
        if done > self.done and now - self.since > QUICK:
            self.worked, self.seconds = self.worked + done - self.done, self.seconds + now - self.since
        self.done, self.since = done, now
        left = self.seconds / self.worked * (self.total - done) if self.worked else None
        say(title if left is None else f"{title}, about {_duration(left)} left")


def _duration(seconds: float) -> str:
    minutes = max(1, round(seconds / 60))
    if minutes >= 120:
        return f"{round(minutes / 60)} hours"
    return "1 minute" if minutes == 1 else f"{minutes} minutes"


def result(args: argparse.Namespace, values: dict[str, Any], plain: str) -> None:
    """Print the result on standard output: as one JSON object with `--json`, else as text."""
    text = strict_json(values, ensure_ascii=False) if args.json else plain
    try:
        args.stdout.write(text.rstrip() + "\n")
        args.stdout.flush()
    except BrokenPipeError:  # the reader, such as `head`, has seen enough; Python would complain at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), args.stdout.fileno())


def strict_json(values: dict[str, Any], **settings: Any) -> str:
    """Return JSON as every reader takes it: null for NaN and infinity; what is no plain value as text."""

    def plain(value: Any) -> Any:
        return without_nan(value.item()) if hasattr(value, "item") else str(value)

    return json.dumps(without_nan(values), default=plain, allow_nan=False, **settings)
