"""Labelled rows in every layout: the label is not read, and the layout does not matter."""

import numpy as np
import pytest
from datasets import Dataset

from support.selecting import make_rows, mixed_pool, selector
from support.shared_data import DATA, needs_data
from trl_real import STRATEGIES, TrlRealError
from trl_real.data.columns import POOL_COLUMNS, PREFERENCE_COLUMNS
from trl_real.data.pairs import EMPTY, IDENTICAL, MISSING, PROMPT_MISMATCH


pytestmark = pytest.mark.usefixtures("quiet_and_apart")


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
        two = "\n\nHuman: r\n\nAssistant: two\n\nHuman: q\n\nAssistant: three"
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
