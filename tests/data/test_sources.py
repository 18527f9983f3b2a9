"""Sources with lists of responses, and what holds for every source. Failures on real data show numbers."""

from collections import Counter

import pytest
from datasets import Dataset, DatasetDict, concatenate_datasets, load_dataset

from support.source_rows import ASK, real, shp, shuffled
from trl_real.data import convert as rows
from trl_real.data import sources
from trl_real.data.pairs import MISSING, PROMPT_MISMATCH, TOO_FEW
from trl_real.data.sources import SOURCES, from_alpaca_eval, from_hh_rlhf, from_shp, from_ultrafeedback
from trl_real.data.sources import from_ultrafeedback_binarized as from_binarized
from trl_real.errors import MissingColumnError, TrlRealError


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
