"""Entry point of `trl-real`. Each verb is a module, imported only when it runs."""

import argparse
import logging
import os
import sys
from importlib import import_module

from trl_real import __version__
from trl_real.cli.options import config_flags, say
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
    "report": "write the report of a study again",
    "push": "push a subset to the Hub, with its recipe",
    "demo": "run all steps with a real model, in minutes on a CPU",
}
# Counters that libraries keep at servers, such as one for every local file that `datasets` loads.
COUNTERS_OFF = {"HF_UPDATE_DOWNLOAD_COUNTS": "0", "HF_HUB_DISABLE_TELEMETRY": "1"}


def main(argv: list[str] | None = None) -> int:
    """
    Run a verb.

    Args:
        argv: Command-line arguments without the program name; those of the process by default.

    Returns:
        Exit code: 0, 2 after a user error (printed in one line), or 130 after an interruption.
    """
    for name, value in COUNTERS_OFF.items():
        os.environ.setdefault(name, value)
    argv = sys.argv[1:] if argv is None else argv
    verb = argv[0] if argv and argv[0] in VERBS else None
    try:
        if verb is None:
            _top_parser().parse_args(argv or ["--help"])
            return 0
        logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
        logging.getLogger("trl_real").setLevel(logging.INFO)
        module = import_module(f"trl_real.cli.{verb.replace('-', '_')}")
        module.run(_parse(verb, module, argv[1:]))
    except TrlRealError as error:
        say(f"trl-real: {error}")
        return 2
    except KeyboardInterrupt:
        say("trl-real: interrupted")
        return 130
    return 0


def _parse(verb: str, module, argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=f"trl-real {verb}", description=module.__doc__, allow_abbrev=False)
    module.register(parser)
    args, rest = parser.parse_known_args(argv)
    if getattr(args, "config", None) and getattr(module, "CONFIG_BY_FLAG", True):
        args, rest = parser.parse_known_args([*config_flags(parser, args.config), *argv])
    if rest and not getattr(module, "PASSES_FLAGS_ON", False):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    args.verb, args.rest = verb, rest
    return args


def _top_parser() -> argparse.ArgumentParser:
    width = max(map(len, VERBS))
    parser = argparse.ArgumentParser(
        prog="trl-real",
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
