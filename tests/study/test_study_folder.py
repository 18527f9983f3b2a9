"""The folder of a study: it resumes after a kill, grows with its grid, and takes no other study."""

import json
import multiprocessing
import time

import numpy as np
import pytest
import torch
from datasets import Dataset

from support.studies import rows, study
from trl_real import TrlRealError
from trl_real.runtime import atomic_files
from trl_real.study import grid
from trl_real.study.grid import Cell, StudyFolder
from trl_real.study.run import grid_cells, load_study


pytestmark = pytest.mark.usefixtures("one_thread")


# The run folder.


def test_finished_cells_are_not_repeated_and_the_grid_may_grow(tmp_path, monkeypatch):
    first = study(tmp_path / "s")
    times = {file: file.stat().st_mtime_ns for file in (tmp_path / "s" / "cells").iterdir()}
    assert study(tmp_path / "s") == first and load_study(tmp_path / "s") == first
    grown = study(tmp_path / "s", budgets=[0.5], seeds=[2], arms=["easy@centered"])
    assert grown.budgets == [0.25, 0.5, 1.0] and grown.seeds == [0, 1, 2] and grown.n_cells == 4 * 3 * 3
    assert all(file.stat().st_mtime_ns == at for file, at in times.items())


def test_incomplete_study_reports_its_finished_cells(tmp_path):
    study(tmp_path / "s")
    for file in (tmp_path / "s" / "cells").glob("*-1.json"):
        file.unlink()
    found = load_study(tmp_path / "s")
    assert (found.n_done, found.n_cells) == (6, 12) and found.curves["loss"]["easy"].points[0].value > 0
    for file in (tmp_path / "s" / "cells").glob("easy-0.25-0.json"):
        file.unlink()
    assert load_study(tmp_path / "s").curves == {}


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"n_test": 30}, "n_test=40, not 30"), ({"pool_share": 0.5}, "pool_share=0.9, not 0.5")],
)
def test_another_study_in_the_folder_is_refused(changes, message, tmp_path):
    study(tmp_path / "s")
    with pytest.raises(TrlRealError, match=message):
        study(tmp_path / "s", **changes)
    with pytest.raises(TrlRealError, match="holds a study with data="):
        study(tmp_path / "s", Dataset.from_dict(rows(seed=1)))


def slow_study(folder, **changes):
    """For a process that is killed: each write takes a while."""
    torch.set_num_threads(1)
    write = atomic_files.write_atomic

    def slow(file, content):
        time.sleep(0.01)
        write(file, content)

    grid.write_atomic = atomic_files.write_atomic = slow
    study(folder, **changes)


def test_study_killed_at_any_moment_resumes_to_the_same_tables(tmp_path):
    larger = {"seeds": [0, 1, 2], "budgets": [0.25, 0.5, 1.0]}
    expected = study(tmp_path / "whole", **larger)
    generator, n_killed, context = np.random.default_rng(0), 0, multiprocessing.get_context("fork")
    for _ in range(6):
        process = context.Process(target=slow_study, args=(tmp_path / "killed",), kwargs=larger)
        process.start()
        time.sleep(generator.uniform(0.0, 0.6))
        n_killed += process.is_alive()
        process.kill()
        process.join()
    assert n_killed
    done = len(list((tmp_path / "killed").glob("cells/*.json")))
    again = study(tmp_path / "killed", **larger)
    assert again == expected and done <= again.n_cells == 27


def test_files_of_a_study_are_plain_json(tmp_path):
    study(tmp_path / "s")
    for name in ("study.json", "grid.json", "facts.json", "cells/easy-0.25-0.json"):
        assert isinstance(json.loads((tmp_path / "s" / name).read_text()), dict)
    assert StudyFolder(tmp_path / "s", None).result(Cell("easy", 0.25, 0)).arrays["loss"].shape == (20,)
    assert len(grid_cells(["a"], [1, 2], [3, 4])) == 4


def test_folder_with_other_files_is_not_changed(tmp_path):
    (tmp_path / "mine").write_text("x")
    with pytest.raises(TrlRealError, match="holds files, but not a study"):
        study(tmp_path)
    with pytest.raises(TrlRealError, match="is a file"):
        study(tmp_path / "mine")
    with pytest.raises(TrlRealError, match="No study in"):
        load_study(tmp_path)


@pytest.mark.parametrize("n_folds", [1, 4])
def test_rows_without_a_finite_embedding_are_left_out_and_counted_once(n_folds, tmp_path):
    """A model may read no token of a response; its mean of nothing is no number."""
    data = rows()
    for row in (3, 90):
        data["embeddings"][row][1][0] = float("nan")
    split = {"n_folds": n_folds, "n_test": None if n_folds > 1 else 40}
    study(tmp_path / "s", Dataset.from_dict(data), **split)
    facts = json.loads((tmp_path / "s" / "facts.json").read_text())
    assert '"rows skipped": {"embedding not finite": 2}' in json.dumps(facts)
    assert np.isfinite(load_study(tmp_path / "s").curves["loss"]["easy"].points[-1].value)
