"""Checks of flags before any heavy library is imported: files, folders, names and ranges."""

import argparse
import math
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from trl_real.cli.parser import did_you_mean
from trl_real.errors import TrlRealError, check_budget


DATA = ("dataset", "pilot", "eval_dataset", "eval_prompts", "seed_labels", "prompts", "check", "difficulty")
TEXT_FILES = ("guidelines", "panel")
MODELS = ("model", "judge_model", "judge_reference", "baseline")
DATA_SUFFIX = re.compile(r"\.(parquet|jsonl|json|csv)(\.gz)?$", re.IGNORECASE)
HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")
MODEL_FILES = ("config.json", "adapter_config.json", "*.gguf")
# Names of tables in modules that import torch; a test holds them to the tables.
STRATEGIES = ("random", "easy", "hard", "centroid", "d_optimal", "i_optimal")
MIXTURES = ("auto",)
ACQUISITIONS = ("infomax", "infomax_interval", "dts", "delta_ucb", "drts", "small_gap", "large_gap", "fisher")
GEOMETRIES = ("raw", "centered", "standardized", "whitened", "debiased")
CONTEXTS = ("response", "prompt+response")
DTYPES = ("float32", "bfloat16", "float16")
PICKS = ("best_worst", "best_random")
METHODS = ("auto", "wilson", "t", "score", "bootstrap")
TRAINERS = ("dpo", "reward", "kto")
ABLATIONS = ("expansion", "refinement", "detection")


def one_of(what: str, names: Sequence[str], at: Sequence[str] = ()) -> Callable[[str], str]:
    """Return the type of a flag whose value is one of `names`, which may be followed by `@` and one of `at`."""

    def check(value: str) -> str:
        name, _, place = value.partition("@")
        for kind, word, known in ((what, name, names), ("geometry", place or None, at)):
            if word is not None and word not in known:
                raise argparse.ArgumentTypeError(
                    f"No {kind} {word!r}; there are {', '.join(known)}.{did_you_mean(word, known)}"
                )
        return value

    return check


def strategies(*more: str) -> Callable[[str], str]:
    """Return the type of a flag that takes strategies, mixtures such as `0.75easy@centered+0.25random`, and `more`."""
    single, part = (
        one_of("strategy", (*STRATEGIES, *MIXTURES, *more), GEOMETRIES),
        one_of("strategy", STRATEGIES, GEOMETRIES),
    )

    def check(value: str) -> str:
        if "+" not in value:
            return single(value)
        for text in value.split("+"):
            part(text.strip().lstrip("0123456789.").strip())
        return value

    return check


STRATEGY, ARM = strategies(), strategies(*ACQUISITIONS, "auto_in_rounds")


def whole(least: int) -> Callable[[str], int]:
    """Return the type of a flag that is a whole number of `least` or more."""

    def check(value: str) -> int:
        if not re.fullmatch(r"[+-]?\d+", value) or int(value) < least:
            raise argparse.ArgumentTypeError(f"{value!r} is not a whole number of {least} or more.")
        return int(value)

    return check


def real(least: float, most: float = math.inf, open_ends: bool = False) -> Callable[[str], float]:
    """Return the type of a flag that is a number in [least, most], or between them if the ends are open."""

    def check(value: str) -> float:
        from_least = f"above {least:g}" if open_ends else f"of {least:g} or more"
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        if not (least < number < most if open_ends else least <= number <= most and math.isfinite(number)):
            where = f"between {least:g} and {most:g}" if most < math.inf else from_least
            raise argparse.ArgumentTypeError(f"{value!r} is not a number {where}.")
        return number

    return check


def budget(value: str) -> float | int:
    """Parse a budget: an integer is a number of rows, any other number is a share."""
    try:
        number: float | int = int(value)
    except ValueError:
        try:
            number = float(value)
        except ValueError:
            raise argparse.ArgumentTypeError(
                f"{value!r} is neither a share such as 0.25 nor a number of rows."
            ) from None
    try:
        check_budget(number)
    except TrlRealError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return number


def check_given(args: argparse.Namespace) -> None:
    """
    Check that the files and folders that were given exist, and that the output can be written.

    Raises:
        TrlRealError: For the first that does not; names the flag.
    """
    given = {name: value for name, value in vars(args).items() if isinstance(value, str)}
    for name in DATA:
        if name in given and args.verb != "report":  # its dataset is the folder of a run
            _check_data(name, given[name])
    for name in TEXT_FILES:
        if name in given and not Path(given[name]).expanduser().is_file():
            raise TrlRealError(f"--{name}: no file {given[name]!r}.{_near(given[name])}")
    for name in MODELS:
        if name in given and not (name == "judge_model" and getattr(args, "base_url", None)):
            _check_model(name, given[name])
    if "output_dir" in given:
        _check_output(Path(given["output_dir"]).expanduser())


def _check_data(name: str, value: str) -> None:
    path = Path(value).expanduser()
    if path.exists() or (HUB_ID.fullmatch(value) and not DATA_SUFFIX.search(value)):
        return
    raise TrlRealError(
        f"--{name}: No file or folder {value!r}; paths are relative to {str(Path.cwd())!r}.{_near(value)}"
    )


def _check_model(name: str, value: str) -> None:
    path = Path(value).expanduser()
    if path.is_dir():
        if value.count("/") > 1 or not HUB_ID.fullmatch(value):
            if not any(found for pattern in MODEL_FILES for found in path.glob(pattern)):
                raise TrlRealError(f"--{name}: the folder {value!r} holds no model: none of {', '.join(MODEL_FILES)}.")
    elif not path.exists() and (value.startswith(("/", "./", "../", "~")) or value.count("/") > 1):
        raise TrlRealError(f"--{name}: no folder {value!r}.{_near(value)}")


def _check_output(path: Path) -> None:
    if path.exists() and not path.is_dir():
        raise TrlRealError(f"--output_dir: {str(path)!r} is a file. Give a folder.")
    there = next(parent for parent in (path, *path.absolute().parents) if parent.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise TrlRealError(f"--output_dir: {str(path)!r} cannot be made: no right to write in {str(there)!r}.")


def _near(value: str) -> str:
    path = Path(value).expanduser()
    beside = [str(path.with_name(other.name)) for other in path.parent.iterdir()] if path.parent.is_dir() else []
    return did_you_mean(str(path), beside)
