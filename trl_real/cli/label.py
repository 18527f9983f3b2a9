"""Turn selected pairs into preferences, from scores that the pool brings."""

import argparse
import shutil
from pathlib import Path

from trl_real.cli.options import add_common, require, result, say


def register(parser: argparse.ArgumentParser) -> None:
    """Flags bear the names of `ScoreJudge`'s arguments."""
    add_common(parser)
    parser.add_argument("--column", default="scores", help="list of scores, one a response (default: scores)")
    parser.add_argument("--min_gap", type=float, default=0.0, help="least difference of scores that decides")
    parser.add_argument("--min_ratio", type=float, help="least ratio of scores that decides, such as 1.5")
    parser.add_argument("--responses", default="responses", help="column that holds the list of responses")


def run(args: argparse.Namespace) -> None:
    """Label, and write the preferences with the record of their selection."""
    from collections import Counter

    from trl_real.data.files import load, save
    from trl_real.labeling.annotate import annotate
    from trl_real.labeling.judges import ScoreJudge
    from trl_real.selection.record import RECORD_FILE

    require(args, "dataset", "output_dir")
    judge = ScoreJudge(args.column, args.min_gap, args.min_ratio)
    counts: Counter = Counter()
    preferences = annotate(load(args.dataset, args.split), judge, responses=args.responses, counts=counts)
    folder = save(preferences, args.output_dir)
    if (Path(args.dataset) / RECORD_FILE).exists():
        shutil.copy(Path(args.dataset) / RECORD_FILE, folder)
    say(f"{counts['labeled']} labeled, {counts['ties']} ties and {counts['failed']} without a verdict left out")
    say(f"Next: trl-real train --dataset {folder} --model … --output_dir …")
    result(args, {"output_dir": str(folder), "judge": judge.name, **counts}, str(folder))
