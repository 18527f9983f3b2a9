"""Tests of `trl_real.functional.statistics.win_rate`."""

import math

import numpy as np
import pytest
from scipy.stats import binomtest, bootstrap, norm, t

from support.shared_data import data_path
from trl_real.errors import TrlRealError
from trl_real.functional.statistics.intervals import INTERVALS, degrees_of_freedom, t_half_width
from trl_real.functional.statistics.win_rate import sign_test, win_rate


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
    "win_rate_without_ties",
}
LENGTH_KEYS = {
    "equal_length_win_rate",
    "equal_length_ci_low",
    "equal_length_ci_high",
    "matched_length_win_rate",
    "n_matched_length",
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
    assert set(with_lengths) == DESIGN_KEYS | LENGTH_KEYS | {"ci_method"}


def test_equals_a_hand_computation():
    # mean of 1, .75, .5, 0 is .5625; squared deviations sum to .546875; / 3 / 4, root: .2134766
    rates = win_rate([1, 0.75, 0.5, 0, None, NAN])
    assert rates["win_rate"] == 0.5625
    assert rates["standard_error"] == pytest.approx(math.sqrt(0.546875 / 3 / 4))
    assert [rates[f"n_{count}"] for count in ("wins", "losses", "ties", "failed", "total")] == [2, 1, 1, 2, 4]
    assert rates["discrete_win_rate"] == 0.625
    assert rates["win_rate_without_ties"] == 2 / 3
    t_975_with_3_degrees = 3.182446305284263
    assert rates["ci_low"] == max(0, 0.5625 - t_975_with_3_degrees * rates["standard_error"])
    assert rates["ci_high"] == 1
    assert rates["ci_method"] == "t"


@pytest.mark.parametrize("method", ["auto", "bootstrap"])
def test_order_of_the_rows_does_not_matter(preferences, lengths, method):
    preferences[3] = NAN
    clusters = np.arange(60) // 4
    shuffled = np.random.default_rng(2).permutation(60)
    one, other = (
        win_rate(
            preferences[i], clusters=clusters[i], lengths=lengths[0][i], baseline_lengths=lengths[1][i], method=method
        )
        for i in (np.arange(60), shuffled)
    )
    assert one == pytest.approx(other, abs=1e-8)


def test_swapping_sides_mirrors_everything(preferences, lengths):
    for clusters in (None, np.arange(60) // 3):
        rates = win_rate(preferences, clusters=clusters, lengths=lengths[0], baseline_lengths=lengths[1])
        swapped = win_rate(1 - preferences, clusters=clusters, lengths=lengths[1], baseline_lengths=lengths[0])
        assert swapped["n_matched_length"] == rates["n_matched_length"] > 0
        mirrored = ("discrete_win_rate", "win_rate_without_ties", "equal_length_win_rate", "matched_length_win_rate")
        for name in ("win_rate", *mirrored):
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


def test_clusters_of_one_row_equal_no_clusters(preferences):
    assert win_rate(preferences, clusters=[f"prompt {i}" for i in range(60)]) == win_rate(preferences)


def test_clustered_standard_error_is_that_of_statsmodels(preferences):
    linear_model = pytest.importorskip("statsmodels.api")
    clusters = np.random.default_rng(3).integers(0, 17, 60)
    fit = linear_model.OLS(preferences, np.ones(60)).fit(cov_type="cluster", cov_kwds={"groups": clusters})
    assert win_rate(preferences, clusters=clusters)["standard_error"] == pytest.approx(fit.bse[0])


def test_clustered_interval_covers_at_the_stated_confidence():
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
def test_rate_without_judgments_is_nan(preferences):
    rates = win_rate(preferences, lengths=[5] * len(preferences), baseline_lengths=[3] * len(preferences))
    assert rates["n_failed"] == len(preferences) and rates["n_total"] == 0 and rates["ci_method"] == "undefined"
    for name in DESIGN_KEYS | LENGTH_KEYS:
        assert name.startswith("n_") or math.isnan(rates[name])


def test_a_single_prompt_has_no_standard_error():
    assert win_rate([0.7])["win_rate"] == 0.7
    for rates in (win_rate([0.7]), win_rate([0.7, 0.6, 1], clusters=["a", "a", "a"])):
        assert all(math.isnan(rates[name]) for name in ("standard_error", "ci_low", "ci_high"))


@pytest.mark.parametrize(
    ("preferences", "clusters"),
    [([0.5] * 9, None), ([0.3] * 9, None), ([1.0] * 8, [0, 0, 1, 1, 2, 2, 3, 3]), ([1, 0, 1, 0], [0, 0, 1, 1])],
)
def test_zero_variance_does_not_give_a_zero_width_interval(preferences, clusters):
    rates = win_rate(preferences, clusters=clusters)
    assert rates["standard_error"] == pytest.approx(0, abs=1e-12) and rates["ci_method"] == "wilson, no variance"
    n_prompts = len(preferences) if clusters is None else len(set(clusters))
    wins = rates["win_rate"] * n_prompts  # one trial a prompt: its copies add no certainty
    low, high = (
        binomtest(int(whole(wins)), n_prompts).proportion_ci(method="wilson") for whole in (math.floor, math.ceil)
    )
    assert (rates["ci_low"], rates["ci_high"]) == pytest.approx((low.low, high.high))


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
        ([1, 0], {"method": "bca"}, "method is 'bca'. Give one of 'auto', 'wilson', 't', 'score', 'bootstrap'"),
        ([1, 0.5], {"method": "wilson"}, "method='wilson' needs wins and losses"),
        ([1, 0], {"method": "wilson", "clusters": ["a", "a"]}, "method='wilson' needs wins and losses"),
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


def test_rounding_errors_are_accepted():
    rates = win_rate([1 + 1e-9, -1e-9])
    assert rates["win_rate"] == 0.5 and rates["ci_method"] == "wilson"


@pytest.mark.parametrize("clusters", [None, np.arange(60) // 3, np.sqrt(np.arange(60)).astype(int)])
def test_bootstrap_is_scipy_s_at_the_percentiles_of_so_few_clusters(preferences, clusters):
    groups = np.arange(60) if clusters is None else clusters
    n_clusters = groups.max() + 1
    sums, sizes = np.bincount(groups, weights=preferences), np.bincount(groups)
    tail = norm.cdf(-math.sqrt(n_clusters / (n_clusters - 1)) * t.ppf(0.975, n_clusters - 1))
    theirs = bootstrap(
        (sums, sizes),
        lambda total, n, axis: total.sum(axis) / n.sum(axis),
        paired=True,
        confidence_level=1 - 2 * tail,
        method="percentile",
        n_resamples=20_000,
        rng=np.random.default_rng(0),
    ).confidence_interval
    rates = win_rate(preferences, clusters=clusters, method="bootstrap")
    assert rates["ci_method"] == "bootstrap"
    assert (rates["ci_low"], rates["ci_high"]) == pytest.approx((theirs.low, theirs.high), abs=0.03)
    assert rates == win_rate(preferences, clusters=clusters, method="bootstrap", seed=42)
    assert rates["ci_low"] != win_rate(graded(60), clusters=clusters, method="bootstrap", seed=1)["ci_low"]


@pytest.mark.parametrize("method", INTERVALS)
def test_every_interval_method_reports_its_name(method):
    rates = win_rate(hard(60), method=method)
    assert rates["ci_method"] == {"auto": "wilson"}.get(method, method)
    assert rates["ci_low"] < rates["win_rate"] < rates["ci_high"]
    assert math.isnan(win_rate([], method=method)["ci_low"])
    if method != "wilson":
        assert win_rate([0.5] * 9, method=method)["ci_method"] == "wilson, no variance"
        few = win_rate([0.5, 1, 0.2], method=method)["ci_method"]
        assert few == ("score" if method == "score" else "t"), "too few for the bootstrap"


def test_score_interval_is_wilson_s_for_the_effective_number_of_rows(preferences):
    groups = np.arange(60) // 4
    mean, error = preferences.mean(), win_rate(preferences, clusters=groups)["standard_error"]
    q = t.ppf(0.975, 14)
    n = mean * (1 - mean) / error**2
    ends = [
        (mean + q**2 / (2 * n) + sign * q * math.sqrt(mean * (1 - mean) / n + q**2 / (4 * n**2))) / (1 + q**2 / n)
        for sign in (-1, 1)
    ]
    rates = win_rate(preferences, clusters=groups, method="score")
    assert (rates["ci_low"], rates["ci_high"]) == pytest.approx(ends) and rates["ci_method"] == "clustered score"
    many = hard(2000)
    plain, score = win_rate(many), win_rate(many, method="score")
    assert (score["ci_low"], score["ci_high"]) == pytest.approx((plain["ci_low"], plain["ci_high"]), abs=1e-3)


def test_unequal_clusters_get_the_variance_and_degrees_of_freedom_of_bell_and_mccaffrey(preferences):
    groups = np.sqrt(np.arange(60)).astype(int)  # of 1, 3, 5, ... rows
    sizes, n = np.bincount(groups), 60
    indicator = (groups[:, None] == np.arange(len(sizes))).astype(float)  # (n, G)
    residual_maker = np.eye(n) - np.full((n, n), 1 / n)
    residuals = residual_maker @ preferences
    terms, variance = [], 0.0
    for g in range(len(sizes)):
        rows = indicator[:, g] > 0
        values, vectors = np.linalg.eigh(residual_maker[np.ix_(rows, rows)])
        adjust = vectors @ np.diag(values**-0.5) @ vectors.T  # (I - H_gg)^(-1/2)
        variance += (adjust.sum(0) @ residuals[rows] / n) ** 2
        term = np.zeros(n)
        term[rows] = adjust.sum(0) / n
        terms.append(residual_maker @ term)
    terms = np.stack(terms)  # (G, n)
    freedom = []
    for covariance in (np.eye(n), indicator @ indicator.T):
        b = terms @ covariance @ terms.T
        freedom.append(np.trace(b) ** 2 / np.trace(b @ b))
    assert degrees_of_freedom(sizes) == pytest.approx(min(freedom))
    half = t.ppf(0.975, min(freedom)) * math.sqrt(variance)
    assert t_half_width(preferences, groups, 0.95) == pytest.approx(half)
    assert degrees_of_freedom(np.full(7, 3)) == 6
    assert degrees_of_freedom(np.array([3] * 200 + [4])) == pytest.approx(200, rel=0.01)


def test_sign_test_counts_wins_and_losses_only():
    assert sign_test([1] * 5 + [0.5] * 7 + [None]) == pytest.approx(2 / 2**5)
    assert sign_test([0.5, None]) == sign_test([]) == sign_test([1, 0]) == 1


def table(name: str):
    path = data_path(f"{name}.parquet")
    return pytest.importorskip("pandas").read_parquet(path)


@pytest.fixture(scope="module")
def alpaca_eval() -> dict:
    return {name: table(f"alpaca_eval/{name}") for name in ("leaderboard", "preferences")}


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


def test_best_of_16_rates_equal_the_published_ones_where_scores_exist():
    """
    Published over 805 instructions, of which 650 are here, and only some samples are scored on all of those: indices
    0 to 10 and what one reward model picked. The two rates then differ by what leaving out 155 instructions does.
    """
    rows, published = table("bon16/tulu2_13b_bon16"), table("bon16/published_win_rates").set_index("name")
    scores = np.array([np.asarray(row, dtype=float) for row in rows.scores]) - 1  # (650, 16)
    picked = scores[np.arange(len(rows)), rows.pick_oasst_deberta_v3_large]
    columns = {f"tulu-2-dpo-13b.{i}": scores[:, i] for i in range(16)}
    columns["OpenAssistant/reward-model-deberta-v3-large-v2"] = picked
    complete = {name: column for name, column in columns.items() if not np.isnan(column).any()}
    assert len(complete) == 12
    for name, column in complete.items():
        rates, known = win_rate(column), published.loc[name]
        left_out = rates["standard_error"] * math.sqrt(1 - len(column) / known.n_total)
        assert rates["win_rate"] == pytest.approx(known.win_rate / 100, abs=3 * left_out), name
        assert rates["ci_low"] < known.win_rate / 100 < rates["ci_high"], name
        assert math.sqrt(len(column)) * rates["standard_error"] == pytest.approx(
            math.sqrt(known.n_total) * known.standard_error / 100, rel=0.03
        ), name
