"""Tests of `trl_real.functional.statistics.ranking`: many models on one scale."""

import json
import math

import numpy as np
import pytest
from scipy.optimize import minimize

from support.shared_data import DATA, needs_data
from trl_real.errors import TrlRealError
from trl_real.functional.statistics.ranking import bradley_terry_ranking, bradley_terry_strengths


pytest.importorskip("evalica")

STRENGTHS = {"a": 0.9, "b": 0.4, "c": 0.0, "d": -0.3, "e": -1.0}  # in nats


def battles(n_prompts: int = 150, seed: int = 0, share: float = 0.5, graded: bool = False) -> dict[str, list]:
    """Comparisons with ties, of models with known strengths."""
    rng, rows = np.random.default_rng(seed), []
    names = list(STRENGTHS)
    for prompt in range(n_prompts):
        for i, one in enumerate(names):
            for other in names[i + 1 :]:
                if rng.random() > share:
                    continue
                p = 1 / (1 + math.exp(STRENGTHS[other] - STRENGTHS[one]))
                verdict = rng.beta(4 * p, 4 * (1 - p)) if graded else float(rng.random() < p)
                rows.append((one, other, 0.5 if rng.random() < 0.1 else verdict, prompt))
    return dict(zip(("first", "second", "preferences", "prompts"), map(list, zip(*rows, strict=True)), strict=True))


def maximum_likelihood(first, second, preferences, **ignored) -> dict[str, float]:
    """Log-strengths by a general optimiser, with mean 0."""
    names = sorted({*first, *second})
    i, j = (np.array([names.index(name) for name in column]) for column in (first, second))
    y = np.array(preferences)

    def loss(theta):
        margin = theta[i] - theta[j]
        gradient = np.zeros(len(names))
        np.add.at(gradient, i, 1 / (1 + np.exp(-margin)) - y)
        np.add.at(gradient, j, y - 1 / (1 + np.exp(-margin)))
        return (np.logaddexp(0, margin) - y * margin).sum(), gradient

    theta = minimize(loss, np.zeros(len(names)), jac=True, method="BFGS", options={"gtol": 1e-8}).x
    return dict(zip(names, theta - theta.mean(), strict=True))


@pytest.mark.parametrize("graded", [False, True])
def test_ratings_are_the_maximum_likelihood_fit_on_elo_s_scale(graded):
    rows = battles(graded=graded)
    ranking, strengths = bradley_terry_ranking(**rows, rounds=2, reference="c"), maximum_likelihood(**rows)
    for row in ranking.rows:
        nats = strengths[row.model] - strengths["c"]
        assert row.rating == pytest.approx(1000 + 400 * nats / math.log(10), abs=0.01)
        assert row.win_rate == pytest.approx(1 / (1 + math.exp(-nats)), abs=1e-4)
    assert [row.model for row in ranking.rows] == sorted(strengths, key=strengths.get, reverse=True)


def test_a_long_chain_of_models_converges():
    k = 12
    wins = np.zeros((k, k))
    for i in range(k - 1):
        wins[i, i + 1], wins[i + 1, i] = 3, 1
    steps = np.diff(bradley_terry_strengths(wins))
    assert steps == pytest.approx(np.full(k - 1, -math.log(3)), abs=1e-4)


def test_400_points_are_odds_of_10_to_1():
    ranking = bradley_terry_ranking(["a"] * 11, ["b"] * 11, [1] * 10 + [0], reference="b", rounds=2)
    assert ranking.rows[0].rating == pytest.approx(1400, abs=0.01)
    assert ranking.rows[0].win_rate == pytest.approx(10 / 11)


def test_names_order_and_sides_do_not_matter():
    rows = battles(60)
    ranking = bradley_terry_ranking(**rows, reference="c", rounds=50)
    shuffled = np.random.default_rng(1).permutation(len(rows["first"]))
    rows = {name: [column[i] for i in shuffled] for name, column in rows.items()}
    assert_same(ranking, bradley_terry_ranking(**rows, reference="c", rounds=50))
    rows["first"], rows["second"] = rows["second"], rows["first"]
    rows["preferences"] = [1 - p for p in rows["preferences"]]
    assert_same(ranking, bradley_terry_ranking(**rows, reference="c", rounds=50))


def assert_same(one, other):
    assert [row.model for row in one.rows] == [row.model for row in other.rows]
    for a, b in zip(one.rows, other.rows, strict=True):
        assert (a.rating, a.ci_low, a.ci_high) == pytest.approx((b.rating, b.ci_low, b.ci_high), abs=1e-3)
        assert a.n == b.n and a.mean_preference == pytest.approx(b.mean_preference)


def test_a_tie_is_half_a_win_and_half_a_loss():
    def rating(preferences):
        n = len(preferences)
        rows = bradley_terry_ranking(["a"] * n, ["b"] * n, preferences, reference="b", rounds=2).rows
        return {row.model: row.rating for row in rows}["a"]

    assert rating([0.5, 1, 0.25]) == pytest.approx(rating([1, 0, 1, 1, 0.5, 0]), abs=1e-3), "the same, twice as much"
    assert rating([0.5, 1, 0.25]) > rating([0.5, 1, 0]) == rating([0.5, 0.5]) == 1000


def test_intervals_cover_the_true_ratings():
    truth = {name: 1000 + 400 * (s - STRENGTHS["c"]) / math.log(10) for name, s in STRENGTHS.items()}
    covered = 0
    for seed in range(15):
        ranking = bradley_terry_ranking(**ties_out(battles(60, seed)), reference="c", rounds=60)
        covered += sum(row.ci_low <= truth[row.model] <= row.ci_high for row in ranking.rows if row.model != "c")
    assert covered / 60 > 0.88


def ties_out(rows):
    kept = [i for i, p in enumerate(rows["preferences"]) if p != 0.5]
    return {name: [column[i] for i in kept] for name, column in rows.items()}


def test_bootstrap_resamples_prompts_and_not_comparisons():
    rows = battles(40, share=1)
    once = bradley_terry_ranking(**rows, reference="c", rounds=200)
    copies = {name: column * 4 for name, column in rows.items()}
    by_prompt = bradley_terry_ranking(**copies, reference="c", rounds=200)
    by_row = bradley_terry_ranking(**{**copies, "prompts": None}, reference="c", rounds=200)

    def width(ranking):
        return np.mean([row.ci_high - row.ci_low for row in ranking.rows])

    assert width(by_prompt) == pytest.approx(width(once), rel=0.02)
    assert width(by_row) < 0.7 * width(once)
    assert (once.n_prompts, by_row.n_prompts) == (40, 4 * len(rows["first"]))


def test_draws_depend_on_the_seed_alone():
    rows = battles(30)
    one, same, other = (bradley_terry_ranking(**rows, rounds=50, seed=seed) for seed in (1, 1, 2))
    assert one == same and one.rows[1].ci_low != other.rows[1].ci_low


def test_a_model_that_won_or_lost_everything_has_no_finite_rating():
    rows = battles(30)
    for name, verdict in (("god", 1), ("null", 0)):
        rows = {
            "first": [*rows["first"], name, name],
            "second": [*rows["second"], "a", "c"],
            "preferences": [*rows["preferences"], verdict, verdict],
            "prompts": [*rows["prompts"], 0, 1],
        }
    ranking = bradley_terry_ranking(**rows, reference="c", rounds=20)
    best, worst = ranking.rows[0], ranking.rows[-1]
    assert (best.model, best.rating, best.win_rate) == ("god", math.inf, 1)
    assert (worst.model, worst.rating, worst.win_rate) == ("null", -math.inf, 0)
    assert ranking.notes == [
        "god: won all comparisons that connect it to the reference: no finite rating.",
        "null: lost all comparisons that connect it to the reference: no finite rating.",
    ]
    alone = bradley_terry_ranking(**battles(30), reference="c", rounds=20)
    for row, expected in zip(ranking.rows[1:-1], alone.rows, strict=True):
        assert row.rating == pytest.approx(expected.rating, abs=1e-3), "the others are as they were"
    json.dumps(ranking.to_dict(), allow_nan=False)


def test_models_that_never_met_are_not_compared():
    ranking = bradley_terry_ranking(["a", "a", "x", "x"], ["b", "b", "y", "y"], [1, 0, 1, 0], reference="a", rounds=20)
    assert [row.model for row in ranking.rows] == ["a", "b", "x", "y"]
    assert all(math.isnan(row.rating) and math.isnan(row.win_rate) for row in ranking.rows[2:])
    assert ranking.notes == ["x, y: never met a, not even through other models: no rating."]
    assert ranking.words().count("\n") == 4
    json.dumps(ranking.to_dict(), allow_nan=False)


def test_failures_are_counted_and_change_nothing():
    rows = battles(30)
    failed = {
        "first": [*rows["first"], "a", "b"],
        "second": [*rows["second"], "b", "c"],
        "preferences": [*rows["preferences"], None, float("nan")],
        "prompts": [*rows["prompts"], 0, 999],
    }
    one, other = bradley_terry_ranking(**rows, rounds=20), bradley_terry_ranking(**failed, rounds=20)
    assert_same(one, other)
    assert {row.model: row.n_failed for row in other.rows} == {"a": 1, "b": 2, "c": 1, "d": 0, "e": 0}
    assert one.n_prompts == other.n_prompts == 30


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        ((["a"], ["a"], [1]), {}, "Row 0 compares 'a' with itself"),
        ((["a"], ["b"], [None]), {}, "No comparison was judged"),
        (([], [], []), {}, "No comparison was judged"),
        ((["a"], ["b"], [1, 0]), {}, "1 first came with 2 preferences"),
        ((["a"], ["b"], [7]), {}, "preferences row 0 is 7"),
        ((["a"], ["b"], [1]), {"reference": "z"}, "reference is 'z', which is not among the models a, b"),
        ((["a"], ["b"], [1]), {"prompts": [1, 2]}, "2 prompts"),
        ((["a"], ["b"], [1]), {"confidence": 0}, "confidence is 0"),
    ],
)
def test_bad_input_is_named(rows, options, message):
    with pytest.raises(TrlRealError, match=message) as raised:
        bradley_terry_ranking(*rows, **options)
    assert "\n" not in str(raised.value)


@needs_data("alpaca_eval")
def test_ratings_against_one_baseline_equal_the_leaderboard_win_rates():
    pandas = pytest.importorskip("pandas")
    rows = pandas.read_parquet(DATA / "alpaca_eval" / "preferences.parquet").query("benchmark == 'alpaca_eval_2'")
    board = pandas.read_parquet(DATA / "alpaca_eval" / "leaderboard.parquet").query("benchmark == 'alpaca_eval_2'")
    baselines = ["gpt4_1106_preview"] * len(rows)
    ranking = bradley_terry_ranking(
        rows.model.tolist(), baselines, rows.preference - 1, prompts=rows.prompt_id.tolist(), rounds=200
    )
    assert ranking.reference == "gpt4_1106_preview" and ranking.n_prompts == 805 and not ranking.notes
    published = board.set_index("model")
    for row in ranking.rows:
        if row.model == ranking.reference:
            continue
        known = published.loc[row.model]
        assert 100 * row.win_rate == pytest.approx(known.win_rate, abs=1e-3), row.model
        width = (row.win_rate_ci_high - row.win_rate_ci_low) / (2 * 1.96)
        assert 100 * width == pytest.approx(known.standard_error, rel=0.35), row.model
