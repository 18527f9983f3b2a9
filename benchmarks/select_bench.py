"""
All rules on all public sets: a table and a picture of test loss and accuracy against random at the same budget.

    python benchmarks/select_bench.py --data ../shared/data --model MODEL --cache FOLDER --minutes 8
    python benchmarks/select_bench.py --data ../shared/data --model MODEL --cache FOLDER --table --image FILE.svg

The first line embeds the sets and runs the cells that are missing, seed by seed, until the minutes are over: repeat it
until it says that nothing is left. The second line prints the tables. A place is a set at a budget. Each difference
has a 95 % interval (bootstrap over seeds and test prompts, paired); Holm's correction is over all places of a rule and
takes p-values from a normal distribution with the interval's width.
"""

import argparse
import platform
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from public_sets import SETS, parser_of, with_embeddings
from scipy.stats import norm

from trl_real.functional.statistics.paired import holm
from trl_real.study.results import METRICS, RANDOM
from trl_real.study.run import grid_cells, load_study, run_study


ARMS = (
    "random", "easy", "easy@centered", "easy@standardized", "hard@centered", "d_optimal@centered", "i_optimal",
    "easy@centered+random", "i_optimal+random", "auto",
)  # fmt: skip
BUDGETS = (0.05, 0.1, 0.2, 0.35, 0.5)
N_FOLDS = 4


class Place(NamedTuple):
    """Difference from random of an arm on a set at a budget, with its interval; positive is better."""

    name: str
    budget: float
    shaped: bool
    value: float
    low: float
    high: float

    @property
    def p(self) -> float:
        """Two-sided p-value."""
        error = (self.high - self.low) / (2 * norm.ppf(0.975))
        return 1.0 if error == 0 else float(2 * norm.sf(abs(self.value) / error))


def run_cells(args: argparse.Namespace) -> bool:
    """Run missing cells until the time is over; return whether any are left."""
    until, datasets = time.monotonic() + 60 * args.minutes, {}
    for seed in args.seeds:
        for name in args.sets:
            folder = args.cache / "studies" / name
            wanted = {"arms": args.arms, "budgets": list(BUDGETS), "seeds": list(range(seed + 1))}
            if _done(folder, wanted):
                continue
            if time.monotonic() > until:
                return True
            if name not in datasets:
                datasets[name] = with_embeddings(name, args.data, args.model, args.cache / "features")
            run_study(datasets[name], None, folder, **wanted, n_folds=N_FOLDS, title=name)
    return False


def _done(folder: Path, wanted: dict[str, list]) -> bool:
    """Return whether all cells of a study are done."""
    cells = grid_cells(wanted["arms"], wanted["budgets"], wanted["seeds"])
    return (folder / "facts.json").exists() and all((folder / "cells" / f"{cell.key}.json").exists() for cell in cells)


def places(studies: dict[str, Any], metric: str, arm: str) -> list[Place]:
    """Return the places of an arm, signed so that positive is better."""
    sign, found = METRICS[metric].sign, []
    for name, study in studies.items():
        for budget, d in zip(study.budgets, study.differences[metric].get(arm, []), strict=False):
            low, high = sorted((sign * d.low, sign * d.high))
            found.append(Place(name, budget, SETS[name].shaped, sign * d.value, low, high))
    return found


def row(metric: str, arm: str, found: list[Place]) -> str:
    """One line of the table: counts beyond the interval and after Holm's correction, mean and worst place."""
    adjusted = np.array(holm([place.p for place in found]))
    up = np.array([place.value > 0 for place in found])
    better, worse = sum(p.low > 0 for p in found), sum(p.high < 0 for p in found)
    sure = f"{int((up & (adjusted < 0.05)).sum())}, {int((~up & (adjusted < 0.05)).sum())}"
    worst = min(found, key=lambda place: place.value)
    digits = 4 if metric == "loss" else 3
    mean = np.mean([place.value for place in found])
    cells = [arm, str(better), str(worse), sure, f"{mean:+.{digits}f}"]
    cells.append(f"{worst.value:+.{digits}f} ({worst.name}, {worst.budget:.0%})")
    return "| " + " | ".join(cells) + " |"


def tables(studies: dict[str, Any], arms: list[str]) -> list[str]:
    """Return the tables, in Markdown: for each metric on the sets that shaped `auto`, on the others, and on all."""
    lines = []
    for metric in ("loss", "accuracy"):
        for title, shaped in (("sets that did not shape `auto`", {False}), ("sets that did", {True})):
            each = {arm: [p for p in places(studies, metric, arm) if p.shaped in shaped] for arm in arms}
            n = max(map(len, each.values()), default=0)
            if not n:
                continue
            lines += [
                f"**Test {metric}, {title}** ({n} places; by chance {0.025 * n:.1f} better and {0.025 * n:.1f} worse)",
                "",
                "| rule | better | worse | better, worse by Holm | mean gain | worst place |",
                "|---|---:|---:|---:|---:|---|",
                *(row(metric, arm, each[arm]) for arm in arms if each[arm]),
                "",
            ]
    return lines


def by_set(studies: dict[str, Any], arms: list[str]) -> list[str]:
    """Return the mean gain in test loss over the budgets, by set."""
    names = list(studies)
    lines = ["| mean gain in test loss | " + " | ".join(names) + " |", "|---|" + "---:|" * len(names)]
    for arm in arms:
        found = places(studies, "loss", arm)
        means = [np.mean([p.value for p in found if p.name == name] or [np.nan]) for name in names]
        lines.append(f"| {arm} | " + " | ".join(f"{mean:+.4f}" for mean in means) + " |")
    return [*lines, ""]


def picture(studies: dict[str, Any], arms: list[str], file: Path) -> None:
    """Draw rules by places, coloured by the gain in test loss, hatched where the interval holds 0."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.patches import Rectangle

    names, n = list(studies), len(BUDGETS)
    figure, axes = pyplot.subplots(figsize=(1.1 * len(names) + 2.4, 0.42 * len(arms) + 1.4))
    values = np.array([[p.value for p in places(studies, "loss", arm)] for arm in arms])
    shown = axes.imshow(values, cmap="RdBu", vmin=-0.03, vmax=0.03, aspect="auto")
    for i, arm in enumerate(arms):
        for j, place in enumerate(places(studies, "loss", arm)):
            if place.low <= 0 <= place.high:
                box = Rectangle((j - 0.5, i - 0.5), 1, 1, fill=False, hatch="///", linewidth=0, edgecolor="#777777")
                axes.add_patch(box)
    for k in range(1, len(names)):
        axes.axvline(k * n - 0.5, color="black", linewidth=2 if names[k - 1] in _last_shaped(names) else 0.8)
    axes.set_yticks(range(len(arms)), arms)
    axes.set_xticks([k * n + (n - 1) / 2 for k in range(len(names))], names, rotation=25, ha="right")
    figure.colorbar(shown, label="gain in test loss over random, nats", shrink=0.9)
    axes.set_title("Columns of a set: 5, 10, 20, 35, 50 % of the pool. Hatched: the interval holds 0", fontsize=9)
    figure.savefig(file, bbox_inches="tight", metadata={"Date": None} if file.suffix == ".svg" else None)


def processor() -> str:
    """Return the name of the processor, as Linux tells it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if "model name" in line), platform.machine())


def _last_shaped(names: list[str]) -> list[str]:
    return [name for name in names if SETS[name].shaped][-1:]


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--arms", nargs="+", default=list(ARMS))
    parser.add_argument("--seeds", nargs="+", type=int, default=list(range(10)))
    parser.add_argument("--minutes", type=float, default=8)
    parser.add_argument("--table", action="store_true", help="print the tables of the finished cells and stop")
    parser.add_argument("--image", type=Path)
    args = parser.parse_args()
    if not args.table:
        print("cells are left" if run_cells(args) else "nothing is left")
        return
    folders = {name: args.cache / "studies" / name for name in args.sets}
    studies = {name: load_study(folder) for name, folder in folders.items() if (folder / "facts.json").exists()}
    arms = [arm for arm in args.arms if arm != RANDOM]
    print("\n".join([*tables(studies, arms), *by_set(studies, arms)]))
    sizes = ", ".join(f"{name} {study.n_test} pairs, {len(study.seeds)} seeds" for name, study in studies.items())
    print(f"{sizes}. One thread of {processor()}.")
    if args.image:
        picture(studies, arms, args.image)


if __name__ == "__main__":
    main()
