"""Tests of `EmbeddingPairSelector`: its inputs, geometries, precision and errors."""

import numpy as np
import pytest
import torch
from datasets import Dataset
from datasets.fingerprint import Hasher

from support.selecting import (
    FEATURES,
    MODEL,
    TOKENIZER,
    WORDS,
    assert_equal_rows,
    bad_rows,
    make_rows,
    mixed_pool,
    selector,
)
from support.tiny import save_tiny, tiny_model
from trl_real import STRATEGIES, EmbeddingPairSelector, TrlRealError
from trl_real.functional.geometry import GEOMETRIES
from trl_real.functional.similarity import candidate_similarity
from trl_real.selection.annotation import NOT_FINITE
from trl_real.selection.strategies import as_strategy


pytestmark = pytest.mark.usefixtures("quiet_and_apart")


def most_orthogonal(embeddings, draws):
    """A user's strategy."""
    return candidate_similarity(embeddings).abs()


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
        self.fails([{"prompt": "q", "chosen": 1, "rejected": 2}], "'chosen' holds (a )?int (where|instead)")

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
