"""Advice before money: what the pool looks like, what the pilot shows, and when that is not enough."""

import json

import numpy as np
import pytest
from datasets import Dataset

from support.tiny import save_tiny
from trl_real import TrlRealError, advise
from trl_real.cli.main import main
from trl_real.functional.statistics.label_savings import ValueWithInterval
from trl_real.study.advice.advise import LEAST, RULES, _budget, _rounded
from trl_real.study.summarize import Curves


pytestmark = pytest.mark.usefixtures("one_thread")
D = 12
WEIGHTS = np.random.default_rng(0).normal(size=D)


def pool(n: int = 60, k: int = 3, **columns) -> Dataset:
    vectors = np.random.default_rng(1).normal(size=(n, k, D))
    names = {"prompt": [f"q{i}" for i in range(n)], "responses": [[f"r{i} {j}" for j in range(k)] for i in range(n)]}
    return Dataset.from_dict({**names, "embeddings": vectors.tolist(), **columns})


def pilot(n: int, signal: float, spread: float = 0.0, seed: int = 2) -> Dataset:
    """Labels by a linear reward of this strength; with a spread, pairs differ in how far apart they are."""
    rng = np.random.default_rng(seed)
    middle = rng.normal(size=(n, 1, D)) + 2
    half = rng.normal(size=(n, 1, D)) * np.exp(spread * rng.normal(size=(n, 1, 1))) * np.array([[[1.0], [-1.0]]]) / 2
    vectors = middle + half
    first = rng.random(n) < 1 / (1 + np.exp(-signal * (vectors[:, 0] - vectors[:, 1]) @ WEIGHTS))
    ordered = [v if f else v[::-1] for v, f in zip(vectors, first, strict=True)]
    rows = {"prompt": [f"p{i}" for i in range(n)], "chosen": [f"c{i}" for i in range(n)]}
    return Dataset.from_dict({**rows, "rejected": [f"d{i}" for i in range(n)], "embeddings": ordered})


def test_without_a_pilot_the_advice_is_the_hedge_and_how_to_learn_more():
    found = advise(pool())
    assert found.rule == "auto" and not found.sure and found.budget is None and found.rules == []
    assert "Use" not in found.words() and "label 60 pairs drawn at random" in found.words()


def test_the_pool_is_described_and_its_labels_are_not_read():
    given = pool(models=[["x", "y", "x"]] * 60, scores=[[0.0, 0.0, 1.0]] * 60).to_list()
    given[0]["embeddings"][1] = given[0]["embeddings"][0]
    given[1]["responses"][0] = given[0]["responses"][0]
    given[2]["responses"] = ["same", "same", "same"]
    found = advise(Dataset.from_list(given)).pool
    assert (found.n_rows, found.n_skipped, found.n_writers, found.n_responses) == (59, 1, 2, 3)
    assert found.near_copies == pytest.approx(1 / 177) and found.repeated == pytest.approx(2 / 177)
    assert found.similarity["p05"] < found.similarity["median"] < found.similarity["p95"]
    assert found.characters == 5.0 and "by 2 writers" in found.words()
    other = pool(models=[["x", "y", "x"]] * 60, scores=[[5.0, 0.0, 1.0]] * 60)
    assert advise(other).pool == advise(pool(models=[["x", "y", "x"]] * 60)).pool


def test_a_pilot_on_which_a_rule_gains_names_it_with_its_saving():
    """Pairs far apart decide, and those near each other are noise: easy pairs teach more."""
    found = advise(pool(), pilot=pilot(400, 0.5, spread=1.5), seeds=3)
    best = max(found.rules, key=lambda rule: rule.gain.value)
    assert found.sure and found.learned and found.rule == best.rule and best.gain.low > 0 and not best.worse
    assert found.pilot_needed is None and best.saved.saving > 0.2
    assert f"Use {best.rule!r}" in found.words() and "That is measurable" in found.words()
    assert [rule.rule for rule in found.rules] == list(RULES)


def test_a_pilot_without_a_signal_ranks_nothing():
    found = advise(pool(), pilot=pilot(120, 0.0), seeds=2)
    assert found.rule == "auto" and not found.sure and not found.learned
    assert found.budget is None and found.pilot_needed == 60 and "neither a rule nor a budget" in found.words()
    assert "Label about 60 pairs" in found.words()
    plain = found.to_dict()
    assert json.loads(json.dumps(plain))["words"] == found.words() and len(plain["rules"][0]["gain"]) == 3


def test_small_pilots_and_impossible_settings_are_one_line():
    with pytest.raises(TrlRealError, match=f"The pilot has 39 labelled pairs. Give {LEAST} or more"):
        advise(pool(), pilot=pilot(39, 1.0))
    with pytest.raises(TrlRealError, match="seeds=0 is not 1 or more"):
        advise(pool(), seeds=0)


def curves(last: float) -> Curves:
    """Random and one rule at three budgets; the rule's loss at the largest is given."""
    rng = np.random.default_rng(3)
    means = np.array([[0.69, 0.68, 0.67], [0.66, 0.60, last]])
    sums = means[:, None, :, None] + rng.normal(size=(1, 2, 3, 200)) * 0.02
    return Curves(np.array([10.0, 20.0, 40.0]), {"loss": sums}, np.ones(200), ["random", "auto"])


def test_the_budget_is_the_least_that_is_not_measurably_behind():
    assert _budget(curves(0.60), "auto", 1000) == (20, True)
    assert _budget(curves(0.50), "auto", 1000) == (80, False)
    assert _budget(curves(0.50), "auto", 70) == (70, False)
    assert _budget(curves(0.66), "auto", 1000) == (None, False)
    assert [_rounded(n) for n in (7.2, 101, 1234)] == [8, 110, 1300]


def test_the_verb_prints_a_paragraph_or_json_and_a_model_embeds(tmp_path, capsys):
    model = save_tiny(tmp_path / "model")
    pool().remove_columns("embeddings").to_parquet(tmp_path / "pool.parquet")
    pilot(44, 1.0).remove_columns("embeddings").to_parquet(tmp_path / "pilot.parquet")
    argv = ["advise", "--dataset", str(tmp_path / "pool.parquet"), "--model", str(model), "--seeds", "1"]
    assert main(argv) == 0
    assert capsys.readouterr().out.startswith("The pool has 60 rows with 3.0 responses each")
    assert main([*argv, "--pilot", str(tmp_path / "pilot.parquet"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["n_pilot"] == 44 and found["rule"] in RULES and len(found["rules"]) == len(RULES)
    assert main([*argv, "--pilot", str(tmp_path / "none.parquet")]) == 2
    assert "--pilot: No file or folder" in capsys.readouterr().err
    assert isinstance(ValueWithInterval(*found["rules"][0]["gain"].values()), tuple)
