"""`select`: which rows a budget keeps, and what the record says of them."""

import numpy as np
import pytest
import torch
from datasets import Dataset, DatasetDict

from support.selecting import FEATURES, TOKENIZER, assert_equal_rows, bad_rows, make_rows, mixed_pool, selector
from support.tiny import tiny_model
from trl_real import STRATEGIES, EmbeddingPairSelector, TrlRealError
from trl_real.data.pairs import EMPTY, IDENTICAL, MISSING, TOO_FEW
from trl_real.selection.record import SelectionRecord, describe_similarity


pytestmark = pytest.mark.usefixtures("quiet_and_apart")


class TestBudget:
    POOL = Dataset.from_list(make_rows(21))

    @pytest.mark.parametrize(
        ("budget", "n_kept"),
        [(None, 21), (1.0, 21), (0.5, 10), (1 / 3, 7), (0.03, 1), (1, 1), (20, 20), (21, 21), (np.int64(4), 4),
         (np.float32(0.5), 10)],
    )  # fmt: skip
    def test_keeps_the_given_number_of_rows(self, budget, n_kept):
        chooser = selector()
        kept = chooser.select(self.POOL, budget)
        assert len(kept) == chooser.record.n_kept == n_kept
        assert kept["id"][:] == sorted(kept["id"][:])

    @pytest.mark.parametrize("budget", [0, -1, 0.0, -0.5, 1.5, 3.0, float("nan"), float("inf"), "half", True, [1]])
    def test_out_of_range(self, budget):
        with pytest.raises(TrlRealError, match="budget="):
            selector().select(self.POOL, budget)

    def test_budget_above_the_number_of_rows_with_a_pair(self):
        with pytest.raises(TrlRealError, match="budget=25, but only 24 rows have a pair. Type budget=24 or None"):
            selector().select(mixed_pool(), 25)

    def test_share_below_one_row(self):
        with pytest.raises(TrlRealError, match="of 21 rows with a pair is 0 rows. Type budget=1"):
            selector().select(self.POOL, 0.01)

    def test_takes_the_least_similar_rows_for_easy_and_the_most_similar_for_hard(self):
        for strategy, sign in (("easy", 1), ("hard", -1)):
            scored = self.POOL.map(selector(strategy=strategy), batched=True)
            expected = np.sort(np.argsort(sign * np.array(scored["similarity"][:]), kind="stable")[:6])
            assert selector(strategy=strategy).select(self.POOL, 6)["id"][:] == expected.tolist()

    @pytest.mark.parametrize("strategy", STRATEGIES)
    @pytest.mark.parametrize("source", ["shuffled", "batches"])
    def test_row_order_and_batches_do_not_matter(self, strategy, source):
        pool = mixed_pool()
        expected = set(selector(strategy=strategy).select(pool, 10)["id"][:])
        found = (
            selector(strategy=strategy).select(pool.shuffle(seed=1), 10)
            if source == "shuffled"
            else selector(strategy=strategy).select(pool, 10, batch_size=3)
        )
        assert set(found["id"][:]) == expected

    @pytest.mark.parametrize("strategy", STRATEGIES)
    def test_equal_rows_go_to_the_first(self, strategy):
        row = {"prompt": "q", "responses": ["tea", "water", "rain on a tin roof"]}
        pool = Dataset.from_list([{**row, "id": i} for i in range(40)])
        for batch_size in (3, 512):
            assert selector(strategy=strategy).select(pool, 5, batch_size=batch_size)["id"][:] == [0, 1, 2, 3, 4]

    def test_nothing_is_lost(self):
        pool = mixed_pool()
        for budget in (None, 0.25, 7):
            chooser = selector()
            kept = chooser.select(pool, budget)
            record = chooser.record
            assert record.n_rows == len(pool) == record.n_kept + record.n_not_chosen + sum(record.skipped.values())
            assert len(kept) == record.n_kept and record.n_not_chosen >= 0
            assert record.skipped == {TOO_FEW: 3, EMPTY: 3, IDENTICAL: 2, MISSING: 2}
            by_id = {row["id"]: row for row in pool}
            assert all({**row, **by_id[row["id"]]} == row for row in kept)

    def test_only_skipped_rows(self):
        pool = Dataset.from_list(bad_rows(), features=FEATURES)
        for budget in (None, 0.5):
            chooser = selector()
            assert len(chooser.select(pool, budget)) == 0 and chooser.record.n_kept == 0
        with pytest.raises(TrlRealError, match="budget=3, but no row has a pair"):
            selector().select(pool, 3)

    def test_an_empty_dataset(self):
        empty = Dataset.from_list(make_rows(1)).select([])
        kept = selector().select(empty)
        assert len(kept) == 0 and kept.features == selector().features(empty.features)

    @pytest.mark.parametrize("kind", ["numpy", "torch", "pandas", "arrow"])
    def test_formats(self, kind):
        kept = selector().select(self.POOL.with_format(kind), 5)
        assert kept.format["type"] == kind
        assert_equal_rows(kept, selector().select(self.POOL, 5))

    def test_dataset_dict(self):
        chooser = selector()
        kept = chooser.select(DatasetDict(a=self.POOL, b=self.POOL.select(range(9))), 0.34)
        assert (len(kept["a"]), len(kept["b"])) == (7, 3) and chooser.record["b"].n_rows == 9

    def test_a_stream_cannot_be_ranked(self):
        with pytest.raises(TrlRealError, match="a stream gives one row at a time"):
            selector().select(self.POOL.to_iterable_dataset(), 0.5)

    def test_only_datasets(self):
        with pytest.raises(TrlRealError, match="takes a Dataset or DatasetDict, not a list"):
            selector().select(make_rows(3), 0.5)

    def test_user_columns_may_have_any_name(self):
        pool = self.POOL.add_column("_score", [7] * 21).add_column("_seconds", ["x"] * 21)
        kept = selector().select(pool, 4)
        assert kept["_score"][:] == [7] * 4 and kept["_seconds"][:] == ["x"] * 4


class TestRecord:
    def test_records_the_recipe(self, tmp_path):
        chooser = selector(strategy="hard", layer=1, seed=7)
        pool = mixed_pool()
        kept = chooser.select(pool, 0.25)
        record = chooser.record
        assert (record.strategy, record.budget, record.seed) == ("hard", 0.25, 7)
        assert record.model == "LlamaForCausalLM" and record.revision.startswith("sha256:")
        assert record.settings["layer"] == 1 and record.settings["dtype"] == "float32"
        assert record.n_responses == sum(len(row["responses"]) for row in make_rows(24))
        assert record.tokens > 0 and record.seconds > 0 and record.tokens_per_second > 0
        assert sum(record.histogram["pool"]) == 24 and sum(record.histogram["kept"]) == len(kept) == 6
        assert record.similarity_kept["median"] == pytest.approx(np.median(kept["similarity"][:]), abs=1e-5)
        record.save(tmp_path)
        assert SelectionRecord.load(tmp_path).to_dict() == record.to_dict()
        assert f"{len(pool)} rows in: 6 kept, 18 not chosen, 10 skipped" in record.summary()

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_records_the_precision_of_a_loaded_model(self, dtype):
        chooser = EmbeddingPairSelector(tiny_model().to(dtype), tokenizer=TOKENIZER)
        chooser.select(Dataset.from_list(make_rows(3)))
        assert f"torch.{chooser.record.settings['dtype']}" == str(dtype)

    def test_without_a_model(self):
        chooser = EmbeddingPairSelector(strategy="random")
        chooser.select(mixed_pool(), 5)
        assert chooser.record.model is None and chooser.record.similarity == {} and chooser.record.tokens == 0

    def test_counts_the_tokens_of_both_passes(self):
        pool = Dataset.from_list(make_rows(30))
        plain, half = selector(), selector(dtype="bfloat16")
        plain.select(pool, 15, batch_size=1)
        half.select(pool, 15, batch_size=1)
        assert half.record.n_rescored and half.record.tokens > plain.record.tokens

    @pytest.mark.parametrize("values", [[0.99999994, 1.0], [1.0, 1.0], [0.5, 0.50000006, 0.5], [-1.0, 1.0]])
    def test_histogram_of_nearly_equal_float32_values_counts_each_once(self, values):
        found = describe_similarity(np.array(values, np.float32), np.array(values[:1], np.float32))["histogram"]
        assert sum(found["pool"]) == len(values) and sum(found["kept"]) == 1
        assert np.all(np.diff(found["edges"]) > 0)
