"""Pools for selection on several machines, and what stays equal between two selections."""

import random
from pathlib import Path

from datasets import Dataset

from support.shared_data import data_path
from support.tiny import SENTENCES
from trl_real.selection.record import SelectionRecord


TIMES = ("seconds", "tokens_per_second")


def pool_of(n_rows: int, n_responses: int, seed: int = 0) -> Dataset:
    """Return rows of random sentences; every seventh row has no pair."""
    rng = random.Random(seed)
    words = " ".join(SENTENCES).split()
    rows = []
    for i in range(n_rows):
        texts = [" ".join(rng.choices(words, k=rng.randint(2, 9))) for _ in range(n_responses)]
        rows.append({"prompt": f"prompt {i}", "responses": texts[: 1 if i % 7 == 0 else None]})
    return Dataset.from_list(rows)


def told(record: SelectionRecord) -> dict:
    """Return a record as a dict without its times."""
    return {name: value for name, value in record.to_dict().items() if name not in TIMES}


def hh() -> Dataset:
    """Return the harmless test split of HH-RLHF as labelled pairs. Its text is offensive: compare only numbers."""
    path = data_path("hh/hh_harmless_test.parquet")
    return Dataset.from_parquet(str(path)).select_columns(["prompt", "chosen", "rejected"])


POOLS = {"16 responses": (lambda: pool_of(120, 16), 8), "hh": (hh, 64)}


def stamps(folder: Path) -> dict[str, int]:
    """Return the time at which each finished shard in a folder was written."""
    return {file.name: file.stat().st_mtime_ns for file in folder.rglob("*.parquet")}
