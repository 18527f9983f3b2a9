"""Every promise of SECURITY.md names a test that exists."""

import re

import pytest

from support.project import ROOT, TESTS


PAGE = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
PROMISES = re.findall(r"^\| \*\*(.+?)\*\* \| (.+) \|.*\|$", PAGE, re.MULTILINE)
NAMED = re.compile(r"`tests/([\w/]+\.py)::(test_\w+)`")


def test_the_page_makes_promises():
    assert len(PROMISES) >= 10


@pytest.mark.parametrize(("promise", "words"), PROMISES, ids=[promise for promise, _ in PROMISES])
def test_each_promise_names_tests_that_exist(promise, words):
    found = NAMED.findall(words)
    assert found, f"{promise}: no test is named"
    for file, name in found:
        assert re.search(rf"^def {name}\(", (TESTS / file).read_text(encoding="utf-8"), re.MULTILINE), (
            f"{file}::{name}"
        )


def test_no_other_form_names_a_test():
    assert PAGE.count("tests/") == len(NAMED.findall(PAGE))
