"""Rewrite the report of a study, finished or not; --dataset is its run folder."""

import argparse

from trl_real.cli.options import add_config, require
from trl_real.cli.study import write_and_tell


def register(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the run folder."""
    parser.add_argument("--dataset", help="run folder, the output_dir of trl-real study")
    parser.add_argument("--output_dir", help="folder for report.html and plots (default: the run folder)")
    add_config(parser)


def run(args: argparse.Namespace) -> None:
    """Read the finished cells, write the report, and print the savings."""
    from trl_real.reports.render import check_extras
    from trl_real.study.run import load_study

    require(args, "dataset")
    check_extras()
    write_and_tell(args, load_study(args.dataset), args.output_dir or args.dataset)
