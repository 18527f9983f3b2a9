"""Tests of a plan: it estimates the cost of a selection from a sample, and neither loads weights nor writes."""

import json
from itertools import combinations

import numpy as np
import pytest
from datasets import Dataset

from support.tiny import save_tiny, tiny_model, tiny_tokenizer
from trl_real import EmbeddingPairSelector, TrlRealError
from trl_real.cli.main import main
from trl_real.selection.planning.hardware import HARDWARE
from trl_real.selection.planning.plan import PLAN_SAMPLE, plan_selection, sampled_rows, total_of
from trl_real.selection.planning.plan_record import Estimate, shown_bytes, shown_seconds


H100 = {"hardware": "h100"}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("plan") / "model")


def pool(n: int, seed: int = 0) -> Dataset:
    """Rows of two to four responses of very different lengths; every seventh has no pair."""
    rng = np.random.default_rng(seed)
    rows = []
    for i in range(n):
        texts = [f"{i} {k} " + "tea " * int(rng.lognormal(1, 0.8)) for k in range(rng.integers(2, 5))]
        rows.append({"prompt": f"question {i}", "responses": ["same", "same"] if i % 7 == 6 else texts})
    return Dataset.from_list(rows)


@pytest.mark.parametrize(
    "settings", [{}, {"max_length": 8}, {"context": "prompt+response"}, {"include_eos": True}], ids=str
)
def test_plan_of_a_small_pool_equals_the_cost_of_the_selection(model, settings, one_thread):
    selector = EmbeddingPairSelector(model, **settings)
    rows = pool(40)
    plan = plan_selection(selector, rows, 0.5, **H100)
    kept = selector.select(rows, 0.5)
    record = selector.record
    assert plan.tokens == (record.tokens, 0) and plan.responses == (record.n_responses, 0)
    assert plan.pairs.value == record.n_rows - sum(record.skipped.values())
    assert plan.labels == len(kept) == record.n_kept
    assert plan.truncation_rate == pytest.approx(record.truncation_rate)
    assert f"{record.tokens:,}" in plan.summary() and "every row read" in plan.summary()


def test_the_work_folder_has_a_fixed_size_a_row_and_both_texts_of_each_pair(model):
    rows = Dataset.from_list([{"prompt": "p", "responses": ["a" * i, "b" * i]} for i in range(1, 31)])
    plan = plan_selection(EmbeddingPairSelector(model), rows, **H100)
    assert plan.folder_bytes == 30 * 64 + sum(2 * i for i in range(1, 31))


def test_standard_error_covers_the_true_value():
    rng = np.random.default_rng(0)
    values = rng.lognormal(3, 1, 20_000)
    found = [total_of(values[sampled_rows(len(values), seed)], len(values)) for seed in range(400)]
    covered = np.mean([abs(each.value - values.sum()) < 1.96 * each.error for each in found])
    assert 0.91 <= covered <= 0.98
    spread = np.std([each.value for each in found])
    assert np.mean([each.error for each in found]) == pytest.approx(spread, rel=0.15)


def test_squared_standard_error_is_unbiased_over_all_draws():
    values = [1.0, 2.0, 4.0, 8.0, 16.0]
    for n in (2, 3, 4):
        found = [total_of(drawn, 5) for drawn in combinations(values, n)]
        assert np.mean([each.error**2 for each in found]) == pytest.approx(np.var([each.value for each in found]))


def test_sampling_error_is_zero_for_the_whole_pool():
    values = np.arange(2000.0)
    errors = [total_of(values[:n], 2000).error / values[:n].std(ddof=1) for n in (100, 1000, 1999)]
    assert errors[0] > errors[1] > errors[2] > 0 and total_of(values, 2000) == (values.sum(), 0)
    rows = sampled_rows(5000, 1)
    assert len(set(rows)) == PLAN_SAMPLE and (np.diff(rows) > 0).all()
    assert (rows == sampled_rows(5000, 1)).all() and (rows != sampled_rows(5000, 2)).any()


def test_sample_estimates_the_pool(model):
    rows = pool(3000)
    plan = plan_selection(EmbeddingPairSelector(model), rows, **H100)
    tokenizer = tiny_tokenizer()
    truth = sum(
        sum(map(len, tokenizer(row["responses"])["input_ids"])) for row in rows if len(set(row["responses"])) > 1
    )
    assert plan.n_sample == PLAN_SAMPLE and 0 < plan.tokens.error < 0.05 * truth
    assert abs(plan.tokens.value - truth) < 4 * plan.tokens.error
    assert "estimated from 1,000 rows" in plan.summary()


def test_no_weights_are_needed(tmp_path):
    folder = save_tiny(tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").unlink()
    by_name = plan_selection(EmbeddingPairSelector(folder), pool(20), **H100)
    loaded = EmbeddingPairSelector(tiny_model(), tokenizer=tiny_tokenizer())
    by_model = plan_selection(loaded, pool(20), **H100)
    assert by_name.shape == by_model.shape and by_name.flops == by_model.flops and by_name.tokens == by_model.tokens


def test_more_devices_divide_the_time_and_not_the_cost(model):
    plans = [plan_selection(EmbeddingPairSelector(model), pool(30), **H100, n_devices=n, price=3.0) for n in (1, 8)]
    assert plans[0].compute_seconds.value == pytest.approx(8 * plans[1].compute_seconds.value)
    compute = [plan.compute_seconds.value * plan.n_devices / 3600 * 3.0 for plan in plans]
    assert compute[0] == pytest.approx(compute[1])
    assert plans[1].money == pytest.approx(compute[1] + plans[1].tokenizing / 3600 * 3.0)


def test_half_precision_is_planned_on_its_own_peak(model):
    selectors = (EmbeddingPairSelector(model, dtype=dtype) for dtype in ("float32", "bfloat16"))
    single, half = (plan_selection(selector, pool(20), **H100) for selector in selectors)
    device = HARDWARE["h100"]
    assert single.compute_seconds.value / half.compute_seconds.value == pytest.approx(device.half / device.single)
    assert single.weight_bytes == 2 * half.weight_bytes
    assert "--dtype bfloat16" in single.summary() and "--dtype bfloat16" not in half.summary()
    assert "again in float32" in half.summary() and "again in float32" not in single.summary()


@pytest.mark.parametrize(
    ("strategy", "n_responses", "again"),
    [
        ("easy", 2, "rows near the cut are embedded"),
        ("centroid", 3, "rows near the cut, and rows with two close pairs, are embedded"),
        ("d_optimal", 2, "the rows of the budget and those that compete with them are embedded"),
    ],
)
def test_a_plan_says_which_rows_half_precision_reads_twice(model, strategy, n_responses, again):
    rows = {"prompt": ["a"] * 4, "responses": [[f"text {i} {j}" for j in range(n_responses)] for i in range(4)]}
    selector = EmbeddingPairSelector(model, strategy=strategy, dtype="bfloat16")
    assert again in plan_selection(selector, Dataset.from_dict(rows), 0.5, **H100).summary()


def test_random_and_given_embeddings_run_no_model():
    plan = plan_selection(EmbeddingPairSelector(strategy="random"), pool(20), 5, price_per_label=2.0)
    assert plan.tokens == plan.flops == (0, 0) and plan.seconds == plan.money == 0
    assert plan.labels == 5 and plan.label_money == 10
    assert "model: none" in plan.summary() and "10.00 USD at 2 per label" in plan.summary()
    rows = Dataset.from_dict({"prompt": ["p"], "responses": [["a", "b"]], "embeddings": [[[1.0], [2.0]]]})
    assert plan_selection(EmbeddingPairSelector(), rows).model is None


def test_budget_that_needs_vectors_keeps_them(model):
    sizes = [
        plan_selection(EmbeddingPairSelector(model, strategy=name), pool(14), **H100) for name in ("easy", "d_optimal")
    ]
    assert sizes[1].folder_bytes - sizes[0].folder_bytes == 12 * 32 * 4
    given = pool(14).map(lambda row: {"embeddings": [[0.5] * 48] * len(row["responses"])})
    sizes = [plan_selection(EmbeddingPairSelector(strategy=name), given) for name in ("easy", "d_optimal")]
    assert sizes[1].folder_bytes - sizes[0].folder_bytes == 12 * 48 * 4


def test_a_budget_that_the_selection_would_refuse_is_refused():
    selector = EmbeddingPairSelector(strategy="random")
    for budget, message in ((13, "only 12 rows have a pair. Type budget=12"), (0.01, "of 12 rows .* is 0 rows")):
        for refuse in (plan_selection, EmbeddingPairSelector.select):
            with pytest.raises(TrlRealError, match=message):
                refuse(selector, pool(14), budget)
    rows = pool(PLAN_SAMPLE + 10)  # of which a sample does not know that there are too few
    assert plan_selection(selector, rows, len(rows)).labels == pytest.approx(len(rows) * 6 / 7, rel=0.05)


def test_weights_that_do_not_fit_are_reported(model):
    small = HARDWARE["l4"]._replace(memory=1e4)
    plan = plan_selection(EmbeddingPairSelector(model), pool(10), hardware=small)
    assert "they do NOT fit" in plan.summary()


def test_labelled_pairs_can_be_planned(model):
    rows = Dataset.from_list([{"prompt": f"p {i}", "chosen": f"yes {i}", "rejected": "no"} for i in range(6)])
    plan = plan_selection(EmbeddingPairSelector(model), rows, **H100)
    assert plan.pairs == (6, 0) and plan.responses == (12, 0) and plan.text_bytes == (0, 0)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"hardware": "tpu"}, "No hardware 'tpu'"),
        ({"n_devices": 0}, "n_devices=0 is not positive"),
        ({"price": -1.0}, "price=-1.0 is not a price"),
        ({"price_per_label": float("nan")}, "price_per_label=nan is not a price"),
    ],
)
def test_numbers_out_of_range_get_a_one_line_error(model, settings, message):
    with pytest.raises(TrlRealError, match=message):
        plan_selection(EmbeddingPairSelector(model), pool(3), **settings)


def test_unsupported_plans_are_reported(model):
    class Encoder:
        def encode(self, texts):
            return np.zeros((len(texts), 2))

    with pytest.raises(TrlRealError, match="the model is of class Encoder"):
        plan_selection(EmbeddingPairSelector(Encoder()), pool(3), **H100)
    with pytest.raises(TrlRealError, match="The dataset is empty"):
        plan_selection(EmbeddingPairSelector(model), pool(3).select([]), **H100)
    long = Dataset.from_dict({"prompt": ["p"], "responses": [["tea " * 900, "tea"]]})
    with pytest.raises(TrlRealError, match="but the model reads 512. Type max_length=512"):
        plan_selection(EmbeddingPairSelector(model, max_length=10_000), long, **H100)


def test_the_command_writes_nothing_and_needs_no_output_dir(tmp_path, model, capsys, monkeypatch):
    pool(20).to_parquet(str(tmp_path / "pool.parquet"))
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    argv = ["select", "--plan", "--dataset", "pool.parquet", "--model", model, "--budget", "0.5"]
    assert main([*argv, "--hardware", "h100", "--n_devices", "8", "--price", "2", "--price_per_label", "0.5"]) == 0
    out, err = capsys.readouterr()
    assert "8 x H100" in out and "at 2 per device and hour" in out and "labels: 9; 4.50 USD at 0.5 per label" in out
    assert "assumptions, not measured" in out and "Next:" not in err
    assert main([*argv, "--hardware", "h100", "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert values["labels"] == 9 and values["seconds"] > 0 and values["hardware"]["price"] == values["price"] == 2.5
    assert sorted(tmp_path.rglob("*")) == before


def test_on_this_cpu_the_rate_is_measured(tmp_path, model, capsys, one_thread):
    pool(10).to_parquet(str(tmp_path / "pool.parquet"))
    assert main(["select", "--plan", "--dataset", str(tmp_path / "pool.parquet"), "--model", model]) == 0
    assert "this CPU (threads: 1" in capsys.readouterr().out


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--hardware", "abacus"], "No hardware 'abacus'; there are cpu, l4, rtx4090, a100, h100, h200."),
        (["--source", "diary"], "No source 'diary'"),
        (["--model", "nowhere/"], "No config of a causal LM in 'nowhere/'"),
    ],
)
def test_mistake_gets_a_one_line_error(tmp_path, model, capsys, flags, message):
    pool(10).to_parquet(str(tmp_path / "pool.parquet"))
    argv = ["select", "--plan", "--dataset", str(tmp_path / "pool.parquet"), "--model", model, *flags]
    assert main(argv) == 2
    out, err = capsys.readouterr()
    assert out == "" and message in err and "Traceback" not in err


def test_amounts_are_shown_in_units():
    assert shown_bytes(12) == "12 bytes" and shown_bytes(1.5e9) == "1.5 GB"
    assert shown_seconds(5) == "5 s" and shown_seconds(7200) == "2 h" and shown_seconds(90 * 86400) == "90 days"
    assert str(Estimate(1234.4, 0)) == "1,234" and str(Estimate(1234.4, 12)) == "1,234 (+- 12)"
