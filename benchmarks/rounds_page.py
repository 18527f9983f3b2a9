"""
Tables of runs in rounds, as Markdown.

    python benchmarks/rounds_page.py rounds/hh rounds/bon16 --arms gradient random easy certainty

Reads the folders that `trl-real active` wrote, finished or not: of each arm the rounds that all its seeds have.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from trl_real.rounds.base import UNTRAINED
from trl_real.rounds.report import Arms, Point


METRICS = ("accuracy", "loss", "margin")
PHASES = ("select", "train", "test")


def main() -> None:
    """Print the tables of every folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--arms", nargs="+", required=True)
    args = parser.parse_args()
    for folder in args.folders:
        arms = Arms({arm: runs for arm in args.arms if (runs := runs_of(folder, arm))})
        print(f"### {folder.name}\n")
        for metric in METRICS:
            print(table(arms, metric))
        print(costs(arms))


def runs_of(folder: Path, arm: str) -> list[list[dict[str, Any]]]:
    """An arm's runs, as `Run.rounds` has them."""
    return [rounds_of(run) for run in sorted(folder.glob(f"{arm}-*"))]


def rounds_of(run: Path) -> list[dict[str, Any]]:
    """What a run's state files tell."""
    rows: list[dict[str, Any]] = [{"round": 0, "n_asked": 0, **UNTRAINED, "phases": {}}]
    for file in sorted(run.glob("round-*/state.json"))[1:]:
        state = json.loads(file.read_text(encoding="utf-8"))
        if "test" not in state:
            break
        phases = {name: {"seconds": s["seconds"], "n_tokens": s.get("n_tokens", 0)} for name, s in state.items()}
        n_asked = rows[-1]["n_asked"] + state["label"]["n_asked"]
        rows.append({"round": len(rows), "n_asked": n_asked, **state["test"]["metrics"], "phases": phases})
    return rows


def table(arms: Arms, metric: str) -> str:
    """A metric by labels, and in the last round the difference to random, seed by seed."""
    columns = arms.columns(metric)
    head = list(columns.values())
    lines = [
        f"| {metric} | seeds | {' | '.join(head)} | last, less random |",
        "|---|---:|" + "---:|" * len(head) + "---|",
    ]
    for arm, runs in arms.runs.items():
        at = arms.at(arm, metric)
        points = [f"{at[column].mean:.3f}" if column in at else "" for column in columns]
        lines.append(f"| {arm} | {len(runs)} | {' | '.join(points)} | {told(arms.difference(arm, metric))} |")
    return "\n".join(lines) + "\n"


def told(point: Point | None) -> str:
    """A difference with its interval."""
    return "" if point is None else f"{point.mean:+.3f} [{point.low:+.3f}, {point.high:+.3f}]"


def costs(arms: Arms) -> str:
    """Seconds and tokens of choosing and of training, a mean over seeds."""
    lines = ["| arm | choosing, s | tokens read | training, s | tests, s |", "|---|---:|---:|---:|---:|"]
    for arm in arms.runs:
        spent = arms.costs(arm)
        (chose, tokens), (trained, _), (tested, _) = (spent.get(name, (0, 0)) for name in PHASES)
        lines.append(f"| {arm} | {chose:.0f} | {tokens:.0f} | {trained:.0f} | {tested:.0f} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
