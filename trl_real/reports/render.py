"""Rendering of report pages: Jinja templates and figures, written to one folder."""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trl_real.errors import needs_extra
from trl_real.reports import figures


REPORT_FILE = "report.html"


def check_extras() -> None:
    """Raise `MissingExtraError` at the start of a long run if jinja2 or matplotlib is not installed."""
    figures.check_matplotlib()
    with needs_extra("jinja2", "plots"):
        import jinja2  # noqa: F401


def render(template: str, **values: Any) -> str:
    """Render a template of this package; every value is escaped."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    loader = PackageLoader("trl_real.reports")
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(short=figures.one_line, number=in_digits, words=_words, reward_rows=figures.reward_rows)
    return environment.get_template(template).render(**values)


def budget_words(budget: float | int | None) -> str:
    """Format a budget; 1 is one pair and 1.0 every pair."""
    if budget is None:
        return "every pair"
    if isinstance(budget, float):
        return f"{100 * budget:.4g}% of the pairs"
    return "1 pair" if budget == 1 else f"{budget} pairs"


def picture_name(i: int, name: str) -> str:
    """Return a valid file name for the figure of the i-th arm."""
    return f"{i}_{re.sub(r'[^a-z0-9.]+', '-', name.lower())[:40].strip('-.')}.png"


def saved(path: Path, figure: Any) -> str:
    """Write a figure as a PNG file and return it as a data URI."""
    return figures.to_data_uri(figures.save_png(figure, path).read_bytes())


def in_digits(value: float | None, digits: int = 2, sign: bool = False) -> str:
    """Format a number with a true minus sign; a dash for an unknown one."""
    value = figures.to_float(value)
    return f"{value:{'+' if sign else ''}.{digits}f}".replace("-", "\u2212") if math.isfinite(value) else "–"


def _words(value: Any) -> str:
    """Format a value: `name value, name value` for a mapping, the empty text for None."""
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_words(item)}" for name, item in value.items())
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
