"""Page of the metric's Space: verdicts in, win rate with its interval out."""

import os
import re
from typing import Any

from trl_real.errors import TrlRealError
from trl_real.functional.statistics.win_rate import win_rate


SHOWN = ("win_rate", "ci_low", "ci_high", "ci_method", "n_wins", "n_losses", "n_ties", "n_failed", "n_total")


def rates(verdicts: str, prompts: str = "", method: str = "auto") -> str:
    """
    Compute the win rate of typed verdicts.

    Args:
        verdicts: Numbers in [0, 1], separated by commas, blanks or lines: 1 win, 0 loss, 0.5 tie, `-` not judged.
        prompts: Prompt of each verdict, for several verdicts per prompt; empty if each has its own.
        method: Method of the interval, see the card.

    Returns:
        A Markdown table, or one line that says what to correct.
    """
    if not _parts(verdicts):
        return "No verdict. Type some, such as 1, 0, 0.5."
    try:
        values = [None if part == "-" else float(part) for part in _parts(verdicts)]
        found = win_rate(values, clusters=_parts(prompts) or None, method=method)
    except (ValueError, TrlRealError) as error:
        return f"{error}"
    rows = [f"| {name} | {_cell(found[name])} |" for name in SHOWN]
    return "\n".join(["| | |", "|---|---|", *rows])


def _parts(text: str) -> list[str]:
    return [part for part in re.split(r"[\s,;]+", text) if part]


def _cell(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def build() -> Any:
    """Return the page as a Gradio app."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read at import
    import gradio

    return gradio.Interface(
        rates,
        [
            gradio.Textbox("1, 1, 0, 0.5, 1, -", label="Verdicts: 1 win, 0 loss, 0.5 tie, - not judged", lines=3),
            gradio.Textbox("", label="Prompt of each verdict (only if a prompt has several)", lines=2),
            gradio.Dropdown(["auto", "wilson", "t", "score", "bootstrap"], value="auto", label="Interval"),
        ],
        gradio.Markdown(),
        title="Pairwise win rate",
        api_name="rates",
        analytics_enabled=False,
    )


if __name__ == "__main__":
    build().launch()
