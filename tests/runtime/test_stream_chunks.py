"""Chunks of a stream: the same rows in each pass, or an error that names the first row from which they differ."""

import numpy as np
import pytest
from datasets import Features, IterableDataset, Value

from trl_real.errors import TrlRealError
from trl_real.runtime.stream_shards import Chunks, map_chunks


SIZE, N = 4, 10
TEXTS = [f"text {i}" for i in range(N)]
LENGTH = Features({"n": Value("int64")})


class Passes:
    """Texts of each pass over a stream, one list a pass, the last one again and again."""

    def __init__(self, *passes: list[str]):
        self.passes, self.n_begun = passes, 0

    def __call__(self):
        texts = self.passes[min(self.n_begun, len(self.passes) - 1)]
        self.n_begun += 1
        yield from ({"text": text, "other": i} for i, text in enumerate(texts))


def chunks(*passes: list[str]) -> Chunks:
    features = Features({"text": Value("string"), "other": Value("int64")})
    stream = IterableDataset.from_generator(Passes(*passes), features=features)
    return Chunks(stream, ["text"], SIZE)


def test_every_pass_gives_all_rows_with_their_numbers():
    found = chunks(TEXTS)
    for _ in range(2):
        assert [(start, rows["text"][:]) for start, rows in found] == [
            (0, TEXTS[:4]), (4, TEXTS[4:8]), (8, TEXTS[8:]),
        ]  # fmt: skip
        assert [(start, batch["other"]) for start, batch in found.full_chunks()] == [
            (0, [0, 1, 2, 3]), (4, [4, 5, 6, 7]), (8, [8, 9]),
        ]  # fmt: skip


OTHERS = {
    "first row": (["else", *TEXTS[1:]], 0),
    "a later row": ([*TEXTS[:6], "else", *TEXTS[7:]], 4),
    "last row": ([*TEXTS[:9], "else"], 8),
    "two exchanged": ([*TEXTS[:4], TEXTS[5], TEXTS[4], *TEXTS[6:]], 4),
    "one chunk more": ([*TEXTS, *TEXTS], 8),
    "one row more": ([*TEXTS, "more"], 8),
    "one row less": (TEXTS[:9], 8),
    "one chunk less": (TEXTS[:8], 8),
    "nothing": ([], 0),
}


@pytest.mark.parametrize("name", OTHERS)
def test_a_pass_with_other_rows_is_refused_from_the_first_chunk_that_differs(name):
    texts, where = OTHERS[name]
    found = chunks(TEXTS, texts)
    assert len(list(found)) == 3
    with pytest.raises(TrlRealError, match=f"differs from its first pass, from row {where} on"):
        list(found)


def lengths(rows, row_ids):
    lengths.seen += row_ids
    return {"n": [len(text) for text in rows["text"]]}


@pytest.mark.parametrize("only", [None, [0], [3, 4], [8, 9], [1, 2, 5, 9], []])
def test_a_map_does_the_rows_that_it_is_for_and_each_once(only, tmp_path):
    lengths.seen = []
    given = {"batch_size": 3, "desc": "Measuring", "only": None if only is None else np.array(only, int)}
    wanted = list(range(N)) if only is None else only
    for _ in range(2):
        found = chunks(TEXTS)
        list(found)
        assert map_chunks(lengths, found, LENGTH, tmp_path, **given)["n"][:] == [len(TEXTS[i]) for i in wanted]
        assert lengths.seen == wanted, "a second run reads what the first one wrote"
