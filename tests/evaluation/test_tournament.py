"""Two models compared prompt by prompt, and many models on one scale."""

import json

import pytest

from support.comparisons import LongerIsBetter, many
from trl_real.errors import TrlRealError
from trl_real.evaluation.compare import compare_columns
from trl_real.evaluation.tournament import tournament
from trl_real.functional.statistics.paired import paired_comparison


def test_two_models_are_compared_prompt_by_prompt():
    good, weak = (compare_columns(many(), LongerIsBetter(), model=m, baseline="base") for m in ("good", "weak"))
    test = good.against(weak)
    assert test.difference == pytest.approx(good.rates["win_rate"] - weak.rates["win_rate"])
    assert test.sign_p < 0.01 and weak.against(good).difference == -test.difference
    other_prompts = compare_columns(many(59), LongerIsBetter(), model="weak", baseline="base")
    with pytest.raises(TrlRealError, match="differ in their prompts"):
        good.against(other_prompts)
    with pytest.raises(TrlRealError, match="differ in their baseline"):
        good.against(compare_columns(many(), LongerIsBetter(), model="weak", baseline="good"))


def test_a_paired_comparison_has_the_direction_and_the_confidence_of_the_first():
    def noisy(batch):
        return [
            float((len(a) * 7 + len(p)) % 5 > 1) for a, p in zip(batch["response_a"], batch["prompt"], strict=True)
        ]

    settings = {"baseline": "base", "confidence": 0.5}
    good, weak = (compare_columns(many(), noisy, model=name, **settings) for name in ("good", "weak"))
    test = good.against(weak)
    expected = paired_comparison(good.rows["preference"], weak.rows["preference"], clusters=good.rows["prompt"],
                                 confidence=0.5, seed=42)  # fmt: skip
    assert test == expected and test.difference != 0 and test.ci_low < test.difference < test.ci_high
    default = paired_comparison(good.rows["preference"], weak.rows["preference"], clusters=good.rows["prompt"])
    assert default.ci_high > test.ci_high
    assert good.against(weak, seed=1).permutation_p != test.permutation_p


def test_p_values_of_a_tournament_are_corrected_for_the_number_of_tests():
    rows = many(fair=[f"base {i}" + "x" * (i % 3 - 1) for i in range(60)])
    found = tournament(rows, LongerIsBetter(), ["good", "weak", "fair", "base"], rounds=20, everyone=False)
    assert found.against_reference.keys() == {("good", "weak"), ("good", "fair"), ("weak", "fair")}
    plain_p = {names: test.sign_p for names, (test, _) in found.against_reference.items()}
    largest, order = 0.0, sorted(plain_p, key=plain_p.get)
    for place, names in enumerate(order):  # Holm: times the number of tests that are left
        largest = min(1.0, max(largest, plain_p[names] * (3 - place)))
        assert found.against_reference[names][1] == pytest.approx(largest)
    assert found.against_reference[order[0]][1] > plain_p[order[0]]


def test_many_models_are_ranked_and_compared():
    found = tournament(many(), LongerIsBetter(), ["weak", "good", "base"], rounds=50)
    assert [row.model for row in found.ranking.rows] == ["good", "base", "weak"]
    assert [row.rating > 1000 for row in found.ranking.rows] == [True, False, False], "base, the last, is at 1000"
    assert len(found.comparisons) == 3 and set(found.against_reference) == {("weak", "good")}
    only = tournament(many(), LongerIsBetter(), ["weak", "good", "base"], everyone=False, rounds=50)
    assert len(only.comparisons) == 2
    json.dumps(found.to_dict(), allow_nan=False)
    for models, reference in ((["good"], None), (["good", "good"], "good"), ([], None), (["good", "weak"], "base")):
        with pytest.raises(TrlRealError, match=f"reference={reference or (models or [None])[-1]!r}. Give two columns"):
            tournament(many(), LongerIsBetter(), models, reference=reference)
