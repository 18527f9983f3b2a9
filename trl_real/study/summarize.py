"""Summary of the cells of a run folder as a `Study`: means, intervals, savings."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from trl_real.functional.statistics.agreement_by_similarity import AgreementBin
from trl_real.functional.statistics.label_savings import (
    Saving,
    ValueWithInterval,
    label_saving,
    percentiles,
    resample_means,
)
from trl_real.study.grid import Cell, Result
from trl_real.study.results import METRICS, RANDOM, Curve, Study


LEVELS = (1 / 3, 2 / 3, 1.0)
N_RESAMPLES = 2000


class Curves:
    """
    Metrics of all arms at all points, over seeds and test pairs. One bootstrap for all arms pairs the comparisons.

    Args:
        n_labels: Number of labels at each point, ascending. Shape `(B,)`.
        sums: Sums over the test pairs of each prompt, by metric. Shape `(A, S, B, C)` each.
        counts: Number of test pairs of each prompt. Shape `(C,)`.
        arms: Names of the `A` arms.
        confidence: Confidence level of the intervals.
        seed: Seed of the bootstrap.
    """

    def __init__(
        self,
        n_labels: np.ndarray,
        sums: dict[str, np.ndarray],
        counts: np.ndarray,
        arms: Sequence[str],
        confidence: float = 0.95,
        seed: int = 0,
    ):
        self.n_labels, self.arms, self.confidence = np.asarray(n_labels, dtype=float), list(arms), confidence
        self.means = {
            name: resample_means(values, counts, N_RESAMPLES, np.random.default_rng(seed))
            for name, values in sums.items()
        }

    def curves(self) -> dict[str, dict[str, Curve]]:
        """Return the curves by metric and arm."""
        return self._each(
            lambda name, arm: Curve(self.n_labels.tolist(), self._intervals(self._of(name, arm))), self.arms
        )

    def differences(self) -> dict[str, dict[str, list[ValueWithInterval]]]:
        """Return arm minus random at each point, by metric and arm."""
        if RANDOM not in self.arms:
            return {}
        return self._each(
            lambda name, arm: self._intervals(self._of(name, arm) - self._of(name, RANDOM)), self._others()
        )

    def savings(self, levels: Sequence[float] = LEVELS) -> dict[str, dict[str, list[Saving]]]:
        """
        Return the labels saved at levels of the random curve, which starts with an untrained model and no labels.
        Levels at which random selection learned nothing measurable are left out.
        """
        if RANDOM not in self.arms or len(self.n_labels) < 2:
            return {}
        unlearned = self.unlearned(levels)
        return self._each(
            lambda name, arm: [self._saving(name, arm, level) for level in levels if level not in unlearned[name]],
            self._others(),
        )

    def unlearned(self, levels: Sequence[float] = LEVELS) -> dict[str, list[float]]:
        """Return, by metric, the levels at which random is not measurably better than an untrained model."""
        if RANDOM not in self.arms:
            return {}
        return {name: [level for level in levels if not self._learned(name, level)] for name in self.means}

    def _learned(self, name: str, level: float) -> bool:
        n_labels, curves = self._rising(name, RANDOM)
        gains = [np.interp(level * n_labels[-1], n_labels, curve) - curve[0] for curve in curves[1:]]
        return percentiles(np.array(gains), self.confidence)[0] > 0

    def _saving(self, name: str, arm: str, level: float) -> Saving:
        n_labels, random = self._rising(name, RANDOM)
        saving = label_saving(n_labels, self._rising(name, arm)[1], random, level, self.confidence)
        return saving._replace(target=METRICS[name].sign * saving.target)

    def _rising(self, name: str, arm: str) -> tuple[np.ndarray, np.ndarray]:
        """Return labels from 0 on and the arm's curves from an untrained model on, signed so that higher is better."""
        curves, metric = self._of(name, arm), METRICS[name]
        start = np.full((len(curves), 1), metric.untrained)
        return np.concatenate([[0.0], self.n_labels]), metric.sign * np.concatenate([start, curves], axis=1)

    def _of(self, name: str, arm: str) -> np.ndarray:
        """Return the curves of an arm, the measured one first. Shape `(1 + R, B)`."""
        return self.means[name][:, self.arms.index(arm)]

    def _others(self) -> list[str]:
        return [arm for arm in self.arms if arm != RANDOM]

    def _intervals(self, values: np.ndarray) -> list[ValueWithInterval]:
        return [ValueWithInterval(float(v[0]), *percentiles(v[1:], self.confidence)) for v in values.T]

    def _each(self, make: Callable[[str, str], Any], arms: Sequence[str]) -> dict[str, dict[str, Any]]:
        return {name: {arm: make(name, arm) for arm in arms} for name in self.means}


def collect(
    results: dict[Cell, Result], arms: Sequence[str], budgets: Sequence[float | int], seeds: Sequence[int]
) -> Curves | None:
    """Return the curves of the seeds with all cells done; None without such a seed."""
    complete = _complete(results, arms, budgets, seeds)
    if not complete:
        return None

    def stack(name: str) -> np.ndarray:
        return np.stack(
            [[[results[Cell(a, b, s)].arrays[name] for b in budgets] for s in complete] for a in arms]
        )  # (A, S, B, C)

    counts = results[Cell(arms[0], budgets[0], complete[0])].arrays["counts"]
    n_labels = [np.mean([results[Cell(a, b, s)].values["n_labels"] for a in arms for s in complete]) for b in budgets]
    return Curves(np.array(n_labels), {name: stack(name) for name in METRICS}, counts, arms)


def _complete(results: dict[Cell, Result], arms: Sequence[str], budgets: Sequence, seeds: Sequence[int]) -> list[int]:
    """Return the seeds with all cells done."""
    return [s for s in seeds if all(Cell(a, b, s) in results for a in arms for b in budgets)]


def _along(
    results: dict[Cell, Result], arms: Sequence[str], budgets: Sequence[float | int], seeds: Sequence[int]
) -> dict[str, Any]:
    """Summarize the trainings at the largest budget below the whole pool, and the drift."""
    below = [b for b in budgets if not (isinstance(b, float) and b == 1)] or list(budgets)
    followed = [result.values["drift"] for result in results.values() if result.values["drift"]]
    made: dict[str, Any] = {"drift": max(followed, key=lambda rows: rows[-1]["labels"], default=[])}
    shown = {arm: results.get(Cell(arm, below[-1], seeds[0])) for arm in arms}
    made["rewards"] = {arm: result.values["log"] for arm, result in shown.items() if result}
    complete = _complete(results, arms, below[-1:], seeds)
    runs = [results[Cell(a, below[-1], s)] for a in arms for s in complete]
    if not runs or len({len(run.values["along"]) for run in runs}) > 1:
        return made
    n_labels = np.mean([run.values["along"] for run in runs], axis=0)
    sums = {
        name: np.stack([[results[Cell(a, below[-1], s)].arrays[f"along_{name}"] for s in complete] for a in arms])
        for name in METRICS
    }
    curves = Curves(n_labels, sums, runs[0].arrays["counts"], arms)
    return made | {"run_curves": curves.curves(), "run_savings": curves.savings()}


def tuning_rows(results: dict[Cell, Result], chosen: str = "ridge") -> list[dict[str, Any]]:
    """Return, for each arm and budget over its seeds, the median tuned value, the loss, and the best possible loss."""
    groups: dict[tuple[str, float | int], list[dict]] = {}
    for cell, result in results.items():
        groups.setdefault((cell.arm, cell.budget), []).append(result.values)
    return [
        {
            "arm": arm,
            "budget": budget,
            "chosen": float(np.median([v[chosen] for v in values])),
            "loss": float(np.mean([v["loss"] for v in values])),
            "loss_if_best": float(np.mean([v["best_loss"] for v in values])),
        }
        for (arm, budget), values in groups.items()
    ]


def summarize(
    results: dict[Cell, Result],
    grid: dict[str, list],
    facts: dict[str, Any],
    settings: dict[str, Any],
    n_cells: int,
) -> Study:
    """
    Summarize the finished cells as a `Study`.

    Args:
        results: Results of the finished cells, `n_cells` if all are.
        grid: Sides of the grid: `arms`, `budgets`, `seeds`.
        facts: Result of `trl_real.study.facts.describe`, with `title` and `model`.
        settings: Settings of the run folder.
    """
    sides = grid["arms"], grid["budgets"], grid["seeds"]
    curves = collect(results, *sides)
    frozen = settings["engine"] == "frozen"
    made: dict[str, Any] = {}
    if curves:
        made = {"curves": curves.curves(), "differences": curves.differences(), "savings": curves.savings()}
        made["unlearned"] = curves.unlearned()
    if not frozen:
        made |= _along(results, *sides)
    shared = {name: settings[name] for name in settings if name not in ("version", "engine")}
    return Study(
        facts["title"],
        settings["engine"],
        grid["arms"],
        grid["budgets"],
        grid["seeds"],
        facts["n_pool"],
        facts["n_test"],
        agreement={name: [AgreementBin(*row) for row in rows] for name, rows in facts["agreement"].items()},
        histograms=facts["histograms"],
        examples=facts["examples"],
        tuning=tuning_rows(results, "ridge" if frozen else "learning_rate"),
        recipe={"embedding model": facts["model"], **shared, **facts["recipe"]},
        n_done=len(results),
        n_cells=n_cells,
        **made,
    )
