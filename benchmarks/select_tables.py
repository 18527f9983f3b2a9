"""Tables and picture of `select_bench.py`: each rule against random at the same budget, on each set and model."""

import platform
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.stats import norm

from trl_real.functional.statistics.label_savings import Saving, ValueWithInterval, percentiles
from trl_real.functional.statistics.paired import holm
from trl_real.study.grid import Cell, Result
from trl_real.study.report import in_words
from trl_real.study.results import METRICS, RANDOM
from trl_real.study.summarize import LEVELS, collect


SINGLE = "+"  # a mixture has it in its name, or is one of these
MIXED = ("auto", "auto_in_rounds")


class Place(NamedTuple):
    """Gain over random of a rule at a budget, signed so that positive is better, with its interval."""

    model: str
    name: str
    budget: float
    shaped: bool
    gain: ValueWithInterval

    @property
    def p(self) -> float:
        """Two-sided p-value."""
        error = (self.gain.high - self.gain.low) / (2 * norm.ppf(0.975))
        return 1.0 if error == 0 else float(2 * norm.sf(abs(self.gain.value) / error))

    @property
    def label(self) -> str:
        """Where it is."""
        return f"{self.name}, {self.model}, {self.budget:.0%}"


class Rule(NamedTuple):
    """A rule on a set: its places and mean gain by metric, savings at the three levels, and number of seeds."""

    places: dict[str, list[Place]]
    mean: dict[str, ValueWithInterval]
    savings: list[Saving | None]
    n_seeds: int


class Measured(NamedTuple):
    """A set with a model: rules by name, and the number of test prompts and pairs."""

    model: str
    name: str
    shaped: bool
    rules: dict[str, Rule]
    n_prompts: int
    n_pairs: int


def measured(
    model: str, name: str, shaped: bool, done: dict[Cell, Result], arms: Sequence[str], budgets: list, n_seeds: int
) -> Measured:
    """Compare each rule with random, on the seeds that both have at all budgets."""
    rules: dict[str, Rule] = {}
    for arm in arms:
        seeds = [s for s in range(n_seeds) if all(Cell(a, b, s) in done for a in (RANDOM, arm) for b in budgets)]
        curves = collect(done, [RANDOM, arm], budgets, seeds) if arm != RANDOM else None
        if curves is None:
            continue
        places, mean = {}, {}
        for metric in ("loss", "accuracy"):
            gains = METRICS[metric].sign * (curves.means[metric][:, 1] - curves.means[metric][:, 0])  # (1 + R, B)
            each = [ValueWithInterval(float(g[0]), *percentiles(g[1:], 0.95)) for g in gains.T]
            places[metric] = [Place(model, name, b, shaped, g) for b, g in zip(budgets, each, strict=True)]
            whole = gains.mean(1)
            mean[metric] = ValueWithInterval(float(whole[0]), *percentiles(whole[1:], 0.95))
        found = {saving.level: saving for saving in curves.savings()["loss"][arm]}
        rules[arm] = Rule(places, mean, [found.get(level) for level in LEVELS], len(seeds))
    counts = next(iter(done.values())).arrays["counts"] if done else np.zeros(0)
    return Measured(model, name, shaped, rules, len(counts), int(counts.sum()))


def all_places(found: list[Measured], arm: str, metric: str, keep: Callable[[Measured], bool]) -> list[Place]:
    """Return the places of a rule in the parts to keep."""
    return [place for m in found if keep(m) and arm in m.rules for place in m.rules[arm].places[metric]]


def summary(found: list[Measured], arms: Sequence[str]) -> list[str]:
    """Return tables of counts, means and worst places: on all sets, on those that shaped `auto`, and on the others."""
    arms, lines = [arm for arm in arms if any(arm in m.rules for m in found)], []
    kinds: dict[str, Callable[[Measured], bool]] = {
        "all sets": lambda m: True,
        "sets that did not shape `auto`": lambda m: not m.shaped,
        "sets that did": lambda m: m.shaped,
    }
    for metric in ("loss", "accuracy"):
        for title, keep in kinds.items():
            each = {arm: all_places(found, arm, metric, keep) for arm in arms}
            n = max(map(len, each.values()), default=0)
            if n:
                lines += [
                    f"**Test {metric}, {title}** ({n} places; by chance {0.025 * n:.1f} better and as many worse)",
                    "",
                    "| rule | seeds | better | worse | better, worse by Holm | mean gain | worst place |",
                    "|---|---:|---:|---:|---:|---:|---|",
                    *(_row(metric, arm, each[arm], _seeds(found, arm)) for arm in arms if each[arm]),
                    "",
                ]
    return [*lines, *_by_set(found, arms), *_bars(found, arms)]


def _seeds(found: list[Measured], arm: str) -> str:
    seeds = sorted({m.rules[arm].n_seeds for m in found if arm in m.rules})
    return f"{seeds[0]}" if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"


def _row(metric: str, arm: str, places: list[Place], seeds: str) -> str:
    adjusted = np.array(holm([place.p for place in places]))
    up = np.array([place.gain.value > 0 for place in places])
    better, worse = sum(p.gain.low > 0 for p in places), sum(p.gain.high < 0 for p in places)
    sure = f"{int((up & (adjusted < 0.05)).sum())}, {int((~up & (adjusted < 0.05)).sum())}"
    worst = min(places, key=lambda place: place.gain.value)
    digits = _digits(metric)
    mean = np.mean([place.gain.value for place in places])
    cells = [arm, seeds, str(better), str(worse), sure, f"{mean:+.{digits}f}"]
    return "| " + " | ".join([*cells, f"{worst.gain.value:+.{digits}f} ({worst.label})"]) + " |"


def _by_set(found: list[Measured], arms: Sequence[str]) -> list[str]:
    """Return the mean gain in test loss over models and budgets, by set."""
    names = list(dict.fromkeys(m.name for m in found))
    lines = ["| mean gain in test loss | " + " | ".join(names) + " |", "|---|" + "---:|" * len(names)]
    for arm in arms:
        means = [
            np.mean([p.gain.value for p in all_places(found, arm, "loss", lambda m, n=name: m.name == n)] or [np.nan])
            for name in names
        ]
        lines.append(f"| {arm} | " + " | ".join("–" if mean != mean else f"{mean:+.4f}" for mean in means) + " |")
    return [*lines, ""]


def _bars(found: list[Measured], arms: Sequence[str]) -> list[str]:
    """Return how often each mixture has half of the best single rule's gain, where that gain is measurable."""
    lines = []
    single = [arm for arm in arms if SINGLE not in arm and arm not in MIXED]
    for mixed in [arm for arm in arms if arm in MIXED]:
        reached = total = 0
        for m in (m for m in found if mixed in m.rules):
            for i, place in enumerate(m.rules[mixed].places["loss"]):
                rivals = [m.rules[arm].places["loss"][i].gain for arm in single if arm in m.rules]
                best = max(rivals, key=lambda gain: gain.value, default=None)
                if best is not None and best.low > 0:
                    total, reached = total + 1, reached + (place.gain.value >= best.value / 2)
        lines.append(
            f"- `{mixed}` has at least half of the best single rule's gain in loss in {reached} of {total} places"
        )
    return [*lines, ""]


def by_set_page(found: list[Measured], arms: Sequence[str]) -> str:
    """Return a page with a table for each set and model: gains in loss and accuracy, and labels saved."""
    head = [
        "# Every rule on every set",
        "",
        "Written by `benchmarks/select_bench.py`. Gains are means over the budgets 5, 10, 20, 35 and 50 % of the",
        "pool, against random at the same budget, positive where the rule is better, with 95 % intervals (bootstrap",
        "over seeds and test prompts, paired; a dagger marks a worse rule). Labels saved are those at the loss",
        "that random reaches with a third, two thirds and all of the largest budget; a dash stands where random had",
        "learned nothing measurable. What it says is on [results](results.md#all-rules-on-all-public-sets).",
        "",
    ]
    for m in found:
        kind = "shaped" if m.shaped else "did not shape"
        head += [
            f"## {m.name}, {m.model}",
            "",
            f"{m.n_pairs:,} test pairs of {m.n_prompts:,} prompts. The set {kind} `auto`.",
            "",
            "| rule | seeds | loss | accuracy | saved at 1/3 | at 2/3 | at all |",
            "|---|---:|---:|---:|---:|---:|---:|",
            *(_detail(arm, m.rules[arm]) for arm in arms if arm in m.rules),
            "",
        ]
    return "\n".join(head)


def _detail(arm: str, rule: Rule) -> str:
    gains = [_told(rule.mean[metric], _digits(metric)) for metric in ("loss", "accuracy")]
    saved = [in_words(saving) if saving else "–" for saving in rule.savings]
    return "| " + " | ".join([arm, str(rule.n_seeds), *gains, *saved]) + " |"


def _told(gain: ValueWithInterval, digits: int) -> str:
    sign = "**" if gain.low > 0 else ""
    dagger = " †" if gain.high < 0 else ""
    return f"{sign}{gain.value:+.{digits}f}{sign}{dagger} [{gain.low:+.{digits}f}, {gain.high:+.{digits}f}]"


def _digits(metric: str) -> int:
    return 4 if metric == "loss" else 3


def picture(found: list[Measured], arms: Sequence[str], file: Path) -> None:
    """Draw rules by places, coloured by the gain in test loss, hatched where the interval holds 0."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.patches import Rectangle

    matplotlib.rcParams["svg.hashsalt"] = "trl_real"
    arms = [arm for arm in arms if all(arm in m.rules for m in found)]
    each = [all_places(found, arm, "loss", lambda m: True) for arm in arms]
    figure, axes = pyplot.subplots(figsize=(0.62 * len(found) + 2.4, 0.34 * len(arms) + 1.8))
    shown = axes.imshow(
        [[p.gain.value for p in row] for row in each], cmap="RdBu", vmin=-0.03, vmax=0.03, aspect="auto"
    )
    for i, row in enumerate(each):
        for j, place in enumerate(row):
            if place.gain.low <= 0 <= place.gain.high:
                box = Rectangle((j - 0.5, i - 0.5), 1, 1, fill=False, hatch="////", linewidth=0, edgecolor="#777777")
                axes.add_patch(box)
    n = len(each[0]) // len(found)
    for k in range(1, len(found)):
        edge = found[k - 1].shaped and not found[k].shaped
        other = found[k - 1].name != found[k].name
        axes.axvline(k * n - 0.5, color="black", linewidth=2.5 if edge else 1 if other else 0.3)
    axes.set_yticks(range(len(arms)), arms, fontsize=8)
    ticks = [f"{m.name}\n{m.model}" for m in found]
    axes.set_xticks([k * n + (n - 1) / 2 for k in range(len(found))], ticks, rotation=60, ha="right", fontsize=7)
    figure.colorbar(shown, label="gain in test loss over random, nats", shrink=0.9)
    axes.set_title("Columns of a set: 5, 10, 20, 35, 50 % of the pool. Hatched: the interval holds 0", fontsize=9)
    figure.savefig(file, bbox_inches="tight", metadata={"Date": None} if file.suffix == ".svg" else None)


def processor() -> str:
    """Return the name of the processor, as Linux tells it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if "model name" in line), platform.machine())
