"""Rows with a selected pair and scores."""

from datasets import Dataset


def pool(**columns):
    rows = {
        "prompt": ["p0", "p1", "p2", "p3"],
        "responses": [["a", "b"], ["c", "d", "e"], ["f", "g"], ["h", "i"]],
        "scores": [[1.0, 2.0], [3.0, 9.0, 2.0], [5.0, 5.0], [None, 1.0]],
        "pair": [[0, 1], [0, 2], [0, 1], [0, 1]],
        "response_a": ["a", "c", "f", "h"],
        "response_b": ["b", "e", "g", "i"],
        "similarity": [0.1, 0.2, 0.3, 0.4],
        "skipped": ["", "", "", ""],
    }
    return Dataset.from_dict({**rows, **columns})


class Once:
    """A judge that is never asked about the same pair twice."""

    def __init__(self, name="once", stop_after=None):
        self.name, self.stop_after, self.seen = name, stop_after, []

    def __call__(self, batch):
        answers = []
        for prompt in batch["prompt"]:
            if len(self.seen) == self.stop_after:
                raise KeyboardInterrupt
            assert prompt not in self.seen
            self.seen.append(prompt)
            answers.append({"p0": 0.9, "p1": 0.2, "p2": 0.5, "p3": None}[prompt])
        return answers
