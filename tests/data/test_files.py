"""Reading and writing of datasets: every file format, no partial folders, one-line errors."""

import json
import logging
import shutil

import datasets
import pytest
from datasets import Dataset, DatasetDict, load_from_disk

from trl_real.data import files
from trl_real.data.files import FORMATS, MARKER, load, load_stream, save
from trl_real.data.json_lines import reading
from trl_real.errors import TrlRealError


ROWS = [{"prompt": f"q{i}", "responses": ["a", "b", "c"][: 2 + i % 2]} for i in range(6)]


@pytest.fixture(autouse=True)
def quiet_and_offline(monkeypatch, tmp_path_factory):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


@pytest.fixture
def pool() -> Dataset:
    return Dataset.from_list(ROWS)


def message(call, *args, **kwargs) -> str:
    with pytest.raises(TrlRealError) as error:
        call(*args, **kwargs)
    assert "\n" not in str(error.value)
    return str(error.value)


class TestLoad:
    @pytest.mark.parametrize("name", ["pool.parquet", "pool.jsonl", "pool.JSONL", "pool.jsonl.gz", "pool.json"])
    def test_a_file(self, pool, tmp_path, name):
        path = tmp_path / name
        if name.endswith(".parquet"):
            pool.to_parquet(path)
        elif name.endswith(".json"):
            path.write_text(json.dumps(ROWS))
        else:
            pool.to_json(path, compression="gzip" if name.endswith(".gz") else None)
        assert load(path).to_list() == ROWS
        assert load(str(path), split="train").to_list() == ROWS
        assert load(path, "train[1:3]").to_list() == ROWS[1:3]

    def test_csv(self, tmp_path):
        (tmp_path / "rows.csv").write_text("prompt,score\nq,1\nr,2\n")
        assert load(tmp_path / "rows.csv").to_list() == [{"prompt": "q", "score": 1}, {"prompt": "r", "score": 2}]

    def test_a_saved_dataset_with_or_without_a_split_name(self, pool, tmp_path):
        pool.save_to_disk(tmp_path / "plain")
        assert load(tmp_path / "plain").to_list() == load(tmp_path / "plain", "train").to_list() == ROWS
        DatasetDict(test=pool).save_to_disk(tmp_path / "one")
        assert load(tmp_path / "one").to_list() == ROWS
        assert load(tmp_path / "one", "test[50%:]").to_list() == ROWS[3:]
        assert load(tmp_path / "one", "test+test").num_rows == 12

    def test_split_name_with_a_hyphen(self, pool, tmp_path):
        DatasetDict({"train-prefs": pool}).save_to_disk(tmp_path / "odd")
        assert load(tmp_path / "odd", "train-prefs").to_list() == ROWS

    def test_a_folder_of_files(self, pool, tmp_path):
        (tmp_path / "data").mkdir()
        pool.select(range(2)).to_parquet(tmp_path / "data" / "train-00000-of-00002.parquet")
        pool.select(range(2, 6)).to_parquet(tmp_path / "data" / "train-00001-of-00002.parquet")
        assert load(tmp_path).to_list() == ROWS
        pool.to_parquet(tmp_path / "data" / "test-00000-of-00001.parquet")
        assert load(tmp_path, "test").to_list() == ROWS

    def test_files_of_a_folder_that_are_not_read_are_named(self, pool, tmp_path, caplog):
        pool.to_parquet(tmp_path / "more.parquet")
        pool.to_parquet(tmp_path / "pool_test.parquet")
        (tmp_path / "record.json").write_text("{}")
        (tmp_path / ".cache").mkdir()
        (tmp_path / ".cache" / "hidden.json").write_text("{}")
        with caplog.at_level(logging.WARNING, logger=files.__name__):
            load(tmp_path)
        assert caplog.messages == [
            f"{tmp_path}: skipped files that belong to no split by name or format: more.parquet, record.json"
        ]

    def test_a_file_that_changed_is_read_again(self, pool, tmp_path):
        path = tmp_path / "pool.jsonl"
        pool.to_json(path)
        assert load(path).num_rows == 6
        pool.select(range(2)).to_json(path)
        assert load(path).num_rows == 2

    def test_the_home_folder(self, pool, tmp_path, monkeypatch):
        monkeypatch.setenv("HOME", str(tmp_path))
        pool.to_parquet(tmp_path / "pool.parquet")
        assert load("~/pool.parquet").num_rows == 6


class TestLoadErrors:
    def test_no_such_path(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        for name in ("pool.parquet", "./pool", "/no/such/folder", "a/b/c"):
            assert message(load, name) == (
                f"No file or folder {name!r}. Check the path; it is relative to {str(tmp_path)!r}."
            )

    def test_name_that_is_neither_a_path_nor_on_the_hub(self):
        assert message(load, "trl-real/none-such") == (
            "No file or folder 'trl-real/none-such', and no dataset from the Hub: Couldn't reach 'trl-real/none-such' "
            "on the Hub (OfflineModeIsEnabled). Check the spelling and the connection; for a private dataset type: "
            "hf auth login"
        )

    @pytest.mark.parametrize("kind", ["saved", "files"])
    def test_splits_are_named(self, pool, tmp_path, kind):
        if kind == "saved":
            DatasetDict(train=pool, test=pool).save_to_disk(tmp_path / "two")
        else:
            (tmp_path / "two").mkdir()
            for name in ("train", "test"):
                pool.to_parquet(tmp_path / "two" / f"{name}.parquet")
        path = str(tmp_path / "two")
        assert message(load, path) == f"{path!r} has the splits ['train', 'test']. Choose one: split='train'"
        for split in ("validation", "validation[:3]", "tr ain["):
            assert message(load, path, split) == (
                f"No split {split!r} in {path!r}; it has ['train', 'test']. Type: split='train'"
            )

    def test_a_saved_dataset_keeps_its_split_name(self, pool, tmp_path):
        pool.to_parquet(tmp_path / "test.parquet")
        Dataset.from_parquet(str(tmp_path / "test.parquet"), split="test").save_to_disk(tmp_path / "saved")
        path = str(tmp_path / "saved")
        assert load(path).num_rows == load(path, "test").num_rows == 6
        assert message(load, path, "train") == f"No split 'train' in {path!r}; it has ['test']. Type: split='test'"

    @pytest.mark.parametrize(
        ("name", "content", "reason"),
        [
            ("bad.parquet", "nope", "Parquet file size is 4 bytes, smaller than the minimum file footer (8 bytes)"),
            ("bad.csv", "a,b\n1,2\n1,2,3\n", "Error tokenizing data. C error: Expected 2 fields in line 3, saw 3"),
            ("empty.jsonl", "", "it holds no rows"),
        ],
    )
    def test_unreadable_files(self, tmp_path, name, content, reason):
        path = tmp_path / name
        path.write_text(content)
        assert message(load, path) == (
            f"Cannot read {str(path)!r}: {reason}. Check that it is complete and that its suffix fits its format."
        )

    def test_a_damaged_saved_dataset(self, pool, tmp_path):
        pool.save_to_disk(tmp_path / "saved")
        shard = next((tmp_path / "saved").glob("*.arrow"))
        shard.write_bytes(b"x")
        assert message(load, tmp_path / "saved").startswith(f"Cannot read {str(tmp_path / 'saved')!r}: ")
        shard.unlink()
        assert message(load, tmp_path / "saved").startswith(f"Cannot read {str(tmp_path / 'saved')!r}: ")

    def test_unknown_format(self, tmp_path):
        (tmp_path / "pool.xlsx").touch()
        assert message(load, tmp_path / "pool.xlsx") == (
            f"{str(tmp_path / 'pool.xlsx')!r} does not end in one of {sorted(FORMATS)}. "
            "Give it the suffix of its format, or convert it."
        )

    def test_a_folder_with_nothing_to_read(self, tmp_path):
        (tmp_path / "notes.txt").touch()
        assert message(load, tmp_path) == (
            f"Nothing to read in the folder {str(tmp_path)!r}: no saved dataset, and no file that ends in one of "
            f"{sorted(FORMATS)}. Give another folder or a file."
        )


class TestSave:
    def test_saved_dataset_loads_unchanged(self, pool, tmp_path):
        folder = tmp_path / "deep" / "out"
        assert save(pool, folder) == folder
        assert load(folder).to_list() == load_from_disk(folder).to_list() == ROWS
        assert load(folder).features == pool.features
        assert [path.name for path in folder.parent.iterdir()] == ["out"]

    def test_a_selected_view_is_saved_as_its_rows(self, pool, tmp_path):
        save(pool.select([4, 1]), tmp_path / "out")
        assert load(tmp_path / "out").to_list() == [ROWS[4], ROWS[1]]

    def test_no_rows_can_be_loaded_again(self, pool, tmp_path):
        for empty in (pool.select([]), Dataset.from_dict({"prompt": [], "responses": []}, features=pool.features)):
            save(empty, tmp_path / "out")
            assert load(tmp_path / "out").features == pool.features and len(load(tmp_path / "out")) == 0

    def test_older_output_is_replaced_completely(self, pool, tmp_path):
        save(pool, tmp_path / "out")
        (tmp_path / "out" / "selection_record.json").write_text("{}")
        save(pool.select([0]), tmp_path / "out")
        assert load(tmp_path / "out").num_rows == 1
        assert not (tmp_path / "out" / "selection_record.json").exists()
        assert [path.name for path in tmp_path.iterdir()] == ["out"]

    def test_an_empty_folder_is_used(self, pool, tmp_path):
        (tmp_path / "out").mkdir()
        save(pool, tmp_path / "out")
        assert load(tmp_path / "out").num_rows == 6

    @pytest.mark.parametrize("stage", ["write", "swap"])
    @pytest.mark.parametrize("error", [OSError("No space left on device"), KeyboardInterrupt()])
    def test_failed_save_leaves_only_the_old_folder(self, pool, tmp_path, monkeypatch, stage, error):
        save(pool, tmp_path / "out")

        def fail(*args, **kwargs):
            raise error

        def write_half(self, folder, **kwargs):
            folder.mkdir()
            (folder / "data-00000-of-00002.arrow").touch()
            fail()

        rename = files.Path.rename
        if stage == "write":
            monkeypatch.setattr(Dataset, "save_to_disk", write_half)
        else:
            monkeypatch.setattr(
                files.Path, "rename", lambda path, to: fail() if path.suffix == ".new" else rename(path, to)
            )
        with pytest.raises(type(error)):
            save(pool.select([0]), tmp_path / "out")
        assert [path.name for path in tmp_path.iterdir()] == ["out"]
        assert load(tmp_path / "out").num_rows == 6

    def test_symbolic_link_is_followed(self, pool, tmp_path):
        save(pool, tmp_path / "real")
        (tmp_path / "link").symlink_to(tmp_path / "real")
        save(pool.select([0]), tmp_path / "link")
        assert (tmp_path / "link").is_symlink() and load(tmp_path / "real").num_rows == 1


class TestSaveErrors:
    def test_saving_over_the_source_folder_is_refused(self, pool, tmp_path):
        folder = tmp_path / "out"
        save(pool, folder)
        for dataset in (load(folder), load(folder).select([3, 1]), load(folder).remove_columns("prompt")):
            assert message(save, dataset, folder) == (
                f"The dataset is read from {str(folder)!r} and cannot replace it. Give another folder."
            )
        assert load(folder).to_list() == ROWS

    def test_folder_not_written_by_trl_real_is_refused(self, pool, tmp_path):
        pool.save_to_disk(tmp_path / "theirs")
        (tmp_path / "notes").mkdir()
        (tmp_path / "notes" / "thesis.tex").touch()
        for folder in (tmp_path / "theirs", tmp_path / "notes", tmp_path):
            before = sorted(tmp_path.rglob("*"))
            assert message(save, pool, folder) == (
                f"The folder {str(folder)!r} holds something that trl_real did not write. "
                "Give a new or an empty folder."
            )
            assert sorted(tmp_path.rglob("*")) == before

    def test_a_file(self, pool, tmp_path):
        (tmp_path / "out.jsonl").write_text("{}")
        assert (
            message(save, pool, tmp_path / "out.jsonl") == f"{str(tmp_path / 'out.jsonl')!r} is a file. Give a folder."
        )

    def test_several_splits(self, pool, tmp_path):
        assert message(save, DatasetDict(train=pool), tmp_path / "out") == (
            "save takes one split, a Dataset; found DatasetDict. Type: save(dataset['train'], …)"
        )


def test_only_folders_with_the_marker_are_replaced(pool, tmp_path):
    save(pool, tmp_path / "out")
    assert set(json.loads((tmp_path / "out" / MARKER).read_text())) == {"trl_real"}
    shutil.copytree(tmp_path / "out", tmp_path / "copy")
    save(pool, tmp_path / "copy")


LONG = "x" * 700
LATE = {
    "null first": ([None], "text"),
    "whole numbers that become fractions": ([1], 1.5),
    "empty lists first": ([[]], ["text"]),
}


@pytest.mark.parametrize("kind", LATE)
def test_a_type_that_shows_late_is_read(tmp_path, kind):
    (first,), last = LATE[kind]
    path = tmp_path / "rows.jsonl"
    lines = [json.dumps({"a": first, "b": LONG})] * 20_000 + [json.dumps({"a": last, "b": LONG})]
    path.write_text("\n".join(lines))
    assert load(path)[-1]["a"] == last


MESSAGES = [{"role": "user", "content": "x"}]
MISFITS = {
    "no JSON": (1, '{"prompt": secret', "line 2 is not JSON .Expecting value.. Correct or remove it"),
    "messages": (
        20_000,
        json.dumps({"prompt": MESSAGES, "b": LONG}),
        "messages in 1 of 20001 lines.*line 20001",
    ),
}


@pytest.mark.parametrize("kind", MISFITS)
def test_a_line_that_does_not_fit_is_told_by_its_number(tmp_path, kind):
    n, last, told = MISFITS[kind]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join([json.dumps({"prompt": "text", "b": LONG})] * n + [last]))
    with pytest.raises(TrlRealError, match=told):
        load(path)
    with pytest.raises(TrlRealError, match=f"line {n + 1}"), reading(path):
        raise TypeError("of a stream")


@pytest.mark.parametrize("kind", LATE)
def test_a_stream_tells_a_type_that_shows_late_by_column_and_line(tmp_path, kind):
    (first,), last = LATE[kind]
    path = tmp_path / "rows.jsonl"
    lines = [json.dumps({"a": first, "b": LONG})] * 40_000 + [json.dumps({"a": last, "b": LONG})]
    path.write_text("\n".join(lines))
    with pytest.raises(TrlRealError, match=r"column 'a' holds .* for the first time in line 40001.*Put such a line"):
        list(load_stream(path))


def test_a_stream_that_fits_is_unchanged(tmp_path):
    rows = [{"a": [i], "b": {"c": None}, "d": str(i)} for i in range(5)]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    assert list(load_stream(path)) == rows and list(load_stream(str(path)).skip(3)) == rows[3:]
