"""The grid of a study and its files: which cells there are, under which names, and what makes another study."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from datasets import Dataset

from support.studies import rows
from trl_real.errors import TrlRealError
from trl_real.study.features import PART, embed_rows
from trl_real.study.grid import Cell, Result, StudyFolder, run_cells
from trl_real.study.pool import study_pool
from trl_real.study.run import _grown, checked_grid, grid_cells, rows_digest


# File names of cells in folders of older versions: under another name, a cell is trained again.
KEYS = {
    Cell("easy", 0.25, 0): "easy-0.25-0", Cell("easy@centered", 64, 12): "easy@centered-64-12",
    Cell("random", 1.0, 3): "random-1-3", Cell("auto", 0.5, 0): "auto.2-0.5-0", Cell("fisher", 10, 1): "fisher.2-10-1",
}  # fmt: skip


@pytest.mark.parametrize("cell", KEYS, ids=lambda cell: KEYS[cell])
def test_the_file_of_a_cell_never_changes(cell):
    assert cell.key == KEYS[cell]


def test_cells_come_seed_by_seed_from_sides_that_are_sorted_and_hold_random():
    sides = checked_grid(["easy", "hard", "easy"], [0.5, 0.25, 0.5], [1, 0, 1])
    assert sides == (["random", "easy", "hard"], [0.25, 0.5], [0, 1])
    cells = grid_cells(*sides)
    assert [cell.seed for cell in cells] == [0] * 6 + [1] * 6
    assert [(cell.arm, cell.budget) for cell in cells[:6]] == [
        (arm, budget) for budget in (0.25, 0.5) for arm in ("random", "easy", "hard")
    ]


@pytest.mark.parametrize(
    ("side", "value", "words"),
    [
        ("arms", [], "arms=.. is not a list of arms"), ("arms", "easy", "arms='easy' is not a list"),
        ("budgets", [], "budgets=.. is not a list"), ("seeds", [], "seeds=.. is not a list"),
        ("arms", ["esay"], "esay"), ("budgets", [0.0], "out of range"), ("budgets", [1.5], "out of range"),
        ("budgets", [0.5, 10], "mixes shares and numbers of labels. Type 1.0"),
    ],
)  # fmt: skip
def test_an_impossible_side_is_told(side, value, words):
    with pytest.raises(TrlRealError, match=words):
        checked_grid(**{"arms": ["easy"], "budgets": [0.5], "seeds": [0], **{side: value}})


def test_a_grid_grows_by_what_is_asked_for_later(tmp_path):
    file = tmp_path / "grid.json"
    assert _grown(file, ["random", "easy"], [0.5], [0]) == (["random", "easy"], [0.5], [0])
    assert _grown(file, ["random", "hard"], [0.25], [2]) == (["random", "easy", "hard"], [0.25, 0.5], [0, 2])
    assert _grown(file, ["random"], [0.5], [0]) == (["random", "easy", "hard"], [0.25, 0.5], [0, 2])
    with pytest.raises(TrlRealError, match="mixes shares and numbers"):
        _grown(file, ["random"], [10], [0])


def digest(**changes) -> str:
    return rows_digest(study_pool(Dataset.from_dict(rows(4, k=3) | changes)))


def test_texts_and_labels_make_the_data_of_a_study():
    given = rows(4, k=3)
    assert digest() == digest(embeddings=[[[0.0]] * 3] * 4), "vectors come from the model"
    others = [
        {"prompt": ["other", *given["prompt"][1:]]},
        {"responses": [["other", *given["responses"][0][1:]], *given["responses"][1:]]},
        {"scores": [[9.5, *given["scores"][0][1:]], *given["scores"][1:]]},
        {"scores": [[None, *given["scores"][0][1:]], *given["scores"][1:]]},
        {"scores": [given["scores"][0][::-1], *given["scores"][1:]]},
    ]
    assert len({digest(), *(digest(**changes) for changes in others)}) == 1 + len(others)


def test_a_finished_cell_is_read_and_a_broken_one_is_told(tmp_path):
    folder, cell = StudyFolder(tmp_path / "s", {"version": 1}), Cell("easy", 0.5, 0)
    given = Result({"loss": 0.5}, {"sums": np.arange(3.0)})
    assert folder.result(cell) is None
    assert run_cells(folder, [cell], lambda _: given, "x") == 1
    assert run_cells(folder, [cell, Cell("easy", 0.5, 1)], lambda cell: given, "x") == 1, "only what is missing"
    found = folder.result(cell)
    assert found.values == given.values and found.arrays["sums"].tolist() == [0, 1, 2]
    for broken, name in ((b"{", "json"), (b"PK", "npz"), (b"", "npz")):
        file = folder.cells / f"{cell.key}.{name}"
        before = file.read_bytes()
        file.write_bytes(broken)
        with pytest.raises(TrlRealError, match=f"{cell.key}.{name}.* cannot be read.*[Rr]emove") as told:
            folder.result(cell)
        assert "\n" not in str(told.value)
        file.write_bytes(before)


def test_rows_without_a_finite_embedding_are_left_out_and_others_stay():
    pool = study_pool(Dataset.from_dict(rows(4, k=3)), embeddings=True)
    assert pool.readable().rows == pool.rows
    pool.vectors[2][1, 0] = float("nan")
    assert pool.readable().rows == [pool.rows[i] for i in (0, 1, 3)]
    pool.vectors = None
    assert pool.readable().rows == pool.rows


class Counts:
    """An encoder whose vectors say which text they are of."""

    def __init__(self):
        self.asked = []

    def __call__(self, prompts, texts):
        assert len(prompts) == len(texts)
        self.asked.append(len(texts))
        numbers = [[float(text.split()[1]), float(text.split()[2])] for text in texts]
        return SimpleNamespace(vectors=torch.tensor(numbers))


def test_responses_are_embedded_part_by_part_and_each_once(tmp_path):
    pool, encoder = study_pool(Dataset.from_dict(rows(PART // 2, k=3))), Counts()
    found = embed_rows(pool.rows, encoder, tmp_path)
    assert encoder.asked == [PART, PART // 2]
    assert [vectors.tolist() for vectors in found] == [[[i, j] for j in range(3)] for i in range(PART // 2)]
    sorted(tmp_path.glob("*.npz"))[0].unlink()
    again = embed_rows(pool.rows, encoder, tmp_path)
    assert encoder.asked == [PART, PART // 2, PART] and all((a == b).all() for a, b in zip(found, again, strict=True))
