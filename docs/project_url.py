"""
Write the project's address, which stands in pyproject.toml, into every file that links to it.

    python docs/project_url.py

The files that name it are found by the address's form, `github.com/OWNER/trl_real`.
"""

import re
import tomllib
from pathlib import Path


ROOT = Path(__file__).parents[1]
PLACES = (
    "*.md",
    "*.cff",
    "docs/**/*.md",
    "examples/*.py",
    "examples/*.ipynb",
    "trl_real/**/*.md",
    "trl_real/**/*.txt",
)
LINK = re.compile(r"github(?P<home>\.com)?/(?P<owner>[\w.-]+)/trl_real\b")


def address() -> str:
    """The project's address, such as `https://github.com/OWNER/trl_real`."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["urls"]["Repository"]


def links() -> dict[Path, list[str]]:
    """Owners in the links of each file that links to the project."""
    files = {path: path.read_text(encoding="utf-8") for place in PLACES for path in ROOT.glob(place)}
    return {
        path: owners for path, text in files.items() if (owners := [found["owner"] for found in LINK.finditer(text)])
    }


def main() -> None:
    """Rewrite the links."""
    owner = address().split("/")[-2]
    for path in links():
        text = path.read_text(encoding="utf-8")
        path.write_text(LINK.sub(rf"github\g<home>/{owner}/trl_real", text), encoding="utf-8")


if __name__ == "__main__":
    main()
