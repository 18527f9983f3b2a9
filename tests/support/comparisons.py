"""Completions of three models, and a judge that takes the longer one."""

from datasets import Dataset


class LongerIsBetter:
    """A judge that is sure, fair to both positions, and writes down what it was shown."""

    name = "longer"

    def __init__(self):
        self.batches = []

    def __call__(self, batch):
        self.batches.append(batch)
        pairs = zip(batch["response_a"], batch["response_b"], strict=True)
        return [(len(a) > len(b)) + 0.5 * (len(a) == len(b)) for a, b in pairs]


def many(n: int = 60, **columns) -> Dataset:
    rows = {
        "prompt": [f"p{i}" for i in range(n)],
        "base": [f"base {i}" for i in range(n)],
        "good": [f"a good answer {i} " + "x" * (i % 7) for i in range(n)],
        "weak": [f"w {i} " + "x" * (i % 5) for i in range(n)],
    }
    return Dataset.from_dict({**rows, **columns})
