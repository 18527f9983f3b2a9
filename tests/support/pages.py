"""Parsing of HTML reports: what a browser would load, the table cells, the visible text."""

import html
import re
from html.parser import HTMLParser


HOSTILE = '<script>alert("x")</script>\u202e\u200f$a$ {{ 7 * 7 }} \ud800\x00<img src=http://evil.example/x>'
# For the page on which people vote: what a browser may not run, and what it must show.
HOSTILE_RESPONSE = (
    "<script>window.hacked=1</script><img src=x onerror='window.hacked=1'></div></section><style>body{display:none}"
    "</style> ${window.hacked=1} {{value}} &lt; \u202eoverride \u2067isolate \u200f \x00\x1b[31m \u200b\u200b\u200b"
    "\U000e0041 \u05e9\u05dc\u05d5\u05dd\n\u2028"
)


def cells(page: str, row: str) -> list[list[str]]:
    """Return the cells of every table row with the first cell `row`."""
    found = re.findall(rf'<tr><th scope="row">{re.escape(row)}</th>(.*?)</tr>', page, re.DOTALL)
    return [
        [html.unescape(" ".join(cell.split())) for cell in re.findall(r"<td[^>]*>(.*?)</td>", r, re.S)] for r in found
    ]


def text_of_page(page: str) -> str:
    body = re.sub(r"<style>.*?</style>", "", page, flags=re.DOTALL)
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", body)).split())


class Loads(HTMLParser):
    """Tags, and what a browser would fetch."""

    def __init__(self, page: str):
        super().__init__()
        self.tags, self.urls = set(), []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.urls += [value for name, value in attrs if name in ("src", "href", "srcset", "data", "action", "poster")]
