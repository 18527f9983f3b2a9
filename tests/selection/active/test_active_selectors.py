"""Active selectors: what all of them guarantee (T9, T11-T13 of the list)."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from datasets import Dataset, DatasetDict
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from support.active_selectors import RIDGE, adapted, gradient, head, labels, margin, picked, pool_of, shuffled
from support.project import TESTS
from support.tiny import save_tiny, tiny_model, tiny_tokenizer
from trl_real.errors import MissingColumnError, TrlRealError
from trl_real.functional.bayesian_head import ACQUISITIONS
from trl_real.models.gradients import GradientFeatures, GradientOptions
from trl_real.selection.active.gradient import GradientPairSelector
from trl_real.selection.active.margin import MarginPairSelector


pytestmark = pytest.mark.usefixtures("one_thread")

SELECTORS = {
    "gradient": gradient,
    "gradient, by pair": lambda **k: gradient(normalize="pair", **k),
    "gradient, not normalised": lambda **k: gradient(normalize=None, **k),
    **{name: lambda name=name, **k: head(name, **k) for name in ACQUISITIONS},
    "certainty": lambda **k: margin("certainty", **k),
    "uncertainty": lambda **k: margin("uncertainty", **k),
    "certainty, fresh": lambda **k: margin("certainty", adapted(init_lora_weights=True), **k),
}


@pytest.mark.parametrize("name", SELECTORS)
def test_t9_order_of_rows_and_responses_does_not_matter(name):
    pool = pool_of()
    history = labels(SELECTORS[name]().select(pool, 2))
    once = SELECTORS[name]().select(pool, 4, history=history)
    again = SELECTORS[name]().select(shuffled(pool), 4, history=history.select([1, 0]))
    assert picked(once) == picked(again)
    np.testing.assert_allclose(once["uncertainty"][:], again["uncertainty"][:], rtol=1e-5)
    assert all(first < second for first, second in again["pair"])


@pytest.mark.parametrize("name", SELECTORS)
@pytest.mark.parametrize("place", [0, -1], ids=["first", "last"])
def test_a_row_without_a_pair_changes_nothing_wherever_it_stands(name, place):
    rows = pool_of(4).to_list()
    alone = {**rows[0], "prompt": "Alone?", "responses": rows[0]["responses"][:1], "scores": [0.0]}
    more = [alone, *rows] if place == 0 else [*rows, alone]
    selector = SELECTORS[name]()
    assert picked(selector.select(Dataset.from_list(more), 2)) == picked(SELECTORS[name]().select(pool_of(4), 2))
    assert sum(selector.record.skipped.values()) == 1


@pytest.mark.parametrize("name", SELECTORS)
def test_rounds_ask_every_pair_once_and_then_report_an_empty_pool(name):
    selector, pool, history, asked = SELECTORS[name](), pool_of(4), None, []
    while len(asked) < 12:
        kept = selector.select(pool, min(3, 12 - len(asked)) if name not in ACQUISITIONS else 1.0, history=history)
        asked += picked(kept)
        new = labels(kept)
        history = new if history is None else Dataset.from_list([*history, *new])
        record = selector.record
        assert record.n_rows == 4 == record.n_kept + record.n_not_chosen + sum(record.skipped.values())
        assert 0 < len(kept) == record.settings["n_picked"]
    assert len(asked) == len(set(asked)) == 12
    with pytest.raises(TrlRealError, match="4 every pair is labelled already"):
        selector.select(pool, 1, history=history)


@pytest.mark.parametrize("name", SELECTORS)
def test_ready_pairs_are_taken_as_a_pool_of_two(name):
    rows = [{"prompt": row["prompt"], "two": row["responses"][:2]} for row in pool_of()]
    ready = [{"prompt": row["prompt"], "response_a": row["two"][0], "response_b": row["two"][1]} for row in rows]
    given = Dataset.from_list(ready), Dataset.from_list(rows).rename_column("two", "responses")
    kept, expected = (SELECTORS[name]().select(pool, 2) for pool in given)
    assert kept["prompt"][:] == expected["prompt"][:] and kept["response_a"][:] == expected["response_a"][:]


@pytest.mark.parametrize("name", ["gradient", "infomax", "uncertainty"])
@pytest.mark.parametrize("form", ["numpy", "torch", "messages"])
def test_columns_formats_and_messages_are_kept(name, form):
    pool = pool_of().add_column("mine", list(range(6)))
    if form == "messages":
        as_messages = lambda row: {  # noqa: E731
            "prompt": [{"role": "user", "content": row["prompt"]}],
            "responses": [[{"role": "assistant", "content": text}] for text in row["responses"]],
        }
        given = pool.map(as_messages)
    else:
        given = pool.with_format(form)
    kept = SELECTORS[name]().select(given, 4)
    assert kept.format["type"] == given.format["type"] and len(kept) == 4
    plain = kept.with_format(None)
    assert plain.column_names == [
        *pool.column_names,
        "pair",
        "response_a",
        "response_b",
        "similarity",
        "skipped",
        "uncertainty",
    ]
    for row in plain:
        source = pool[row["mine"]]
        assert [source["responses"][i] for i in row["pair"]] == [row["response_a"], row["response_b"]]
        assert row["skipped"] == ""
    again = SELECTORS[name]().select(kept, 2)  # over the columns of an earlier run
    assert again.column_names == kept.column_names
    history = labels(kept)
    assert not set(picked(SELECTORS[name]().select(given, 2, history=history))) & set(picked(kept))


@pytest.mark.parametrize("name", SELECTORS)
def test_t11_t12_rows_without_a_pair_are_skipped_with_their_reason(name):
    usable = pool_of(3)
    odd = [[], ["one"], ["same", " same "], ["", "  "], [None, "one"], ["two", "", "three", "two"]]
    rows = list(usable) + [{"prompt": f"odd {i}", "responses": r, "scores": [0.0] * len(r)} for i, r in enumerate(odd)]
    selector = SELECTORS[name]()
    kept = selector.select(Dataset.from_list(rows), 1.0)
    assert len(kept) == 4 and np.isfinite(kept["uncertainty"][:]).all()
    record = selector.record
    assert record.skipped == {
        "fewer than two responses": 2, "identical responses": 1, "empty response": 1, "missing response": 1
    }  # fmt: skip
    assert record.n_rows == 9 == record.n_kept + record.n_not_chosen + 5
    assert record.settings["n_picked"] == 4 and record.settings["n_candidates"] == 10
    assert json.loads(json.dumps(record.to_dict())) == record.to_dict()
    assert set(record.settings["lengths"]) == {"picked", "pool"} and record.tokens > 0
    assert record.settings["dtype"] == "float32"  # also where none was given


def test_pool_of_skipped_rows_gives_no_pairs():
    empty = Dataset.from_list([{"prompt": "x", "responses": ["one"]}])
    for make in (gradient, head, lambda: margin("certainty")):
        kept = make().select(empty, 0.5)
        assert len(kept) == 0 and "uncertainty" in kept.column_names
        with pytest.raises(TrlRealError, match="no row has a pair to pick: 1 fewer than two"):
            make().select(empty, 1)
        assert len(make().select(empty.select([]), 1.0)) == 0


SCRIPT = """
import sys; sys.path.insert(0, sys.argv[1])
import torch; torch.set_num_threads(1)
from support.project import TESTS
from support.active_selectors import gradient, head, labels, margin, picked, pool_of, shuffled
print([[p, sorted(t)] for p, t in picked(gradient().select(pool_of(), 5)) + picked(head("dts").select(pool_of(), 5))])
"""


def test_t13_another_process_picks_the_same_with_any_hash_seed():
    here = picked(gradient().select(pool_of(), 5)) + picked(head("dts").select(pool_of(), 5))
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    command = [sys.executable, "-c", SCRIPT, str(TESTS)]
    there = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    assert there.strip().splitlines()[-1] == str([[prompt, sorted(texts)] for prompt, texts in here])


def test_an_adapter_and_a_model_are_loaded_by_path(tmp_path):
    base = save_tiny(tmp_path / "base")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        lora = LoraConfig(r=3, target_modules=["q_proj", "up_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
        model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), lora)
    model.save_pretrained(tmp_path / "adapter")
    pool, path = pool_of(), str(tmp_path / "adapter")
    by_path = GradientPairSelector(path, projection_dim=256, ridge=RIDGE)
    assert picked(by_path.select(pool, 4)) == picked(gradient(model).select(pool, 4))
    assert path.endswith(by_path.record.model) and by_path.record.revision.startswith("sha256:")
    with pytest.raises(TrlRealError, match="get_peft_model"):
        GradientPairSelector(base).select(pool, 1)
    loaded = margin("certainty", model).select(pool, 4)
    assert picked(MarginPairSelector(path, strategy="certainty").select(pool, 4)) == picked(loaded)
    other = MarginPairSelector(path, reference=base, strategy="certainty")
    assert picked(other.select(pool, 4)) == picked(loaded) and other.record.settings["reference"] == "base"
    with pytest.raises(TrlRealError, match="Give reference="):
        MarginPairSelector(base).select(pool, 1)


def test_mistakes_get_a_one_line_error():
    pool = pool_of()
    for budget, said in ((None, "budget=None"), (0, "budget=0"), (1.5, "out of range"), (19, "Type budget=18")):
        with pytest.raises(TrlRealError, match=said):
            gradient().select(pool, budget)
    with pytest.raises(MissingColumnError, match="rename_column\\('completions', 'responses'\\)"):
        gradient().select(pool.rename_column("responses", "completions"), 1)
    with pytest.raises(TrlRealError, match="select takes one split"):
        gradient().select(DatasetDict(train=pool), 1)
    with pytest.raises(TrlRealError, match="one row at a time"):
        gradient().select(pool.to_iterable_dataset(), 1)
    with pytest.raises(TrlRealError, match="'my_uncertainty'"):
        gradient().select(pool.add_column("uncertainty", [0.0] * 6), 1)
    with pytest.raises(MissingColumnError, match="labelled pairs"):
        gradient().select(pool, 1, history=pool)
    with pytest.raises(TrlRealError, match="history is a list"):
        gradient().select(pool, 1, history=[])
    for make, said in (
        (lambda: gradient(tiny_model()), "get_peft_model"),
        (lambda: gradient(normalize="token"), "No normalisation"),
        (lambda: gradient(ridge=0), "ridge=0"),
        (lambda: gradient(seed=0.5), "seed="),
        (lambda: margin("best"), "No strategy"),
        (lambda: margin("certainty", tiny_model()), "reference="),
        (lambda: head("best"), "No acquisition"),
        (lambda: head(geometry="flat"), "No geometry"),
        (lambda: head(ridge=-1), "ridge=-1"),
    ):
        with pytest.raises(TrlRealError, match=said):
            make()


def test_spaces_and_missing_fields_create_no_new_pair_and_prompts_are_optional():
    rows = [{"prompt": [{"role": "user", "content": "Tea?"}], "responses": [" Boil it.", "Stew it.", "Let it stand."]}]
    history = {
        "prompt": [{"content": "Tea?", "role": "user", "name": None}],
        "chosen": [{"role": "assistant", "content": "Stew it. "}],
        "rejected": [{"role": "assistant", "content": "Boil it."}],
    }
    for make in (gradient, head, lambda: margin("certainty")):
        selector = make()
        selector.select(Dataset.from_list(rows), 1, history=Dataset.from_list([history]))
        assert selector.record.settings["n_candidates"] == 2 and selector.record.settings["n_history"] == 1
    bare = pool_of().remove_columns("prompt")
    assert len(gradient(max_per_prompt=1).select(bare, 6)) == 6
    assert len(head(context="response").select(bare, 6)) == 6


def test_cached_truncated_texts_are_counted():
    pool, selector = pool_of(4), head(ridge=1.0, max_length=4)
    first = selector.select(pool, 1)
    n_truncated = selector.record.n_truncated
    selector.select(pool, 1, history=labels(first))
    assert selector.record.n_truncated == n_truncated > 0 == selector.record.tokens


@pytest.mark.parametrize("name", ACQUISITIONS)
def test_row_order_does_not_matter_with_a_weak_prior(name):
    pool = pool_of(30)
    once, again = (head(name, ridge=1e-6).select(rows, 5) for rows in (pool, pool.select(range(29, -1, -1))))
    assert picked(once) == picked(again)


ASKED = [{"role": "user", "content": "Tea?"}]


@pytest.mark.parametrize("prompt", [None, "Tea?", ASKED], ids=["no prompt", "text", "messages"])
@pytest.mark.parametrize("before", [None, [], ASKED], ids=["texts", "messages", "whole dialogues"])
def test_labelled_pair_is_recognized_in_every_form(prompt, before):
    texts = ["The tea boils", "The tea stews", "The pot"]
    said = texts if before is None else [[*before, {"role": "assistant", "content": text}] for text in texts]
    pool = Dataset.from_list([{"prompt": prompt, "responses": said, "scores": [2.0, 1.0, 0.0]}])
    selector, history, asked = head(ridge=1.0, context="response"), None, []
    for _ in range(3):
        kept = selector.select(pool, 1, history=history)
        asked += picked(kept)
        new = labels(kept)
        history = new if history is None else Dataset.from_list([*history, *new])
    assert len(set(asked)) == 3
    with pytest.raises(TrlRealError, match="1 every pair is labelled already"):
        selector.select(pool, 1, history=history)


def test_labelled_rows_that_hold_no_pair_are_counted():
    history = Dataset.from_list([{"prompt": "x", "chosen": "same", "rejected": "same"}])
    selector = gradient()
    selector.select(pool_of(), 1, history=history)
    assert selector.record.settings["n_history"] == 0 and selector.record.settings["history_unread"] == 1


def test_stale_coordinates_are_not_reused():
    pool = pool_of(3)
    prints = []
    for model in (adapted(), adapted(seed=5), adapted(r=4)):
        selector = gradient(model)
        selector.select(pool, 1)
        prints.append(selector.record.settings["fingerprint"])
    assert prints[0] == prints[1] != prints[2]
    made = GradientFeatures(adapted(), tiny_tokenizer(), GradientOptions(projection_dim=256))
    assert made.projection.fingerprint == prints[0]
