"""A mixture is read from text or shares, and its parts take their shares, everywhere in the same way."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from datasets import Dataset, DatasetDict, load_from_disk

from support.claims import candidates, random_embeddings
from support.tiny import tiny_model, tiny_tokenizer
from trl_real import EmbeddingPairSelector, TrlRealError
from trl_real.cli.main import main
from trl_real.functional.similarity import candidate_similarity
from trl_real.selection.annotation import choose
from trl_real.selection.mixture.parts import MIXTURE_VERSIONS, MIXTURES, Part, is_mixture, mixture_name, parts_of
from trl_real.selection.mixture.shares import Scored, sizes_of, take_shares
from trl_real.selection.planning.plan import plan_selection
from trl_real.selection.strategies import STRATEGIES
from trl_real.study.arms import ArmSelector
from trl_real.study.grid import Cell
from trl_real.study.pool import study_pool


TEXTS = {
    "auto": "auto",
    "equal": "easy@centered+random",
    "text": "0.75 hard + 0.25 random",
    "dict": {"random": 0.2, "centroid": 0.3, "d_optimal": 0.5},
    "two sets": "d_optimal@centered + i_optimal",
}
every_mixture = pytest.mark.parametrize("strategy", TEXTS.values(), ids=TEXTS)


def pool(n: int = 60, k: int = 3, seed: int = 0) -> Dataset:
    """Rows with embeddings, and one without a pair."""
    vectors = np.random.default_rng(seed).normal(size=(n + 1, k, 8)).astype(np.float32)
    rows = [{"prompt": f"p{i}", "responses": [f"{i} {j}" for j in range(k)]} for i in range(n)]
    rows.insert(n // 2, {"prompt": "nothing", "responses": ["one"]})
    return Dataset.from_list(
        [{**row, "embeddings": v[: len(row["responses"])].tolist()} for row, v in zip(rows, vectors, strict=True)]
    )


def taken(kept) -> dict[str, tuple]:
    """Pair, part and probability of each kept row, by prompt."""
    rows = kept if isinstance(kept, list) else list(kept)
    return {
        row["prompt"]: (tuple(row["pair"]), row["selected_by"], round(row["selection_probability"], 6))
        if row["selection_probability"] == row["selection_probability"]
        else (tuple(row["pair"]), row["selected_by"])
        for row in rows
    }


class TestParts:
    def test_text_and_shares_say_the_same(self):
        parts = parts_of({"easy@centered": 3, "random": 1})
        assert [(part.name, part.share) for part in parts] == [("random", 0.25), ("easy@centered", 0.75)]
        for text in (
            "0.75 easy@centered + 0.25 random",
            ".75easy@centered+.25random",
            mixture_name({"easy@centered": 3, "random": 1}),
        ):
            assert parts_of(text) == parts
        assert [part.share for part in parts_of("easy+hard+random")] == pytest.approx([1 / 3] * 3)
        plain = tuple(replace(part, once=False) for part in parts_of("auto"))
        assert plain == parts_of(MIXTURES["auto"]) and [p.once for p in parts_of("auto")] == [False, True, True, True]

    def test_a_plain_strategy_is_one_part(self):
        (part,) = parts_of("easy", "centered")
        assert (part.name, part.share) == ("easy@centered", 1) and not is_mixture("easy@centered")

    def test_a_geometry_holds_for_the_parts_that_name_none(self):
        assert parts_of("easy+random", "centered")[1].geometry == "centered"
        with pytest.raises(TrlRealError, match="The strategy names geometry 'raw'"):
            parts_of("easy+hard@raw", "centered")

    @pytest.mark.parametrize(
        ("strategy", "message"),
        [
            ("easy+", "no mixture of different strategies"),
            ("easy+easy", "no mixture of different strategies"),
            ("0.5easy+random", "no mixture of different strategies"),
            ("easy+eazy", "No strategy 'eazy'"),
            ("easy@flat+random", "No geometry 'flat'"),
            ({}, "A mixture needs parts"),
            ({"easy": 0, "random": 1}, "The share 0 of 'easy' is not above 0"),
            ({"easy": "half", "random": 1}, "The share 'half' of 'easy'"),
        ],
    )
    def test_mistakes(self, strategy, message):
        with pytest.raises(TrlRealError, match=message):
            EmbeddingPairSelector(strategy=strategy)

    @pytest.mark.parametrize("size", [1, 2, 7, 100, 101])
    def test_sizes_add_up_and_are_near_the_shares(self, size):
        parts = parts_of(MIXTURES["auto"])
        sizes = sizes_of(parts, size)
        assert sum(sizes) == size
        assert all(abs(own - part.share * size) < 1 for own, part in zip(sizes, parts, strict=True))


class TestShares:
    def test_each_part_takes_its_best_of_what_is_left(self):
        """By hand: random takes rows 4 and 0; easy wants 4 and 1 and gets 1 and 2; hard gets 3."""
        parts = parts_of({"easy": 2, "hard": 1, "random": 2})
        draws, easy = [0.1, 0.5, 0.6, 0.7, 0.0, math.nan], [0.9, 0.2, 0.3, 0.5, 0.1, math.nan]
        scores = {"random": draws, "easy": easy, "hard": [-x for x in easy]}
        found = take_shares(parts, [Scored(np.array(scores[part.name]), []) for part in parts], 5)
        assert found.rows.tolist() == [0, 1, 2, 3, 4]
        assert [parts[j].name for j in found.parts] == ["random", "easy", "easy", "hard", "random"]
        np.testing.assert_allclose(found.probabilities, [0.4, np.nan, np.nan, np.nan, 0.4])

    def test_every_row_is_drawn_with_the_recorded_probability(self):
        """Over 600 seeds, the random share takes each row as often as it says, also rows that easy wants."""
        rows, parts, counts = candidates(random_embeddings(0, 20, 3)), parts_of("easy+random"), np.zeros(20)
        vectors = list(random_embeddings(0, 20, 3))
        for seed in range(600):
            scores = [Scored(choose(rows, vectors, part.rule, seed).scores, []) for part in parts]
            found = take_shares(parts, scores, 8)
            drawn = found.parts == 0
            counts[found.rows[drawn]] += 1
            assert set(found.probabilities[drawn]) == {0.2} and np.isnan(found.probabilities[~drawn]).all()
        assert np.abs(counts / 600 - 0.2).max() < 4 * (0.2 * 0.8 / 600) ** 0.5

    def test_a_larger_budget_keeps_the_rows_of_a_smaller_one(self):
        data = pool()
        sizes = [
            set(EmbeddingPairSelector(strategy="easy+hard+random").select(data, k)["prompt"]) for k in (6, 12, 30)
        ]
        assert sizes[0] < sizes[1] < sizes[2]


class TestSelect:
    @every_mixture
    def test_shares_pairs_and_columns(self, strategy):
        data = pool()
        selector = EmbeddingPairSelector(strategy=strategy)
        kept = selector.select(data, 20)
        parts = parts_of(strategy)
        assert kept.column_names[-2:] == ["selected_by", "selection_probability"] and len(kept) == 20
        by = {part.name: [row for row in kept if row["selected_by"] == part.name] for part in parts}
        assert [len(rows) for rows in by.values()] == sizes_of(parts, 20)
        for part in parts:
            plain = EmbeddingPairSelector(strategy=part.strategy, geometry=part.geometry).select(data)
            pairs = dict(zip(plain["prompt"], plain["pair"], strict=True))
            assert all(row["pair"] == pairs[row["prompt"]] for row in by[part.name])
        record = selector.record
        assert {name: found["kept"] for name, found in record.settings["parts"].items()} == {
            n: len(r) for n, r in by.items()
        }
        assert record.n_rows == record.n_kept + record.n_not_chosen + sum(record.skipped.values())
        assert record.strategy == (
            strategy if isinstance(strategy, str) and " " not in strategy else mixture_name(strategy)
        )

    @every_mixture
    def test_row_order_and_batches_do_not_matter(self, strategy):
        data = pool()
        first = taken(EmbeddingPairSelector(strategy=strategy).select(data, 20))
        assert taken(EmbeddingPairSelector(strategy=strategy).select(data.shuffle(seed=1), 20, batch_size=7)) == first

    @every_mixture
    def test_shards_streams_and_splits_give_the_same(self, strategy, tmp_path):
        data, expected = pool(), None
        selector = EmbeddingPairSelector(strategy=strategy)
        expected = taken(selector.select(data, 20))
        shards = selector.select(data, 20, shards=tmp_path / "a", shard_rows=16)
        stream = selector.select(data.to_iterable_dataset(), 20, shards=tmp_path / "b", shard_rows=16)
        splits = selector.select(DatasetDict({"train": data, "test": pool(20, seed=1)}), 10)
        assert taken(shards) == expected == taken(list(stream))
        assert len(splits["test"]) == 10 and selector.record["train"].settings["parts"]

    @every_mixture
    def test_half_precision_keeps_the_same_rows_as_float32(self, strategy):
        data = pool().remove_columns("embeddings")
        found = []
        for dtype in ("float32", "bfloat16"):
            selector = EmbeddingPairSelector(tiny_model(), tokenizer=tiny_tokenizer(), strategy=strategy, dtype=dtype)
            found.append(taken(selector.select(data, 20)))
            assert selector.record.settings["dtype"] == "float32"
        assert found[0] == found[1]

    def test_the_whole_pool_is_shared_out(self):
        selector = EmbeddingPairSelector(strategy="auto")
        kept = selector.select(pool())
        counts = {name: kept["selected_by"].count(name) for name in MIXTURES["auto"]}
        assert len(kept) == 60 and counts == {name: 60 * share for name, share in MIXTURES["auto"].items()}
        assert selector.record.settings["version"] == MIXTURE_VERSIONS["auto"]

    def test_texts_are_embedded_once(self):
        seen = []

        class Encoder:
            def encode(self, texts):
                seen.extend(texts)
                return torch.tensor([[len(t), hash(t) % 7, 1.0] for t in texts])

        data = pool(12).remove_columns("embeddings")
        EmbeddingPairSelector(Encoder(), strategy="easy+hard+d_optimal+random").select(data, 6)
        assert sorted(seen) == sorted(text for row in data["responses"] if len(row) > 1 for text in row)

    def test_a_function_can_be_hedged(self):
        def near_zero(embeddings, draws):
            return candidate_similarity(embeddings).abs()

        kept = EmbeddingPairSelector(strategy={near_zero: 0.5, "random": 0.5}).select(pool(), 10)
        assert sum("near_zero" in name for name in kept["selected_by"]) == 5

    def test_selecting_again_replaces_the_columns(self):
        data = pool()
        kept = EmbeddingPairSelector(strategy="auto").select(data, 20)
        assert "selected_by" not in EmbeddingPairSelector().select(kept, 5).column_names
        again = EmbeddingPairSelector(strategy="easy+random").select(kept, 6)
        assert set(again["selected_by"]) == {"easy", "random"}
        with pytest.raises(TrlRealError, match="already has a column 'selected_by'"):
            EmbeddingPairSelector(strategy="auto").select(data.add_column("selected_by", ["x"] * 61), 5)

    def test_labelled_pairs(self):
        rows = [{"prompt": f"p{i}", "chosen": f"{i} a", "rejected": f"{i} b", "embeddings": v}
                for i, v in enumerate(np.random.default_rng(0).normal(size=(30, 2, 4)).tolist())]  # fmt: skip
        kept = EmbeddingPairSelector(strategy="auto").select(Dataset.from_list(rows), 8)
        assert set(kept["selected_by"]) == set(MIXTURES["auto"])

    def test_where_a_mixture_cannot_work_one_line_says_what_to_type(self):
        selector = EmbeddingPairSelector(strategy="auto")
        with pytest.raises(TrlRealError, match=r"map sees one batch at a time. Type selector.select"):
            selector(pool(2)[0])
        with pytest.raises(TrlRealError, match="a threshold does not. Type shards="):
            selector.select(pool().to_iterable_dataset(), 0.5, sample=20)


def test_a_plan_counts_the_rows_of_each_set():
    def width(strategy):
        return plan_selection(EmbeddingPairSelector(strategy=strategy), pool(), 10).kept_width

    assert [width(s) for s in ("easy", "easy+random", "d_optimal", "auto", "d_optimal+i_optimal")] == [0, 0, 8, 16, 16]


@every_mixture
def test_an_arm_of_a_study_takes_the_rows_that_select_takes(strategy):
    data = pool(40).add_column("scores", [[1.0, 0.5, 0.0]] * 20 + [[1.0]] + [[1.0, 0.5, 0.0]] * 20)
    rows = study_pool(data, responses="responses", scores="scores", second_opinion=None, embeddings=True)
    arms = ArmSelector(rows, rows.vectors, pool_share=1.0)
    name = mixture_name(strategy)
    labeled = arms.labeled(Cell(name, 12, 42))
    kept = EmbeddingPairSelector(strategy=strategy, seed=42).select(data, 12)
    found = {
        rows.rows[i].prompt: tuple(sorted(pair))
        for i, pair in zip(labeled.places, labeled.pairs.tolist(), strict=True)
    }
    assert found == {row["prompt"]: tuple(row["pair"]) for row in kept}
    assert labeled.n_labels == 12


def test_the_command_line_takes_a_mixture(tmp_path, capsys):
    pool().to_parquet(tmp_path / "pool.parquet")
    flags = ["--dataset", tmp_path / "pool.parquet", "--output_dir", tmp_path / "kept", "--budget", "10"]
    assert main(["select", *map(str, flags), "--strategy", "0.5 random + 0.5 easy"]) == 0
    assert sorted(load_from_disk(str(tmp_path / "kept"))["selected_by"]) == ["easy"] * 5 + ["random"] * 5


class TestRepeatedResponses:
    """Nine pairs of the responses 0 to 5; rules prefer the pairs with response 0, which is far from all others."""

    PAIRS = np.array([[0, 1], [0, 2], [0, 3], [0, 4], [0, 5], [1, 2], [3, 4], [2, 5], [1, 4]])

    def taken(self, name: str, size: int, once: bool = True, before: np.ndarray | None = None):
        differences = [np.eye(6, dtype=np.float32)[a] * (3 - i / 9) - np.eye(6, dtype=np.float32)[b] * (1 + i / 9)
                       for i, (a, b) in enumerate(self.PAIRS)]  # fmt: skip
        scored = Scored(np.arange(9) / 9, differences, self.PAIRS)
        return take_shares([Part(name, once=once)], [scored], size, before).rows.tolist()

    def test_a_response_waits_while_rows_with_less_used_ones_are_left(self):
        assert self.taken("easy", 3, once=False) == [0, 1, 2]
        assert self.taken("easy", 3) == [0, 6, 7] and self.taken("easy", 4) == [0, 1, 6, 7]
        assert self.taken("easy", 9) == list(range(9))

    @pytest.mark.parametrize("name", [name for name, strategy in STRATEGIES.items() if strategy.budget])
    def test_set_rules_look_further_down_their_ranking(self, name):
        rows = self.taken(name, 3)
        assert len({key for row in rows for key in self.PAIRS[row].tolist()}) == 6

    def test_rows_of_earlier_rounds_and_of_random_count_as_used(self):
        before = np.arange(9) == 6
        assert self.taken("easy", 2) == [0, 6] and self.taken("easy", 2, before=before) == [0, 7]
        scores = [Scored(np.where(before, 0.0, 9.0), [], self.PAIRS), Scored(np.arange(9.0), [], self.PAIRS)]
        found = take_shares([Part("random", share=1 / 3), Part("easy", share=2 / 3, once=True)], scores, 3)
        assert found.rows.tolist() == [0, 6, 7] and found.parts.tolist() == [1, 0, 1]

    def test_select_tells_responses_apart_by_prompt_and_text(self):
        """Six pairs of the same two replies, to one prompt or to six."""
        rng = np.random.default_rng(0)
        vectors = [rng.normal(size=(2, 4)).tolist() for _ in range(12)]
        for column in ("chosen", "responses"):
            counts = []
            for prompts in (["p"] * 6, [f"p{i}" for i in range(6)]):
                rows = [{"prompt": prompts[i] if i < 6 else f"q{i}", "embeddings": v,
                         **({"chosen": f"a{max(i, 5)}", "rejected": f"b{max(i, 5)}"} if column == "chosen" else
                            {"responses": [f"a{max(i, 5)}", f"b{max(i, 5)}"]})}
                        for i, v in enumerate(vectors)]  # fmt: skip
                kept = EmbeddingPairSelector(strategy="auto").select(Dataset.from_list(rows), 8)
                counts.append(sum(not prompt.startswith("q") for prompt in kept["prompt"]))
            assert counts[0] < counts[1]
