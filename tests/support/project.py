"""Paths of the project, and the code blocks of its pages."""

import re
from pathlib import Path


ROOT = Path(__file__).parents[2]
TESTS = ROOT / "tests"
MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"


def page_blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / "docs" / page).read_text(encoding="utf-8"), re.DOTALL)
