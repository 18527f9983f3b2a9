"""Fixtures of tests of the command line."""

import pytest
from datasets import Dataset

from support.tiny import save_tiny


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("model"))


@pytest.fixture
def pool(tmp_path):
    rows = {
        "prompt": [f"question {i}" for i in range(12)],
        "responses": [[f"yes {i}", f"no, not number {i}", f"perhaps {i} times"] for i in range(11)]
        + [["same", "same"]],
        "scores": [[float(i % 3), 1.5, 0.5] for i in range(11)] + [[1.0, 2.0]],
    }
    path = tmp_path / "pool.parquet"
    Dataset.from_dict(rows).to_parquet(str(path))
    return path
