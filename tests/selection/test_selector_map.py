"""A selector in `datasets.map`: each way of mapping gives the same values, and no row or column is lost."""

import json
import pickle

import numpy as np
import pytest
from datasets import Dataset, DatasetDict, IterableDataset

from support.selecting import BAD_ROWS, FEATURES, assert_equal_rows, bad_rows, make_rows, mixed_pool, selector
from trl_real import STRATEGIES, TrlRealError
from trl_real.data.columns import POOL_COLUMNS, to_columns


pytestmark = pytest.mark.usefixtures("quiet_and_apart")


class TestMapContract:
    @pytest.fixture
    def pool(self):
        return mixed_pool()

    @pytest.fixture
    def expected(self, pool):
        return pool.map(selector(), batched=True, batch_size=100)

    def test_adds_typed_columns_and_keeps_all_others(self, pool, expected):
        assert expected.column_names == [*pool.column_names, *POOL_COLUMNS]
        assert expected.features == selector().features(pool.features)
        assert expected.select_columns(pool.column_names)[:] == pool[:]

    @pytest.mark.parametrize("arguments", [{}, {"batched": True, "batch_size": 1}, {"batched": True, "batch_size": 7}])
    @pytest.mark.parametrize("strategy", STRATEGIES)
    def test_batches_do_not_matter(self, pool, strategy, arguments):
        expected = pool.map(selector(strategy=strategy), batched=True, batch_size=100)
        assert_equal_rows(pool.map(selector(strategy=strategy), **arguments), expected)

    def test_map_kwargs(self, pool, expected):
        assert_equal_rows(pool.map(selector(), **selector().map_kwargs()), expected)

    @pytest.mark.parametrize("batched", [True, False])
    def test_with_rank(self, pool, expected, batched):
        assert_equal_rows(pool.map(selector(), with_rank=True, batched=batched), expected)

    @pytest.mark.parametrize("batched", [True, False])
    @pytest.mark.parametrize("kind", ["numpy", "torch", "pandas", "arrow"])
    def test_formats(self, pool, expected, kind, batched):
        if (kind, batched) == ("pandas", False):  # a frame of one row with an empty list has no type of its own
            typed = [i for i, row in enumerate(pool) if any(row["responses"] or []) and row["scores"]]
            pool, expected = pool.select(typed), expected.select(typed)
        features = selector().features(pool.features) if kind == "pandas" else None
        found = pool.with_format(kind).map(selector(), batched=batched, batch_size=11, features=features)
        assert found.format["type"] == kind
        assert_equal_rows(found.select_columns(list(POOL_COLUMNS)), expected.select_columns(list(POOL_COLUMNS)))
        assert found.column_names == expected.column_names and len(found) == len(expected)

    @pytest.mark.parametrize("kind", ["numpy", "pandas", "arrow"])
    def test_formats_give_the_same_features(self, kind):
        pool = Dataset.from_list(make_rows(9))
        found = pool.with_format(kind).map(selector(), batched=True)
        assert found.features == pool.map(selector()).features
        assert found.with_format(None).select_columns(pool.column_names)[:] == pool[:]

    def test_given_features_hold_in_every_format(self, pool, expected):
        for kind in (None, "pandas", "arrow", "numpy", "torch"):
            features = selector().features(pool.features)
            found = pool.with_format(kind).map(selector(), batched=True, batch_size=5, features=features)
            assert found.features == expected.features

    @pytest.mark.parametrize("batched", [True, False])
    def test_iterable_dataset(self, pool, expected, batched):
        stream = pool.to_iterable_dataset().map(
            selector(), batched=batched, features=selector().features(pool.features)
        )
        assert isinstance(stream, IterableDataset) and stream.features == expected.features
        assert_equal_rows(Dataset.from_list(list(stream), features=stream.features), expected)

    @pytest.mark.parametrize("batch_size", [1, 2])
    def test_iterable_dataset_with_batches_of_skipped_rows_only(self, batch_size):
        """Plain dicts: rows and batches of rows without a text look nearly alike."""
        pool = Dataset.from_list(bad_rows(), features=FEATURES)
        features = selector().features(pool.features)
        stream = pool.to_iterable_dataset().map(selector(), batched=True, batch_size=batch_size, features=features)
        assert [row["skipped"] for row in stream] == [reason for _, reason in BAD_ROWS]

    def test_dataset_dict(self, pool, expected):
        found = DatasetDict(train=pool, test=pool.select(range(5))).map(selector(), batched=True)
        assert_equal_rows(found["train"], expected)
        assert_equal_rows(found["test"], expected.select(range(5)))

    def test_a_row_and_a_batch_by_hand(self, pool, expected):
        rows = pool[:]
        assert_equal_rows({**rows, **{k: [_plain(v) for v in c] for k, c in selector()(rows).items()}}, expected)
        for i in (1, 4, 7):
            row = {name: _plain(value) for name, value in selector()(pool[i]).items()}
            assert row["pair"] == expected[i]["pair"] and row["skipped"] == expected[i]["skipped"]

    def test_input_is_not_modified(self, pool):
        batch = pool[:]
        copy = pickle.loads(pickle.dumps(batch))
        selector()(batch)
        assert batch == copy

    def test_a_second_run_replaces_its_own_columns(self, pool, expected):
        again = pool.map(selector(strategy="hard"), batched=True).map(selector(), batched=True)
        assert_equal_rows(again, expected)
        kept = selector().select(selector(strategy="hard").select(pool))
        assert kept.column_names == expected.column_names

    @pytest.mark.parametrize("column", POOL_COLUMNS)
    def test_user_column_is_never_overwritten(self, pool, column):
        mine = pool.add_column(column, ["mine"] * len(pool))
        for run in (lambda: mine.map(selector()), lambda: selector().select(mine)):
            with pytest.raises(TrlRealError, match=f"already has a column '{column}'.*rename_column"):
                run()

    def test_every_skip_reason_is_reported(self):
        found = Dataset.from_list(bad_rows(), features=FEATURES).map(selector(), batched=True)
        assert found["skipped"][:] == [reason for _, reason in BAD_ROWS]
        assert found["pair"][:] == [[-1, -1]] * len(BAD_ROWS) and np.isnan(found["similarity"][:]).all()
        assert set(found["response_a"][:]) == {""} == set(found["response_b"][:])

    @pytest.mark.parametrize("batched", [True, False])
    def test_the_schema_is_the_same_if_a_thousand_rows_are_skipped_first(self, batched):
        rows = (bad_rows()[2:9] * 160)[:1100] + make_rows(3)
        pool = Dataset.from_list(rows, features=FEATURES)
        found = pool.map(selector(), batched=batched)
        assert found.features == selector().features(pool.features)
        assert found["skipped"][1100:] == ["", "", ""]
        kept = selector().select(pool)
        assert kept.features == found.features and len(kept) == 3

    def test_blank_and_repeated_responses_are_no_candidates_but_keep_their_index(self):
        responses = ["", "tea", None, " tea", "water and rain"]
        row = Dataset.from_list([{"prompt": "q", "responses": responses}]).map(selector())[0]
        assert row["pair"] == [1, 4] and (row["response_a"], row["response_b"]) == ("tea", "water and rain")

    def test_pairs_index_the_responses(self, pool, expected):
        for row in expected:
            if not row["skipped"]:
                first, second = row["pair"]
                assert first < second
                assert (row["response_a"], row["response_b"]) == (row["responses"][first], row["responses"][second])

    def test_messages_are_responses(self):
        rows = make_rows(6)
        messages = [
            {
                "prompt": [{"role": "user", "content": row["prompt"]}],
                "responses": [[{"role": "assistant", "content": r}] for r in row["responses"]],
            }
            for row in rows
        ]
        texts = Dataset.from_list(rows).map(selector(), batched=True)
        for batched in (True, False):
            found = Dataset.from_list(messages).map(selector(), batched=batched)
            assert found["pair"][:] == texts["pair"][:] and found["response_a"][:] == texts["response_a"][:]

    def test_the_responses_column_may_have_another_name(self):
        pool = Dataset.from_list(make_rows(4)).rename_column("responses", "completions")
        assert selector(responses="completions").select(pool).num_rows == 4

    def test_long_response_is_truncated_at_the_end_and_counted(self):
        pool = Dataset.from_list([{"prompt": "q", "responses": ["tea " * 5000, "water", "tea " * 300 + "rain"]}])
        chooser = selector(max_length=20)
        chooser.select(pool)
        assert chooser.record.n_truncated == 2 and chooser.record.truncation_rate == pytest.approx(2 / 3)

    @pytest.mark.parametrize("bad", ["\ud800 lone", "\x00", "\u202e", "<|im_end|>"])
    def test_odd_text(self, bad):
        row = {"prompt": bad, "responses": [f"{bad} one", f"two {bad}", "three"]}
        for strategy in ("easy", "random"):
            if not (strategy == "easy" and "\ud800" in bad):
                assert selector(strategy=strategy)(row)["skipped"] == ""


def _plain(value):
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value


WAYS = {
    "row": lambda rows, selector: rows.map(selector),
    "batched": lambda rows, selector: rows.map(selector, **selector.map_kwargs()),
    "two processes": lambda rows, selector: rows.map(selector, num_proc=2),
    "stream": lambda rows, selector: rows.to_iterable_dataset().map(selector),
    "stream, batched": lambda rows, selector: rows.to_iterable_dataset().map(selector, **selector.map_kwargs()),
    "splits": lambda rows, selector: DatasetDict(train=rows).map(selector)["train"],
    "call": lambda rows, selector: [{**row, **selector(row)} for row in rows],
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", ["pool", "labelled"])
def test_every_way_of_mapping_gives_the_same_python_values(way, kind):
    rows = {"prompt": ["a", "b"], "responses": [["x", "y", "z"], ["u", "v", "w"]]}
    if kind == "labelled":
        rows = {"prompt": ["a", "b"], "chosen": ["x", "y"], "rejected": ["z", "z"]}
    rows, chooser = Dataset.from_dict(rows), selector()
    found, expected = (
        json.dumps([{**row, "similarity": round(row["similarity"], 4)} for row in mapped])
        for mapped in (WAYS[way](rows, chooser), rows.map(chooser))
    )
    assert found == expected


BATCHES = {
    "numpy": lambda rows: {
        name: np.array([*map(np.array, values), None], object)[:-1] for name, values in rows[:].items()
    },
    "pandas": lambda rows: rows.to_pandas(),
    "pyarrow": lambda rows: rows.with_format("arrow")[:],
}


@pytest.mark.parametrize("batch_format", BATCHES)
def test_batches_in_the_formats_of_ray_get_the_same_values(batch_format):
    rows = Dataset.from_dict({"prompt": ["a", "b"], "responses": [["x", "y", "z"], ["u", "v", "w"]]})
    chooser = selector()
    found, expected = to_columns(chooser(BATCHES[batch_format](rows))), rows.map(chooser)[:]
    for name in ("pair", "response_a", "response_b", "skipped"):
        assert found[name] == expected[name]
    assert np.allclose(found["similarity"], expected["similarity"], atol=1e-4)


def test_labels_that_a_push_has_left_columns_out_of_are_selected_again():
    rows = {"prompt": ["a"], "chosen": ["x"], "rejected": ["y"], "pair": [[0, 1]], "similarity": [0.5]}
    assert len(selector(strategy="random").select(Dataset.from_dict({**rows, "label_source": ["people"]}))) == 1
    with pytest.raises(TrlRealError, match="'similarity', which the selector would overwrite"):
        selector(strategy="random").select(Dataset.from_dict(rows))
