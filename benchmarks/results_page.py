"""
Markdown tables and pictures of docs/results.md from the run folders of studies.

    python benchmarks/results_page.py STUDY … --images docs/images

In the tables a bold value is better than random's at the same budget, and one with a dagger worse, by a 95 % interval
of the paired difference.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from trl_real.reports import figures
from trl_real.reports.arm_styles import arm_styles
from trl_real.selection.strategies import COLORS
from trl_real.study import plots
from trl_real.study.report import in_words
from trl_real.study.results import METRICS, Study
from trl_real.study.run import load_study


SHOWN = ("random", "easy", "hard", "centroid", "easy@centered", "easy@standardized")


def row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def head(cells: Sequence[str]) -> list[str]:
    return [row(cells), "|---|" + "---:|" * (len(cells) - 1)]


def values(study: Study, metric: str) -> list[str]:
    """A metric by arm and budget."""
    budgets = [f"{100 * b:g} %" if isinstance(b, float) else f"{b}" for b in study.budgets]
    lines = head([METRICS[metric].title, *budgets])
    for arm, curve in study.curves[metric].items():
        differences = study.differences[metric].get(arm)
        cells = []
        for i, point in enumerate(curve.points):
            text = f"{point.value:.4f}" if metric == "loss" else f"{point.value:.3f}"
            d = differences[i] if differences else None
            if d and (d.low > 0 or d.high < 0):
                text = f"**{text}**" if d.value * METRICS[metric].sign > 0 else f"{text} †"
            cells.append(text)
        lines.append(row([arm, *cells]))
    return [*lines, ""]


def savings(study: Study, metric: str) -> list[str]:
    """Labels saved by arm and level."""
    found = study.savings[metric]
    if not any(found.values()):
        return [
            f"Labels saved, by {METRICS[metric].title}: random learned nothing measurable, so nothing is saved.",
            "",
        ]
    levels = [f"level of {s.level:.0%}" for s in next(iter(found.values()))]
    lines = head([f"labels saved, by {METRICS[metric].title}", *levels])
    return [*lines, *(row([arm, *map(in_words, each)]) for arm, each in found.items()), ""]


def agreement(study: Study) -> list[str]:
    """The second opinion's agreement with the labels, by similarity."""
    lines = []
    for name, bins in study.agreement.items():
        lines += head([f"agreement with {name}", *(f"{b.low:.2f} to {b.high:.2f}" for b in bins)])
        lines += [row(["share", *(f"{b.agreement:.2f} [{b.ci_low:.2f}, {b.ci_high:.2f}]" for b in bins)]), ""]
    return lines


def pictures(study: Study, folder: Path, name: str) -> list[str]:
    """Loss and margin against labels."""
    lines = []
    for metric in ("loss", "margin"):
        curves = {arm: curve for arm, curve in study.curves[metric].items() if arm in SHOWN}
        title = study.title.split(",")[0]
        figure = plots.curve_figure(curves, METRICS[metric], arm_styles(list(curves), COLORS), title=title)
        figures.save_png(figure, folder / f"{name}_{metric}.png")
        lines.append(f"![{title}, {METRICS[metric].title} against labels](images/{name}_{metric}.png)")
    return [*lines, ""]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("studies", nargs="+", type=Path)
    parser.add_argument("--images", type=Path, default=Path("docs/images"))
    args = parser.parse_args()
    for folder in args.studies:
        study = load_study(folder)
        seeds = len(study.seeds)
        print(
            f"### {study.title}\n\n{study.n_pool:.0f} rows in a pool, {study.n_test} test pairs, {seeds} seeds, ",
            end="",
        )
        print(f"{study.n_done} of {study.n_cells} cells.\n")
        parts = [values(study, m) for m in ("loss", "accuracy")] + [savings(study, m) for m in METRICS]
        for lines in (*parts, agreement(study), pictures(study, args.images, folder.name)):
            print("\n".join(lines))


if __name__ == "__main__":
    main()
