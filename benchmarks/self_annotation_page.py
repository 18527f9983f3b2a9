"""
Tables of self-annotation runs, as Markdown: each stage with its interval over seeds, and its gain on the seed's DPO.

    python benchmarks/self_annotation_page.py spa --metrics reward length --sentiment
    python benchmarks/self_annotation_page.py hh --metrics accuracy loss margin

Reads the folders that `spa_sentiment.py` or `trl-real self-annotate` wrote. Intervals are Student's t at 95 %
over seeds, of values or of differences seed by seed. With `--sentiment` own labels are held against VADER.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from scipy import stats

from trl_real.rounds.ablations import ABLATIONS


UNTRAINED = {"accuracy": 0.5, "loss": float(np.log(2)), "margin": 0.0}


def main() -> None:
    """Print the tables of a folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--metrics", nargs="+", required=True)
    parser.add_argument("--sentiment", action="store_true")
    args = parser.parse_args()
    runs = {arm: [states_of(run) for run in sorted(args.folder.glob(f"{arm}-*"))] for arm in ABLATIONS}
    states = {arm: [run for run in some if run] for arm, some in runs.items()}
    for metric in args.metrics:
        print(metric_table(states, metric))
    print(label_table(states, args.folder if args.sentiment else None))


def states_of(run: Path) -> list[dict]:
    """The state of each round that is finished, that of the seed's first."""
    rounds = [json.loads(file.read_text(encoding="utf-8")) for file in sorted(run.glob("round-*/state.json"))]
    return [state for state in rounds if "test" in state]


def metric_table(states: dict[str, list[list[dict]]], metric: str) -> str:
    """A row a stage: mean over seeds, and the difference to DPO on the seed labels."""
    lines = [f"| {metric} | pairs | seeds | mean | less DPO on the seed |", "|---|---:|---:|---|---|"]
    first = next(iter(states.values()))
    start = [run[0].get("start", {}).get("metrics", {}).get(metric, UNTRAINED.get(metric)) for run in first]
    lines.append(row("before: instruction-tuned", 0, start, None))
    for arm, runs in states.items():
        for number in range(min(map(len, runs), default=0)):
            if number == 0 and runs is not first:
                continue
            name = f"{arm}, round {number}" if number else "DPO on the seed"
            values = [run[number]["test"]["metrics"][metric] for run in runs]
            seeds = [run[0]["test"]["metrics"][metric] for run in runs] if number else None
            lines.append(row(name, runs[0][number]["train"]["n_pairs"], values, seeds))
    return "\n".join(lines) + "\n"


def row(name: str, n_pairs: int, values: list[float], base: list[float] | None) -> str:
    """A line of a table."""
    gained = "" if base is None else interval(np.array(values) - np.array(base), "+.3f")
    return f"| {name} | {n_pairs or ''} | {len(values)} | {interval(np.array(values), '.3f')} | {gained} |"


def interval(values: np.ndarray, form: str) -> str:
    """Mean and Student's interval over seeds."""
    mean = values.mean()
    if len(values) < 2 or not values.std():
        return format(mean, form)
    half = stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / len(values) ** 0.5
    return f"{mean:{form}} [{mean - half:{form}}, {mean + half:{form}}]"


def label_table(states: dict[str, list[list[dict]]], folder: Path | None) -> str:
    """What the policy's own labels were like, a mean over seeds."""
    asked: dict[str, Callable[[dict], float]] = {
        "confidence, median": lambda state: state["label"]["report"]["confidence"]["median"],
        "winners, characters": lambda state: state["label"]["report"]["chosen_chars"],
        "losers, characters": lambda state: state["label"]["report"]["rejected_chars"],
        "cut": lambda state: state["label"]["report"]["unfinished_share"],
        "flagged": lambda state: state["train"].get("flagged") or 0.0,
    }
    names = [*asked, *(["agree with the true reward"] if folder else [])]
    lines = [f"| own labels | {' | '.join(names)} |", "|---|" + "---:|" * len(names)]
    for arm, runs in states.items():
        for number in range(1, min(map(len, runs), default=0)):
            values = [f"{np.mean([tell(run[number]) for run in runs]):.2f}" for tell in asked.values()]
            if folder:
                values.append(agreement(folder, arm, number))
            lines.append(f"| {arm}, round {number} | {' | '.join(values)} |")
    return "\n".join(lines) + "\n"


def agreement(folder: Path, arm: str, number: int) -> str:
    """How often the labels agree with VADER, with Wilson's interval over the pairs of all seeds."""
    from spa_sentiment import agreements

    found = np.concatenate([agreements(run / f"round-{number:02d}") for run in sorted(folder.glob(f"{arm}-*"))])
    low, high = stats.binomtest(int(found.sum()), len(found)).proportion_ci(method="wilson")
    return f"{found.mean():.2f} [{low:.2f}, {high:.2f}]"


if __name__ == "__main__":
    main()
