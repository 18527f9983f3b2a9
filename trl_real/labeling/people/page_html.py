"""HTML of the page for people; text from the data is always escaped."""

import html
import math
import re
import unicodedata
from collections.abc import Sequence
from typing import Any

from trl_real.data.conversation import is_messages
from trl_real.data.message import message_text
from trl_real.labeling.people.queue import Pair, Progress


# Characters that are invisible or reorder visible text: control characters, soft hyphen, zero widths, bidi controls,
# fillers, lone surrogates, tags and the supplementary variation selectors. Joiners stay: scripts and emoji need them.
_UNSEEN = (
    "\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\xad\u061c\u115f\u1160\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f"
    "\u3164\ufeff\uffa0\ufff9-\ufffb\ud800-\udfff\U000e0000-\U000e01ef"
)
_UNSEEN_RUN = re.compile(f"([{_UNSEEN}])\\1*")
# These three only set the direction of their neighbours, and honest right-to-left text needs them.
_KEPT = {"\u061c", "\u200e", "\u200f"}


def text_html(text: str) -> str:
    """Return a text as HTML: markup is escaped, and each run of invisible characters becomes a visible mark."""
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    parts, end = [], 0
    for run in _UNSEEN_RUN.finditer(text):
        parts += [html.escape(text[end : run.start()]), _mark(run)]
        end = run.end()
    return "".join(parts) + html.escape(text[end:])


def pair_html(pair: Pair, progress: Progress, annotator: str, reply: int, note: str = "") -> str:
    """
    Return the main part of the page: progress, prompt and the two responses.

    `reply` is the number of this reply of the server, by which the page recognizes a new one; `note` is a line above
    the pair.
    """
    panels = _panel("first", "1", "First response", pair.first) + _panel("second", "3", "Second response", pair.second)
    return (
        f'<div id="pair" data-key="{pair.key}" data-reply="{reply}">{status_html(progress, annotator)}{_note(note)}'
        f'<section class="panel" id="prompt" tabindex="0" aria-label="Prompt"><h2>Prompt</h2>'
        f'<div class="scroll">{_images(pair.images)}{_prompt(pair.prompt)}</div></section>'
        f'<div class="sides">{panels}</div></div>'
    )


def end_html(progress: Progress, annotator: str, reply: int, note: str = "") -> str:
    """Return the main part of the page when no pair is left: the annotator's votes in numbers."""
    n = progress.counts
    rows = (
        ("First response better", progress.left),
        ("Second response better", progress.right),
        ("Ties", n["tie"]),
        ("Skipped", n["skip"]),
        ("Median time a pair", _seconds(progress.median_seconds)),
    )
    table = "".join(f"<tr><th>{name}</th><td>{value}</td></tr>" for name, value in rows)
    return (
        f'<div id="pair" data-key="" data-reply="{reply}">{status_html(progress, annotator)}{_note(note)}'
        f'<section id="end"><h2>{_pairs(progress.total)} done. Thank you!</h2><table>{table}</table>'
        "<p>Every vote is on disk. You can close this page.</p></section></div>"
    )


def status_html(progress: Progress, annotator: str) -> str:
    """Return name, progress bar, counts and pace."""
    share = 100 * progress.done / progress.total
    parts = [f"<b>{progress.done:,}</b> of {_pairs(progress.total)}"]
    if progress.skipped:
        parts.append(f"{progress.skipped:,} skipped")
    if progress.median_seconds > 0:
        left = (progress.total - progress.done) * progress.median_seconds
        parts += [f"{_seconds(progress.median_seconds)} a pair", f"{progress.pairs_per_hour:,.0f} pairs an hour"]
        parts += [f"about {_seconds(left)} to go"] if left else []
    counts = "".join(f"<span>{part}</span>" for part in parts)
    return (
        f'<header class="status" role="status"><div class="bar" role="progressbar" aria-label="Progress" '
        f'aria-valuenow="{share:.0f}" aria-valuemin="0" aria-valuemax="100">'
        f'<div style="width:{share:.2f}%"></div></div><div class="counts">{counts}'
        f'<bdi class="who">{text_html(annotator)}</bdi></div></header>'
    )


def error_html(message: str, reply: int) -> str:
    """Return an error message in place of the pair."""
    return f'<div id="pair" data-key="" data-reply="{reply}">{_note(message)}</div>'


def _panel(name: str, key: str, title: str, text: str) -> str:
    length = f"{len(text):,} characters"
    return (
        f'<section class="panel" id="{name}" tabindex="0" aria-label="{title}">'
        f"<h2><kbd>{key}</kbd>{title}<small>{length}</small></h2>"
        f'<div class="scroll"><div class="text" dir="auto">{_or_empty(text)}</div></div></section>'
    )


def _images(urls: Sequence[str]) -> str:
    """Return images that the page holds itself; anything but a `data:` URL of an image is left out."""
    held = [url for url in urls if url.startswith("data:image/")]
    return "".join(
        f'<img class="image" src="{html.escape(url)}" alt="Image {number} of {len(held)}">'
        for number, url in enumerate(held, 1)
    )


def _prompt(prompt: Any) -> str:
    if not is_messages(prompt):
        return f'<div class="text" dir="auto">{_or_empty(str(prompt or ""))}</div>'
    return "".join(
        f'<div class="turn"><h3 dir="auto">{text_html(str(message.get("role") or "message"))}</h3>'
        f'<div class="text" dir="auto">{_or_empty(message_text(message, role=False))}</div></div>'
        for message in prompt
    )


def _or_empty(text: str) -> str:
    if text.strip():
        return text_html(text)
    what = f"{len(text)} characters of white space" if text else "empty"
    return f'<em class="empty">({what})</em>'


def _mark(run: re.Match) -> str:
    char, times = run[1], len(run[0])
    name = unicodedata.name(char, "CONTROL CHARACTER" if ord(char) < 256 else "UNSEEN CHARACTER")
    label = f"U+{ord(char):04X}" + (f" ×{times:,}" if times > 1 else "")
    return f'<span class="mark" title="{name.title()}">{label}</span>{char if char in _KEPT else ""}'


def _note(note: str) -> str:
    return f'<p class="note" role="alert">{text_html(note)}</p>' if note else ""


def _pairs(n: int) -> str:
    return "1 pair" if n == 1 else f"{n:,} pairs"


def _seconds(seconds: float) -> str:
    if math.isnan(seconds):
        return "–"
    if seconds < 90:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
