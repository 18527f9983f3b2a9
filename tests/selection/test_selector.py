"""The selector as a `datasets.map` callable and with a budget: the guarantees of design.md, sections 2 and 6."""

import json
import os
import pickle
import random
import subprocess
import sys
import textwrap
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from datasets import Dataset, DatasetDict, Features, IterableDataset, List, Value
from datasets.fingerprint import Hasher
from peft import LoraConfig, get_peft_model

from support.shared_data import DATA, needs_data
from support.tiny import save_tiny, tiny_model, tiny_tokenizer
from trl_real import STRATEGIES, EmbeddingPairSelector, MissingColumnError, TrlRealError
from trl_real.data.columns import POOL_COLUMNS, PREFERENCE_COLUMNS, to_columns
from trl_real.data.pairs import EMPTY, IDENTICAL, MISSING, PROMPT_MISMATCH, TOO_FEW
from trl_real.functional.geometry import GEOMETRIES
from trl_real.functional.similarity import candidate_similarity
from trl_real.selection.annotation import NOT_FINITE
from trl_real.selection.record import SelectionRecord, describe_similarity
from trl_real.selection.strategies import as_strategy


HERE = Path(__file__).parent
WORDS = ["tea", "water", "Paris", "rain", "a lock", "poem", "def", "sum", "tin roof", "kettle", "Nice", "four"]

MODEL, TOKENIZER = tiny_model(), tiny_tokenizer()


@pytest.fixture(autouse=True)
def quiet_and_apart(monkeypatch, tmp_path_factory):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
    datasets.disable_progress_bars()
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(n_threads)
    datasets.enable_progress_bars()


def selector(model=MODEL, **kwargs) -> EmbeddingPairSelector:
    tokenizer = TOKENIZER if isinstance(model, torch.nn.Module) else None
    return EmbeddingPairSelector(model, tokenizer=tokenizer, **kwargs)


def most_orthogonal(embeddings, draws):
    """A user's strategy."""
    return candidate_similarity(embeddings).abs()


def text(rng: random.Random) -> str:
    return " ".join(rng.choices(WORDS, k=rng.randint(1, 12)))


def make_rows(n: int, seed: int = 0, same_size: int | None = None) -> list[dict]:
    rng = random.Random(seed)
    rows = []
    for i in range(n):
        responses = [f"{text(rng)} {j}" for j in range(same_size or rng.randint(2, 5))]
        scores = [rng.random() for _ in responses]
        rows.append({"id": i, "prompt": f"question {i}", "responses": responses, "scores": scores})
    return rows


# One row of each reason to have no pair, and the reason.
BAD_ROWS = [
    ([], TOO_FEW),
    (None, TOO_FEW),
    (["alone"], TOO_FEW),
    (["tea", ""], EMPTY),
    (["tea", " \n\t"], EMPTY),
    (["", "   "], EMPTY),
    (["tea", "tea"], IDENTICAL),
    (["tea", " tea\n"], IDENTICAL),
    (["tea", None], MISSING),
    ([None, None], MISSING),
]


def bad_rows() -> list[dict]:
    return [{"id": -i, "prompt": f"bad {i}", "responses": r, "scores": []} for i, (r, _) in enumerate(BAD_ROWS)]


FEATURES = Features(
    {
        "id": Value("int64"),
        "prompt": Value("string"),
        "responses": List(Value("string")),
        "scores": List(Value("float64")),
    }
)


def mixed_pool(n: int = 24) -> Dataset:
    """Good rows with a bad one now and then."""
    rows = make_rows(n)
    for i, bad in enumerate(bad_rows()):
        rows.insert(3 * i, bad)
    return Dataset.from_list(rows, features=FEATURES)


def assert_equal_rows(found, expected) -> None:
    """The same rows and columns; similarity up to the rounding of float32."""
    found, expected = (d.with_format(None)[:] if isinstance(d, Dataset) else d for d in (found, expected))
    assert set(found) == set(expected)
    for name in expected:
        if name == "similarity":
            np.testing.assert_allclose(found[name], expected[name], atol=2e-6)
        else:
            assert found[name] == expected[name], name


def run_python(code: str, *args: str, timeout: int = 150, **env: str) -> str:
    """Run code in a fresh process; a deadlock is a failure and not a wait for ever."""
    path = os.pathsep.join([str(HERE), *sys.path])
    environment = {
        **os.environ,
        "PYTHONPATH": path,
        "TQDM_DISABLE": "1",
        "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
        **env,
    }
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *args],
        capture_output=True,
        text=True,
        timeout=timeout,
        env=environment,
        cwd=HERE,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


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


class TestProcesses:
    CODE = """
        import sys, torch, datasets
        datasets.disable_progress_bars()
        from datasets import Dataset
        from support.tiny import tiny_model, tiny_tokenizer
        # This module: the workers build the same rows and compare them as its other tests do.
        from test_selector import make_rows, assert_equal_rows
        from trl_real import EmbeddingPairSelector
        torch.set_num_threads(2)
        a = torch.randn(600, 600); (a @ a).softmax(-1).sum(); torch.nn.Linear(600, 600)(a)
        kind = sys.argv[1]
        rows = make_rows(40, same_size=4)
        if kind == "embeddings":
            for i, row in enumerate(rows):
                row["embeddings"] = torch.randn(4, 4096, generator=torch.Generator().manual_seed(i)).tolist()
        pool = Dataset.from_list(rows)
        model = {"name": sys.argv[2], "loaded": tiny_model(), "embeddings": None}[kind]
        def new():
            return EmbeddingPairSelector(model, tokenizer=tiny_tokenizer(), strategy="centroid")
        selector = new()
        expected = pool.map(selector, batched=True)
        assert_equal_rows(pool.map(selector, batched=True, num_proc=2, batch_size=10), expected)
        assert_equal_rows(pool.map(selector, num_proc=1), expected)
        assert_equal_rows(pool.map(new(), batched=True, num_proc=2, with_rank=True), expected)
        one = selector.select(pool, 0.5)
        record = selector.record
        assert_equal_rows(new().select(pool, 0.5, num_proc=2, batch_size=7), one)
        two = new(); two.select(pool, 0.5, num_proc=2, batch_size=7)
        assert (two.record.n_kept, two.record.similarity.keys()) == (record.n_kept, record.similarity.keys())
        print("done")
    """

    @pytest.mark.parametrize("kind", ["name", "loaded", "embeddings"])
    def test_two_processes_after_torch_ran_multi_threaded(self, kind, tmp_path):
        """Forked workers must not wait for threads that did not come along; S10: they give what one process gives."""
        folder = save_tiny(tmp_path)
        assert "done" in run_python(self.CODE, kind, folder, OMP_NUM_THREADS="2", timeout=100)

    def test_loaded_model_works_with_a_user_fingerprint(self):
        pool = Dataset.from_list(make_rows(8))
        found = pool.map(selector(tiny_model()), num_proc=2, new_fingerprint="mine")
        assert_equal_rows(found, pool.map(selector()))

    def test_workers_use_their_own_selector_settings(self):
        pool = Dataset.from_list(make_rows(8))
        first, other = selector(layer=1), selector()
        travelled = pickle.loads(pickle.dumps(first))
        Hasher.hash(other)
        assert_equal_rows(pool.map(travelled), pool.map(first))
        assert pool.map(travelled)["similarity"][:] != pool.map(other)["similarity"][:]

    def test_an_error_keeps_its_type_and_message(self):
        pool = Dataset.from_dict({"prompt": ["q"] * 4, "responses": [[1, 2]] * 4})
        with pytest.raises(TrlRealError, match="'responses' holds int where a text or a list of messages") as error:
            pool.map(selector(), num_proc=2)
        assert type(error.value) is TrlRealError
        with pytest.raises(MissingColumnError, match="No column 'embeddings'"):
            Dataset.from_list(make_rows(4)).map(EmbeddingPairSelector(), num_proc=2)

    def test_loaded_model_cannot_be_pickled_to_a_new_process(self):
        travelled = pickle.dumps(selector())
        code = """
            import pickle, sys
            from trl_real import TrlRealError
            chooser = pickle.loads(bytes.fromhex(sys.argv[1]))
            try:
                chooser({"prompt": "q", "responses": ["tea", "water"]})
            except TrlRealError as error:
                print(error)
        """
        assert "cannot be sent to a new process (spawn). Give the selector a path" in run_python(code, travelled.hex())


class TestFingerprint:
    CODE = """
        import sys
        from datasets.fingerprint import Hasher
        from support.tiny import tiny_model, tiny_tokenizer
        from trl_real import EmbeddingPairSelector
        for model in (sys.argv[1], tiny_model()):
            for strategy in ("easy", "random"):
                print(Hasher.hash(EmbeddingPairSelector(model, tokenizer=tiny_tokenizer(), strategy=strategy)))
    """

    def test_is_the_same_in_every_process(self, tmp_path):
        folder = save_tiny(tmp_path)
        hashes = [run_python(self.CODE, folder, PYTHONHASHSEED=seed).split() for seed in ("1", "2")]
        assert hashes[0] == hashes[1] and len(hashes[0]) == 4
        assert hashes[0][0] == Hasher.hash(EmbeddingPairSelector(folder, tokenizer=TOKENIZER))
        assert hashes[0][2] == Hasher.hash(selector())

    @pytest.mark.parametrize(
        "settings",
        [
            {"strategy": "hard"}, {"context": "prompt+response"}, {"layer": 1}, {"max_length": 9},
            {"geometry": "centered"}, {"responses": "answers"}, {"seed": 1}, {"dtype": "bfloat16"},
            {"include_bos": True}, {"include_eos": True}, {"on_nonfinite": "skip"}, {"strategy": lambda e, d: d},
        ],
        ids=lambda change: str(change).partition(" at 0x")[0],
    )  # fmt: skip
    def test_changes_with_every_setting_that_matters(self, settings):
        assert Hasher.hash(selector(**settings)) != Hasher.hash(selector())

    def test_changes_with_the_weights_in_a_folder(self, tmp_path):
        folder = save_tiny(tmp_path)
        chooser = EmbeddingPairSelector(folder)
        before, pair = Hasher.hash(chooser), chooser(make_rows(1)[0])
        assert Hasher.hash(chooser) == before == Hasher.hash(EmbeddingPairSelector(folder))
        save_tiny(tmp_path, seed=1)
        assert Hasher.hash(chooser) != before
        assert chooser(make_rows(1)[0])["similarity"] != pair["similarity"]

    def test_changes_with_the_weights_of_a_loaded_model_and_with_an_adapter(self):
        model = tiny_model()
        chooser = EmbeddingPairSelector(model, tokenizer=TOKENIZER)
        hashes = [Hasher.hash(chooser)]
        with torch.no_grad():
            model.model.norm.weight.mul_(1.01)
        hashes.append(Hasher.hash(chooser))
        peft_model = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"]))
        hashes.append(Hasher.hash(EmbeddingPairSelector(peft_model, tokenizer=TOKENIZER)))
        assert len(set(hashes)) == 3

    def test_changes_with_the_active_adapter_and_the_chat_template(self):
        model = get_peft_model(tiny_model(), LoraConfig(r=2, target_modules=["q_proj"]))
        model.add_adapter("other", LoraConfig(r=2, target_modules=["q_proj"]))
        chooser = EmbeddingPairSelector(model, tokenizer=tiny_tokenizer())
        hashes = [Hasher.hash(chooser)]
        chooser.encoder.tokenizer.chat_template += " "
        hashes.append(Hasher.hash(chooser))
        model.set_adapter("other")
        hashes.append(Hasher.hash(chooser))
        with model.disable_adapter():
            hashes.append(Hasher.hash(chooser))
        assert len(set(hashes)) == 4

    def test_does_not_change_with_use(self, tmp_path):
        pool = Dataset.from_list(make_rows(5))
        for chooser in (selector(), EmbeddingPairSelector(save_tiny(tmp_path))):
            before = Hasher.hash(chooser)
            pool.map(chooser)
            chooser.select(pool, 2)
            assert Hasher.hash(chooser) == before and chooser.record.n_kept == 2

    def test_changes_with_the_fitted_mean(self):
        chooser = selector(geometry="centered")
        before = Hasher.hash(chooser)
        assert Hasher.hash(chooser.fit(Dataset.from_list(make_rows(5)))) != before

    def test_pickle_contains_no_weights(self, tmp_path):
        folder = save_tiny(tmp_path)
        for chooser in (selector(), EmbeddingPairSelector(folder), selector(geometry="centered")):
            chooser.fit(Dataset.from_list(make_rows(3)))
            chooser(make_rows(1)[0])
            assert len(pickle.dumps(chooser)) < 5000

    def test_a_pickle_works_in_this_process(self):
        row = make_rows(1)[0]
        chooser = selector()
        assert str(pickle.loads(pickle.dumps(chooser))(row)) == str(chooser(row))

    def test_a_second_run_reads_the_cache(self, tmp_path):
        folder = save_tiny(tmp_path / "model")
        Dataset.from_list(make_rows(6)).to_parquet(tmp_path / "pool.parquet")
        code = """
            import sys
            from pathlib import Path
            from datasets import load_dataset
            from trl_real import EmbeddingPairSelector
            from trl_real.models.embed import Embedder
            calls, embed = [], Embedder.__call__
            Embedder.__call__ = lambda *args, **kwargs: (calls.append(1), embed(*args, **kwargs))[1]
            pool = load_dataset("parquet", data_files=sys.argv[2], split="train", cache_dir=sys.argv[3])
            selector = EmbeddingPairSelector(sys.argv[1])
            kept = selector.select(pool.map(selector, batched=True), 3)
            print(len(calls), kept["id"][:], selector.record.n_kept, selector.record.tokens)
        """
        arguments = folder, str(tmp_path / "pool.parquet"), str(tmp_path / "cache")
        first, second = (run_python(code, *arguments, PYTHONHASHSEED=seed).split(" ", 1) for seed in ("3", "4"))
        assert first[0] == "2" and second[0] == "0" and first[1] == second[1]


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


class TestLabels:
    """S8: no label, no score and no order of `chosen` and `rejected` is read."""

    @pytest.mark.parametrize("strategy", STRATEGIES)
    def test_scores_may_be_missing_or_random(self, strategy):
        pool = mixed_pool()
        expected = selector(strategy=strategy).select(pool, 9)
        own = ["id", *POOL_COLUMNS] if strategy != "random" else ["id", "pair"]
        rng = np.random.default_rng(0)
        noise = [rng.normal(size=len(s)).tolist() for s in pool["scores"]]
        for other in (pool.remove_columns("scores"), pool.remove_columns("scores").add_column("scores", noise)):
            assert (
                selector(strategy=strategy).select(other, 9).select_columns(own)[:] == expected.select_columns(own)[:]
            )

    @pytest.mark.parametrize("strategy", STRATEGIES)
    @pytest.mark.parametrize("layout", ["explicit", "hh", "common beginning", "messages", "implicit messages"])
    def test_chosen_and_rejected_may_be_swapped(self, strategy, layout):
        pool = preference(layout, make_rows(24, same_size=2))
        flip = np.random.default_rng(0).random(len(pool)) < 0.5
        flipped = Dataset.from_list(
            [
                {**row, "chosen": row["rejected"], "rejected": row["chosen"]} if swap else row
                for row, swap in zip(pool, flip, strict=True)
            ],
            features=pool.features,
        )
        first, second = (selector(strategy=strategy).select(p, 9) for p in (pool, flipped))
        assert first["id"][:] == second["id"][:] and first.num_rows == 9
        np.testing.assert_allclose(first["similarity"][:], second["similarity"][:], atol=1e-6)

    def test_skipping_does_not_depend_on_the_label(self):
        one = "\n\nHuman: q\n\nAssistant: one"
        two = "\n\nHuman: q\n\nAssistant: two\n\nHuman: r\n\nAssistant: three"
        for chosen, rejected in ((one, two), (two, one)):
            assert selector()({"chosen": chosen, "rejected": rejected})["skipped"] == PROMPT_MISMATCH


def preference(layout: str, rows: list[dict]) -> Dataset:
    """The rows' two first responses in one of the layouts that preference data comes in."""
    made = []
    for row in rows:
        prompt, answers = row["prompt"], row["responses"][:2]
        user = [{"role": "user", "content": prompt}]
        turns = [[{"role": "assistant", "content": a}] for a in answers]
        if layout == "explicit":
            values = {"prompt": prompt, "chosen": answers[0], "rejected": answers[1]}
        elif layout == "hh":
            head = f"\n\nHuman: {prompt}\n\nAssistant: Hm.\n\nHuman: and?\n\nAssistant:"
            values = {"chosen": f"{head} {answers[0]}", "rejected": f"{head} {answers[1]}"}
        elif layout == "common beginning":
            values = {"chosen": f"Q: {prompt} A: x{answers[0]}", "rejected": f"Q: {prompt} A: y{answers[1]}"}
        elif layout == "messages":
            values = {"prompt": user, "chosen": turns[0], "rejected": turns[1]}
        elif layout == "implicit messages":
            values = {"chosen": user + turns[0], "rejected": user + turns[1]}
        else:
            values = {"prompt": prompt, "chosen": user + turns[0], "rejected": user + turns[1]}
        made.append({"id": row["id"], **values})
    return Dataset.from_list(made)


class TestPreferenceLayouts:
    ROWS = make_rows(12, seed=3, same_size=2)

    @pytest.mark.parametrize("batched", [True, False])
    @pytest.mark.parametrize("layout", ["explicit", "messages", "implicit messages", "binarized", "hh"])
    def test_layouts_give_the_same_two_responses(self, layout, batched):
        rows = [
            {**row, "responses": [f" {r}" if layout == "hh" else r for r in row["responses"]]} for row in self.ROWS
        ]
        expected = Dataset.from_list(rows).map(selector(), batched=True)
        pool = preference(layout, self.ROWS)
        found = pool.map(selector(), batched=batched)
        assert found.column_names == [*pool.column_names, *PREFERENCE_COLUMNS]
        assert found.features == selector().features(pool.features)
        np.testing.assert_allclose(found["similarity"][:], expected["similarity"][:], atol=1e-6)

    @pytest.mark.parametrize("kind", ["numpy", "torch", "pandas", "arrow"])
    @pytest.mark.parametrize("layout", ["explicit", "messages", "implicit messages", "binarized"])
    def test_formats(self, layout, kind):
        pool = preference(layout, self.ROWS)
        expected = pool.map(selector(), batched=True)
        for batched in (True, False):
            found = pool.with_format(kind).map(selector(), batched=batched)
            np.testing.assert_allclose(found.with_format(None)["similarity"][:], expected["similarity"][:], atol=1e-6)

    def test_missing_and_blank_and_identical(self):
        pairs = [(None, "a"), ("a", None), ("", "a"), ("a", "a "), (None, None), ("tea", "water")]
        reasons = [MISSING, MISSING, EMPTY, IDENTICAL, MISSING, ""]
        pool = Dataset.from_dict(
            {"prompt": ["q"] * 6, "chosen": [c for c, _ in pairs], "rejected": [r for _, r in pairs]}
        )
        for kind in (None, "pandas", "arrow", "numpy", "torch"):
            for batched in (True, False):
                found = pool.with_format(kind).map(selector(), batched=batched).with_format(None)
                assert found["skipped"][:] == reasons

    def test_identical_dialogues_are_identical_responses(self):
        turn = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
        for dialogue in ("Q: q A: a", turn, "\n\nHuman: q\n\nAssistant: a"):
            assert selector()({"chosen": dialogue, "rejected": dialogue})["skipped"] == IDENTICAL

    def test_budget_keeps_labelled_rows_complete(self):
        pool = preference("messages", self.ROWS)
        kept = selector().select(pool, 4)
        assert kept.remove_columns(list(PREFERENCE_COLUMNS))[:] == pool.filter(lambda r: r["id"] in kept["id"][:])[:]

    @pytest.mark.parametrize(
        ("chosen", "rejected"),
        [("text", [{"role": "assistant", "content": "x"}]), ([{"role": "assistant", "content": "x"}], "text")],
    )
    def test_mixed_schemas(self, chosen, rejected):
        for row in ({"chosen": chosen, "rejected": rejected}, {"prompt": "q", "chosen": chosen, "rejected": rejected}):
            with pytest.raises(TrlRealError, match="'chosen' and 'rejected' holds texts and the other messages"):
                Dataset.from_list([row]).map(selector())

    def test_empty_conversation_counts_as_an_empty_response(self):
        turn = [{"role": "assistant", "content": "x"}]
        assert selector()({"prompt": "q", "chosen": [], "rejected": turn})["skipped"] == EMPTY
        assert selector()({"prompt": ["q"], "chosen": [[]], "rejected": [turn]})["skipped"] == [EMPTY]


class TestErrors:
    def fails(self, pool, match, model=MODEL, **kwargs):
        pool = Dataset.from_list(pool) if isinstance(pool, list) else pool
        for run in (lambda c: c.select(pool), lambda c: pool.map(c, batched=True), lambda c: pool.map(c)):
            with pytest.raises(TrlRealError, match=match) as error:
                run(selector(model, **kwargs))
            assert "\n" not in str(error.value)

    def test_a_column_of_another_name(self):
        rows = [{"prompt": "q", "completions": ["a", "b"]}]
        self.fails(
            rows, r"No column 'responses' in the dataset; it has \['completions', 'prompt'\]. Rename it: dataset"
        )
        self.fails([{"prompt": "q", "text": "x"}], r"EmbeddingPairSelector\(responses='…'\)")

    @pytest.mark.parametrize("bad", [[1, 2], [1.5, 2.5], [True, False], [{"text": "a"}, {"text": "b"}]])
    def test_responses_that_are_not_text(self, bad):
        self.fails([{"prompt": "q", "responses": bad}], "'responses' holds .* where a text or a list of messages")

    def test_responses_that_are_not_a_list(self):
        """A text is a sequence, too: its letters must not become responses."""
        pool = Dataset.from_list([{"prompt": "q", "responses": "abc"}, {"prompt": "q", "responses": "de"}])
        self.fails(pool, "'responses' holds one str a row where a list of responses should be")

    def test_labelled_rows_that_are_not_text(self):
        self.fails([{"prompt": "q", "chosen": 1, "rejected": 2}], "'chosen' holds int where")

    def test_no_model_and_no_embeddings(self):
        self.fails([{"responses": ["a", "b"]}], "No column 'embeddings'.*Give .* a model", model=None)

    @pytest.mark.parametrize(
        "embeddings", [[[1.0, 2.0]], [[1.0, 2.0], [3.0]], [1.0, 2.0], []], ids=["few", "ragged", "flat", "none"]
    )
    def test_embeddings_that_do_not_fit(self, embeddings):
        rows = [{"responses": ["a", "b"], "embeddings": embeddings}]
        self.fails(rows, "'embeddings' must have one vector per response", model=None)

    def test_embeddings_of_two_models(self):
        rows = [{"responses": ["a", "b"], "embeddings": [[1.0] * d, [2.0] * d]} for d in (2, 3)]
        with pytest.raises(TrlRealError, match=r"differ in length: \[2, 3\]"):
            EmbeddingPairSelector().select(Dataset.from_list(rows))

    def test_missing_path_is_reported_on_first_use(self):
        chooser = EmbeddingPairSelector("/no/such/folder")
        with pytest.raises(TrlRealError, match="No folder '/no/such/folder'"):
            chooser.select(Dataset.from_list(make_rows(2)))

    def test_a_folder_without_weights(self, tmp_path):
        TOKENIZER.save_pretrained(tmp_path)
        with pytest.raises(TrlRealError, match="No weights"):
            EmbeddingPairSelector(str(tmp_path)).select(Dataset.from_list(make_rows(2)))

    @pytest.mark.parametrize(
        ("settings", "match"),
        [
            ({"model": 5}, "model is a int. Give a Hub id"),
            ({"model": tiny_model()}, "A loaded LlamaForCausalLM needs its tokenizer"),
            ({"strategy": "eazy"}, "No strategy 'eazy'; there are easy, hard, centroid, d_optimal, i_optimal, random"),
            ({"strategy": ["easy"]}, "No strategy"),
            ({"model": "x", "context": "both"}, "context='both' is not one of response, prompt"),
            ({"model": "x", "max_length": 0}, "max_length=0 reads nothing"),
            ({"model": "x", "dtype": "int8"}, "dtype='int8' is not one of float32"),
            ({"on_nonfinite": "drop"}, "on_nonfinite='drop' is not one of"),
            ({"seed": 2**64}, "seed="), ({"seed": 1.5}, "seed="), ({"seed": None}, "seed="),
            ({"geometry": "flat"}, "No geometry 'flat'; there are raw, centered"),
        ],
    )  # fmt: skip
    def test_settings(self, settings, match):
        with pytest.raises(TrlRealError, match=match):
            EmbeddingPairSelector(**settings)

    def test_centring_needs_a_mean(self):
        with pytest.raises(TrlRealError, match=r"Type selector.fit\(dataset\)"):
            Dataset.from_list(make_rows(2)).map(selector(geometry="centered"))
        with pytest.raises(TrlRealError, match="no row has two responses"):
            selector(geometry="centered").select(Dataset.from_list([{"responses": ["a"]}]))

    def test_context_needs_prompts(self):
        with pytest.raises(TrlRealError, match="needs a prompt in every row"):
            selector(context="prompt+response").select(Dataset.from_list([{"responses": ["a", "b"]}]))


def with_embeddings(rows: list[dict], d: int = 6) -> list[dict]:
    rng = np.random.default_rng(0)
    return [{**row, "embeddings": rng.normal(size=(len(row["responses"] or []), d)).tolist()} for row in rows]


class CountWords:
    """An encoder as sentence-transformers and model2vec are: anything with `encode`."""

    def encode(self, texts):
        assert texts and all(isinstance(t, str) for t in texts)
        return np.array([[t.count(w) + 0.01 * i for i, w in enumerate(WORDS)] for t in texts], np.float32)


class TestEmbeddingsGiven:
    def test_equal_those_of_a_model(self):
        rows = make_rows(12)
        chooser = selector()
        for row in rows:
            row["embeddings"] = chooser.encoder([None] * len(row["responses"]), row["responses"]).vectors.tolist()
        pool = Dataset.from_list(rows)
        given = EmbeddingPairSelector()
        expected = chooser.select(pool, 6)
        assert_equal_rows(given.select(pool, 6), expected)
        for kind in (None, "numpy", "torch", "pandas", "arrow"):
            for batched in (True, False):
                found = pool.with_format(kind).map(given, batched=batched)
                assert found.with_format(None)["pair"][:] == pool.map(chooser, batched=True)["pair"][:]
        assert given.record.model == "column 'embeddings'"

    def test_skipped_rows_need_none(self):
        rows = [{**row, "responses": row["responses"] or []} for row in bad_rows()] + make_rows(4)
        pool = Dataset.from_list(with_embeddings(rows))
        assert len(EmbeddingPairSelector().select(pool)) == 4
        for batched in (True, False):
            assert len(pool.map(EmbeddingPairSelector(), batched=batched)) == len(rows)

    @pytest.mark.parametrize("bad", [float("nan"), float("inf"), None])
    def test_that_are_not_finite(self, bad):
        rows = with_embeddings(make_rows(6))
        rows[4]["embeddings"][0][2] = bad
        pool = Dataset.from_list(rows)
        with pytest.raises(TrlRealError, match=r"rows \[4\] are missing or contain NaN.*on_nonfinite='skip'"):
            EmbeddingPairSelector().select(pool, batch_size=2)
        with pytest.raises(TrlRealError, match="contain NaN or infinity"):
            pool.map(EmbeddingPairSelector())
        chooser = EmbeddingPairSelector(on_nonfinite="skip")
        kept = chooser.select(pool)
        assert kept["id"][:] == [0, 1, 2, 3, 5] and chooser.record.skipped == {NOT_FINITE: 1}
        assert chooser.record.n_rows == 6
        assert pool.map(chooser, batched=True)["skipped"][4] == NOT_FINITE

    @pytest.mark.parametrize("bad", [None, [None, None]])
    def test_that_are_missing(self, bad):
        rows = with_embeddings(make_rows(3, same_size=2))
        rows[1]["embeddings"] = bad
        with pytest.raises(TrlRealError, match=r"rows \[1\] are missing"):
            EmbeddingPairSelector().select(Dataset.from_list(rows))
        assert len(EmbeddingPairSelector(on_nonfinite="skip").select(Dataset.from_list(rows))) == 2

    def test_nan_does_not_affect_the_mean(self):
        rows = with_embeddings(make_rows(6))
        rows[4]["embeddings"][0][2] = float("nan")
        kept = EmbeddingPairSelector(geometry="centered", on_nonfinite="skip").select(Dataset.from_list(rows))
        assert len(kept) == 5 and np.isfinite(kept["similarity"][:]).all()


class TestEncoders:
    def test_an_object_with_encode(self):
        pool = mixed_pool()
        chooser = EmbeddingPairSelector(CountWords())
        found = pool.map(chooser, batched=True)
        assert_equal_rows(pool.map(chooser), found)
        assert_equal_rows(pool.map(chooser, num_proc=2, batched=True), found)
        assert len(chooser.select(pool, 0.5)) == 12 and chooser.record.model == "CountWords"

    def test_encoder_is_not_called_without_texts(self):
        pool = Dataset.from_list(bad_rows(), features=FEATURES)
        assert len(EmbeddingPairSelector(CountWords()).select(pool)) == 0

    def test_encoder_must_return_one_vector_per_text(self):
        class Forgetful:
            def encode(self, texts):
                return np.ones((len(texts) - 1, 3))

        with pytest.raises(TrlRealError, match=r"encode\(\) returned 1 vectors for 2 texts"):
            EmbeddingPairSelector(Forgetful())({"responses": ["a", "b"]})

    def test_cannot_read_in_context(self):
        with pytest.raises(TrlRealError, match="needs a causal LM"):
            EmbeddingPairSelector(CountWords(), context="prompt+response")

    def test_a_folder_as_a_path_object(self, tmp_path):
        save_tiny(tmp_path)
        by_path, by_name = EmbeddingPairSelector(tmp_path), EmbeddingPairSelector(str(tmp_path))
        assert Hasher.hash(by_path) == Hasher.hash(by_name)
        assert str(by_path(make_rows(1)[0])) == str(by_name(make_rows(1)[0])) == str(selector()(make_rows(1)[0]))


class TestRandom:
    def test_loads_no_model(self):
        pool = mixed_pool()
        expected = EmbeddingPairSelector(strategy="random").select(pool, 10)
        found = EmbeddingPairSelector("/no/such/folder", strategy="random").select(pool, 10)
        assert found.remove_columns("similarity")[:] == expected.remove_columns("similarity")[:]
        assert np.isnan(found["similarity"][:]).all()

    def test_seed(self):
        pool = Dataset.from_list(make_rows(60))
        ids = [EmbeddingPairSelector(strategy="random", seed=s).select(pool, 30)["id"][:] for s in (1, 1, 2)]
        assert ids[0] == ids[1] != ids[2]


class TestCentred:
    def test_equals_subtracting_the_mean(self):
        rows = with_embeddings(make_rows(30))
        mean = np.mean([v for row in rows for v in row["embeddings"]], axis=0)
        moved = [{**row, "embeddings": (np.array(row["embeddings"]) - mean).tolist()} for row in rows]
        found = EmbeddingPairSelector(geometry="centered").select(Dataset.from_list(rows), 12)
        expected = EmbeddingPairSelector().select(Dataset.from_list(moved), 12)
        assert found["id"][:] == expected["id"][:] and found["pair"][:] == expected["pair"][:]
        np.testing.assert_allclose(found["similarity"][:], expected["similarity"][:], atol=1e-5)

    def test_with_a_model_and_map(self):
        pool = mixed_pool()
        chooser = selector(geometry="centered")
        kept = chooser.select(pool, 8)
        scored = pool.map(selector(geometry="centered").fit(pool), batched=True)
        assert set(np.array(scored["id"][:])[np.argsort(scored["similarity"][:])[:8]]) == set(kept["id"][:])
        assert chooser.record.settings["geometry"] == "centered"
        assert kept["id"][:] != selector().select(pool, 8)["id"][:]

    def test_a_strategy_can_name_its_geometry(self):
        pool = Dataset.from_list(make_rows(30))
        named, given = selector(strategy="easy@centered"), selector(geometry="centered")
        assert named.select(pool, 8)["id"][:] == given.select(pool, 8)["id"][:]
        assert named.record.to_dict()["settings"] == given.record.to_dict()["settings"]
        assert named.record.strategy == "easy"
        for settings, message in (
            ({"strategy": "easy@flat"}, "No geometry 'flat' in 'easy@flat'; there are raw"),
            ({"strategy": "esay@centered"}, "No strategy 'esay'; there are easy"),
            (
                {"strategy": "easy@whitened", "geometry": "centered"},
                "names geometry 'whitened', but geometry='centered'",
            ),
        ):
            with pytest.raises(TrlRealError, match=message):
                selector(**settings)

    def test_row_order_does_not_matter(self):
        pool = Dataset.from_list(make_rows(40))
        means = [selector(geometry="centered").fit(p).fitted.shift for p in (pool, pool.shuffle(seed=3))]
        torch.testing.assert_close(*means, rtol=0, atol=1e-6)

    @pytest.mark.parametrize("geometry", GEOMETRIES)
    def test_every_geometry_equals_transforming_the_embeddings_beforehand(self, geometry):
        rows = with_embeddings(make_rows(30))
        change = GEOMETRIES[geometry](torch.tensor([v for row in rows for v in row["embeddings"]]).double())
        moved = [{**row, "embeddings": change(torch.tensor(row["embeddings"]).double()).tolist()} for row in rows]
        found = EmbeddingPairSelector(geometry=geometry).select(Dataset.from_list(rows), 12)
        expected = EmbeddingPairSelector().select(Dataset.from_list(moved), 12)
        assert found["id"][:] == expected["id"][:] and found["pair"][:] == expected["pair"][:]
        np.testing.assert_allclose(found["similarity"][:], expected["similarity"][:], atol=1e-4)


class TestHalfPrecision:
    @pytest.mark.parametrize("strategy", [*(name for name in STRATEGIES if name != "random"), most_orthogonal])
    @pytest.mark.parametrize("how", ["name", "loaded"])
    def test_keeps_the_same_rows_as_float32(self, strategy, how, tmp_path):
        pool = Dataset.from_list(make_rows(80, seed=5))
        model = save_tiny(tmp_path) if how == "name" else MODEL
        exact, half = (selector(model, strategy=strategy, dtype=d) for d in ("float32", "bfloat16"))
        expected, found = exact.select(pool, 0.3), half.select(pool, 0.3)
        assert found["id"][:] == expected["id"][:] and found["pair"][:] == expected["pair"][:]
        assert half.record.settings["dtype"] == ("float32" if as_strategy(strategy).exact else "bfloat16")

    @pytest.mark.parametrize("strategy", ["easy", "hard", "centroid", most_orthogonal])
    def test_few_rows_of_two_responses_are_embedded_again(self, strategy):
        """A set budget (`d_optimal`) also settles every row that it takes; see benchmarks/half_precision.py."""
        pool = Dataset.from_list(make_rows(240, seed=6, same_size=2))
        exact, half = (selector(strategy=strategy, dtype=d) for d in (None, "bfloat16"))
        assert half.select(pool, 0.3)["id"][:] == exact.select(pool, 0.3)["id"][:]
        assert 0 < half.record.n_rescored <= len(pool) / 4

    def test_a_function_with_jumps_is_embedded_again_until_nothing_changes(self):
        """Scores that round to whole numbers move by 1 or not at all, so that no measured error is too small."""

        def stepped(embeddings, draws):
            return (candidate_similarity(embeddings) * 20).round()

        pool = Dataset.from_list(make_rows(80, seed=7, same_size=2))
        exact, half = (selector(strategy=stepped, dtype=d) for d in (None, "bfloat16"))
        assert half.select(pool, 0.3)["id"][:] == exact.select(pool, 0.3)["id"][:]

    def test_map_is_close_to_float32(self):
        pool = Dataset.from_list(make_rows(20, same_size=2))
        exact, half = (pool.map(selector(dtype=d), batched=True)["similarity"][:] for d in (None, "bfloat16"))
        np.testing.assert_allclose(exact, half, atol=0.05)


@needs_data()
class TestRealData:
    """Nothing of the text is shown, not even when a test fails."""

    @pytest.fixture(scope="class")
    def hh(self):
        data = Dataset.from_parquet(str(DATA / "hh" / "hh_harmless_test.parquet"))
        return data.select(range(0, len(data), 12))

    def test_hh_explicit_and_implicit_prompts_agree(self, hh):
        def joined(row):
            return {"chosen": row["prompt"] + row["chosen"], "rejected": row["prompt"] + row["rejected"]}

        full = hh.map(joined, remove_columns="prompt")
        explicit, implicit = (selector(max_length=32).select(d, 0.5)["source_row"][:] for d in (hh, full))
        overlap = len(set(explicit) & set(implicit)) / len(explicit)
        assert overlap > 0.98 and abs(len(explicit) - len(implicit)) <= 2

    def test_hh_halves(self, hh):
        halves = [set(selector(strategy=s, max_length=32).select(hh, 0.5)["source_row"][:]) for s in ("easy", "hard")]
        assert len(halves[0] & halves[1]) <= 1

    def test_ultrafeedback_and_alpaca_pools(self):
        data = Dataset.from_parquet(str(DATA / "alpaca_eval" / "multi_response.parquet")).select(range(24))
        chooser = selector(strategy="centroid", max_length=24)
        kept = chooser.select(data, 0.5)
        record = chooser.record
        assert record.n_rows == record.n_kept + record.n_not_chosen + sum(record.skipped.values())
        ok = [
            row["pair"][0] < row["pair"][1] and row["response_a"] == row["responses"][row["pair"][0]] for row in kept
        ]
        assert all(ok)


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
