"""Entry point of `trl-real`. Each verb is a module, imported only when it runs."""

import argparse
import errno
import logging
import os
import re
import sys
import tempfile
import traceback
import warnings
from contextlib import redirect_stdout
from importlib import import_module
from pathlib import Path

from trl_real import __version__
from trl_real.cli.checks import check_given
from trl_real.cli.options import config_flags, say
from trl_real.cli.parser import Parser, did_you_mean, in_flags
from trl_real.errors import TrlRealError


VERBS = {
    "select": "choose the pairs of a pool that are worth a label",
    "label": "turn selected pairs into preferences",
    "sft": "fine-tune on the chosen responses, to get the starting model and reference of DPO",
    "train": "train with REALDPOTrainer (all flags of TRL's DPO)",
    "win-rate": "compute the win rate of a model against a baseline, with its interval",
    "active": "choose, label and train in rounds, and compare with baselines",
    "self-annotate": "train on a few labels, then in rounds on labels from the policy itself",
    "study": "measure how many labels each strategy saves compared with random choice",
    "advise": "say which rule and how many labels to use, before labels are bought",
    "report": "write the page of a study, or of labels, again",
    "push": "push a subset to the Hub, with its recipe",
    "demo": "run all steps with a real model, in minutes on a CPU",
}
PLANNED = "select, label, train and win-rate"
DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)
# Counters that libraries keep at servers, such as one for every local file that `datasets` loads.
COUNTERS_OFF = {"HF_UPDATE_DOWNLOAD_COUNTS": "0", "HF_HUB_DISABLE_TELEMETRY": "1"}
# How often a waiting thread of GNU OpenMP, which torch's wheels contain, looks for work before it sleeps. By default
# 300,000 times, which keeps a core from other programs; see benchmarks/threads.py.
SPINS = {"GOMP_SPINCOUNT": "3000"}
WAITING = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")


def main(argv: list[str] | None = None) -> int:
    """
    Run a verb.

    Args:
        argv: Command-line arguments without the program name; those of the process by default.

    Returns:
        Exit code: 0; 2 after a user's mistake and 1 after an error that nobody foresaw, each told in one line; or 130
        after an interruption.
    """
    spins = {} if any(name in os.environ for name in WAITING) else SPINS
    for name, value in (COUNTERS_OFF | spins).items():
        os.environ.setdefault(name, value)
    argv = sys.argv[1:] if argv is None else argv
    args = argparse.Namespace(output_dir=None)
    try:
        verb = argv[0].replace("_", "-") if argv else "--help"
        if verb not in VERBS:
            if not verb.startswith("-"):
                raise TrlRealError(f"No verb {verb!r}; there are {', '.join(VERBS)}.{did_you_mean(verb, VERBS)}")
            _top_parser().parse_args(argv or ["--help"])
            return 0
        module = import_module(f"trl_real.cli.{verb.replace('-', '_')}")
        args = _parse(verb, module, argv[1:])
        check_given(args)
        if args.allow_pickle:
            os.environ["TRL_REAL_ALLOW_PICKLE"] = "1"
        _set_noise(args)
        args.stdout = sys.stdout
        with redirect_stdout(sys.stderr):  # standard output is only for the result, whatever libraries print
            module.run(args)
    except TrlRealError as error:
        say(f"trl-real: {in_flags(' '.join(str(error).split()), getattr(args, 'flag_of', {}))}")
        return 2
    except KeyboardInterrupt:
        say("trl-real: interrupted")
        return 130
    except Exception as error:
        return _tell_unforeseen(error, args)
    return 0


def _parse(verb: str, module, argv: list[str]) -> argparse.Namespace:
    parser = Parser(verb, description=module.__doc__)
    module.register(parser)
    passes_on = getattr(module, "PASSES_FLAGS_ON", False)
    args, rest = parser.parse_known_args(argv)
    if getattr(args, "config", None) and getattr(module, "CONFIG_BY_FLAG", True):
        args, rest = parser.parse_known_args([*config_flags(parser, args.config), *argv])
    if "--plan" in rest:
        raise TrlRealError(f"{verb} has no --plan: only {PLANNED} estimate their cost. Leave it out.")
    if rest and not (passes_on and rest[0].startswith("-")):
        parser.refuse(rest)
    args.verb, args.rest, args.flag_of = verb, rest, parser.flag_of() | getattr(module, "RENAMED", {})
    return args


def _set_noise(args: argparse.Namespace) -> None:
    """Let only warnings of this library through, and no bars of others, unless `--verbose` is given."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("trl_real").setLevel(logging.INFO)
    if args.verbose:
        return
    for category in (FutureWarning, DeprecationWarning):
        warnings.simplefilter("ignore", category)
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    model = getattr(args, "model", None)
    if model is None or Path(model).exists():  # there is nothing to download, which takes long
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


def _tell_unforeseen(error: Exception, args: argparse.Namespace) -> int:
    """Tell an error in one line, and leave the trace in a file beside the output, or in the folder for such files."""
    words = " ".join(str(error).split())[:300]
    if isinstance(error, OSError) and "huggingface.co" in words:  # how transformers says that there is no such model
        say(f"trl-real: {words} Check the name, or give the path of a folder.")
        return 2
    if trouble := _disk_trouble(error):
        say(f"trl-real: {trouble}. What was finished is kept: mend that, or give another folder, and run again.")
        return 2
    trace = "".join(traceback.format_exception(error))
    try:
        file = Path(f"{str(args.output_dir).rstrip('/')}.error.txt") if args.output_dir else None
        if file is None or not file.parent.is_dir():
            file = Path(tempfile.mkstemp(prefix="trl-real.", suffix=".error.txt")[1])
        file.write_text(trace, encoding="utf-8")
        where = f"The trace is in {file}; please report it."
    except OSError as failed:
        where = f"The trace cannot be written ({failed.strerror})."
    say(f"trl-real: {type(error).__name__}: {words or 'no message'} {where}")
    return 1


def _disk_trouble(error: BaseException | None) -> str:
    """Return what is wrong with the disk, if that is behind an error; writers in Rust say so in words only."""
    while error is not None:
        number = getattr(error, "errno", None) or next(iter(re.findall(r"os error (\d+)", str(error))), 0)
        if int(number) in DISK:
            name = getattr(error, "filename", None)
            return os.strerror(int(number)) + (f": {os.fsdecode(name)!r}" if isinstance(name, str | bytes) else "")
        error = error.__cause__ or error.__context__
    return ""


def _top_parser() -> Parser:
    width = max(map(len, VERBS))
    parser = Parser(
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Choose the response pairs worth a label, label them, train, and measure what that saved.",
        epilog="verbs:\n"
        + "\n".join(f"  {verb:<{width}}  {what}" for verb, what in VERBS.items())
        + "\n\nType `trl-real VERB --help` for the flags of a verb.",
    )
    parser.add_argument("--version", action="version", version=__version__)
    parser.add_argument("verb", choices=VERBS, metavar="VERB")
    return parser


if __name__ == "__main__":
    sys.exit(main())
