"""Write the page of a study, finished or not, or of labels again; --dataset is the folder of either."""

import argparse
from pathlib import Path

from trl_real.cli.label import REPORT_FILE
from trl_real.cli.options import add_config, require, result
from trl_real.cli.people import add_page_flags, write_page
from trl_real.cli.study import write_and_tell


def register(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the folder, and of the page about labels."""
    parser.add_argument("--dataset", help="output_dir of trl-real study, or of trl-real label")
    parser.add_argument("--output_dir", help="folder for report.html and plots (default: that of --dataset)")
    parser.add_argument("--votes", help="labels: votes of people on these pairs, to compare the judge with them")
    add_page_flags(parser)
    add_config(parser)


def run(args: argparse.Namespace) -> None:
    """Read labels or the finished cells of a study, write the page, and print its path or the savings."""
    from trl_real.reports.render import check_extras
    from trl_real.study.run import load_study

    require(args, "dataset")
    labels = Path(args.dataset) / REPORT_FILE
    if labels.exists():
        return _labels(args, labels)
    check_extras()
    write_and_tell(args, load_study(args.dataset), args.output_dir or args.dataset)


def _labels(args: argparse.Namespace, labels: Path) -> None:
    from trl_real.data.files import load
    from trl_real.runtime.atomic_files import read_json

    data = {"votes": args.votes, "preferences": load(args.dataset)}
    page = write_page(args, args.output_dir or args.dataset, read_json(labels), **data)
    result(args, {"report": str(page)}, str(page))
