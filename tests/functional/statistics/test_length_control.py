"""Tests of `trl_real.functional.statistics.length_control`: the win rate at equal length."""

import math

import numpy as np
import pytest

from support.shared_data import data_path
from trl_real.errors import TrlRealError
from trl_real.functional.statistics.equal_length import equal_length_rate
from trl_real.functional.statistics.length_control import (
    alpaca_eval_length_controlled,
    fit_alpaca_eval_weights,
    length_controlled_win_rate,
)
from trl_real.functional.statistics.win_rate import win_rate


def graded(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(size=n)


@pytest.fixture
def lengths() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    return rng.integers(1, 2000, 60), rng.integers(1, 2000, 60)


def test_length_control_is_the_maximum_likelihood_fit(lengths):
    sklearn = pytest.importorskip("sklearn.linear_model")
    y, difference = graded(60), lengths[0] - lengths[1]
    x = np.tanh(difference / difference.std(ddof=1))[:, None]
    fit = sklearn.LogisticRegression(C=np.inf, tol=1e-12, max_iter=1000)
    fit.fit(np.concatenate([x, x]), [1] * 60 + [0] * 60, sample_weight=np.concatenate([y, 1 - y]))
    ours = equal_length_rate(y, lengths[0] - lengths[1])
    assert ours == pytest.approx(1 / (1 + math.exp(-fit.intercept_[0])), abs=1e-6)


def test_length_control_removes_length_bias():
    rng = np.random.default_rng(5)
    lengths, baseline_lengths = rng.integers(500, 1500, 4000), rng.integers(300, 1000, 4000)
    difference = lengths - baseline_lengths
    wins = rng.uniform(size=4000) < 1 / (1 + np.exp(-2 * np.tanh(difference / difference.std(ddof=1)) + 0.4))
    rates = win_rate(wins, lengths=lengths, baseline_lengths=baseline_lengths)
    assert rates["win_rate"] > 0.6
    assert rates["equal_length_ci_low"] < rates["equal_length_win_rate"] < rates["equal_length_ci_high"]
    assert rates["matched_length_win_rate"] == pytest.approx(rates["equal_length_win_rate"], abs=0.05)
    assert rates["equal_length_win_rate"] == pytest.approx(1 / (1 + math.exp(0.4)), abs=0.04)


def test_length_control_at_its_limits(lengths):
    y, difference = graded(60), lengths[0] - lengths[1]
    assert equal_length_rate(y, 0 * difference) == pytest.approx(y.mean())
    assert equal_length_rate(np.ones(60), difference) == 1
    assert equal_length_rate(np.zeros(60), difference) == 0
    assert equal_length_rate(np.full(60, 0.5), difference) == pytest.approx(0.5)
    assert math.isnan(equal_length_rate(y, 0 * difference + 10)), "one difference in all rows"
    assert math.isnan(equal_length_rate((difference > 0).astype(float), difference)), "the longer always wins"


def test_unjudged_rows_need_no_length():
    with_gap = win_rate([1, 0, 0.2, 0.4, None], lengths=[9, 5, 8, 6, None], baseline_lengths=[5, 9, 5, 8, None])
    without = win_rate([1, 0, 0.2, 0.4], lengths=[9, 5, 8, 6], baseline_lengths=[5, 9, 5, 8])
    assert with_gap["equal_length_win_rate"] == without["equal_length_win_rate"]


def naive_interval(y, lengths, clusters, confidence=0.95, rounds=400):
    """Refit one sample of clusters after the other."""
    from sklearn.linear_model import LogisticRegression

    difference = lengths[0] - lengths[1]
    x, rng, found = np.tanh(difference / difference.std(ddof=1)), np.random.default_rng(7), []
    members = [np.flatnonzero(clusters == name) for name in np.unique(clusters)]
    for _ in range(rounds):
        i = np.concatenate([members[k] for k in rng.integers(0, len(members), len(members))])
        fit = LogisticRegression(C=np.inf, tol=1e-10, max_iter=1000)
        fit.fit(
            np.concatenate([x[i], x[i]])[:, None],
            np.repeat([1, 0], len(i)),
            sample_weight=np.concatenate([y[i], 1 - y[i]]),
        )
        found.append(1 / (1 + math.exp(-fit.intercept_[0])))
    return np.quantile(found, [(1 - confidence) / 2, (1 + confidence) / 2])


def test_interval_at_equal_length_is_that_of_refitting_by_hand(lengths):
    pytest.importorskip("sklearn")
    y, clusters = graded(60), np.arange(60) // 2
    rates = win_rate(y, clusters=clusters, lengths=lengths[0], baseline_lengths=lengths[1])
    ends = rates["equal_length_ci_low"], rates["equal_length_ci_high"]
    assert ends == pytest.approx(naive_interval(y, lengths, clusters), abs=0.03)


def test_copies_of_a_row_add_no_certainty_at_equal_length(lengths):
    y, copies = graded(60), np.repeat(np.arange(60), 4)
    once = win_rate(y, lengths=lengths[0], baseline_lengths=lengths[1])
    columns = {"lengths": lengths[0][copies], "baseline_lengths": lengths[1][copies]}
    clustered, iid = win_rate(y[copies], clusters=copies, **columns), win_rate(y[copies], **columns)

    def width(rates):
        return rates["equal_length_ci_high"] - rates["equal_length_ci_low"]

    assert width(clustered) == pytest.approx(width(once), rel=0.02)
    assert width(iid) < 0.6 * width(once)


def test_interval_is_undefined_where_the_rate_is_and_plain_where_the_rate_is_plain(lengths):
    y = graded(60)
    apart = win_rate(lengths[0] > lengths[1], lengths=lengths[0], baseline_lengths=lengths[1])
    assert all(math.isnan(apart[name]) for name in ("equal_length_ci_low", "equal_length_ci_high"))
    equal = win_rate(y, lengths=lengths[0], baseline_lengths=lengths[0])
    assert (equal["equal_length_ci_low"], equal["equal_length_ci_high"]) == (equal["ci_low"], equal["ci_high"])
    assert equal["matched_length_win_rate"] == equal["win_rate"] and equal["n_matched_length"] == 60
    few = win_rate([1, 0, 1, 0.5], lengths=[5, 9, 8, 7], baseline_lengths=[9, 5, 5, 6])
    assert 0 < few["equal_length_win_rate"] < 1 and math.isnan(few["equal_length_ci_low"]), "many samples have no fit"


def test_matched_lengths_are_within_a_tenth_of_the_longer_one():
    rates = win_rate([1, 0, 1, 1, None, 0.5], lengths=[90, 89, 100, 111, 5, 0], baseline_lengths=[100] * 4 + [5, 0])
    assert rates["n_matched_length"] == 4 and rates["matched_length_win_rate"] == 3.5 / 4
    unmatched = win_rate([1, 0], lengths=[1, 2], baseline_lengths=[2, 1])
    assert unmatched["n_matched_length"] == 0 and math.isnan(unmatched["matched_length_win_rate"])


def naive_alpaca_eval_fit(y, x):
    """Scores of each strength by hand, and the best one refitted."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GroupKFold

    n = len(y)
    rows, targets = np.concatenate([x, x]), np.repeat([1, 0], n)
    weights = np.concatenate([y, 1 - y])

    def fit(c, i):
        model = LogisticRegression(C=c, l1_ratio=1, solver="liblinear", fit_intercept=False, random_state=123)
        return model.fit(rows[i], targets[i], sample_weight=weights[i]).coef_[0]

    losses = []
    for c in np.logspace(-4, 4, 10):
        folds = []
        for train, test in GroupKFold(5).split(rows, targets, np.tile(np.arange(n), 2)):
            logits = rows[test] @ fit(c, train)
            loss = np.logaddexp(0, -np.where(targets[test] == 1, logits, -logits))
            folds.append((weights[test] * loss).sum() / weights[test].sum())
        losses.append(np.mean(folds))
    return fit(np.logspace(-4, 4, 10)[np.argmin(losses)], np.arange(2 * n))


def test_own_fit_is_the_cross_validated_one_by_hand():
    pytest.importorskip("sklearn")
    rng = np.random.default_rng(3)
    n = 200
    own, base, difficulty = rng.uniform(200, 2000, n), rng.uniform(200, 2000, n), rng.normal(size=n)
    x = np.stack([np.tanh((base - own) / (base - own).std(ddof=1)), difficulty, np.ones(n)], axis=1)
    y = (1 / (1 + np.exp(-x @ [-1.5, 0.8, 0.4] - rng.normal(size=n)))).clip(0, 1)
    weights = fit_alpaca_eval_weights(y, own, base, difficulty)
    assert weights == pytest.approx(naive_alpaca_eval_fit(y, x), abs=0.02)
    assert weights == pytest.approx((-1.5, 0.8, 0.4), abs=0.4)
    unjudged = fit_alpaca_eval_weights([*y, None], [*own, np.nan], [*base, 5], [*difficulty, 0])
    assert unjudged == pytest.approx(weights, abs=0.05), "rows without a verdict do not count"


@pytest.mark.parametrize(
    ("rows", "difficulties", "extra", "message"),
    [
        (12, 12, {}, "found 12 rows. For other prompts leave difficulty out and use equal_length_win_rate"),
        (805, 12, {}, "found 12 difficulties"),
        (805, 805, {"clusters": [0, *range(804)]}, "found 804 prompts"),
        (805, 805, {"lengths": None, "baseline_lengths": None}, "difficulty needs lengths"),
    ],
)
def test_the_leaderboard_s_figure_is_refused_for_other_prompts(rows, difficulties, extra, message):
    columns = {"lengths": np.arange(rows), "baseline_lengths": np.full(rows, 9), **extra}
    with pytest.raises(TrlRealError, match=message) as raised:
        win_rate(graded(rows), difficulty=[0.0] * difficulties, **columns)
    assert "\n" not in str(raised.value)


@pytest.fixture(scope="module")
def alpaca_eval() -> dict:
    folder, pandas = data_path("alpaca_eval"), pytest.importorskip("pandas")
    tables = ("leaderboard", "preferences", "instruction_difficulty", "length_control_weights")
    return {name: pandas.read_parquet(folder / f"{name}.parquet") for name in tables}


@pytest.fixture(scope="module")
def models(alpaca_eval) -> list:
    """Each model of AlpacaEval 2: its published row, preferences, lengths, and those of the baseline."""
    rows = dict(list(alpaca_eval["preferences"].query("benchmark == 'alpaca_eval_2'").groupby("model")))
    baseline_lengths = alpaca_eval["instruction_difficulty"].set_index("prompt_id").baseline_len
    board = alpaca_eval["leaderboard"].query("benchmark == 'alpaca_eval_2'")
    found = []
    for published in board.itertuples():
        own = rows[published.model].sort_values("prompt_id")
        found.append((published, own.preference - 1, own.output_len, baseline_lengths[own.prompt_id]))
    assert len(found) == 20
    return found


def test_length_control_without_difficulty_is_not_that_of_the_leaderboard(models):
    errors = []
    for board, *columns in models:
        preferences, own, base = (column.to_numpy() for column in columns)
        judged = ~np.isnan(preferences)
        rate = equal_length_rate(preferences[judged].clip(0, 1), (own - base)[judged])
        errors.append(100 * rate - board.length_controlled_winrate)
    assert 4 < np.mean(errors) < 6 and 14 < np.max(np.abs(errors)) < 15, "the figures in the docstring"


def own_fit_errors(models, difficulty) -> np.ndarray:
    """Length-controlled rates by own fit minus the published ones, in points."""
    pytest.importorskip("sklearn")
    return np.array(
        [
            100 * length_controlled_win_rate(preferences, own, base, difficulty) - board.length_controlled_winrate
            for board, preferences, own, base in models
        ]
    )


def test_own_fit_is_close_to_the_leaderboard(models, alpaca_eval):
    difficulty = alpaca_eval["instruction_difficulty"].sort_values("prompt_id").difficulty
    named = [model for model in models if model[0].model in ("claude-2.1", "FuseChat-Qwen-2.5-7B-Instruct")]
    errors = own_fit_errors(named, difficulty)
    assert len(errors) == 2 and (np.abs(errors) < 2).all()
    board, preferences, own, base = named[-1]
    rates = win_rate(preferences, lengths=own, baseline_lengths=base, difficulty=difficulty)
    found = 100 * rates["length_controlled_win_rate"] - board.length_controlled_winrate
    assert found == pytest.approx(errors[-1], abs=1e-9), "win_rate gives the same"


@pytest.mark.slow
def test_own_fit_of_all_models_is_as_close_to_the_leaderboard_as_documented(models, alpaca_eval):
    difficulty = alpaca_eval["instruction_difficulty"].sort_values("prompt_id").difficulty
    errors = np.abs(own_fit_errors(models, difficulty))
    assert len(errors) == 20 and 0.6 < errors.mean() < 0.9 and 2 < errors.max() < 2.4


def test_published_weights_give_the_published_length_controlled_rate(alpaca_eval):
    difficulty = alpaca_eval["instruction_difficulty"].difficulty
    weights = alpaca_eval["length_control_weights"]
    assert len(weights) == 119
    for row in weights.itertuples():
        rate = 100 * alpaca_eval_length_controlled(difficulty, row.difficulty_coef, row.model_coef)
        assert rate == pytest.approx(row.length_controlled_winrate, abs=0.25), row.model
    assert alpaca_eval_length_controlled(difficulty, 0, 0) == 0.5, "the baseline's"
