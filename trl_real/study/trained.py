"""Cells of a study that train the model itself, by a `CellTrainer` such as `trl_real.study.dpo.DPOCells`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from datasets import Dataset, load_from_disk

from trl_real.errors import TrlRealError
from trl_real.functional.bradley_terry import pair_loss
from trl_real.study.arms import ArmSelector, Labeled
from trl_real.study.grid import Cell, Result
from trl_real.study.pool import StudyPool, pairs_to_test, preferences
from trl_real.study.results import METRICS


class RunPoint(NamedTuple):
    """
    Margins of a model at one evaluation during training.

    Args:
        labels: Number of labelled pairs seen so far, each counted once.
        validation: Margins on the validation pairs. Shape `(v,)`.
        test: Margins on the test pairs. Shape `(n,)`.
    """

    labels: float
    validation: np.ndarray
    test: np.ndarray


class TrainingRun(NamedTuple):
    """
    One training at one learning rate.

    Args:
        learning_rate: Learning rate of the optimizer.
        points: Evaluations in order; the last one is at the end of the run.
        log: Log history of the trainer.
        drift: Drift of the embeddings at the points: `labels` and the fields of `Drift`; may be empty.
    """

    learning_rate: float
    points: list[RunPoint]
    log: list[dict[str, Any]]
    drift: list[dict[str, float]]


class CellTrainer(Protocol):
    """Trainer of a cell, such as `trl_real.study.dpo.DPOCells`."""

    engine: str
    settings: dict[str, Any]

    def __call__(
        self, train: Dataset, validation: Dataset, test: Dataset, seed: int, folder: Path, follow_drift: bool = False
    ) -> list[TrainingRun]:
        """Train on preferences and return one run per setting."""
        ...


class TrainedCells:
    """
    Runs cells by training. Of all runs of a cell and their points, the point with the lowest loss on the validation
    pairs counts. Validation pairs come from rows that the cell's seed may not select from; they are the same for all
    its arms and do not count as labels. Without validation pairs (`pool_share=1`), the end of the only run counts.

    Args:
        selector: Selector of labelled pairs.
        test: Test rows; one pair of each is used.
        train: Trainer of a cell.
        folder: Folder for the files of the training.
        n_validation: Maximum number of validation pairs.
        followed: Arm and seed of the trainings with a measured drift of the embeddings.

    Raises:
        TrlRealError: If no test pair has a label.
    """

    def __init__(
        self,
        selector: ArmSelector,
        test: StudyPool,
        train: CellTrainer,
        folder: Path,
        n_validation: int = 100,
        followed: tuple[str, int] | None = None,
    ):
        self.selector, self.train, self.folder = selector, train, folder
        self.n_validation, self.followed = n_validation, followed
        self._last: tuple[Any, list[TrainingRun]] = (None, [])
        places, pairs, self.test_prompts = pairs_to_test(test, selector.min_gap, one_per_row=True)
        self.n_test = len(pairs)
        # On disk, so that later cells find the cached reference log-probabilities.
        preferences(test, places, pairs).save_to_disk(folder / "test")
        self.test = load_from_disk(str(folder / "test"))

    def __call__(self, cell: Cell) -> Result:
        """Train, choose the best point, and sum the metrics over the test pairs of each prompt."""
        labeled = self.selector.labeled(cell)
        aside = self.selector.validation_pairs(cell.seed, self.n_validation)
        train, validation = (preferences(self.selector.pool, found.places, found.pairs) for found in (labeled, aside))
        if not len(train):
            raise TrlRealError(f"No label of {cell.key} decides, so there is nothing to train on. Lower min_gap.")
        run, point, best_loss = self._trained(cell, labeled, train, validation)
        result = cell_result(
            cell,
            labeled,
            self._sums(point.test),
            learning_rate=run.learning_rate,
            labels_seen=point.labels,
            best_loss=best_loss,
            log=run.log,
            drift=run.drift,
            along=[p.labels for p in run.points],
        )
        along = [self._sums(p.test) for p in run.points]
        result.arrays.update({f"along_{name}": np.stack([sums[name] for sums in along]) for name in along[0]})
        return result

    def _trained(
        self, cell: Cell, labeled: Labeled, train: Dataset, validation: Dataset
    ) -> tuple[TrainingRun, RunPoint, float]:
        """Return the best run and point, and the lowest test loss; equal sets of a seed train only once."""
        key = (cell.seed, labeled.places.tobytes(), labeled.pairs.tobytes())
        if key != self._last[0]:
            drift = (cell.arm, cell.seed) == self.followed
            runs = self.train(train, validation, self.test, cell.seed, self.folder / cell.key, follow_drift=drift)
            self._last = key, runs
        runs = self._last[1]
        return *best_point(runs), min(_mean_loss(p.test) for r in runs for p in r.points)

    def _sums(self, margins: np.ndarray) -> dict[str, np.ndarray]:
        return metric_sums(torch.from_numpy(margins).double(), self.test_prompts)


class FoldedCells:
    """
    Runs each cell in every split and joins the test sets: each prompt is tested on once, by a model that has not seen
    it.

    Args:
        folds: Cells of each split.
    """

    def __init__(self, folds: Sequence[Any]):
        self.folds = list(folds)
        self.n_test = sum(fold.n_test for fold in self.folds)

    def __call__(self, cell: Cell) -> Result:
        """Average numbers over the splits, keep other values of the first one, and concatenate arrays."""
        results = _same_points([fold(cell) for fold in self.folds])
        first = results[0]
        values = {name: self._together(name, [r.values[name] for r in results]) for name in first.values}
        arrays = {name: np.concatenate([r.arrays[name] for r in results], axis=-1) for name in first.arrays}
        return Result({**values, "arm": cell.arm, "budget": cell.budget, "seed": cell.seed}, arrays)

    def _together(self, name: str, values: list[Any]) -> Any:
        if name in METRICS or name == "best_loss":
            weights = [fold.n_test for fold in self.folds]
            return float(np.average(values, weights=weights))
        if isinstance(values[0], int | float):
            return float(np.mean(values))
        return values[0]


def _same_points(results: list[Result]) -> list[Result]:
    """Shorten all splits to the same number of training points, always with the last one."""
    n = min(len(result.values.get("along", ())) for result in results)

    def shortened(points: Any) -> Any:
        return points if len(points) <= n else np.delete(points, slice(n - 1, len(points) - 1), axis=0)

    found = []
    for result in results:
        arrays = {name: shortened(a) if name.startswith("along_") else a for name, a in result.arrays.items()}
        values = {name: list(map(float, shortened(v))) if name == "along" else v for name, v in result.values.items()}
        found.append(Result(values, arrays))
    return found


def cell_result(cell: Cell, labeled: Labeled, sums: dict[str, np.ndarray], **values: Any) -> Result:
    """Return a result: the cell, its numbers of labels, these values and the mean metrics; the sums as arrays."""
    n_labels = labeled.n_labels
    named = {"arm": cell.arm, "budget": cell.budget, "seed": cell.seed}
    counted = {"n_labels": n_labels, "n_undecided": n_labels - len(labeled.places)}
    means = {name: float(sums[name].sum() / sums["counts"].sum()) for name in METRICS}
    return Result({**named, **counted, **labeled.notes, **values, **means}, sums)


def metric_sums(margins: torch.Tensor, prompts: np.ndarray) -> dict[str, np.ndarray]:
    """
    Sum the metrics over the test pairs of each prompt, and count the pairs. Shapes `(n,)` of the margins and of the
    prompts' numbers, to `(C,)`.
    """
    each = {"loss": pair_loss(margins), "margin": margins, "accuracy": (margins > 0).double()}
    sums = {name: np.bincount(prompts, weights=x.numpy()) for name, x in each.items()}
    return {**sums, "counts": np.bincount(prompts).astype(float)}


def best_point(runs: Sequence[TrainingRun]) -> tuple[TrainingRun, RunPoint]:
    """
    Return the run and the point with the lowest validation loss; without validation pairs, the end of the only run.

    Raises:
        TrlRealError: If there are several runs and no validation pairs.
    """
    if len(runs[0].points[0].validation):
        return min(((run, p) for run in runs for p in run.points), key=lambda pair: _mean_loss(pair[1].validation))
    if len(runs) > 1:
        raise TrlRealError("Several learning rates need validation pairs. Type pool_share=0.9, or give one rate.")
    return runs[0], runs[0].points[-1]


def _mean_loss(margins: np.ndarray) -> float:
    return float(pair_loss(torch.from_numpy(margins).double()).mean())
