"""Efficiency study: several arms, budgets and seeds on one pool and one fixed test set; resumable."""

import hashlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset

from trl_real.data.columns import EMBEDDINGS
from trl_real.errors import TrlRealError
from trl_real.models.embed import Context, EmbedderOptions
from trl_real.models.encoder import Encoder
from trl_real.runtime.atomic_files import read_json, write_json
from trl_real.runtime.run_lock import run_lock
from trl_real.selection.annotation import NOT_FINITE
from trl_real.selection.budget import check_budget
from trl_real.selection.mixture.parts import parts_of
from trl_real.study.facts import describe
from trl_real.study.features import embed_rows
from trl_real.study.frozen import FrozenCells
from trl_real.study.grid import Cell, StudyFolder, run_cells
from trl_real.study.learning_arms import LEARNING, LearningArms
from trl_real.study.pool import StudyPool, split_by_prompt, split_by_size, study_pool
from trl_real.study.results import RANDOM, Study
from trl_real.study.summarize import summarize
from trl_real.study.trained import CellTrainer, FoldedCells, TrainedCells


VERSION = 1
GRID_FILE, FACTS_FILE = "grid.json", "facts.json"
ARMS, BUDGETS, SEEDS = (RANDOM, "easy", "hard"), (0.1, 0.2, 0.35, 0.5, 0.75, 1.0), tuple(range(10))
SPLIT_SEED = 0


def run_study(
    dataset: Dataset,
    model: Any,
    output_dir: str | Path,
    *,
    tokenizer: Any = None,
    revision: str | None = None,
    arms: Sequence[str] = ARMS,
    budgets: Sequence[float | int] = BUDGETS,
    seeds: Sequence[int] = SEEDS,
    n_test: int | None = None,
    n_folds: int | None = None,
    pool_share: float = 0.9,
    min_gap: float = 0.0,
    context: Context = "response",
    layer: int = -1,
    max_length: int = 512,
    batch_tokens: int | None = None,
    dtype: str | None = None,
    device: str | None = None,
    responses: str = "responses",
    scores: str = "scores",
    second_opinion: str | None = None,
    title: str = "Label efficiency",
    trainer: CellTrainer | None = None,
    n_validation: int = 100,
) -> Study:
    """
    Train and test a model for every arm, budget and seed, and compute the label savings.

    Every seed draws `pool_share` of the rows, and all its arms select from these; the test rows are the same for all
    cells and share no prompt with the pool. A study that is killed and restarted loses only the running cell; new
    arms, budgets or seeds are added to the existing ones.

    Args:
        dataset: Labelled pairs (`prompt`, `chosen`, `rejected`), or a pool with `responses` and `scores`.
        model: Embedding model, as in `EmbeddingPairSelector`; None to use the column `embeddings`.
        output_dir: Path of the run folder, new or of this study.
        tokenizer: Tokenizer of a loaded model.
        revision: Branch, tag or commit of the model on the Hub.
        arms: Strategies, such as `"easy"`, or `"easy@centered"` in another geometry, or mixtures, such as `"auto"` or
            `"easy+random"`; or arms that choose in four rounds by the labels so far: a name in `ACQUISITIONS`, by
            which a head chooses after a random round, or `"auto_in_rounds"`. Random is added if missing.
        budgets: Shares of the rows that a seed may select from, or numbers of labels.
        seeds: Seeds of the cells.
        n_test: Number of test rows of a single split; by default 500.
        n_folds: Number of splits in which every prompt is tested on once, instead of one test set. The work grows by
            this factor, and the intervals cover all rows. The pool is `1 - 1 / n_folds` of the rows. By default one
            split, or four for fewer than 1,000 rows if `n_test` is not given.
        pool_share: Share of the pool that each seed may select from.
        min_gap: Minimum difference of two scores that decides a label.
        context, layer, max_length, batch_tokens, dtype, device: Embedding options, see `EmbeddingPairSelector`.
        responses, scores: Columns of a pool.
        second_opinion: Column with another annotator's probability that `chosen` is better.
        title: Title of the report.
        trainer: Trainer of the model itself in every cell, instead of a Bradley-Terry model on its embeddings.
        n_validation: Number of pairs that choose a cell's learning rate and step, with a trainer.

    Returns:
        The results.

    Raises:
        MissingColumnError: If the dataset has no labels.
        TrlRealError: If an arm, a budget or the split is impossible, or the folder has another study.
    """
    arms, budgets, seeds = checked_grid(arms, budgets, seeds)
    given = model is None
    everything = study_pool(
        dataset, responses=responses, scores=scores, second_opinion=second_opinion, embeddings=given
    )
    n_test, n_folds = split_by_size(everything, n_test, n_folds)
    splits = split_by_prompt(everything, n_test, n_folds, SPLIT_SEED)
    options = EmbedderOptions(context, layer, max_length, batch_tokens)
    encoder = None if model is None else Encoder(model, tokenizer, revision, dtype, device, options)
    settings = {
        "version": VERSION,
        "engine": trainer.engine if trainer else "frozen",
        "data": rows_digest(everything),
        "model": encoder.fingerprint() if encoder else EMBEDDINGS,
        "embedding": {"context": context, "layer": layer, "max_length": max_length, "dtype": dtype or "float32"},
        "n_test": n_test if n_folds == 1 else None,
        "n_folds": n_folds,
        "pool_share": pool_share,
        "min_gap": min_gap,
        **({"n_validation": n_validation, **trainer.settings} if trainer else {}),
    }
    with run_lock(output_dir):
        folder = StudyFolder(output_dir, settings)
        if encoder is not None:
            everything.vectors = embed_rows(everything.rows, encoder, folder.folder / "features")
        if n_unread := len(everything) - len(everything.readable()):
            everything.skipped[NOT_FINITE] += n_unread
        arms, budgets, seeds = _grown(folder.folder / GRID_FILE, arms, budgets, seeds)
        taken = [(everything.take(pool).readable(), everything.take(test).readable()) for pool, test in splits]
        frozen = [frozen_cells(pool, test, pool_share, min_gap) for pool, test in taken]
        run = FoldedCells(frozen)
        if trainer:
            followed = [(RANDOM, seeds[0]), *[None] * (len(frozen) - 1)]  # one training is enough to measure the drift
            work = [folder.folder / "work" / str(k) for k in range(len(frozen))]
            each = zip(frozen, work, followed, strict=True)
            run = FoldedCells([TrainedCells(f.selector, f.test, trainer, w, n_validation, arm) for f, w, arm in each])
        facts = describe(frozen[0], arms, budgets, seeds[0], everything)
        facts |= {"title": title, "model": encoder.label if encoder else "embeddings given with the rows"}
        write_json(folder.folder / FACTS_FILE, facts | {"n_test": run.n_test})
        run_cells(folder, grid_cells(arms, budgets, seeds), run, title)
        shutil.rmtree(folder.folder / "work", ignore_errors=True)
        return load_study(folder.folder)


def frozen_cells(pool: StudyPool, test: StudyPool, pool_share: float, min_gap: float) -> FrozenCells:
    """Return the cells of a split on the rows' embeddings."""
    return FrozenCells(LearningArms(pool, pool.vectors or [], pool_share, min_gap), test, test.vectors or [])


def load_study(folder: str | Path) -> Study:
    """
    Load the results of a run folder, complete or not.

    Raises:
        TrlRealError: If the folder has no study.
    """
    folder = Path(folder)
    if not all((folder / name).exists() for name in (GRID_FILE, FACTS_FILE)):
        raise TrlRealError(f"No study in {str(folder)!r}. Give the output_dir of `trl-real study`.")
    grid, facts = read_json(folder / GRID_FILE), read_json(folder / FACTS_FILE)
    run = StudyFolder(folder, None)
    cells = grid_cells(*grid.values())
    results = {cell: found for cell in cells if (found := run.result(cell)) is not None}
    return summarize(results, grid, facts, run.settings, n_cells=len(cells))


def grid_cells(arms: Sequence[str], budgets: Sequence[float | int], seeds: Sequence[int]) -> list[Cell]:
    """Return all cells, seed by seed, so that an interrupted study has complete seeds."""
    return [Cell(arm, budget, seed) for seed in seeds for budget in budgets for arm in arms]


def checked_grid(
    arms: Sequence[str], budgets: Sequence[float | int], seeds: Sequence[int]
) -> tuple[list[str], list[float | int], list[int]]:
    """
    Return the sides of the grid, sorted and without duplicates, with random among the arms.

    Raises:
        TrlRealError: If an arm or a budget is impossible, or a side is empty.
    """
    for name, side in (("arms", arms), ("budgets", budgets), ("seeds", seeds)):
        if isinstance(side, str) or not len(side):
            raise TrlRealError(f"{name}={side!r} is not a list of {name}. Give at least one.")
    for arm in arms:
        if arm not in LEARNING:
            parts_of(arm)
    for budget in budgets:
        check_budget(budget)
    if len({isinstance(budget, int) for budget in budgets}) > 1:
        raise TrlRealError(f"budgets={list(budgets)} mixes shares and numbers of labels. Type 1.0 for every row.")
    return list(dict.fromkeys([RANDOM, *arms])), sorted(set(budgets)), sorted(set(seeds))


def _grown(file: Path, arms: list, budgets: list, seeds: list) -> tuple[list, list, list]:
    """Merge the sides of the grid with those in the folder, and write them."""
    if file.exists():
        old = read_json(file)
        sides = (("arms", arms), ("budgets", budgets), ("seeds", seeds))
        arms, budgets, seeds = checked_grid(*([*old[name], *side] for name, side in sides))
    write_json(file, {"arms": arms, "budgets": budgets, "seeds": seeds})
    return arms, budgets, seeds


def rows_digest(pool: StudyPool) -> str:
    """Return a digest of the rows' texts and labels."""
    digest = hashlib.sha256()
    for row, scores in zip(pool.rows, pool.scores, strict=True):
        digest.update(json.dumps([row.prompt, row.texts], sort_keys=True, default=str).encode())
        digest.update(np.nan_to_num(scores, nan=-1e300).tobytes())
    return digest.hexdigest()[:24]
