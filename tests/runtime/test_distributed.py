"""Several processes give the same result as one, and finished work is not repeated."""

import numpy as np
import pytest
import torch

from support.active_selectors import adapted
from support.processes import ranks, status_of
from support.shared_work import POOL, work
from support.tiny import tiny_tokenizer
from trl_real.errors import TrlRealError
from trl_real.runtime.distributed import rank
from trl_real.runtime.journal import Journal
from trl_real.selection.active.gradient import GradientPairSelector


pytestmark = pytest.mark.usefixtures("one_thread")


def same(found: dict, expected: dict) -> None:
    """What came of it; what was done for it is another matter."""
    for name in ("texts", "labels", "failed", "picks", "tokens"):
        assert found[name] == expected[name], name
    np.testing.assert_allclose(found["uncertainty"], expected["uncertainty"], rtol=1e-5)


def test_two_processes_share_the_work_and_a_later_one_resumes_it(tmp_path):
    def member():
        torch.save(work(tmp_path, True), tmp_path / f"rank{rank()}.pt")

    assert [status_of(child) for child in ranks(member)] == [0, 0]
    (tmp_path / "alone").mkdir()
    alone = work(tmp_path / "alone", False)
    both = [torch.load(tmp_path / f"rank{number}.pt", weights_only=False) for number in (0, 1)]
    for found in both:
        same(found, alone)
        assert found["written"] == alone["written"]
    for each in (0, 1):
        counts = [found["asked"][each] for found in both]
        assert min(counts) > 0 and sum(counts) == alone["asked"][each]
    again = work(tmp_path, False)
    same(again, alone)
    assert again["written"] == 0 and again["asked"][0] == alone["failed"]


def test_journals_of_all_processes_are_read(tmp_path):
    for name, value in (("j", 1), ("j.10", 4), ("j.2", 3), ("j.1", 2), ("j.backup", 9), ("other.1", 9)):
        (tmp_path / name).write_text(f'{{"value": {value}}}\n')
    with Journal(tmp_path / "j") as journal:
        assert [line["value"] for line in journal.read()] == [1, 2, 3, 4]
        journal.append({"value": 5})
    assert (tmp_path / "j").read_text().count("\n") == 2
    (tmp_path / "j.1").write_text("no JSON\n")
    with pytest.raises(TrlRealError, match=r"Line 1 of '.*j\.1' is not a JSON object"):
        Journal(tmp_path / "j").read()


def test_gradient_shards_are_reused_only_for_the_same_policy(tmp_path):
    def picks(model, **settings):
        selector = GradientPairSelector(model, tokenizer=tiny_tokenizer(), projection_dim=64, **settings)
        return selector.select(POOL, 5)["pair"][:]

    assert picks(adapted(), shards=tmp_path) == picks(adapted())
    before = {file.name for file in tmp_path.glob("*.parquet")}
    assert picks(adapted(), shards=tmp_path) and {file.name for file in tmp_path.glob("*.parquet")} == before
    assert picks(adapted(1), shards=tmp_path) == picks(adapted(1))
    assert {file.name for file in tmp_path.glob("*.parquet")}.isdisjoint(before)
    with pytest.raises(TrlRealError, match="With shards all processes share the work already"):
        picks(adapted(), shards=tmp_path, all_processes=True)


def test_gradient_shards_are_reused_only_for_the_same_precision(tmp_path):
    def uncertainty(**settings):
        selector = GradientPairSelector(adapted(), tokenizer=tiny_tokenizer(), projection_dim=64, **settings)
        return sorted(selector.select(POOL, 5)["uncertainty"][:])

    uncertainty(shards=tmp_path)
    assert uncertainty(shards=tmp_path, dtype="bfloat16") == uncertainty(dtype="bfloat16")
