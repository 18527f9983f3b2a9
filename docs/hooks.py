"""
What the site needs beyond Markdown: links to files outside of docs/, lists as GitHub reads them, and the reference in
Hugging Face's notation, so that its doc-builder builds the same pages.
"""

import posixpath
import re
import tomllib
from pathlib import Path

from mkdocs.structure.files import File

import trl_real


ROOT = Path(__file__).parents[1]
OUTSIDE = re.compile(r"\]\(((?:\.\./)+[^)#\s]+)\)")
AUTODOC = re.compile(r"^\[\[autodoc\]\] (\S+)$", re.MULTILINE)
FENCE = re.compile(r"^ *(```|~~~)")


def on_config(config):
    """The project's address from pyproject.toml, once a maintainer has set it."""
    urls = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["urls"]
    if "/OWNER/" not in urls["Repository"]:
        config.repo_url, config.repo_name = urls["Repository"], "trl_real"
    return config


def on_files(files, config):
    """Files that a page links to and that lie outside of docs/ become pages, so that the links need no network."""
    for page in list(files.documentation_pages()):
        for target in OUTSIDE.findall(page.content_string):
            path = _outside(page.src_uri, target)
            if path is not None and _uri(path) not in files.src_uris:
                text = (ROOT / path).read_text(encoding="utf-8")
                language = {"py": "python", "md": "markdown"}.get(path.rpartition(".")[2], "text")
                shown = f"---\nsearch:\n  exclude: true\n---\n# {path}\n\n~~~~{language}\n{text}\n~~~~\n"
                files.append(File.generated(config, _uri(path), content=shown))
    return files


def on_page_markdown(markdown, page, config, files):
    """Links to such files, and the indentation of what goes on below a list's item."""

    def linked(found):
        path = _outside(page.file.src_uri, found[1])
        if path is None:
            return found[0]
        return f"]({posixpath.relpath(_uri(path), posixpath.dirname(page.file.src_uri) or '.')})"

    return AUTODOC.sub(_generated, OUTSIDE.sub(linked, _deeper(markdown)))


def on_page_content(html, page, config, files):
    """Types and names that docstrings give in the notation of Hugging Face's doc-builder, as plain code."""
    if not page.file.src_uri.startswith("reference/"):
        return html
    html = re.sub(r"<code>([^<]*[`*][^<]*)</code>", _plain, html).replace("(<code></code>, default", "(default")
    return re.sub(r"\[<code>~?(?:trl\.)?([\w.]+)</code>\]", r"<code>\1</code>", html)


def _plain(found):
    """``str`, *optional*, defaults to `1`` is `str`: the default stands beside it."""
    return f"<code>{re.sub(r'(, )?[*]optional[*].*', '', found[1]).replace('`', '')}</code>"


def _generated(found):
    """`[[autodoc]] name` as mkdocstrings wants it: by the name's home."""
    name = found[1]
    return f"::: {trl_real._HOME[name]}.{name}" if name in trl_real._HOME else f"::: trl_real.{name}"


def _outside(page, target):
    """The path from the repository's root, of what lies outside of docs/."""
    path = posixpath.normpath(posixpath.join("docs", posixpath.dirname(page), target))
    return None if path.startswith(("docs/", "..")) else path


def _uri(path):
    return f"source/{path}.md"


def _deeper(markdown):
    """GitHub lets an item's further paragraphs begin under its text; Python-Markdown wants four spaces a level."""
    lines, fenced, item = [], False, 0
    for line in markdown.splitlines():
        fenced ^= bool(FENCE.match(line))
        mark = re.match(r"(\d+\. |[-*] )", line)
        if mark and not fenced:
            if item and lines[-1].startswith("    "):
                lines.append("")  # or it would go on with the paragraph above
            item = len(mark[1])
        elif line and not line.startswith(" "):
            item = 0
        elif item and not fenced and line.startswith(" " * item):
            line = " " * (4 - item) + line
        lines.append(line)
    return "\n".join(lines) + "\n"
