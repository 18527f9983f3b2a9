"""Converters: no row is lost or repeated, and counts add up. Failures on real data show numbers, never texts."""

import logging
import random
from collections import Counter

import pytest
from datasets import Dataset, DatasetDict, concatenate_datasets, load_dataset

from support.shared_data import data_path
from trl_real.data import convert as rows
from trl_real.data import sources
from trl_real.data.pairs import EMPTY, IDENTICAL, MISSING, PROMPT_MISMATCH, TOO_FEW
from trl_real.data.sources import SOURCES, from_alpaca_eval, from_hh_rlhf, from_shp, from_ultrafeedback
from trl_real.data.sources import from_ultrafeedback_binarized as from_binarized
from trl_real.errors import MissingColumnError, TrlRealError


ASK = "\n\nHuman: hi\n\nAssistant: hello\n\nHuman: why?\n\nAssistant:"


def real(name: str) -> Dataset:
    return Dataset.from_parquet(str(data_path(f"{name}.parquet")), keep_in_memory=True)


def shp(*rows: tuple, **columns) -> Dataset:
    """Rows of (post, A, B, score_A, score_B), with the columns of stanfordnlp/SHP-2."""
    history, first, second, score_first, score_second = zip(*rows, strict=True)
    return Dataset.from_dict(
        {
            "post_id": [f"p{i}" for i in range(len(rows))],
            "domain": ["askacademia_train"] * len(rows),
            "upvote_ratio": [0.9] * len(rows),
            "history": history,
            "c_root_id_A": ["a"] * len(rows),
            "c_root_id_B": ["b"] * len(rows),
            "created_at_utc_A": [1] * len(rows),
            "created_at_utc_B": [2] * len(rows),
            "score_A": score_first,
            "score_B": score_second,
            "human_ref_A": first,
            "human_ref_B": second,
            "labels": [0] * len(rows),
            "seconds_difference": [1.0] * len(rows),
            "score_ratio": [2.0] * len(rows),
            **columns,
        }
    )


def ultrafeedback(*completions: list | None, instructions: list | None = None) -> Dataset:
    """The columns of openbmb/UltraFeedback; a completion is (response, overall, fine-grained)."""
    rows = [
        {
            "source": "evol_instruct",
            "instruction": instructions[i] if instructions else f"question {i}",
            "models": ["alpaca-7b", "gpt-4"],
            "completions": [
                {
                    "annotations": {"helpfulness": {"Rating": "N/A", "Rationale": "…"}},
                    "custom_system_prompt": "You are …",
                    "model": f"model-{k}",
                    "principle": "helpfulness",
                    "response": response,
                    "critique": "…",
                    "overall_score": overall,
                    "fine-grained_score": fine,
                }
                for k, (response, overall, fine) in enumerate(row or [])
            ],
            "correct_answers": ["None"],
            "incorrect_answers": ["None"],
        }
        for i, row in enumerate(completions)
    ]
    return Dataset.from_list(rows)


def binarized(*rows: tuple) -> Dataset:
    """Rows of (prompt, chosen dialogue, rejected dialogue), a dialogue being a list of (role, content)."""
    messages = [[[{"content": c, "role": r} for r, c in d] for d in dialogues] for _, *dialogues in rows]
    return Dataset.from_dict(
        {
            "prompt": [prompt for prompt, *_ in rows],
            "prompt_id": [f"id{i}" for i in range(len(rows))],
            "chosen": [chosen for chosen, _ in messages],
            "rejected": [rejected for _, rejected in messages],
            "messages": [chosen for chosen, _ in messages],
            "score_chosen": [8.0] * len(rows),
            "score_rejected": [5.0] * len(rows),
        }
    )


def pools(dataset: Dataset) -> dict:
    """Prompt -> everything else; fails if a prompt comes twice."""
    rows = {row["prompt"]: {k: v for k, v in row.items() if k != "prompt"} for row in dataset}
    assert len(rows) == len(dataset)
    return rows


def shuffled(dataset: Dataset, seed: int) -> Dataset:
    order = list(range(len(dataset)))
    random.Random(seed).shuffle(order)
    return dataset.select(order)


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


class TestUltraFeedback:
    def test_completions_become_a_pool(self):
        dataset = ultrafeedback(
            [("a", 10.0, 1.25), ("b", 6.0, 4.0)], [("c", 7.0, 3.0), ("c", None, 3.0), ("", 1.0, 1.0)]
        )
        converted = from_ultrafeedback(dataset)
        assert converted[0] == {
            "prompt": "question 0",
            "responses": ["a", "b"],
            "scores": [10.0, 6.0],
            "models": ["model-0", "model-1"],
            "source": "evol_instruct",
            "correct_answers": ["None"],
            "incorrect_answers": ["None"],
        }
        assert converted[1]["scores"] == [7.0, None, 1.0] and converted[1]["responses"] == ["c", "c", ""]
        assert from_ultrafeedback(dataset, score="fine-grained_score")[0]["scores"] == [1.25, 4.0]

    def test_unusable_rows_are_counted(self):
        pair = [("a", 1.0, 1.0), ("b", 2.0, 2.0)]
        dataset = ultrafeedback(pair, pair[:1], [], pair, [("a", 1.0, 1.0), (None, 1.0, 1.0)])
        dataset = concatenate_datasets([dataset, ultrafeedback(pair, pair, instructions=["q", None])])
        counts = Counter()
        converted = from_ultrafeedback(dataset, counts=counts)
        assert counts == {TOO_FEW: 3, MISSING: 1} and len(converted) + counts.total() == len(dataset) == 7

    def test_missing_score_error_lists_the_available_scores(self):
        with pytest.raises(TrlRealError) as error:
            from_ultrafeedback(ultrafeedback([("a", 1.0, 1.0), ("b", 2.0, 2.0)]), score="overal_score")
        assert str(error.value) == (
            "No field 'overal_score' in column 'completions'; it has ['annotations', 'critique', "
            "'custom_system_prompt', 'fine-grained_score', 'model', 'overall_score', 'principle', 'response']. "
            "Give a list of {'response', 'model', 'overall_score'} per row, or name the score: score='…'."
        )

    def test_plain_texts_as_completions_are_refused(self):
        with pytest.raises(TrlRealError, match=r"^No field 'response' in column 'completions'; it has List"):
            from_ultrafeedback(Dataset.from_dict({"instruction": ["q"], "completions": [["a", "b"]]}))


class TestBinarized:
    def test_three_message_lists_without_overlap(self):
        dataset = binarized(("q", [("user", "q"), ("assistant", "a")], [("user", "q"), ("assistant", "b")]))
        row = from_binarized(dataset)[0]
        assert row["prompt"] == [{"content": "q", "role": "user"}]
        assert row["chosen"] == [{"content": "a", "role": "assistant"}]
        assert row["rejected"] == [{"content": "b", "role": "assistant"}]
        assert row["prompt_id"] == "id0" and len(row["messages"]) == 2 and row["score_chosen"] == 8.0

    def test_system_messages_several_turns_and_equal_responses(self):
        talk = [("system", "s"), ("user", "q"), ("assistant", "a"), ("user", "q2")]
        dataset = binarized(
            ("q", [*talk, ("assistant", "x")], [*talk, ("assistant", "y")]),
            ("q", [*talk, ("assistant", "x")], [*talk, ("assistant", "x")]),
            ("q", [*talk, ("assistant", "x")], [*talk[:2], ("assistant", "z"), ("user", "q3"), ("assistant", "x")]),
        )
        converted = from_binarized(dataset)
        assert [len(p) for p in converted["prompt"]] == [4, 4, 2]
        assert [len(c) for c in converted["chosen"]] == [1, 1, 3]
        for before, after in zip(dataset, converted, strict=True):
            for name in ("chosen", "rejected"):
                assert after["prompt"] + after[name] == before[name]

    def test_unusable_rows_are_counted(self):
        fine, other = [("user", "q"), ("assistant", "a")], [("user", "r"), ("assistant", "b")]
        late = [("user", "q"), ("assistant", "a"), ("user", "r"), ("assistant", "b")]
        later = [("user", "q"), ("assistant", "a"), ("user", "s"), ("assistant", "b")]
        dataset = binarized(
            ("q", fine, fine), ("q", fine, other), ("z", fine, fine), ("q", [], fine), ("q", late, later)
        )
        counts = Counter()
        converted = from_binarized(dataset, counts=counts)
        assert counts == {PROMPT_MISMATCH: 2, sources.OTHER_PROMPT: 1, MISSING: 1}
        assert len(converted) + counts.total() == len(dataset)

    def test_conversion_is_idempotent(self):
        once = from_binarized(
            binarized(("q", [("user", "q"), ("assistant", "a")], [("user", "q"), ("assistant", "b")]))
        )
        assert from_binarized(once).to_list() == once.to_list()

    def test_real_pairs_in_the_mixed_layout(self):
        pairs = real("ultrafeedback/ultrafeedback_1200")
        dialogues = [
            (row["prompt"], *([("user", row["prompt"]), ("assistant", row[k])] for k in ("chosen", "rejected")))
            for row in pairs
        ]
        counts = Counter()
        converted = from_binarized(binarized(*dialogues), counts=counts)
        assert len(converted) == len(pairs) == 963 and not counts
        for name, role in (("prompt", "user"), ("chosen", "assistant"), ("rejected", "assistant")):
            expected = [[{"content": text, "role": role}] for text in pairs[name]]
            assert sum(a != b for a, b in zip(converted[name], expected, strict=True)) == 0, name

    def test_text_needs_no_conversion(self):
        with pytest.raises(TrlRealError) as error:
            from_binarized(Dataset.from_dict({"prompt": ["q"], "chosen": ["a"], "rejected": ["b"]}))
        assert str(error.value) == (
            "Column 'chosen' holds string where a list of messages should be. Text needs no conversion: do "
            "not call from_ultrafeedback_binarized, or use from_hh_rlhf for full dialogues."
        )


class TestAlpacaEval:
    ONE = {"instruction": ["i", "j"], "output": ["x", "y"], "generator": ["b", "b"], "dataset": ["koala", "vicuna"]}
    TWO = {"instruction": ["i", "j"], "output": ["x", "z"], "generator": ["a", "a"], "dataset": ["koala", "vicuna"]}

    def test_groups_by_instruction_and_keeps_equal_texts_of_two_models(self):
        one, two = Dataset.from_dict(self.ONE), Dataset.from_dict(self.TWO)
        expected = [
            {"prompt": "i", "responses": ["x", "x"], "models": ["a", "b"]},
            {"prompt": "j", "responses": ["z", "y"], "models": ["a", "b"]},
        ]
        assert from_alpaca_eval(concatenate_datasets([one, two])).to_list() == expected
        assert from_alpaca_eval([two, one.remove_columns("dataset")]).to_list() == expected

    def test_skipped_rows_and_kept_responses_are_the_rows(self):
        dataset = Dataset.from_dict(
            {
                "instruction": ["i", "i", "i", "i", "lone", None],
                "output": ["x", "x", "y", None, "w", "v"],
                "generator": ["a", "a", "a", "b", "a", "a"],
            }
        )
        counts = Counter()
        converted = from_alpaca_eval(dataset, counts=counts)
        assert converted.to_list() == [{"prompt": "i", "responses": ["x", "y"], "models": ["a", "a"]}]
        assert counts == {sources.REPEATED: 1, MISSING: 2, TOO_FEW: 1}
        assert sum(map(len, converted["responses"])) + counts.total() == len(dataset)

    def test_real_outputs_exploded_and_regrouped(self):
        pool = real("alpaca_eval/multi_response")
        rows = [(row["prompt"], *pair) for row in pool for pair in zip(row["responses"], row["models"], strict=True)]
        instruction, output, generator = zip(*rows, strict=True)
        exploded = Dataset.from_dict({"instruction": instruction, "output": output, "generator": generator})
        counts = Counter()
        regrouped = from_alpaca_eval(shuffled(exploded, 1), counts=counts)
        assert not counts and len(regrouped) == len(pool) == 805
        expected = {row["prompt"]: set(zip(row["models"], row["responses"], strict=True)) for row in pool}
        wrong = sum(set(zip(r["models"], r["responses"], strict=True)) != expected[r["prompt"]] for r in regrouped)
        assert wrong == 0 and {len(models) for models in regrouped["models"]} == {16}


FIRST_COLUMNS = {
    "hh_rlhf": "chosen",
    "shp": "history",
    "ultrafeedback": "instruction",
    "ultrafeedback_binarized": "prompt",
    "alpaca_eval": "instruction",
}


@pytest.mark.parametrize("name", SOURCES)
class TestEverySource:
    def test_missing_column_error_shows_the_fix(self, name):
        column = FIRST_COLUMNS[name]
        with pytest.raises(MissingColumnError) as error:
            SOURCES[name](Dataset.from_dict({"question": ["q"]}))
        assert str(error.value) == (
            f"No column {column!r} in the dataset; it has ['question']. {SOURCES[name].__name__} needs it; "
            f"if yours has another name, type: dataset.rename_column('…', {column!r})"
        )

    def test_several_splits_at_once_are_refused(self, name):
        source = SOURCES[name].__name__
        with pytest.raises(TrlRealError) as error:
            SOURCES[name](DatasetDict(train=Dataset.from_dict({"a": [1]})))
        assert (
            str(error.value)
            == f"{source} takes one split, a Dataset; found DatasetDict. Type: {source}(dataset['train'])"
        )

    def test_a_stream_is_refused(self, name):
        with pytest.raises(TrlRealError) as error:
            SOURCES[name](Dataset.from_dict({"a": [1]}).to_iterable_dataset())
        assert str(error.value) == (
            f"{SOURCES[name].__name__} takes one split, a Dataset; found IterableDataset. "
            "Type: load_dataset(…, split='train')"
        )


def test_an_empty_dataset_has_the_schema_of_a_full_one():
    pair = [("a", 1.0, 1.0), ("b", 2.0, 2.0)]
    full = {
        "hh_rlhf": Dataset.from_dict({"chosen": [ASK + " c"], "rejected": [ASK + " d"], "id": [1]}),
        "shp": shp(("p", "a", "b", 4, 2)),
        "ultrafeedback": ultrafeedback(pair),
        "ultrafeedback_binarized": binarized(("q", [("user", "q"), ("assistant", "a")], [("user", "q")])),
        "alpaca_eval": Dataset.from_dict(TestAlpacaEval.ONE),
    }
    for name, convert in SOURCES.items():
        converted, empty = convert(full[name]), convert(full[name].select([]))
        assert len(empty) == 0 and empty.features == converted.features, name


def test_text_columns_must_hold_text():
    with pytest.raises(TrlRealError) as error:
        from_shp(shp(("p", 1, 2, 4, 2)))
    assert str(error.value) == (
        "Column 'human_ref_A' holds int64 where from_shp needs text. "
        "Convert it: dataset.map(lambda row: {'human_ref_A': …}), or choose another source."
    )
    messages = [[{"role": "user", "content": "q"}]]
    with pytest.raises(TrlRealError, match=r"^Column 'chosen' holds List\(.*\) where from_hh_rlhf needs text\."):
        from_hh_rlhf(Dataset.from_dict({"chosen": messages, "rejected": messages}))


@pytest.mark.parametrize("ratio", [0.5, -1, float("nan")])
def test_a_ratio_below_one_is_refused(ratio):
    with pytest.raises(TrlRealError) as error:
        from_shp(shp(("p", "a", "b", 4, 2)), min_ratio=ratio)
    assert str(error.value) == (
        f"min_ratio={ratio} is below 1. Give 1 or more (higher score / lower score), or None for no filter."
    )


def test_rows_read_from_jsonl_convert_like_rows_in_memory(tmp_path):
    dataset = ultrafeedback([("a", 1.0, 1.0), ("b", 2.0, 2.0)], [("c", None, 1.0), ("d", 2.0, 2.0)])
    dataset.to_json(tmp_path / "uf.jsonl")
    read = load_dataset(
        "json", data_files=str(tmp_path / "uf.jsonl"), split="train", cache_dir=str(tmp_path / "cache")
    )
    assert from_ultrafeedback(read).to_list() == from_ultrafeedback(dataset).to_list()


def test_prompts_across_chunks_keep_their_order(monkeypatch):
    monkeypatch.setattr(rows, "CHUNK", 3)
    converted = from_shp(shp(*((f"p{i}", "a", "b", 4, 2) for i in range(10))))
    assert converted[:]["prompt"] == [f"\n\nHuman: p{i}\n\nAssistant:" for i in range(10)]
