"""A verb that is killed, or finds the disk full, at any change of a file ends, run again, as an unkilled one would."""

import logging
import random
import re
import shutil
import sys
from collections import defaultdict
from typing import NamedTuple

import pytest

from support.crashes import ERRORS, FAILURES, KILLED, in_child
from support.verb_runs import VERBS, outcome, run
from trl_real.runtime.run_folder import RoundFolder
from trl_real.study.grid import StudyFolder


pytestmark = pytest.mark.usefixtures("one_thread")
NUMBERS = re.compile(r"\b[0-9a-f]*\d[0-9a-f]*\b|(?<=cells/)\S+?(?=\.npz|\.json)|tmp\w{8}")  # and names of cells
POINTS = {"die": 2, "torn": 1, "full": 1}  # at most so many of each kind of change


class Unkilled(NamedTuple):
    outcome: dict
    changes: list
    inputs_before: dict
    inputs_after: dict


@pytest.fixture(scope="module")
def unkilled(given, tmp_path_factory):
    """Each verb's unkilled run, made when first asked for."""
    found = {}

    def of(verb):
        if verb not in found:
            folder, before = tmp_path_factory.mktemp("whole"), snapshot(given)
            status, changes = in_child(lambda: run(verb, given, folder), folder)
            assert status == 0
            found[verb] = Unkilled(outcome(folder), changes, before, snapshot(given))
        return found[verb]

    return of


def check(verb, failure, points, given, unkilled, tmp_path):
    whole = unkilled(verb).outcome
    assert whole
    for point in points:
        folder = tmp_path / str(point)
        folder.mkdir()
        assert not (wrong := told_badly(verb, given, folder, point, failure)), wrong
        status, _ = in_child(lambda: run(verb, given, folder), folder)  # noqa: B023
        assert status == 0, f"{verb}: the run after failure {failure!r} at change {point} fails"
        assert outcome(folder) == whole, f"{verb}: another outcome after failure {failure!r} at change {point}"
        shutil.rmtree(folder)


def snapshot(folder):
    return {file: (file.stat().st_mtime_ns, file.stat().st_size) for file in folder.rglob("*")}


@pytest.mark.parametrize("verb", VERBS)
def test_no_verb_writes_into_an_input_folder(verb, unkilled):
    assert unkilled(verb).inputs_after == unkilled(verb).inputs_before


def told_badly(verb, given, folder, point, failure):
    """Fail at a change, and return what is wrong with the end of a verb that could tell it."""
    said = folder.parent / f"{folder.name}.stderr"

    def action():
        sys.stderr = said.open("w")
        logging.getLogger().handlers.clear()
        return run(verb, given, folder)

    status, _ = in_child(action, folder, point, failure)
    lines = said.read_text().strip().splitlines() or [""]
    if status in (0, KILLED) and failure not in ERRORS or status == 0:
        return ""
    is_line = status == 2 and lines[-1].startswith("trl-real: ") and not any("Traceback" in line for line in lines)
    return "" if is_line else f"{verb}: status {status} after {failure!r} at change {point}: {lines[-1]}"


@pytest.mark.parametrize("verb", VERBS)
def test_a_disk_that_cannot_be_written_is_one_line(verb, given, tmp_path):
    (tmp_path / "run").mkdir()
    wrong = told_badly(verb, given, tmp_path / "run", 1, "read-only")
    assert not wrong and (tmp_path / "run.stderr").read_text().count("Read-only file system") == 1


@pytest.mark.parametrize("verb", VERBS)
def test_some_crash_points(verb, given, unkilled, tmp_path):
    """One point of each verb, and in turn each way to fail."""
    failure = list(FAILURES)[list(VERBS).index(verb) % len(FAILURES)]
    check(verb, failure, [random.Random(verb).randint(1, len(unkilled(verb).changes))], given, unkilled, tmp_path)


@pytest.mark.parametrize("kind", [RoundFolder, StudyFolder])
@pytest.mark.parametrize("failure", ["die", "torn"])
def test_a_folder_killed_while_its_settings_are_written_begins_again(failure, kind, tmp_path):
    for point in (1, 2, 3):  # open, sync, rename
        assert in_child(lambda: kind(tmp_path / "run", {"seed": 1}) and 0, tmp_path, point, failure)[0] == KILLED
    assert kind(tmp_path / "run", {"seed": 1}).settings == {"seed": 1}


@pytest.mark.slow
@pytest.mark.parametrize("failure", FAILURES)
@pytest.mark.parametrize("verb", VERBS)
def test_crash_points_of_every_kind_of_change(verb, failure, given, unkilled, tmp_path):
    """A kind is what happens to which file, whatever the numbers in its name; only an open leaves a torn file."""
    kinds, draw = defaultdict(list), random.Random(f"{verb} {failure}")
    for point, change in enumerate(unkilled(verb).changes, 1):
        if failure != "torn" or change.startswith("open "):
            kinds[NUMBERS.sub("#", change)].append(point)
    points = [point for all_of in kinds.values() for point in draw.sample(all_of, min(len(all_of), POINTS[failure]))]
    check(verb, failure, sorted(points), given, unkilled, tmp_path)
