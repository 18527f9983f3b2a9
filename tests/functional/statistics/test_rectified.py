"""People's win rate from a judge on all rows and people on some: equal to ppi-python, honest, and narrower."""

import math

import numpy as np
import pytest

from trl_real.errors import TrlRealError
from trl_real.functional.statistics.intervals import t_half_width
from trl_real.functional.statistics.people import METHODS, paired_people, people_win_rate
from trl_real.functional.statistics.rectified import effective_people, rectified_mean, sample_of
from trl_real.functional.statistics.sampling import draw_rows, uncertainty


NAN = math.nan
N, EVERY = 200, 5
# From ppi-python 0.2.3 on `golden_rows`, every fifth row labelled: `ppi_mean_pointestimate`, the `lam` of
# `_calc_lam_glm`, and the standard error in `ppi_mean_ci`, with NumPy 2.4.6.
PPI = {
    "graded": (0.48547019413594994, 0.4857025640494113, 0.07524152602880015),
    "hard": (0.47562006200620055, 0.27862786278627855, 0.07501014388839652),
    "ties": (0.5027576373926206, 0.6513356809551084, 0.03372935019104252),
    "opposite": (0.5, 0.0, 0.07905694150420949),
}
# `ppi_mean_pointestimate(y, f, all of f, lam=…, w=1 / pi)` on the graded rows.
PPI_WEIGHTED = {0.0: 0.5039297689411502, 0.5: 0.49330061472311326, 1.0: 0.4826714605050765}


def golden_rows(kind: str) -> tuple[np.ndarray, np.ndarray]:
    """People's and a judge's values without a random generator, whose stream could change with its version."""
    i = np.arange(1, N + 1)
    u, v = (i * 0.6180339887498949) % 1, (i * 0.4142135623730951) % 1
    y = np.round(2 * (0.6 * v + 0.4 * u)) / 2 if kind == "ties" else np.where(v < 0.3 * u + 0.4, 1.0, 0.0)
    return y, {"graded": u, "ties": 0.25 + u / 2, "hard": (u > 0.5) * 1.0, "opposite": 1 - u}[kind]


def every_fifth(y: np.ndarray) -> np.ndarray:
    return np.where(np.arange(len(y)) % EVERY == 0, y, NAN)


@pytest.mark.parametrize("kind", PPI)
def test_uniform_draws_give_the_numbers_of_ppi_python(kind):
    y, f = golden_rows(kind)
    mean, lam, error = PPI[kind]
    sample = sample_of(f, every_fifth(y), None, None)
    found = rectified_mean(sample)
    n, n_left = N // EVERY, N - N // EVERY
    assert found.mean == pytest.approx(mean, abs=1e-10)
    assert found.weight * n_left / N == pytest.approx(lam, abs=1e-10)
    # The same two variances; ours are divided by the degrees of freedom that the fits leave, theirs by n.
    judge = lam**2 * f[np.arange(N) % EVERY != 0].var() / n_left
    ours = judge + (error**2 - judge) * n / (n - 2 if lam else n - 1)
    assert found.error == pytest.approx(math.sqrt(ours), abs=1e-10)


@pytest.mark.parametrize("weight", PPI_WEIGHTED)
def test_unequal_probabilities_give_the_numbers_of_ppi_python(weight):
    y, f = golden_rows("graded")
    probabilities = 0.1 + 0.3 * ((np.arange(N) * 0.7320508075688772) % 1)
    for scale in (1.0, 0.5):  # only the ratios of the probabilities count for a given weight
        found = rectified_mean(sample_of(f, every_fifth(y), scale * probabilities, None), weight)
        assert found.mean == pytest.approx(PPI_WEIGHTED[weight], abs=1e-10)


def test_people_alone_are_a_plain_clustered_mean():
    y, f = golden_rows("ties")
    votes, prompts = every_fifth(y), np.arange(N) // 10
    asked = ~np.isnan(votes)
    found = people_win_rate(np.full(N, 0.3), votes, clusters=prompts, method="t")
    half = t_half_width(votes[asked], prompts[asked], 0.95)
    assert found["win_rate"] == pytest.approx(votes[asked].mean())
    assert found["ci_high"] - found["win_rate"] == pytest.approx(half)
    assert (found["win_rate"], found["ci_low"]) == (found["people_only_win_rate"], found["people_only_ci_low"])
    assert found["judge_weight"] == 0.0


def test_with_everybody_asked_the_judge_does_not_matter():
    y, f = golden_rows("graded")
    found = people_win_rate(f, y, np.ones(N))
    assert found["win_rate"] == found["people_only_win_rate"] == pytest.approx(y.mean())
    assert found["effective_people"] == pytest.approx(N)


def test_counts_are_of_people_and_a_row_without_a_verdict_of_the_judge_counts():
    judge = [0.9, 0.8, None, 0.2, 0.1, 0.5, 0.7, NAN]
    people = [1, None, 0.5, 0, None, 1, 1, NAN]
    found = people_win_rate(judge, people)
    counts = {name: found[name] for name in ("n_wins", "n_losses", "n_ties", "n_total", "n_failed", "n_rows")}
    assert counts == {"n_wins": 3, "n_losses": 1, "n_ties": 1, "n_total": 5, "n_failed": 2, "n_rows": 8}
    assert found["people_only_win_rate"] == pytest.approx(0.7)
    assert found["win_rate_without_ties"] == pytest.approx(0.75)
    assert found["judge_win_rate"] == pytest.approx(3.2 / 6)
    assert found["judge_bias"] == pytest.approx(found["judge_win_rate"] - found["win_rate"])


def test_order_of_rows_does_not_matter():
    y, f = golden_rows("graded")
    votes, prompts = every_fifth(y), np.arange(N) // 4
    probabilities = 0.1 + 0.3 * ((np.arange(N) * 0.7320508075688772) % 1)
    mixed = np.random.default_rng(0).permutation(N)
    one = people_win_rate(f, votes, probabilities, clusters=prompts)
    two = people_win_rate(f[mixed], votes[mixed], probabilities[mixed], clusters=prompts[mixed])
    assert one.pop("ci_method") == two.pop("ci_method") == "people, score"
    assert one == pytest.approx(two, rel=1e-9)


def test_equal_votes_are_no_certainty_and_too_few_give_no_interval():
    f = golden_rows("graded")[1]
    all_won = people_win_rate(f, every_fifth(np.ones(N)))
    assert all_won["ci_method"] == "wilson, no variance" and all_won["ci_low"] == pytest.approx(0.912, abs=1e-3)
    nobody = people_win_rate(f, np.full(N, NAN))
    assert math.isnan(nobody["win_rate"]) and math.isnan(nobody["ci_low"]) and nobody["n_total"] == 0
    two = people_win_rate(f, [1, 0] + [NAN] * (N - 2))
    assert math.isnan(two["ci_low"]) and two["ci_method"] == "undefined"


def test_a_judge_that_agrees_with_all_labels_is_not_taken_for_perfect():
    f = golden_rows("hard")[1]
    found = people_win_rate(f, every_fifth(f))
    assert found["win_rate"] - found["ci_low"] > 1.9 / (N // EVERY)


@pytest.mark.parametrize("method", METHODS)
def test_intervals_stay_within_zero_and_one(method):
    people = every_fifth((np.arange(N) % 75 == 0) * 1.0)
    found = people_win_rate(golden_rows("graded")[1], people, method=method)
    assert 0 <= found["ci_low"] < found["ci_high"] <= 1


def test_paired_policies_are_estimated_by_their_differences():
    y, f = golden_rows("graded")
    other_y, other_f = golden_rows("ties")
    votes = every_fifth(y), every_fifth(other_y)
    found = paired_people((f, votes[0]), (other_f, votes[1]))
    sample = sample_of(f - other_f, votes[0] - votes[1], None, None)
    assert found["difference"] == rectified_mean(sample).mean
    assert found["effective_people"] == effective_people(rectified_mean(sample), sample)
    swapped = paired_people((other_f, votes[1]), (f, votes[0]))
    assert swapped["difference"] == pytest.approx(-found["difference"])
    assert swapped["ci_low"] == pytest.approx(-found["ci_high"])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (([0.5, 0.5], [1]), "1 people came with 2"),
        (([0.5, 0.5], [1, 2]), "people row 1 is 2"),
        (([0.5, 0.5], [1, 0], [0.5, 0.0]), "inclusion_probabilities row 1 is 0"),
        (([0.5, 0.5], [1, 0], [0.5, NAN]), "inclusion_probabilities row 1 is nan"),
        (([0.5, 0.5], [1, 0], [0.5, 1.5]), "inclusion_probabilities row 1 is 1.5"),
    ],
)
def test_wrong_input_is_named(arguments, words):
    with pytest.raises(TrlRealError, match=words):
        people_win_rate(*arguments)


def test_an_interval_that_does_not_apply_is_refused():
    with pytest.raises(TrlRealError, match="'wilson'"):
        people_win_rate([0.5], [1], method="wilson")


def biased_judge(rng: np.random.Generator, accuracy: float, n: int = 400) -> tuple[np.ndarray, np.ndarray]:
    """People who prefer the model in 60 % of the rows, and a judge that leans to the model by a third of a nat."""
    y = (rng.random(n) < 0.6) * 1.0
    strength = {0.55: 0.1257, 0.7: 0.5244, 0.9: 1.2816}[accuracy]
    return y, 1 / (1 + np.exp(-(2 * strength * ((2 * y - 1) * strength + rng.normal(size=n)) + 0.33)))


@pytest.mark.parametrize("by", ["uniform", "uncertainty"])
@pytest.mark.parametrize(("accuracy", "widest"), [(0.55, 1.03), (0.7, 0.95), (0.9, 0.7)])
def test_intervals_contain_the_truth_and_are_narrower_than_peoples_alone(accuracy, widest, by):
    rng = np.random.default_rng(7)
    covered, ratios, alone = [], [], []
    for _ in range(400):
        y, f = biased_judge(rng, accuracy)
        scores = uncertainty(f) if by == "uncertainty" else np.zeros(len(f))
        drawn = draw_rows(scores, rng.random(len(f)), 40)
        votes = np.full(len(f), NAN)
        votes[drawn.rows] = y[drawn.rows]
        found = people_win_rate(f, votes, drawn.inclusion_probabilities)
        covered.append(found["ci_low"] <= 0.6 <= found["ci_high"])
        alone.append(found["people_only_ci_low"] <= 0.6 <= found["people_only_ci_high"])
        ratios.append(
            (found["ci_high"] - found["ci_low"]) / (found["people_only_ci_high"] - found["people_only_ci_low"])
        )
    assert 0.92 <= np.mean(covered) <= 0.985 and 0.92 <= np.mean(alone) <= 0.985  # 95 % within 3 standard errors
    assert np.mean(ratios) <= widest
