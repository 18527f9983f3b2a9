"""The recording of the terminal is drawn from its text, and a run prints the same lines."""

import re
import runpy
import xml.etree.ElementTree as ElementTree

import pytest

from support.project import ROOT
from support.tiny import save_tiny


SCRIPT = runpy.run_path(str(ROOT / "docs" / "terminal.py"))
TEXT = SCRIPT["TEXT"].read_text(encoding="utf-8")


def test_the_picture_shows_the_text():
    assert SCRIPT["draw"](TEXT) == SCRIPT["PICTURE"].read_text(encoding="utf-8"), "python docs/terminal.py --draw"
    shown = [line.text for line in ElementTree.parse(SCRIPT["PICTURE"]).iter("{http://www.w3.org/2000/svg}text")]
    assert max(len(line or "") for line in shown) <= SCRIPT["WIDTH"]
    joined = "".join(re.sub(r" \\$", "", line or "").strip() for line in shown)
    assert joined.replace(" ", "") == TEXT.replace("\n", "").replace(" ", "")


def test_its_commands_are_those_of_the_script():
    assert re.findall(r"^\$ trl-real (.*)$", TEXT, re.MULTILINE) == list(SCRIPT["COMMANDS"])


@pytest.mark.slow
def test_a_run_prints_the_same_lines_except_numbers_and_doubts(tmp_path):
    """A tiny model gives other rates, and so other reasons to doubt them."""

    def masked(text: str) -> list[str]:
        lines = [
            line for line in text.splitlines() if not line.startswith(("doubt", "DO NOT", "position", "the labels"))
        ]
        return [re.sub(r"[+-]?\d[\d.]*%?|nan|smollm2-135m-instruct|model(?=[,:]? )", "#", line) for line in lines]

    found = SCRIPT["record"](save_tiny(tmp_path / "smollm2-135m-instruct"), tmp_path)
    assert masked(found)[:20] == masked(TEXT)[:20]
    assert re.search(r"^win rate .*\(n=\d+: ", found, re.MULTILINE) and "Report: compared/report.html" in found
