"""Write the report of a study again, complete or not: --dataset is its run folder."""

import argparse

from trl_real.cli.options import add_config, require, result
from trl_real.cli.study import savings_table


def register(parser: argparse.ArgumentParser) -> None:
    """The run folder."""
    parser.add_argument("--dataset", help="run folder: the output_dir of trl-real study")
    parser.add_argument("--output_dir", help="folder for report.html and plots (default: the run folder)")
    add_config(parser)


def run(args: argparse.Namespace) -> None:
    """Read the cells that are done, write the report, print the savings."""
    from trl_real.evaluation.report import check_extras
    from trl_real.evaluation.run_study import load_study
    from trl_real.evaluation.study_report import write_study_report

    require(args, "dataset")
    check_extras()
    study = load_study(args.dataset)
    report = write_study_report(args.output_dir or args.dataset, study)
    savings = {arm: [s._asdict() for s in found] for arm, found in study.savings.get("loss", {}).items()}
    result(args, {"report": str(report), "savings": savings}, savings_table(study) + f"\nreport: {report}")
