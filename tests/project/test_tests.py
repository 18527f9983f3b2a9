"""Test files stand alone and are short enough to read, and every named mutation still has its place."""

import re

import pytest
from mutations.table import MUTATIONS

from support.project import ROOT, TESTS


FILES = sorted(TESTS.rglob("test_*.py"))
LONGEST = 400  # lines; cut a longer file by claim


@pytest.mark.parametrize("pattern", [r"^\s*(from|import) +([\w.]*\.)?test_\w+", r"^\s*from +\.[\w.]* +import +test_"])
def test_no_test_file_imports_another(pattern):
    """Also not in code that a test writes for another process: what is shared is in `tests/support/`."""
    found = [str(file) for file in TESTS.rglob("*.py") if re.search(pattern, file.read_text("utf-8"), re.MULTILINE)]
    assert found == []


def test_no_two_test_files_have_one_name():
    """Pytest imports them by name, as the folders are no packages."""
    assert len({file.name for file in FILES}) == len(FILES) > 100


def test_test_files_are_short():
    assert [file.name for file in FILES if len(file.read_text("utf-8").splitlines()) > LONGEST] == []


def test_every_mutation_has_one_place_and_tests_that_exist():
    for mutation in MUTATIONS:
        assert (ROOT / "trl_real" / mutation.path).read_text("utf-8").count(mutation.old) == 1, mutation.claim
        assert mutation.old != mutation.new and mutation.tests, mutation.claim
        assert all((TESTS / name).exists() for name in mutation.tests.split()), mutation.claim
