"""
All rules on all public sets, on frozen features of several models: tables and a picture against random.

    python benchmarks/select_bench.py --data ../shared/data --models smollm2=PATH minilm=PATH --cache FOLDER \\
      --page docs/rules_by_set.md --image docs/images/select_bench.png

Embeds the sets and runs the cells that are missing, seed by seed, until the minutes are over: repeat it until it says
that nothing is left. Then it prints the tables, with the processor and its time. A place is a set at a budget, with a
model. Each difference has a 95 % interval (bootstrap over seeds and test prompts, paired); Holm's correction is over
all places of a rule and takes p-values from a normal distribution with the interval's width.
"""

import argparse
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from public_sets import SETS, models_of, parser_of, with_embeddings
from select_tables import Measured, by_set_page, measured, picture, processor, summary

from trl_real.runtime.atomic_files import read_json, write_json
from trl_real.study.grid import Cell, StudyFolder, run_cells
from trl_real.study.pool import split_by_prompt, study_pool
from trl_real.study.run import SPLIT_SEED, VERSION, frozen_cells, rows_digest
from trl_real.study.trained import FoldedCells


BUDGETS = (0.05, 0.1, 0.2, 0.35, 0.5)
N_FOLDS, POOL_SHARE = 4, 0.9
# Seeds of each rule: all for random, the mixtures and the best single rules.
ARMS = {
    "random": 10, "auto": 10, "auto_in_rounds": 10, "0.25random+0.25easy@centered+0.5i_optimal": 10,
    "easy": 10, "easy@centered": 10, "d_optimal@centered": 10,
    "i_optimal": 10, "easy@standardized": 10, "hard@centered": 10, "easy@centered+random": 10, "i_optimal+random": 10,
    "centroid": 3, "small_gap": 3, "large_gap": 3, "fisher": 3, "infomax": 3, "infomax_interval": 3, "dts": 3,
    "delta_ucb": 3, "drts": 3,
}  # fmt: skip


def cells_of(arms: list[str], seed: int) -> list[Cell]:
    """Return the cells of a seed."""
    return [Cell(arm, budget, seed) for arm in arms if seed < ARMS.get(arm, 10) for budget in BUDGETS]


def folders(args: argparse.Namespace) -> Iterator[tuple[str, str, Path]]:
    """Return model, set and study folder of each part of the bench."""
    for name in args.sets:
        for model in models_of(args.models):
            yield model, name, args.cache / model / "studies" / name


def run_missing(args: argparse.Namespace) -> bool:
    """Run missing cells until the time is over; return whether any are left."""
    until, prepared = time.monotonic() + 60 * args.minutes, {}
    for seed in range(args.seeds):
        for model, name, folder in folders(args):
            cells = cells_of(args.arms, seed)
            if all((folder / "cells" / f"{cell.key}.json").exists() for cell in cells):
                continue
            if time.monotonic() > until:
                return True
            started = time.process_time()
            if (model, name) not in prepared:
                prepared[model, name] = prepare(args, model, name, folder)
            n = run_cells(prepared[model, name][0], cells, prepared[model, name][1], f"{name}, {model}, seed {seed}")
            spent = read_json(folder / "time.json") if (folder / "time.json").exists() else {}
            spent = Counter(spent) + Counter(cells=n, seconds=round(time.process_time() - started, 2))
            write_json(folder / "time.json", dict(spent))
    return False


def prepare(args: argparse.Namespace, model: str, name: str, folder: Path) -> tuple[StudyFolder, FoldedCells]:
    """Return the folder of a study and its cells, which are those of `run_study`."""
    dataset = with_embeddings(name, args.data, models_of(args.models)[model], args.cache / model / "features")
    rows = study_pool(dataset, embeddings=True)
    settings = {
        "version": VERSION, "engine": "frozen", "data": rows_digest(rows), "model": "embeddings",
        "embedding": {"context": "response", "layer": -1, "max_length": 512, "dtype": "float32"},
        "n_test": None, "n_folds": N_FOLDS, "pool_share": POOL_SHARE, "min_gap": 0.0,
    }  # fmt: skip
    splits = split_by_prompt(rows, 0, N_FOLDS, SPLIT_SEED)
    folds = [frozen_cells(rows.take(pool), rows.take(test), POOL_SHARE, 0.0) for pool, test in splits]
    return StudyFolder(folder, settings), FoldedCells(folds)


def results(args: argparse.Namespace) -> list[Measured]:
    """Return what the finished cells measured, part by part."""
    found = []
    for model, name, folder in folders(args):
        if (folder / "cells").exists():
            run = StudyFolder(folder, None)
            cells = [cell for seed in range(args.seeds) for cell in cells_of(args.arms, seed)]
            done = {cell: result for cell in cells if (result := run.result(cell)) is not None}
            found.append(measured(model, name, SETS[name].shaped, done, args.arms, list(BUDGETS), args.seeds))
    return found


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--arms", nargs="+", default=list(ARMS))
    parser.add_argument("--seeds", type=int, default=10, help="number of seeds, at most those of each rule in ARMS")
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--page", type=Path, help="write the table of each set to this file")
    parser.add_argument("--image", type=Path)
    args = parser.parse_args()
    left = run_missing(args)
    print("cells are left: run it again" if left else "nothing is left")
    if left and not args.page:  # with a page, what is there is told
        return
    found = results(args)
    print("\n".join(summary(found, args.arms)))
    spent = [read_json(folder / "time.json") for *_, folder in folders(args) if (folder / "time.json").exists()]
    seconds, n = sum(part["seconds"] for part in spent), sum(part["cells"] for part in spent)
    print(f"{n:,.0f} cells in {seconds / 60:.0f} minutes of one core of {processor()}.")
    if args.page:
        args.page.write_text(by_set_page(found, args.arms), encoding="utf-8")
    if args.image:
        picture(found, args.arms, args.image)


if __name__ == "__main__":
    main()
