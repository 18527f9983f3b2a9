"""A budget over a stream: exactly as for a Dataset in bounded memory, or by a sample with a stated error."""

import json
import random
import tracemalloc

import numpy as np
import pyarrow as pa
import pytest
import torch
from datasets import Dataset, Features, IterableDataset, IterableDatasetDict, List, Value, load_from_disk
from scipy.stats import beta

from support.pools import pool_of, told
from support.tiny import save_tiny
from trl_real import STRATEGIES, EmbeddingPairSelector
from trl_real.cli.main import main
from trl_real.errors import TrlRealError
from trl_real.hub.card import render_section
from trl_real.runtime.shards import Shards
from trl_real.runtime.stream_shards import Chunks, typed
from trl_real.selection.record import SelectionRecord
from trl_real.selection.streaming import share_error


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("model"))


def with_vectors(n_rows: int, n_responses: int = 2, seed: int = 0) -> Dataset:
    """Rows that bring their embeddings, so that no model is asked; the last has no pair."""
    rng = np.random.default_rng(seed)
    rows = [
        {"prompt": f"{i}", "responses": [f"{i} {j}" for j in range(n_responses)], "embeddings": vectors}
        for i, vectors in enumerate(rng.normal(size=(n_rows, n_responses, 4)).round(3).tolist())
    ]
    return Dataset.from_list([*rows[:-1], {**rows[-1], "responses": ["alone"]}])


def preferences(n_rows: int) -> Dataset:
    """Labelled pairs with a column of the user's; every seventh has no pair."""
    pool = pool_of(n_rows, 2)
    texts = [(row["responses"] * 2)[:2] for row in pool]
    chosen, rejected = ([pair[i] for pair in texts] for i in range(2))
    return Dataset.from_dict({"prompt": pool["prompt"], "chosen": chosen, "rejected": rejected, "_score": chosen})


def assert_same_rows(found: IterableDataset, expected: Dataset) -> None:
    """The same rows in the same order, with the same features."""
    assert isinstance(found, IterableDataset) and found.features == expected.features
    found = Dataset.from_list(list(found), features=found.features)
    np.testing.assert_array_equal(found["similarity"], expected["similarity"])
    assert found.remove_columns("similarity")[:] == expected.remove_columns("similarity")[:]


class TestExact:
    @pytest.mark.parametrize(
        ("pool", "settings"),
        [
            *((pool_of(36, 3), {"strategy": name}) for name in STRATEGIES),
            (pool_of(12, 16), {"strategy": "centroid"}),
            (preferences(30), {}),
            (pool_of(36, 3), {"geometry": "standardized"}),
            (pool_of(36, 2), {"dtype": "bfloat16"}),
        ],
        ids=lambda value: "-".join(value.values()) if isinstance(value, dict) else f"{len(value)} rows",
    )
    def test_keeps_and_records_the_same_as_a_dataset(self, pool, settings, model, tmp_path):
        ways = {"shard_rows": 16, "batch_size": 7}
        whole, streamed = (EmbeddingPairSelector(model, **settings) for _ in range(2))
        expected = whole.select(pool, 0.3, shards=tmp_path / "whole", **ways)
        stream = pool.to_iterable_dataset(num_shards=2)
        found = streamed.select(stream, 0.3, shards=tmp_path / "stream", **ways)
        assert_same_rows(found, expected)
        assert told(streamed.record) == told(whole.record)
        assert streamed.record.n_rescored or "dtype" not in settings

    @pytest.mark.parametrize("budget", [None, 7])
    def test_given_vectors_any_budget_and_columns_of_an_earlier_run(self, budget, tmp_path):
        pool = with_vectors(40, 3)
        expected = EmbeddingPairSelector().select(pool, budget)
        earlier = pool.map(EmbeddingPairSelector(strategy="hard"), batched=True).with_format("numpy")
        found = EmbeddingPairSelector().select(earlier.to_iterable_dataset(), budget, shards=tmp_path, shard_rows=9)
        assert_same_rows(found, expected)

    def test_a_stream_without_features_gets_those_of_its_first_rows(self, tmp_path):
        pool = with_vectors(20)
        stream = IterableDataset.from_generator(lambda: iter(pool))
        assert stream.features is None
        assert_same_rows(
            EmbeddingPairSelector().select(stream, 5, shards=tmp_path), EmbeddingPairSelector().select(pool, 5)
        )

    def test_killed_pass_resumes_without_embedding_again(self, model, tmp_path, monkeypatch):
        pool = pool_of(40, 2)
        make, made = Shards.make, []

        def killed(self, file, rows, numbers):
            if len(made) == 3:
                raise KeyboardInterrupt
            made.append(numbers)
            make(self, file, rows, numbers)

        monkeypatch.setattr(Shards, "make", killed)
        with pytest.raises(KeyboardInterrupt):
            EmbeddingPairSelector(model).select(pool.to_iterable_dataset(), 0.5, shards=tmp_path, shard_rows=8)
        monkeypatch.undo()
        asked = []
        annotate = EmbeddingPairSelector.annotate
        monkeypatch.setattr(EmbeddingPairSelector, "annotate", lambda *args: asked.extend(args[-1]) or annotate(*args))
        selector = EmbeddingPairSelector(model)
        found = selector.select(pool.to_iterable_dataset(), 0.5, shards=tmp_path, shard_rows=8)
        assert asked == list(range(24, 40))
        assert_same_rows(found, EmbeddingPairSelector(model).select(pool, 0.5, shards=tmp_path / "a", shard_rows=8))
        asked.clear()
        EmbeddingPairSelector(model).select(pool.to_iterable_dataset(), 0.25, shards=tmp_path, shard_rows=8)
        assert not asked  # another budget is another cut

    def test_kept_rows_can_be_read_again_and_processed_further(self, tmp_path):
        kept = EmbeddingPairSelector().select(with_vectors(50).to_iterable_dataset(), 0.5, shards=tmp_path)
        rows = list(kept)
        assert list(torch.utils.data.DataLoader(kept, batch_size=None, collate_fn=lambda row: row)) == rows
        first = iter(kept)
        head = [next(first) for _ in range(9)]
        kept.load_state_dict(kept.state_dict())
        assert head + list(kept) == rows

    def test_memory_does_not_grow_with_the_stream(self, tmp_path):
        """16 MB of text go through; a chunk of 1 MB and its copies are held."""
        held = []

        def rows():
            for i in range(160):
                if i % 10 == 0:
                    held.append(tracemalloc.get_traced_memory()[0] + pa.total_allocated_bytes())
                yield {"prompt": f"{i}", "responses": [f"{i} {j} " + "text " * 10_000 for j in range(2)]}

        features = Features({"prompt": Value("string"), "responses": List(Value("string"))})
        stream = IterableDataset.from_generator(rows, features=features)
        selector = EmbeddingPairSelector(strategy="random")
        tracemalloc.start()
        kept = selector.select(stream, 0.5, shards=tmp_path, shard_rows=10)
        n_kept = sum(1 for _ in kept)
        tracemalloc.stop()
        assert n_kept == 80 == selector.record.n_kept
        assert len(held) == 32 and max(held) - held[0] < 5e6

    def test_stream_that_changes_on_the_second_pass_is_reported(self, tmp_path):
        rows, passes = list(with_vectors(30)), []

        def changing():
            passes.append(0)
            yield from rows[:: 1 if len(passes) == 2 else -1]  # the first pass is the look at the features

        kept = EmbeddingPairSelector().select(IterableDataset.from_generator(changing), 5, shards=tmp_path)
        with pytest.raises(TrlRealError, match="differs from its first pass, from row 0 on"):
            list(kept)

    @pytest.mark.parametrize(("second", "where"), [(range(25), 20), (range(35), 30), (range(20), 20)])
    def test_stream_that_ends_earlier_or_later_is_reported(self, second, where):
        chunks = Chunks(Dataset.from_dict({"x": range(30)}).to_iterable_dataset(), ["x"], 10)
        assert [start for start, _ in chunks] == [0, 10, 20]
        chunks.stream = Dataset.from_dict({"x": second}).to_iterable_dataset()
        with pytest.raises(TrlRealError, match=f"from row {where} on"):
            list(chunks)

    def test_no_rows(self, tmp_path):
        features = Features({"prompt": Value("string"), "responses": List(Value("string"))})
        empty = IterableDataset.from_generator(lambda: iter([]), features=features)
        kept = EmbeddingPairSelector(strategy="random").select(empty, 0.5, shards=tmp_path)
        assert list(kept) == [] and "skipped" in kept.features
        with pytest.raises(TrlRealError, match="The stream is empty"):
            typed(IterableDataset.from_generator(lambda: iter([])))

    def test_splits(self, tmp_path):
        stream = with_vectors(20).to_iterable_dataset()
        selector = EmbeddingPairSelector()
        kept = selector.select(IterableDatasetDict(a=stream, b=stream.take(9)), 3, shards=tmp_path)
        assert [len(list(split)) for split in kept.values()] == [3, 3] and selector.record["b"].n_rows == 9


class TestSample:
    def test_keeps_the_rows_below_the_threshold_with_what_map_adds(self):
        pool = with_vectors(300, 3)
        selector = EmbeddingPairSelector()
        kept = selector.select(pool.to_iterable_dataset(), 0.25, sample=100, batch_size=64)
        record = selector.record
        threshold = np.float32(record.settings["threshold"])
        mapped = pool.map(EmbeddingPairSelector(), batched=True)
        assert_same_rows(kept, mapped.filter(lambda row: not row["skipped"] and row["similarity"] <= threshold))
        assert record.n_rows == record.settings["sample"] == 100 and record.sampled
        assert record.n_kept == round(0.25 * (100 - sum(record.skipped.values())))

    def test_the_share_is_within_the_stated_error(self):
        """Over many seeds the kept share scatters around the budget as the record says."""
        pool = with_vectors(600)
        scores = np.sort(pool.map(EmbeddingPairSelector(), batched=True)["similarity"][:-1])
        errors = []
        for seed in range(16):
            selector = EmbeddingPairSelector(seed=seed)
            selector.select(pool.shuffle(seed=seed).to_iterable_dataset(), 0.2, sample=20)
            share = np.searchsorted(scores, selector.record.settings["threshold"] + 1e-6) / len(scores)
            errors.append((share - 0.2) / selector.record.settings["share_error"])
        assert abs(np.mean(errors)) < 0.7 and 0.6 < np.std(errors) < 1.5

    @pytest.mark.parametrize(("k", "m"), [(1, 1), (1, 40), (20, 80), (250, 1000)])
    def test_the_error_is_that_of_an_order_statistic(self, k, m):
        assert share_error(k, m) == pytest.approx(0 if k == m else beta(k, m + 1 - k).std())

    def test_the_same_seed_draws_the_same_sample(self):
        stream = with_vectors(300).to_iterable_dataset()
        selectors = [EmbeddingPairSelector(seed=seed) for seed in (-1, -1, 2)]
        for selector in selectors:
            selector.select(stream, 0.3, sample=50)
        one, two, other = (selector.record.settings["threshold"] for selector in selectors)
        assert one == two != other

    def test_a_geometry_is_fitted_to_the_sample(self):
        selector = EmbeddingPairSelector(geometry="standardized")
        kept = selector.select(with_vectors(200, 3).to_iterable_dataset(), 0.5, sample=100)
        assert selector.fitted is not None and 50 < len(list(kept)) < 150

    def test_labelled_pairs_and_a_user_column_with_our_name(self):
        stream = preferences(60).to_iterable_dataset()
        kept = list(EmbeddingPairSelector(strategy="random").select(stream, None, sample=30))
        assert len(kept) == 60 - 9 and all(row["_score"] == row["chosen"] for row in kept)

    def test_summary_and_card_state_that_counts_are_from_a_sample(self):
        selector = EmbeddingPairSelector()
        selector.select(with_vectors(60).to_iterable_dataset(), 0.5, sample=40)
        summary = selector.record.summary()
        assert "40 rows in the sample" in summary and "0.5 ± 0.078 (one standard deviation)" in summary
        assert "| in the sample | 40 |" in render_section(selector.record, "easy", "me/it", {"train": 30})


class TestErrors:
    @pytest.mark.parametrize(
        ("settings", "arguments", "message"),
        [
            ({}, {"budget": 0.5}, "a stream gives one row at a time. Type one of shards='a_folder'"),
            ({}, {"budget": 0.5, "shards": "x", "sample": 5}, "Type one of shards='a_folder' for the exact cut"),
            ({}, {"budget": 5, "sample": 5}, "a sample gives a share only. Give a share such as 0.25"),
            ({}, {"budget": 0.01, "sample": 9}, "in the sample is 0 rows. Type sample=10000."),
            ({}, {"budget": 0.5, "sample": 0}, "sample=0 is not a number of rows. Type sample=1000."),
            ({"strategy": "d_optimal"}, {"budget": 0.5, "sample": 9}, "strategy='d_optimal' compares rows with each"),
            ({}, {"budget": 0.5, "shards": "x", "shard_rows": 0}, "shard_rows=0 must be at least 1"),
            ({}, {"budget": 0.5, "shards": "x", "num_proc": 2}, "Leave num_proc out"),
        ],
    )
    def test_mistakes_get_a_one_line_error_with_a_fix(self, settings, arguments, message, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        with pytest.raises(TrlRealError) as error:
            EmbeddingPairSelector(**settings).select(with_vectors(20).to_iterable_dataset(), **arguments)
        assert message in str(error.value)

    def test_sample_is_refused_for_a_dataset(self):
        with pytest.raises(TrlRealError, match="sample=9 is for streams, and this is a Dataset"):
            EmbeddingPairSelector().select(with_vectors(20), 0.5, sample=9)


class TestCommand:
    @pytest.fixture
    def flags(self, tmp_path):
        rng = random.Random(0)
        rows = [{"prompt": f"{i}", "responses": [f"{i} {rng.random()}" for _ in range(2)]} for i in range(40)]
        (tmp_path / "pool.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
        return ["select", "--dataset", str(tmp_path / "pool.jsonl"), "--strategy", "random", "--budget", "0.25"]

    def test_streaming_writes_the_same_output(self, flags, tmp_path):
        one, two = (tmp_path / name for name in ("one", "two"))
        assert main([*flags, "--output_dir", str(one)]) == 0
        assert main([*flags, "--output_dir", str(two), "--streaming", "--shard_rows", "16"]) == 0
        rows = [load_from_disk(str(folder)) for folder in (one, two)]
        assert_same_rows(rows[1].to_iterable_dataset(), rows[0])
        assert told(SelectionRecord.load(one)) == told(SelectionRecord.load(two))
        assert not list(tmp_path.glob(".*"))

    def test_from_a_sample(self, flags, tmp_path, capsys):
        flags += ["--output_dir", str(tmp_path / "out"), "--streaming", "--sample", "20", "--json"]
        assert main(flags) == 0
        assert json.loads(capsys.readouterr().out)["n_written"] == len(load_from_disk(str(tmp_path / "out")))

    @pytest.mark.parametrize(
        ("more", "message"),
        [
            (["--sample", "20"], "--sample 20 is for streams. Type --streaming as well"),
            (["--streaming", "--source", "shp"], "--source converts a whole dataset"),
            (["--streaming", "--num_proc", "2"], "With --streaming type: torchrun"),
            (["--streaming", "--split", "train[:9]"], "one full split of ['train']; found 'train[:9]'"),
        ],
    )
    def test_mistakes(self, flags, more, message, tmp_path, capsys):
        assert main([*flags, "--output_dir", str(tmp_path / "out"), *more]) == 2
        assert message in capsys.readouterr().err
