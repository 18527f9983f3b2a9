"""A selector in several processes, its fingerprint and its cache."""

import os
import pickle
import subprocess
import sys
import textwrap

import pytest
import torch
from datasets import Dataset
from datasets.fingerprint import Hasher
from peft import LoraConfig, get_peft_model

from support.project import TESTS
from support.selecting import TOKENIZER, assert_equal_rows, make_rows, selector
from support.tiny import save_tiny, tiny_model, tiny_tokenizer
from trl_real import EmbeddingPairSelector, MissingColumnError, TrlRealError


pytestmark = pytest.mark.usefixtures("quiet_and_apart")


def run_python(code: str, *args: str, timeout: int = 150, **env: str) -> str:
    """Run code in a fresh process; a deadlock is a failure and not a wait for ever."""
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(sys.path),
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
        cwd=TESTS,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


class TestProcesses:
    CODE = """
        import sys, torch, datasets
        datasets.disable_progress_bars()
        from datasets import Dataset
        from support.tiny import tiny_model, tiny_tokenizer
        from support.selecting import make_rows, assert_equal_rows
        from trl_real import EmbeddingPairSelector
        torch.set_num_threads(2)
        a = torch.randn(600, 600); (a @ a).softmax(-1).sum(); torch.nn.Linear(600, 600)(a)
        for kind, model in {"name": sys.argv[1], "loaded": tiny_model(), "embeddings": None}.items():
            rows = make_rows(40, same_size=4)
            if kind == "embeddings":
                for i, row in enumerate(rows):
                    row["embeddings"] = torch.randn(4, 4096, generator=torch.Generator().manual_seed(i)).tolist()
            pool = Dataset.from_list(rows)
            def new():
                return EmbeddingPairSelector(model, tokenizer=tiny_tokenizer(), strategy="centroid")
            selector = new()
            expected = pool.map(selector, batched=True)
            assert_equal_rows(pool.map(selector, batched=True, num_proc=2, batch_size=10), expected)
            assert_equal_rows(pool.map(selector, num_proc=1), expected)
            assert_equal_rows(pool.map(new(), batched=True, num_proc=2, with_rank=True), expected)
            one = selector.select(pool, 0.5)
            two = new()
            assert_equal_rows(two.select(pool, 0.5, num_proc=2, batch_size=7), one)
            record = selector.record
            assert (two.record.n_kept, two.record.similarity.keys()) == (record.n_kept, record.similarity.keys())
            print("done", kind)
    """

    def test_two_processes_after_torch_ran_multi_threaded(self, tmp_path):
        """Forked workers must not wait for threads that did not come along; S10: they give what one process gives."""
        assert "done embeddings" in run_python(self.CODE, save_tiny(tmp_path), OMP_NUM_THREADS="2", timeout=100)

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
        from datasets import load_dataset
        from datasets.fingerprint import Hasher
        from support.tiny import tiny_model, tiny_tokenizer
        from trl_real import EmbeddingPairSelector
        from trl_real.models.embed import Embedder
        for model in (sys.argv[1], tiny_model()):
            for strategy in ("easy", "random"):
                chooser = EmbeddingPairSelector(model, tokenizer=tiny_tokenizer(), strategy=strategy)
                print(Hasher.hash(chooser), end=" ")
        calls, embed = [], Embedder.__call__
        Embedder.__call__ = lambda *args, **kwargs: (calls.append(1), embed(*args, **kwargs))[1]
        pool = load_dataset("parquet", data_files=sys.argv[2], split="train", cache_dir=sys.argv[3])
        selector = EmbeddingPairSelector(sys.argv[1])
        kept = selector.select(pool.map(selector, batched=True), 3)
        print(f"\\n{len(calls)}\\n{kept['id'][:]} {selector.record.n_kept} {selector.record.tokens}")
    """

    @pytest.fixture(scope="class")
    def two_processes(self, tmp_path_factory):
        """Return the model's folder and the hashes, embedded batches and rows of two processes with one cache."""
        folder = tmp_path_factory.mktemp("two")
        save_tiny(folder / "model")
        Dataset.from_list(make_rows(6)).to_parquet(folder / "pool.parquet")
        given = [str(folder / name) for name in ("model", "pool.parquet", "cache")]
        return given[0], [run_python(self.CODE, *given, PYTHONHASHSEED=seed).splitlines() for seed in ("1", "2")]

    def test_is_the_same_in_every_process(self, two_processes):
        folder, found = two_processes
        hashes = [lines[0].split() for lines in found]
        assert hashes[0] == hashes[1] and len(hashes[0]) == 4
        assert hashes[0][0] == Hasher.hash(EmbeddingPairSelector(folder, tokenizer=TOKENIZER))
        assert hashes[0][2] == Hasher.hash(selector())

    def test_a_second_run_reads_the_cache(self, two_processes):
        (_, *first), (_, *second) = two_processes[1]
        assert first[0] == "2" and second[0] == "0" and first[1] == second[1]

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
