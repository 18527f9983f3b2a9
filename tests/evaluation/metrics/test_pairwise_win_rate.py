"""Tests of the metric folder `pairwise_win_rate`: it loads offline and equals the function."""

import pickle
import socket
from pathlib import Path

import numpy as np
import pytest
import torch

import trl_real
from trl_real.errors import TrlRealError
from trl_real.functional.statistics.intervals import INTERVALS
from trl_real.functional.statistics.people import people_win_rate
from trl_real.functional.statistics.win_rate import win_rate


FOLDER = Path(trl_real.__file__).parent / "evaluation" / "metrics" / "pairwise_win_rate"
PREFERENCES = [1.0, 0.0, 0.5, 0.7, 1.0, 0.1]
OPTIONAL = {
    "clusters": ["a", "a", "b", "b", "c", "c"],
    "lengths": [10, 30, 20, 60, 40, 50],
    "baseline_lengths": [20, 20, 20, 20, 60, 70],
}


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("the metric went to the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture
def load(monkeypatch, tmp_path):
    import evaluate

    monkeypatch.setattr(evaluate.config, "HF_EVALUATE_OFFLINE", True)
    monkeypatch.setattr(evaluate.config, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    return lambda **options: evaluate.load(str(FOLDER), cache_dir=str(tmp_path / "metrics"), **options)


@pytest.fixture
def metric(load):
    return load()


def test_equals_the_function(metric):
    assert metric.name == "pairwise_win_rate"
    assert metric.compute(preferences=PREFERENCES) == win_rate(PREFERENCES)
    assert same(metric.compute(preferences=PREFERENCES, **OPTIONAL), win_rate(PREFERENCES, **OPTIONAL))
    narrow = metric.compute(preferences=PREFERENCES, clusters=OPTIONAL["clusters"], confidence=0.8)
    assert narrow == win_rate(PREFERENCES, clusters=OPTIONAL["clusters"], confidence=0.8)


def same(one, other):
    """Equal, NaN included."""
    return repr(one) == repr(other)


def test_options_equal_those_of_the_function(metric):
    preferences = np.random.default_rng(0).uniform(size=40).tolist()
    drawn = metric.compute(preferences=preferences, method="bootstrap", seed=7)
    assert drawn == win_rate(preferences, method="bootstrap", seed=7) and drawn["ci_method"] == "bootstrap"
    assert drawn["ci_low"] != metric.compute(preferences=preferences, method="bootstrap")["ci_low"]
    with pytest.raises(TrlRealError, match="method is 'normal'"):
        metric.compute(preferences=preferences, method="normal")
    with pytest.raises(
        TrlRealError, match="Unknown option 'level'. Besides the columns, use confidence, method, seed"
    ):
        metric.compute(preferences=preferences, level=0.9)
    with pytest.raises(TrlRealError, match="leave difficulty out and use equal_length_win_rate"):
        metric.compute(preferences=PREFERENCES, difficulty=[0.0] * 6, **OPTIONAL)


def test_difficulty_gives_the_figure_of_alpaca_eval(metric):
    pytest.importorskip("sklearn")
    rng = np.random.default_rng(1)
    columns = {
        "preferences": rng.uniform(size=805).tolist(),
        "lengths": rng.integers(1, 2000, 805).tolist(),
        "baseline_lengths": rng.integers(1, 2000, 805).tolist(),
    }
    difficulty = rng.normal(size=805).tolist()
    rates = metric.compute(**columns, difficulty=difficulty)
    assert 0 < rates["length_controlled_win_rate"] < 1
    expected = win_rate(columns.pop("preferences"), **columns, difficulty=difficulty)
    assert rates["length_controlled_win_rate"] == expected["length_controlled_win_rate"]


@pytest.mark.parametrize("optional", [{}, OPTIONAL], ids=["alone", "with optional inputs"])
def test_add_and_add_batch_give_the_same_result(metric, optional):
    expected = win_rate(PREFERENCES, **optional)
    for row, preference in enumerate(PREFERENCES):
        metric.add(preferences=preference, **{name: column[row] for name, column in optional.items()})
    assert same(metric.compute(), expected)
    for rows in (slice(0, 4), slice(4, 6)):
        metric.add_batch(preferences=PREFERENCES[rows], **{name: column[rows] for name, column in optional.items()})
    assert same(metric.compute(), expected)
    metric.add_batch(preferences=PREFERENCES[:4], **{name: column[:4] for name, column in optional.items()})
    rest = {name: column[4:] for name, column in optional.items()}
    assert same(metric.compute(preferences=PREFERENCES[4:], **rest), expected)


def test_none_and_nan_are_failures_not_ties(metric):
    rates = metric.compute(preferences=[1, None, float("nan"), 0.5])
    assert (rates["n_failed"], rates["n_ties"], rates["n_total"]) == (2, 1, 2)
    assert rates["win_rate"] == 0.75


@pytest.mark.parametrize("kind", [np.asarray, torch.tensor], ids=["numpy", "torch"])
def test_arrays_and_tensors_are_lists(metric, kind):
    clusters = [3, 3, 1, 1, 2, 2]
    rates = metric.compute(preferences=kind(PREFERENCES), clusters=kind(clusters), lengths=None)
    expected = win_rate(kind(PREFERENCES).tolist(), clusters=clusters)
    assert rates == pytest.approx(expected)


def test_precision_is_that_of_float64(metric):
    assert metric.compute(preferences=[1 / 3, 1 / 7])["win_rate"] == (1 / 3 + 1 / 7) / 2


def test_ids_that_differ_are_different_prompts(metric):
    ids = [1, "1", "", "null", "None", "a"]
    assert metric.compute(preferences=PREFERENCES, clusters=ids) == win_rate(PREFERENCES)


@pytest.mark.parametrize("in_memory", [False, True])
@pytest.mark.parametrize("inputs", [{}, {"preferences": []}, {"clusters": ["a"]}])
def test_no_rows_raise_a_clear_error(load, inputs, in_memory):
    with pytest.raises(TrlRealError, match="No preferences"):
        load(keep_in_memory=in_memory).compute(**inputs)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"preferences": [0, 2.0]}, "preferences row 1 is 2"),
        ({"preferences": [0, "secret"]}, "preferences row 1 is a str"),
        ({"preferences": [0, 1], "clusters": ["a"]}, "1 clusters came with 2 preferences"),
        ({"preferences": [0, 1], "clusters": ["a", None]}, "clusters row 1 is missing"),
        ({"preferences": [0, 1], "lengths": [1, 2]}, "baseline_lengths"),
        ({"preferences": [0, 1], "lengths": [1, None], "baseline_lengths": [1, 2]}, "lengths row 1 is missing"),
    ],
)
def test_bad_input_is_named_and_leaves_nothing_behind(metric, inputs, message):
    with pytest.raises(TrlRealError, match=message):
        metric.compute(**inputs)
    assert metric.compute(preferences=PREFERENCES) == win_rate(PREFERENCES)


def test_two_processes_rate_all_rows(load):
    from concurrent.futures import ThreadPoolExecutor

    def work(process_id):
        metric = load(num_process=2, process_id=process_id, experiment_id="two", timeout=30)
        rows = slice(3 * process_id, 3 * process_id + 3)
        columns = {name: column[rows] for name, column in OPTIONAL.items()}
        return metric.compute(preferences=PREFERENCES[rows], **columns)

    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(work, (0, 1))
    assert same(first, win_rate(PREFERENCES, **OPTIONAL)) and second is None


def test_metric_can_be_pickled_and_combined(load):
    import evaluate

    assert pickle.loads(pickle.dumps(load())).compute(preferences=[1.0])["win_rate"] == 1
    both = evaluate.combine({"first": load(), "second": load()})
    assert both.compute(preferences=PREFERENCES)["second_n_total"] == 6


def test_card_has_hub_metadata_and_names_every_result_and_option():
    import yaml

    _, header, body = (FOLDER / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    assert {"title", "sdk", "tags", "license"} <= set(yaml.safe_load(header))
    options = ("confidence", "method", "seed", "difficulty", "length_controlled_win_rate")
    for name in (*win_rate(PREFERENCES, **OPTIONAL), *INTERVALS, *options):
        assert f"`{name}`" in body or f'`"{name}"`' in body
    assert "arXiv:2404.04475" in body


def test_card_examples_print_what_they_show(load, monkeypatch, capsys):
    import evaluate

    metric = load()
    monkeypatch.setattr(evaluate, "load", lambda path: metric)
    blocks = (FOLDER / "README.md").read_text(encoding="utf-8").split("```python\n")[1:]
    assert len(blocks) == 3
    for block in blocks:
        code = block.split("```")[0]
        exec(code, {})
        assert capsys.readouterr().out.strip() == code.strip().splitlines()[-1].removeprefix("# ")


def test_imports_are_one_module_a_line_as_evaluate_reads_them():
    lines = (FOLDER / "pairwise_win_rate.py").read_text(encoding="utf-8").splitlines()
    imports = [line for line in lines if line.startswith("import ")]
    assert imports and all("," not in line for line in imports)


PEOPLE = [1.0, None, 0.0, float("nan"), 1.0, 0.5]
CHANCES = [0.5, 0.9, 0.5, 0.4, 0.6, 0.5]


def test_people_make_the_rates_theirs(metric):
    found = metric.compute(preferences=PREFERENCES, people=PEOPLE)
    assert same(found, people_win_rate(PREFERENCES, PEOPLE))
    options = {"clusters": OPTIONAL["clusters"], "inclusion_probabilities": CHANCES}
    found = metric.compute(preferences=PREFERENCES, people=PEOPLE, **options, confidence=0.8, method="t")
    expected = people_win_rate(PREFERENCES, PEOPLE, CHANCES, clusters=options["clusters"], confidence=0.8, method="t")
    assert same(found, expected)
    for judged, vote, chance in zip(PREFERENCES, PEOPLE, CHANCES, strict=True):
        metric.add(preferences=judged, people=vote, inclusion_probabilities=chance)
    assert same(metric.compute(), people_win_rate(PREFERENCES, PEOPLE, CHANCES))


def test_people_who_were_never_asked_are_not_replaced_by_the_judge(metric):
    found = metric.compute(preferences=PREFERENCES, people=[None] * 6)
    assert np.isnan(found["win_rate"]) and found["n_total"] == 0 and found["judge_win_rate"] == np.mean(PREFERENCES)


def test_people_in_some_batches_only_or_with_what_is_not_theirs_are_refused(metric):
    metric.add_batch(preferences=PREFERENCES, people=PEOPLE)
    metric.add_batch(preferences=PREFERENCES)
    with pytest.raises(TrlRealError, match="people row 6 is missing"):
        metric.compute()
    with pytest.raises(TrlRealError, match="baseline_lengths is for rates of the judge alone"):
        lengths = {name: OPTIONAL[name] for name in ("lengths", "baseline_lengths")}
        metric.compute(preferences=PREFERENCES, people=PEOPLE, **lengths)
    with pytest.raises(TrlRealError, match="inclusion_probabilities came without people"):
        metric.compute(preferences=PREFERENCES, inclusion_probabilities=CHANCES)
    with pytest.raises(TrlRealError, match="people row 0 is 2"):
        metric.compute(preferences=PREFERENCES, people=[2.0] * 6)
