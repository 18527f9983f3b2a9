"""Rows with the columns of public datasets, and their pools by prompt."""

import random

from datasets import Dataset

from support.shared_data import data_path


ASK = "\n\nHuman: hi\n\nAssistant: hello\n\nHuman: why?\n\nAssistant:"


def real(name: str) -> Dataset:
    return Dataset.from_parquet(str(data_path(f"{name}.parquet")), keep_in_memory=True)


def shp(*rows: tuple, **columns) -> Dataset:
    """Rows of (post, A, B, score_A, score_B), with the columns of stanfordnlp/SHP-2."""
    history, first, second, score_first, score_second = zip(*rows, strict=True)
    return Dataset.from_dict(
        {
            "post_id": [f"p{i}" for i in range(len(rows))],
            "domain": ["askacademia_train"] * len(rows),
            "upvote_ratio": [0.9] * len(rows),
            "history": history,
            "c_root_id_A": ["a"] * len(rows),
            "c_root_id_B": ["b"] * len(rows),
            "created_at_utc_A": [1] * len(rows),
            "created_at_utc_B": [2] * len(rows),
            "score_A": score_first,
            "score_B": score_second,
            "human_ref_A": first,
            "human_ref_B": second,
            "labels": [0] * len(rows),
            "seconds_difference": [1.0] * len(rows),
            "score_ratio": [2.0] * len(rows),
            **columns,
        }
    )


def shuffled(dataset: Dataset, seed: int) -> Dataset:
    order = list(range(len(dataset)))
    random.Random(seed).shuffle(order)
    return dataset.select(order)
