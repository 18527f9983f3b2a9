"""The text of the page on which people vote: shown unchanged, and never as markup."""

import html
import math
import re
import unicodedata
from html.parser import HTMLParser

import pytest

from support.pages import HOSTILE_RESPONSE
from trl_real.labeling.people.page_html import end_html, pair_html, status_html, text_html
from trl_real.labeling.people.queue import Pair, Progress


@pytest.mark.parametrize("text", [HOSTILE_RESPONSE, "", " \n", "\ud800x\udfff", "a\r\nb\rc", "x" * 20000, "<" * 9])
def test_text_is_shown_unchanged(text):
    shown = text_html(text)
    shown.encode("utf-8")
    plain = re.sub(r'<span class="mark" title="[A-Za-z0-9 -]+">U\+[0-9A-F]{4,6}( ×[0-9,]+)?</span>', "", shown)
    assert not set("<>\"'") & set(plain)
    hidden = {char for char in plain if unicodedata.category(char) in ("Cc", "Cf", "Cs")}
    assert hidden <= set("\n\t\u200e\u200f\u061c")
    expected = "".join(c for c in text.replace("\r\n", "\n").replace("\r", "\n") if not _unseen(c))
    assert html.unescape(plain) == expected


def _unseen(char: str) -> bool:
    kept = "\n\t\u200e\u200f\u061c"
    return char not in kept and unicodedata.category(char) in ("Cc", "Cf", "Cs", "Zl", "Zp")


def test_consecutive_invisible_characters_get_one_mark():
    assert text_html("a" + "\u200b" * 10_000 + "b").count("mark") == 1 and "×10,000" in text_html("\u200b" * 10_000)
    family = "\U0001f468\u200d\U0001f469"
    assert text_html(family) == family  # joiners make one emoji of two


@pytest.mark.parametrize(
    "prompt", [HOSTILE_RESPONSE, [{"role": HOSTILE_RESPONSE, "content": HOSTILE_RESPONSE}], [], None, ""]
)
def test_no_field_of_a_pair_escapes_its_element(prompt):
    class Tags(HTMLParser):
        found: list = []

        def handle_starttag(self, tag, attrs):
            self.found.append(tag)
            assert not any(name.startswith("on") for name, _ in attrs)

    progress = Progress(3, {"a": 1, "tie": 0, "b": 0, "skip": 1}, 1, 0, 2.0)
    pair = Pair("k", 0, prompt, HOSTILE_RESPONSE, "", "a")
    for shown in (
        pair_html(pair, progress, HOSTILE_RESPONSE, 1, HOSTILE_RESPONSE),
        end_html(progress, HOSTILE_RESPONSE, 1, HOSTILE_RESPONSE),
    ):
        tags = Tags()
        tags.found = []
        tags.feed(shown)
        assert not {"script", "img", "style"} & set(tags.found) and shown.count("<div") == shown.count("</div")
    assert "(empty)" in pair_html(pair, progress, "ann", 1)


def test_status_shows_counts_and_pace():
    status = status_html(Progress(1000, {"a": 90, "tie": 5, "b": 3, "skip": 2}, 50, 43, 12.0), "ann")
    for part in ("<b>100</b> of 1,000 pairs", "2 skipped", "12 s a pair", "300 pairs an hour", "about 3.0 h to go"):
        assert part in status


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (math.nan, "–"), (4.26, "4.3 s"), (12.0, "12 s"), (89.0, "89 s"), (100.0, "2 min"), (5300.0, "88 min"),
        (5500.0, "1.5 h"),
    ],
)  # fmt: skip
def test_times_have_a_fitting_unit(seconds, words):
    assert f">{words}<" in end_html(Progress(1000, {"a": 90, "b": 3, "tie": 5, "skip": 2}, 50, 43, seconds), "ann", 1)
