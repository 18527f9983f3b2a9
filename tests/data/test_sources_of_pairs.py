"""HH-RLHF and SHP: no row is lost or repeated. Failures on real data show numbers, never texts."""

import logging
from collections import Counter

import pytest
from datasets import Dataset, concatenate_datasets

from support.source_rows import ASK, real, shp, shuffled
from trl_real.data import sources
from trl_real.data.pairs import EMPTY, IDENTICAL, MISSING, PROMPT_MISMATCH
from trl_real.data.sources import from_hh_rlhf, from_shp


def pools(dataset: Dataset) -> dict:
    """Prompt -> everything else; fails if a prompt comes twice."""
    rows = {row["prompt"]: {k: v for k, v in row.items() if k != "prompt"} for row in dataset}
    assert len(rows) == len(dataset)
    return rows


class TestHH:
    def test_splits_at_the_last_assistant_turn_and_keeps_other_columns(self):
        dataset = Dataset.from_dict({"chosen": [ASK + " because"], "rejected": [ASK + " be quiet"], "id": [7]})
        assert from_hh_rlhf(dataset).to_list() == [
            {"prompt": ASK, "chosen": " because", "rejected": " be quiet", "id": 7}
        ]

    def test_unusable_rows_are_counted(self, caplog):
        chosen = [ASK + " a", "\n\nHuman: x\n\nAssistant: a", "no markup", None, ASK + " a"]
        rejected = [ASK + " b", "\n\nHuman: y\n\nAssistant: b", "no markup", ASK + " b", None]
        counts = Counter()
        with caplog.at_level(logging.INFO, logger="trl_real.data"):
            converted = from_hh_rlhf(Dataset.from_dict({"chosen": chosen, "rejected": rejected}), counts=counts)
        assert counts == {PROMPT_MISMATCH: 1, sources.NO_ASSISTANT_TURN: 1, MISSING: 2}
        assert len(converted) + counts.total() == 5
        assert [r.getMessage() for r in caplog.records] == [
            "from_hh_rlhf: 5 rows in, 1 out; skipped: 1 chosen and rejected do not share their prompt, "
            "2 missing response, 1 no '\\n\\nAssistant:' in chosen"
        ]

    @pytest.mark.parametrize("more", ["", "\n\nHuman: x\n\nAssistant: c"])
    @pytest.mark.parametrize("other", [" b", " a", ""])
    @pytest.mark.parametrize("start", [ASK, "\n\nHuman: other\n\nAssistant:"])
    def test_the_label_does_not_decide_if_a_row_is_valid(self, start, other, more):
        """Not even where one dialogue goes on: then its response has several turns."""
        one, two = ASK + " a", start + other + more
        found = [
            from_hh_rlhf(Dataset.from_dict({"chosen": [a], "rejected": [b]})) for a, b in ((one, two), (two, one))
        ]
        assert [rows[:]["prompt"] for rows in found] == [[ASK] if start == ASK else []] * 2
        assert found[0][:]["rejected"] == found[1][:]["chosen"] == ([other + more] if start == ASK else [])

    def test_explicit_rows_stay_unchanged_also_next_to_implicit_ones(self):
        explicit = Dataset.from_dict({"prompt": ["q", ASK], "chosen": ["a", " x"], "rejected": ["b", " y"]})
        assert from_hh_rlhf(explicit).to_list() == explicit.to_list()
        implicit = Dataset.from_dict({"chosen": [ASK + " c"], "rejected": [ASK + " d"]})
        both = from_hh_rlhf(concatenate_datasets([explicit, implicit]))
        assert both[:]["prompt"] == ["q", ASK, ASK] and both[2]["chosen"] == " c"

    def test_explicit_messages_pass_unchanged(self):
        turn = [{"role": "user", "content": "q"}]
        dataset = Dataset.from_dict({"prompt": [turn], "chosen": [turn], "rejected": [turn]})
        assert from_hh_rlhf(dataset).to_list() == dataset.to_list()

    def test_conversion_is_idempotent(self):
        once = from_hh_rlhf(Dataset.from_dict({"chosen": [ASK + " c"], "rejected": [ASK + " d"]}))
        assert from_hh_rlhf(once).to_list() == once.to_list()

    def test_many_unusable_rows_first_keep_the_schema(self):
        """A first writer batch of None only breaks Arrow writing, were the schema not given."""
        dataset = Dataset.from_dict({"chosen": ["x"] * 2500 + [ASK + " c"], "rejected": ["y"] * 2500 + [ASK + " d"]})
        assert from_hh_rlhf(dataset)[0]["chosen"] == " c"

    def test_any_format_gives_the_same(self):
        dataset = Dataset.from_dict({"chosen": [ASK + " c"] * 3, "rejected": [ASK + " d"] * 3})
        plain = from_hh_rlhf(dataset).to_list()
        for name in ("numpy", "pandas", "arrow", "torch"):
            assert from_hh_rlhf(dataset.with_format(name)).to_list() == plain

    def test_counts_are_reported_for_a_cached_result(self, tmp_path):
        Dataset.from_dict({"chosen": ["x", ASK + " c"], "rejected": ["y", ASK + " d"]}).save_to_disk(tmp_path / "hh")
        for _ in range(2):
            counts = Counter()
            assert len(from_hh_rlhf(Dataset.load_from_disk(tmp_path / "hh"), counts=counts)) == 1
            assert counts.total() == 1

    def test_real_dialogues_give_back_their_prompts(self):
        dataset = real("hh/hh_harmless_test")
        join = {"remove_columns": ["prompt"], "load_from_cache_file": False}
        full = dataset.map(lambda r: {k: r["prompt"] + r[k] for k in ("chosen", "rejected")}, **join)
        counts = Counter()
        converted = from_hh_rlhf(full, counts=counts)
        assert len(converted) == len(dataset) == 1855 and not counts
        for name in ("prompt", "chosen", "rejected", "source_row"):
            assert sum(a != b for a, b in zip(converted[name], dataset[name], strict=True)) == 0, name


class TestSHP:
    ROWS = [
        ("p", "one", "two", 2, 8),
        ("q", "x", "y", 9, 3),
        ("p", "two ", "three", 8, 4),
        ("p", " one", "three", 2, 4),
    ]

    def test_groups_by_post(self):
        converted = from_shp(shp(*self.ROWS))
        assert converted.to_list() == [
            {
                "prompt": "\n\nHuman: p\n\nAssistant:",
                "responses": [" one", " three", " two"],
                "scores": [2.0, 4.0, 8.0],
            },
            {"prompt": "\n\nHuman: q\n\nAssistant:", "responses": [" x", " y"], "scores": [9.0, 3.0]},
        ]

    @pytest.mark.parametrize("seed", range(5))
    def test_the_order_of_the_rows_only_orders_the_prompts(self, seed):
        dataset = shuffled(shp(*self.ROWS), seed)
        converted = from_shp(dataset)
        assert pools(converted) == pools(from_shp(shp(*self.ROWS)))
        first_met = list(dict.fromkeys(f"\n\nHuman: {post}\n\nAssistant:" for post in dataset["history"]))
        assert converted[:]["prompt"] == first_met

    def test_swapping_comments_a_and_b_changes_nothing(self):
        swapped = shp(*((post, b, a, score_b, score_a) for post, a, b, score_a, score_b in self.ROWS))
        assert pools(from_shp(swapped)) == pools(from_shp(shp(*self.ROWS)))

    def test_conflicting_scores_keep_the_highest_and_are_counted(self, caplog):
        rows = [("p", "one", "two", 2, 8), ("p", "one", "three", 3, 9), ("p", "one", "four", 1, 9)]
        for seed in range(4):
            counts = Counter()
            with caplog.at_level(logging.INFO, logger="trl_real.data"):
                converted = from_shp(shuffled(shp(*rows), seed), counts=counts)
            assert dict(zip(converted[0]["responses"], converted[0]["scores"], strict=True))[" one"] == 3.0
            assert counts == {sources.CONFLICTING_SCORES: 1}
        assert "from_shp: 1 responses with several scores, the highest kept" in caplog.text

    def test_filters_count_each_row_once(self):
        dataset = shp(
            ("p", "a", "b", 3, 2),
            ("p", "c", "d", 4, 3),
            ("p", "a", "e", 0, 3),
            ("p", "a", "e", -4, 3),
            ("p", "a", " a", 2, 4),
            ("p", "a", "  ", 2, 4),
            ("p", None, "a", 2, 4),
            ("p", "a", "e", None, 4),
        )
        counts = Counter()
        assert from_shp(dataset, counts=counts)[0]["responses"] == [" a", " b"]
        assert counts == {
            sources.RATIO_TOO_LOW: 1,
            sources.NOT_POSITIVE: 2,
            IDENTICAL: 1,
            EMPTY: 1,
            MISSING: 1,
            sources.NO_SCORE: 1,
        }
        assert counts.total() + 1 == len(dataset)
        unfiltered = from_shp(dataset, min_ratio=None)[0]
        assert unfiltered["responses"] == [" a", " b", " c", " d", " e"] and unfiltered["scores"][0] == 3.0

    def test_the_ratio_is_inclusive_and_the_scores_own(self):
        dataset = shp(("p", "a", "b", 3, 2), ("q", "a", "b", 2, 3), score_ratio=[99.0, 1.0])
        assert len(from_shp(dataset, min_ratio=1.5)) == 2
        assert len(from_shp(dataset, min_ratio=1.51)) == 0

    def test_reddit_only_leaves_stackexchange_out(self):
        dataset = shp(
            ("p", "a", "b", 4, 2), ("q", "c", "d", 4, 2), domain=["stack_academia_train", "askacademia_train"]
        )
        counts = Counter()
        assert from_shp(dataset, reddit_only=True, counts=counts)[:]["prompt"] == ["\n\nHuman: q\n\nAssistant:"]
        assert counts == {sources.NOT_REDDIT: 1}
        assert len(from_shp(dataset)) == 2
        assert len(from_shp(dataset.remove_columns("domain"))) == 2

    def test_filtering_every_row_gives_an_empty_pool(self):
        assert from_shp(shp(("p", "a", "b", 1, 1))).column_names == ["prompt", "responses", "scores"]

    def test_real_pairs_of_one_post_become_one_pool(self):
        """126 posts, 708 distinct responses (data/README.md), votes invented: wins + 1."""
        pairs = real("dpo_logps/pythia2.8b_shp")
        begin, end = "\n\nHuman: ", "\n\nAssistant:"
        assert all(p.startswith(begin) and p.endswith(end) for p in pairs["prompt"])
        wins = Counter(zip(pairs["prompt"], (c.strip() for c in pairs["chosen"]), strict=True))
        rows = [
            (p[len(begin) : -len(end)], a, b, wins[p, a.strip()] + 1, wins[p, b.strip()] + 1)
            for p, a, b in zip(pairs["prompt"], pairs["chosen"], pairs["rejected"], strict=True)
        ]
        counts = Counter()
        converted = from_shp(shp(*rows), min_ratio=None, counts=counts)
        expected: dict[str, set] = {}
        for p, *both in zip(pairs["prompt"], pairs["chosen"], pairs["rejected"], strict=True):
            expected.setdefault(p, set()).update(" " + text.strip() for text in both)
        assert not counts and len(converted) == 126
        assert sum(a != b for a, b in zip(converted["prompt"], expected, strict=True)) == 0
        assert sum(len(r) for r in converted["responses"]) == sum(map(len, expected.values())) == 708
        assert sum(set(row["responses"]) != expected[row["prompt"]] for row in converted) == 0
        assert sum(len(row["scores"]) != len(row["responses"]) for row in converted) == 0
        again, once = pools(from_shp(shuffled(shp(*rows), 3), min_ratio=None)), pools(converted)
        assert sum(again[prompt] != once[prompt] for prompt in once) == 0
