"""Selected pairs on which people vote."""

from datasets import Dataset


def row(i: int, **changes) -> dict:
    return {
        "prompt": f"question {i}",
        "response_a": f"answer {i}",
        "response_b": f"another {i}",
        "pair": [0, 1],
        **changes,
    }


def pool(n: int, **changes) -> Dataset:
    return Dataset.from_list([row(i, **changes) for i in range(n)])
