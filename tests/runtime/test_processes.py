"""Several processes on one run folder: what is left is the result of one of them, and the others are told."""

import logging
import sys

import pytest

from support.crashes import in_child
from support.processes import forked, status_of
from support.verb_runs import VERBS, outcome, run


pytestmark = pytest.mark.usefixtures("one_thread")
FAST = ("select", "label", "sft")  # one kind of run folder each; the others are slow
OTHER = {
    "select": ["--seed", "7"],
    "label": ["--min_gap", "0.5"],
    "train": ["--learning_rate", "1e-3"],
    "sft": ["--learning_rate", "1e-3"],
    "active": ["--budget", "3"],
    "self-annotate": ["--temperature", "1.4"],
    "study": ["--n_test", "3"],
}


def started(verb, given, folder, number, flags):
    """Start a verb in a forked child, which writes what it says to a file."""

    def action():
        sys.stderr = (folder / f"{number}.stderr").open("w")
        logging.getLogger().handlers.clear()
        return run(verb, given, folder, *flags)

    return forked(action)


def check(verb, n_processes, flags, given, tmp_path):
    (tmp_path / "together").mkdir()
    children = [started(verb, given, tmp_path / "together", i, flags if i % 2 else []) for i in range(n_processes)]
    ended = [status_of(child) for child in children]
    for number, status in enumerate(ended):
        said = (tmp_path / f"together/{number}.stderr").read_text().strip().splitlines() or [""]
        assert status == 0 or (status == 2 and said[-1].startswith("trl-real: ")), said[-1]
    alone = []
    for number in {i % 2 if flags else 0 for i, status in enumerate(ended) if not status}:
        folder = tmp_path / f"alone-{number}"
        folder.mkdir()
        assert in_child(lambda: run(verb, given, folder, *(flags if number else [])), folder)[0] == 0  # noqa: B023
        alone.append(outcome(folder))
    assert alone and outcome(tmp_path / "together") in alone


@pytest.mark.parametrize("verb", [v if v in FAST else pytest.param(v, marks=pytest.mark.slow) for v in VERBS])
def test_processes_on_one_folder_are_right_or_told(verb, given, tmp_path):
    check(verb, 2, OTHER[verb], given, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(("n_processes", "is_other"), [(2, False), (4, False), (4, True)])
@pytest.mark.parametrize("verb", VERBS)
def test_more_processes_on_one_folder(verb, n_processes, is_other, given, tmp_path):
    check(verb, n_processes, OTHER[verb] if is_other else [], given, tmp_path)
