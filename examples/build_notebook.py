"""
Run notebook.py cell by cell and write notebook.ipynb with what it printed and drew.

    python examples/build_notebook.py --model HuggingFaceTB/SmolLM2-135M-Instruct
"""

import argparse
import base64
import io
import json
import os
import re
import shutil
import tempfile
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any


HERE = Path(__file__).parent
HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
DATA = ("pool.jsonl", "prompts.jsonl")


def cells(text: str) -> list[tuple[str, str]]:
    """The kind (`"code"` or `"markdown"`) and the source of each cell of a script in percent format."""
    parts = re.split(r"^# %%(.*)\n", text, flags=re.MULTILINE)[1:]
    found = []
    for title, body in zip(parts[::2], parts[1::2], strict=True):
        markdown = "[markdown]" in title
        body = body.strip("\n")
        found.append(("markdown", re.sub(r"^# ?", "", body, flags=re.MULTILINE)) if markdown else ("code", body))
    return found


def run(sources: list[str], folder: Path) -> list[list[dict[str, Any]]]:
    """
    Execute code cells one after another in one namespace.

    Args:
        sources: Of the cells.
        folder: Where they find their data and leave what they write.

    Returns:
        The outputs of each cell, as nbformat has them.
    """
    import matplotlib

    matplotlib.use("agg")
    for name in DATA:
        shutil.copy(HERE / name, folder)
    before, scope, outputs = os.getcwd(), {"__name__": "__main__"}, []
    os.chdir(folder)
    try:
        for number, source in enumerate(sources, start=1):
            with redirect_stdout(io.StringIO()) as printed:
                exec(compile(source, f"cell {number}", "exec"), scope)
            outputs.append([*_text(printed.getvalue()), *_figures()])
    finally:
        os.chdir(before)
    return outputs


def notebook(parts: list[tuple[str, str]], outputs: list[list[dict[str, Any]]]) -> dict[str, Any]:
    """Cells and their outputs as nbformat 4.5."""
    left, made, count = iter(outputs), [], 0
    for number, (kind, source) in enumerate(parts):
        cell: dict[str, Any] = {"cell_type": kind, "id": f"cell-{number}", "metadata": {}, "source": _lines(source)}
        if kind == "code":
            count += 1
            cell |= {"execution_count": count, "outputs": next(left)}
        made.append(cell)
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    metadata = {"kernelspec": kernel, "language_info": {"name": "python"}}
    return {"cells": made, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}


def _lines(text: str) -> list[str]:
    return text.splitlines(keepends=True)


def _text(printed: str) -> list[dict[str, Any]]:
    return [{"name": "stdout", "output_type": "stream", "text": _lines(printed)}] if printed else []


def _figures() -> list[dict[str, Any]]:
    """The open figures as PNGs on white, which can be read on a dark page, too."""
    import matplotlib.pyplot as plt

    found = []
    for number in plt.get_fignums():
        image = io.BytesIO()
        plt.figure(number).savefig(image, format="png", dpi=110, facecolor="white")
        data = {"image/png": base64.b64encode(image.getvalue()).decode(), "text/plain": ["<Figure>"]}
        found.append({"output_type": "display_data", "metadata": {}, "data": data})
    plt.close("all")
    return found


def main() -> None:
    """Run, and write beside notebook.py."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model", default=HUB_ID, help="Hub id, or where a copy of it lies; the notebook shows the id"
    )
    args = parser.parse_args()
    parts = cells((HERE / "notebook.py").read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as folder:
        outputs = run([text.replace(HUB_ID, args.model) for kind, text in parts if kind == "code"], Path(folder))
    text = json.dumps(notebook(parts, outputs), indent=1, ensure_ascii=False) + "\n"
    (HERE / "notebook.ipynb").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
