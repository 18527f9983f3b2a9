"""Active selectors: what all of them guarantee, and what each of them picks (T8-T13 of the list)."""

import json
import os
import random
import subprocess
import sys

import numpy as np
import pytest
import torch
from datasets import Dataset, DatasetDict
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from support.active_selectors import RIDGE, adapted, gradient, head, picked, pool_of, words
from support.project import TESTS
from support.tiny import save_tiny, tiny_model, tiny_tokenizer
from trl_real.errors import MissingColumnError, TrlRealError
from trl_real.functional.bayesian_head import ACQUISITIONS, fit_head
from trl_real.functional.design import greedy_design, pair_features
from trl_real.hub.card import render_section
from trl_real.labeling.annotate import annotate
from trl_real.labeling.judges import ScoreJudge
from trl_real.models.adapters import adapter_parameters
from trl_real.models.embed import EmbedderOptions
from trl_real.models.encoder import Encoder
from trl_real.models.gradients import GradientFeatures, GradientOptions
from trl_real.models.log_probs import ResponseLogProbs
from trl_real.selection.active.gradient import GradientPairSelector, PairRows
from trl_real.selection.active.head import HeadPairSelector
from trl_real.selection.active.margin import MarginPairSelector


pytestmark = pytest.mark.usefixtures("one_thread")


def margin(strategy, model=None, **settings):
    model = adapted() if model is None else model
    return MarginPairSelector(model, strategy=strategy, tokenizer=tiny_tokenizer(), **settings)


SELECTORS = {
    "gradient": gradient,
    "gradient, by pair": lambda **k: gradient(normalize="pair", **k),
    "gradient, not normalised": lambda **k: gradient(normalize=None, **k),
    **{name: lambda name=name, **k: head(name, **k) for name in ACQUISITIONS},
    "certainty": lambda **k: margin("certainty", **k),
    "uncertainty": lambda **k: margin("uncertainty", **k),
    "certainty, fresh": lambda **k: margin("certainty", adapted(init_lora_weights=True), **k),
}


def shuffled(pool, seed=0):
    rng, rows = random.Random(seed), list(pool)
    for row in rows:
        order = rng.sample(range(len(row["responses"])), len(row["responses"]))
        row["responses"], row["scores"] = ([row[name][i] for i in order] for name in ("responses", "scores"))
    rng.shuffle(rows)
    return Dataset.from_list(rows)


def labels(kept):
    return annotate(kept, ScoreJudge("scores"))


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


def test_pool_of_skipped_rows_gives_no_pairs():
    empty = Dataset.from_list([{"prompt": "x", "responses": ["one"]}])
    for make in (gradient, head, lambda: margin("certainty")):
        kept = make().select(empty, 0.5)
        assert len(kept) == 0 and "uncertainty" in kept.column_names
        with pytest.raises(TrlRealError, match="no row has a pair to pick: 1 fewer than two"):
            make().select(empty, 1)
        assert len(make().select(empty.select([]), 1.0)) == 0


def naive_gradients(model, pool):
    """Whole normalised gradients of every response, by autograd."""
    tokenizer, named, found = tiny_tokenizer(), adapter_parameters(model), {}
    for parameter in named.values():
        parameter.requires_grad_(True)
    for row in pool:
        for text in row["responses"]:
            ids = tokenizer(row["prompt"] + text + tokenizer.eos_token)["input_ids"]
            start = len(tokenizer(row["prompt"])["input_ids"])
            table = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
            value = sum(table[t - 1, ids[t]] for t in range(start, len(ids)))
            flat = torch.cat([g.flatten() for g in torch.autograd.grad(value, list(named.values()))])
            found[row["prompt"], text] = flat.double() / flat.double().norm()
    return found


def test_t7_picks_equal_an_explicit_inverse_on_autograd_gradients():
    pool, model = pool_of(), adapted()
    selector = gradient(model, projection_dim=None, projection=None)
    history = labels(selector.select(pool, 4))
    kept = selector.select(pool, 6, history=history)
    g = naive_gradients(model, pool)
    prompts = [row["prompt"] for row in pool]
    candidates = {
        (row["prompt"], frozenset((a, b))): g[row["prompt"], a] - g[row["prompt"], b]
        for row in pool for i, a in enumerate(row["responses"]) for b in row["responses"][:i]
    }  # fmt: skip
    v = RIDGE * torch.eye(len(next(iter(g.values()))), dtype=torch.float64)
    for row in history:
        assert row["prompt"] in prompts
        phi = candidates.pop((row["prompt"], frozenset((row["chosen"], row["rejected"]))))
        v += torch.outer(phi, phi)
    for row in kept:
        inverse = torch.linalg.inv(v)
        scores = {key: float(phi @ inverse @ phi) for key, phi in candidates.items()}
        best = max(scores, key=scores.get)
        assert best == (row["prompt"], frozenset((row["response_a"], row["response_b"])))
        assert row["uncertainty"] == pytest.approx(scores[best], rel=1e-3)
        a, b = (g[row["prompt"], row[side]] for side in ("response_a", "response_b"))
        assert row["similarity"] == pytest.approx(float(a @ b), abs=1e-3)
        phi = candidates.pop(best)
        v += torch.outer(phi, phi)


def test_t8_copies_of_a_candidate_are_not_picked_again():
    pool = pool_of(12, 2)
    fivefold = Dataset.from_list([row for row in pool for _ in range(5)])
    selector = gradient(projection_dim=None, projection=None, ridge=0.05)
    kept = selector.select(fivefold, 10)
    assert len(set(picked(kept))) == 10
    assert kept["uncertainty"][0] == max(kept["uncertainty"]) and np.all(np.diff(kept["uncertainty"][:]) <= 1e-6)
    first = {
        key: selector.select(Dataset.from_list([row]), 1)["uncertainty"][0]
        for key, row in zip(map(str, range(12)), pool, strict=True)
    }
    best_two = sorted(first.values())[-2:]
    assert sum(value >= best_two[0] for value in first.values() for _ in range(5)) == 10  # what one look would pick


@pytest.mark.parametrize("normalize", ["pair", None])
def test_pair_and_response_differences_pick_the_same(normalize):
    pool = pool_of(8, 2)
    selector = gradient(normalize=normalize)
    whole = selector.select(pool, 5)
    assert np.isnan(whole["similarity"][:]).all()
    selector._pairs_are_cheaper = lambda pool: False
    apart = selector.select(pool, 5)
    assert picked(whole) == picked(apart)
    np.testing.assert_allclose(whole["uncertainty"][:], apart["uncertainty"][:], rtol=1e-4)
    history = labels(whole)
    del selector._pairs_are_cheaper
    assert not set(picked(selector.select(pool, 3, history=history))) & set(picked(whole))


def test_t11_responses_truncated_to_the_same_text_come_last():
    rows = list(pool_of(3, 2)) + [{"prompt": "p", "responses": ["the same start A", "the same start B"]}]
    kept = gradient(max_length=3).select(Dataset.from_list(rows), 1.0)
    assert kept["prompt"][-1] == "p" and kept["uncertainty"][-1] == 0 and min(kept["uncertainty"][:3]) > 0


def test_pair_rows_act_as_a_feature_tensor():
    generator = torch.Generator().manual_seed(0)
    vectors, ends = torch.randn(40, 16, generator=generator), torch.randint(40, (9000, 2), generator=generator)
    for normalize in ("response", "pair", None):
        dense = pair_features(vectors[ends[:, 0]], vectors[ends[:, 1]], normalize)
        lazy = PairRows(vectors, ends, normalize)
        assert torch.equal(torch.cat(list(lazy.split(4096))), dense) and torch.equal(lazy[7], dense[7])
        for k in (12, 40):  # beyond d, too
            found, expected = greedy_design(lazy, k, history=dense[:3]), greedy_design(dense, k, history=dense[:3])
            assert torch.equal(found.indices, expected.indices) and torch.equal(found.scores, expected.scores)


def test_prompt_gives_at_most_the_allowed_pairs():
    pool = pool_of(4, 4)
    twice = Dataset.from_list([*pool, *pool.select([0])])  # a prompt of two rows
    for make in (gradient, lambda **k: margin("certainty", **k)):
        kept = make(max_per_prompt=1).select(twice, 4)
        assert len(set(kept["prompt"])) == 4
        with pytest.raises(TrlRealError, match="4 can be picked with 1 a prompt at most. Type budget=4."):
            make(max_per_prompt=1).select(twice, 5)
        assert len(make().select(twice, 20)) == 20
        with pytest.raises(TrlRealError, match="max_per_prompt=0"):
            make(max_per_prompt=0)


def test_long_responses_have_long_gradients_and_the_record_shows_it():
    rows = [{"prompt": f"Q{i}", "responses": [words(f"{i}{j}", 4 + 2 * i) for j in range(3)]} for i in range(10)]
    pool = Dataset.from_list(rows)
    meter, fair = gradient(normalize=None), gradient()
    meter.select(pool, 6)
    fair.select(pool, 6)
    raw, normalised = (s.record.settings["lengths"] for s in (meter, fair))
    assert raw["picked"]["mean"] > 1.2 * raw["pool"]["mean"] and raw["pool"] == normalised["pool"]
    assert normalised["picked"]["mean"] < raw["picked"]["mean"]
    told = f"median {raw['picked']['median']:.0f} picked, {raw['pool']['median']:.0f} pool"
    assert told in meter.record.summary() and "pairs: 6 of 30 picked" in meter.record.summary()
    assert "pairs picked in the kept rows" in render_section(meter.record, "raw", "user/subset", {"train": 6})


SCRIPT = """
import sys; sys.path.insert(0, sys.argv[1])
import torch; torch.set_num_threads(1)
from support.project import TESTS
from support.active_selectors import gradient, head, picked, pool_of
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


def test_margins_are_those_of_the_implicit_reward():
    pool, model = pool_of(), adapted()
    prompts = [row["prompt"] for row in pool for _ in row["responses"]]
    texts = [text for row in pool for text in row["responses"]]
    rewards = ResponseLogProbs(model, tiny_tokenizer())(prompts, texts).sums
    rewards -= ResponseLogProbs(tiny_model(), tiny_tokenizer())(prompts, texts).sums
    known = dict(zip(zip(prompts, texts, strict=True), rewards.tolist(), strict=True))
    needed = {name: p.requires_grad for name, p in model.named_parameters()}
    kept = margin("certainty", model.train()).select(pool, 18)
    assert needed == {name: p.requires_grad for name, p in model.named_parameters()} and model.training
    found = [known[row["prompt"], row["response_a"]] - known[row["prompt"], row["response_b"]] for row in kept]
    np.testing.assert_allclose(np.abs(found), -np.array(kept["uncertainty"][:]), rtol=1e-4, atol=1e-4)
    assert np.all(np.diff(np.abs(found)) < 2e-3)
    assert picked(margin("uncertainty", model).select(pool, 18))[::-1] == picked(kept)


def test_fresh_adapter_picks_by_seed_and_content():
    pool, fresh = pool_of(30, 2), adapted(init_lora_weights=True)
    kept = margin("certainty", fresh).select(pool, 10)
    assert (np.array(kept["uncertainty"][:]) == 0).all()
    assert picked(kept) == picked(margin("uncertainty", fresh).select(shuffled(pool), 10))
    assert picked(kept) != picked(margin("certainty", fresh, seed=1).select(pool, 10))
    assert kept["prompt"][:] != pool["prompt"][:10]


def test_infomax_takes_the_rows_and_pairs_with_the_largest_variance():
    pool, selector = pool_of(), head(ridge=2.0)
    history = labels(selector.select(pool, 3))
    kept = selector.select(pool, 4, history=history)
    encoder = Encoder(tiny_model(), tiny_tokenizer(), options=EmbedderOptions("prompt+response"))
    vectors = {row["prompt"]: encoder([row["prompt"]] * 3, row["responses"]).vectors.double() for row in pool}
    spread = torch.cat([v - v.mean(0) for v in vectors.values()]).std(0)
    f = {
        (row["prompt"], t): v / spread
        for row in pool
        for t, v in zip(row["responses"], vectors[row["prompt"]], strict=True)
    }
    sides = [torch.stack([f[row["prompt"], row[side]] for row in history]) for side in ("chosen", "rejected")]
    posterior = fit_head(*sides, ridge=2.0)
    best = {}
    for row in pool:
        for i, a in enumerate(row["responses"]):
            for b in row["responses"][:i]:
                key = (row["prompt"], frozenset((a, b)))
                if key not in {(r["prompt"], frozenset((r["chosen"], r["rejected"]))) for r in history}:
                    value = float(posterior.differences(f[row["prompt"], a][None], f[row["prompt"], b][None])[1])
                    best[row["prompt"]] = max(best.get(row["prompt"], (0, None)), (value, key), key=lambda x: x[0])
    expected = sorted(best.values(), key=lambda x: -x[0])[:4]
    assert [key for _, key in expected] == picked(kept)
    np.testing.assert_allclose([value for value, _ in expected], kept["uncertainty"][:], rtol=1e-3)


def test_the_head_runs_the_model_once_and_takes_a_function_and_confidences():
    selector, pool = head(), pool_of()
    history = labels(selector.select(pool, 3))
    assert selector.record.tokens > 0 and selector.record.settings["context"] == "prompt+response"
    selector.select(pool, 3, history=history)
    assert selector.record.tokens == 0
    seen = []

    def own(means, covariances, draws):
        seen.append(means)
        return covariances.new_zeros(len(means), 3)

    assert len(head(own).select(pool, 2, history=history)) == 2
    doubtful = history.remove_columns("label_confidence").add_column("label_confidence", [0.5] * 3)
    head(own).select(pool, 2, history=doubtful)
    assert seen[0].abs().max() > 1e-4 > seen[1].abs().max()  # a coin teaches nothing
    with pytest.raises(TrlRealError, match="must return a tensor"):
        head(lambda means, covariances, draws: means).select(pool_of(3, 4), 2)


def test_the_head_takes_embeddings_as_they_come():
    generator = np.random.default_rng(0)
    pool = pool_of().add_column("embeddings", list(generator.normal(size=(6, 3, 5)).tolist()))
    selector = HeadPairSelector(ridge=1.0)
    kept = selector.select(pool, 3)
    history = labels(kept)
    more = selector.select(pool.with_format("numpy"), 3, history=history)
    assert not set(picked(kept)) & set(picked(more)) and selector.record.model == "column 'embeddings'"
    foreign = Dataset.from_list([{"prompt": "new", "chosen": "a", "rejected": "b"}])
    with pytest.raises(TrlRealError, match="2 responses in the history"):
        HeadPairSelector().select(pool, 1, history=foreign)
    with pytest.raises(MissingColumnError, match="Give HeadPairSelector a model"):
        HeadPairSelector().select(pool_of(), 1)
    rows = list(pool)
    rows[0]["embeddings"][1][2] = float("nan")
    rows[1]["embeddings"] = None
    selector = HeadPairSelector()
    assert len(selector.select(Dataset.from_list(rows), 1.0)) == 5
    assert selector.record.skipped == {"embedding not finite": 1}


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
