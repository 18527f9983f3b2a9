"""Real data in the folder `../shared/data` next to the project; tests that need it are skipped where it is absent."""

from pathlib import Path

import pytest

from support.project import ROOT


DATA = ROOT.parent / "shared" / "data"


def needs_data(name: str = "") -> pytest.MarkDecorator:
    """
    Return a marker that skips a test if a file or folder of the shared data is absent.

    Args:
        name: Path inside `DATA`; empty for the folder itself.
    """
    return pytest.mark.skipif(not (DATA / name).exists(), reason=f"needs ../shared/data/{name}")


def data_path(name: str) -> Path:
    """Return the path of a file or folder of the shared data; skip the running test if it is absent."""
    if not (DATA / name).exists():
        pytest.skip(f"needs ../shared/data/{name}")
    return DATA / name
