"""Claims about `trl_real.functional.win_rate`."""

import math
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import norm

from trl_real.errors import TrlRealError
from trl_real.functional.win_rate import (
    alpaca_eval_length_controlled,
    length_controlled_win_rate,
    sign_test,
    win_rate,
)


ALPACA_EVAL = Path(__file__).parents[2] / "shared" / "data" / "alpaca_eval"
NAN = float("nan")
DESIGN_KEYS = {
    "win_rate",
    "standard_error",
    "ci_low",
    "ci_high",
    "n_wins",
    "n_losses",
    "n_ties",
    "n_failed",
    "n_total",
    "discrete_win_rate",
}


def graded(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(size=n)


def hard(n: int, seed: int = 0) -> np.ndarray:
    return (graded(n, seed) < 0.6).astype(float)


def tied(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).choice([0.0, 0.5, 1.0], size=n)


@pytest.fixture(params=[graded, hard, tied], ids=lambda kind: kind.__name__)
def preferences(request) -> np.ndarray:
    return request.param(60)


@pytest.fixture
def lengths() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    return rng.integers(1, 2000, 60), rng.integers(1, 2000, 60)


def test_keys_are_those_of_the_design():
    assert set(win_rate([1, 0])) == DESIGN_KEYS | {"ci_method"}
    with_lengths = win_rate([1, 0], lengths=[1, 2], baseline_lengths=[2, 1])
    assert set(with_lengths) == DESIGN_KEYS | {"ci_method", "length_controlled_win_rate"}


def test_equals_a_hand_computation():
    # mean of 1, .75, .5, 0 is .5625; squared deviations sum to .546875; / 3 / 4, root: .2134766
    rates = win_rate([1, 0.75, 0.5, 0, None, NAN])
    assert rates["win_rate"] == 0.5625
    assert rates["standard_error"] == pytest.approx(math.sqrt(0.546875 / 3 / 4))
    assert [rates[f"n_{count}"] for count in ("wins", "losses", "ties", "failed", "total")] == [2, 1, 1, 2, 4]
    assert rates["discrete_win_rate"] == 0.625
    t_975_with_3_degrees = 3.182446305284263
    assert rates["ci_low"] == max(0, 0.5625 - t_975_with_3_degrees * rates["standard_error"])
    assert rates["ci_high"] == 1
    assert rates["ci_method"] == "t"


def test_order_of_the_rows_does_not_matter(preferences, lengths):
    preferences[3] = NAN
    clusters = np.arange(60) // 4
    shuffled = np.random.default_rng(2).permutation(60)
    one, other = (
        win_rate(preferences[i], clusters=clusters[i], lengths=lengths[0][i], baseline_lengths=lengths[1][i])
        for i in (np.arange(60), shuffled)
    )
    assert one == pytest.approx(other, abs=1e-8)


def test_swapping_sides_mirrors_everything(preferences, lengths):
    for clusters in (None, np.arange(60) // 3):
        rates = win_rate(preferences, clusters=clusters, lengths=lengths[0], baseline_lengths=lengths[1])
        swapped = win_rate(1 - preferences, clusters=clusters, lengths=lengths[1], baseline_lengths=lengths[0])
        for name in ("win_rate", "discrete_win_rate", "length_controlled_win_rate"):
            assert swapped[name] == pytest.approx(1 - rates[name], abs=1e-7)
        assert swapped["ci_low"] == pytest.approx(1 - rates["ci_high"])
        assert swapped["ci_high"] == pytest.approx(1 - rates["ci_low"])
        assert (swapped["n_wins"], swapped["n_losses"]) == (rates["n_losses"], rates["n_wins"])
        assert swapped["standard_error"] == pytest.approx(rates["standard_error"])
    assert sign_test(1 - preferences) == pytest.approx(sign_test(preferences))


@pytest.mark.parametrize(("wins", "n", "confidence"), [(38, 60, 0.95), (0, 7, 0.95), (7, 7, 0.9), (1, 1, 0.99)])
def test_wins_and_losses_alone_get_wilsons_interval(wins, n, confidence):
    rates = win_rate([1] * wins + [0] * (n - wins), confidence=confidence)
    z, p = norm.ppf((1 + confidence) / 2), wins / n
    centre, half = p + z**2 / (2 * n), z * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    assert rates["ci_method"] == "wilson"
    assert rates["ci_low"] == pytest.approx((centre - half) / (1 + z**2 / n), abs=1e-12)
    assert rates["ci_high"] == pytest.approx((centre + half) / (1 + z**2 / n), abs=1e-12)


def test_copies_of_a_row_add_no_certainty_when_clustered(preferences):
    copies, prompts = np.repeat(preferences, 4), np.repeat(np.arange(60), 4)
    once, iid, clustered = win_rate(preferences), win_rate(copies), win_rate(copies, clusters=prompts)
    assert clustered["standard_error"] == pytest.approx(once["standard_error"])
    assert iid["standard_error"] < 0.6 * clustered["standard_error"]
    assert iid["ci_high"] - iid["ci_low"] < clustered["ci_high"] - clustered["ci_low"]
    if once["ci_method"] == "t":
        assert (clustered["ci_low"], clustered["ci_high"]) == pytest.approx((once["ci_low"], once["ci_high"]))


def test_one_row_a_cluster_is_no_clusters(preferences):
    assert win_rate(preferences, clusters=[f"prompt {i}" for i in range(60)]) == win_rate(preferences)


def test_clustered_standard_error_is_that_of_statsmodels(preferences):
    linear_model = pytest.importorskip("statsmodels.api")
    clusters = np.random.default_rng(3).integers(0, 17, 60)
    fit = linear_model.OLS(preferences, np.ones(60)).fit(cov_type="cluster", cov_kwds={"groups": clusters})
    assert win_rate(preferences, clusters=clusters)["standard_error"] == pytest.approx(fit.bse[0])


def test_clustered_interval_covers_as_often_as_it_says():
    rng = np.random.default_rng(4)
    covered = {"clustered": 0, "iid": 0}
    for _ in range(300):
        prompts = rng.beta(2, 2, size=40)  # of mean 0.5
        scores = (rng.uniform(size=(40, 5)) < prompts[:, None]).astype(float).ravel()
        for name, clusters in (("clustered", np.repeat(np.arange(40), 5)), ("iid", None)):
            rates = win_rate(scores, clusters=clusters)
            covered[name] += rates["ci_low"] <= 0.5 <= rates["ci_high"]
    assert 0.91 < covered["clustered"] / 300 < 0.99
    assert covered["iid"] < covered["clustered"]


def test_a_lower_confidence_is_a_narrower_interval(preferences):
    wide, narrow = win_rate(preferences, confidence=0.99), win_rate(preferences, confidence=0.5)
    assert wide["ci_low"] < narrow["ci_low"] < narrow["win_rate"] < narrow["ci_high"] < wide["ci_high"]


@pytest.mark.parametrize("preferences", [[], [None], [NAN, None, NAN]])
def test_nothing_judged_is_nan(preferences):
    rates = win_rate(preferences, lengths=[5] * len(preferences), baseline_lengths=[3] * len(preferences))
    assert rates["n_failed"] == len(preferences) and rates["n_total"] == 0 and rates["ci_method"] == "undefined"
    for name in DESIGN_KEYS | {"length_controlled_win_rate"}:
        assert name.startswith("n_") or math.isnan(rates[name])


def test_a_single_prompt_has_no_standard_error():
    assert win_rate([0.7])["win_rate"] == 0.7
    for rates in (win_rate([0.7]), win_rate([0.7, 0.6, 1], clusters=["a", "a", "a"])):
        assert all(math.isnan(rates[name]) for name in ("standard_error", "ci_low", "ci_high"))


@pytest.mark.parametrize(
    ("preferences", "clusters"),
    [([0.5] * 9, None), ([0.3] * 9, None), ([1.0] * 8, [0, 0, 1, 1, 2, 2, 3, 3]), ([1, 0, 1, 0], [0, 0, 1, 1])],
)
def test_no_variance_is_not_certainty(preferences, clusters):
    rates = win_rate(preferences, clusters=clusters)
    assert rates["standard_error"] == pytest.approx(0, abs=1e-12) and rates["ci_method"] == "wilson, no variance"
    assert rates["ci_low"] < rates["win_rate"] <= rates["ci_high"] and rates["ci_high"] - rates["ci_low"] > 0.3


@pytest.mark.parametrize(
    ("preferences", "options", "message"),
    [
        ([1, 0, 1.5], {}, "preferences row 2 is 1.5"),
        ([1, -0.1], {}, "preferences row 1 is -0.1"),
        ([1, math.inf], {}, "preferences row 1 is inf"),
        ([1, "secret"], {}, "preferences row 1 is a str"),
        ([[1, 0]], {}, "shape"),
        ([1, 0], {"clusters": ["a"]}, "1 clusters came with 2 preferences"),
        ([1, 0], {"clusters": ["a", None]}, "clusters row 1"),
        ([1, 0], {"clusters": ["a", [1]]}, "clusters row 1"),
        ([1, 0], {"confidence": 95}, "confidence is 95"),
        ([1, 0], {"lengths": [1, 2]}, "baseline_lengths"),
        ([1, 0], {"lengths": [1, 2], "baseline_lengths": [1]}, "1 baseline_lengths came with 2"),
        ([1, 0], {"lengths": [1, None], "baseline_lengths": [1, 2]}, "lengths row 1 is nan"),
        ([1, 0], {"lengths": [1, 3], "baseline_lengths": [-1, 2]}, "baseline_lengths row 0 is -1"),
    ],
)
def test_bad_input_is_named(preferences, options, message):
    with pytest.raises(TrlRealError, match=message) as raised:
        win_rate(preferences, **options)
    assert "\n" not in str(raised.value) and "secret" not in str(raised.value)


def test_rounding_is_no_mistake():
    rates = win_rate([1 + 1e-9, -1e-9])
    assert rates["win_rate"] == 0.5 and rates["ci_method"] == "wilson"


def test_length_control_is_the_maximum_likelihood_fit(lengths):
    sklearn = pytest.importorskip("sklearn.linear_model")
    y, difference = graded(60), lengths[0] - lengths[1]
    x = np.tanh(difference / difference.std(ddof=1))[:, None]
    fit = sklearn.LogisticRegression(C=np.inf, tol=1e-12, max_iter=1000)
    fit.fit(np.concatenate([x, x]), [1] * 60 + [0] * 60, sample_weight=np.concatenate([y, 1 - y]))
    ours = length_controlled_win_rate(y, *lengths)
    assert ours == pytest.approx(1 / (1 + math.exp(-fit.intercept_[0])), abs=1e-6)


def test_length_control_takes_the_advantage_of_length_away():
    rng = np.random.default_rng(5)
    lengths, baseline_lengths = rng.integers(500, 1500, 4000), rng.integers(300, 1000, 4000)
    difference = lengths - baseline_lengths
    wins = rng.uniform(size=4000) < 1 / (1 + np.exp(-2 * np.tanh(difference / difference.std(ddof=1)) + 0.4))
    rates = win_rate(wins, lengths=lengths, baseline_lengths=baseline_lengths)
    assert rates["win_rate"] > 0.6
    assert rates["length_controlled_win_rate"] == pytest.approx(1 / (1 + math.exp(0.4)), abs=0.04)


def test_length_control_at_its_limits(lengths):
    y = graded(60)
    assert length_controlled_win_rate(y, lengths[0], lengths[0]) == pytest.approx(y.mean())
    assert length_controlled_win_rate(np.ones(60), *lengths) == 1
    assert length_controlled_win_rate(np.zeros(60), *lengths) == 0
    assert length_controlled_win_rate(np.full(60, 0.5), *lengths) == pytest.approx(0.5)
    assert math.isnan(length_controlled_win_rate(y, lengths[0] + 10, lengths[0])), "one difference in all rows"
    assert math.isnan(length_controlled_win_rate(lengths[0] > lengths[1], *lengths)), "the longer always wins"


def test_length_of_a_row_that_was_not_judged_is_not_needed():
    with_gap = length_controlled_win_rate([1, 0, 0.2, 0.4, None], [9, 5, 8, 6, None], [5, 9, 5, 8, None])
    assert with_gap == length_controlled_win_rate([1, 0, 0.2, 0.4], [9, 5, 8, 6], [5, 9, 5, 8])


def test_sign_test_counts_wins_and_losses_only():
    assert sign_test([1] * 5 + [0.5] * 7 + [None]) == pytest.approx(2 / 2**5)
    assert sign_test([0.5, None]) == sign_test([]) == sign_test([1, 0]) == 1


@pytest.fixture(scope="module")
def alpaca_eval() -> dict:
    if not ALPACA_EVAL.exists():
        pytest.skip(f"needs the AlpacaEval data in {ALPACA_EVAL}")
    pandas = pytest.importorskip("pandas")
    tables = ("leaderboard", "preferences", "instruction_difficulty", "length_control_weights")
    return {name: pandas.read_parquet(ALPACA_EVAL / f"{name}.parquet") for name in tables}


def test_reproduces_every_row_of_the_alpaca_eval_leaderboard(alpaca_eval):
    rows = dict(list(alpaca_eval["preferences"].groupby(["benchmark", "model"])))
    assert len(alpaca_eval["leaderboard"]) == 40
    for published in alpaca_eval["leaderboard"].itertuples():
        annotated = rows[published.benchmark, published.model].preference
        rates = win_rate(annotated.replace(0, 1.5) - 1)
        for name in ("win_rate", "standard_error", "discrete_win_rate"):
            assert 100 * rates[name] == pytest.approx(getattr(published, name), abs=1e-6), published.model
        counts = rates["n_wins"], rates["n_losses"], rates["n_ties"], rates["n_total"], rates["n_failed"]
        expected = published.n_wins, published.n_wins_base, published.n_draws, published.n_total
        assert counts == (*expected, annotated.isna().sum()), published.model


def test_length_control_without_difficulty_is_not_that_of_the_leaderboard(alpaca_eval):
    rows = dict(list(alpaca_eval["preferences"].query("benchmark == 'alpaca_eval_2'").groupby("model")))
    baseline_lengths = alpaca_eval["instruction_difficulty"].set_index("prompt_id").baseline_len
    board = alpaca_eval["leaderboard"].query("benchmark == 'alpaca_eval_2'").set_index("model")
    errors = [
        100 * length_controlled_win_rate(own.preference - 1, own.output_len, baseline_lengths[own.prompt_id])
        - board.length_controlled_winrate[model]
        for model, own in rows.items()
    ]
    assert len(errors) == 20
    assert 4 < np.mean(errors) < 6 and 14 < np.max(np.abs(errors)) < 15, "the figures in the docstring"


def test_published_weights_give_the_published_length_controlled_rate(alpaca_eval):
    difficulty = alpaca_eval["instruction_difficulty"].difficulty
    weights = alpaca_eval["length_control_weights"]
    assert len(weights) == 119
    for row in weights.itertuples():
        rate = 100 * alpaca_eval_length_controlled(difficulty, row.difficulty_coef, row.model_coef)
        assert rate == pytest.approx(row.length_controlled_winrate, abs=0.25), row.model
    assert alpaca_eval_length_controlled(difficulty, 0, 0) == 0.5, "the baseline's"
