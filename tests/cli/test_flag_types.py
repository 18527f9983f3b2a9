"""What a flag takes: each value in its range and none outside, told in one line before anything heavy is imported."""

import argparse
import re

import pytest

from trl_real.cli.checks import ARM, STRATEGY, budget, check_given, one_of, real, strategies, whole
from trl_real.cli.judges import key_value
from trl_real.errors import TrlRealError


def parsed(kind, text):
    try:
        return kind(text)
    except argparse.ArgumentTypeError as error:
        assert "\n" not in str(error) and any(part in str(error) for part in re.split("[@+]", text))
        return None


CLOSED, OPEN, ABOVE, ANY = real(0, 1), real(0, 1, open_ends=True), real(0, open_ends=True), real(0)


@pytest.mark.parametrize(
    ("text", "values"),
    [  # in [0, 1], in (0, 1), above 0, 0 or more
        ("0", (0.0, None, None, 0.0)), ("1", (1.0, None, 1.0, 1.0)), ("0.5", (0.5, 0.5, 0.5, 0.5)),
        ("-0.1", (None, None, None, None)), ("1.1", (None, None, 1.1, 1.1)), ("1e3", (None, None, 1000.0, 1000.0)),
        ("nan", (None, None, None, None)), ("inf", (None, None, None, None)), ("x", (None, None, None, None)),
        ("", (None, None, None, None)),
    ],
)  # fmt: skip
def test_a_number_is_in_its_range(text, values):
    assert tuple(parsed(kind, text) for kind in (CLOSED, OPEN, ABOVE, ANY)) == values


@pytest.mark.parametrize(
    ("kind", "words"),
    [(CLOSED, "between 0 and 1"), (OPEN, "between 0 and 1"), (ABOVE, "above 0"), (ANY, "of 0 or more")],
)
def test_the_range_of_a_number_is_told(kind, words):
    with pytest.raises(argparse.ArgumentTypeError, match=f"'-1' is not a number {words}"):
        kind("-1")


@pytest.mark.parametrize(
    ("text", "from_0", "from_2"),
    [("2", 2, 2), ("1", 1, None), ("0", 0, None), ("-1", None, None), ("+3", 3, 3), ("2.0", None, None),
     ("1e3", None, None), ("x", None, None), ("1_0", None, None)],
)  # fmt: skip
def test_a_whole_number_is_of_its_least_or_more(text, from_0, from_2):
    assert (parsed(whole(0), text), parsed(whole(2), text)) == (from_0, from_2)


@pytest.mark.parametrize(
    ("text", "value"),
    [("0.25", 0.25), ("1.0", 1.0), ("1", 1), ("500", 500), ("0", None), ("0.0", None), ("1.5", None), ("-3", None),
     ("all", None), ("nan", None)],
)  # fmt: skip
def test_a_budget_is_a_share_or_a_number_of_rows(text, value):
    found = parsed(budget, text)
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    ("text", "strategy", "arm", "own"),
    [
        ("easy", True, True, True), ("easy@centered", True, True, True), ("easy@round", False, False, False),
        ("esay", False, False, False), ("auto", True, True, True),
        ("infomax", False, True, False), ("auto_in_rounds", False, True, False), ("mine", False, False, True),
        ("0.75easy@centered+0.25random", True, True, True), ("easy+esay", False, False, False),
        ("easy + hard", True, True, True), ("easy+auto", False, False, False), ("easy+mine", False, False, False),
        ("easy@round+random", False, False, False),
    ],
)  # fmt: skip
def test_strategies_mixtures_and_arms_are_told_apart(text, strategy, arm, own):
    takes = (STRATEGY, ARM, strategies("mine"))
    assert tuple(parsed(kind, text) == text for kind in takes) == (strategy, arm, own)


def test_a_wrong_name_is_told_with_all_names_and_a_similar_one():
    with pytest.raises(argparse.ArgumentTypeError, match="No trainer 'rewrad'; there are dpo, reward.*mean.*reward"):
        one_of("trainer", ("dpo", "reward"))("rewrad")
    with pytest.raises(argparse.ArgumentTypeError, match="No geometry 'cantered'; there are raw, centered.*centered"):
        one_of("arm", ("easy",), ("raw", "centered"))("easy@cantered")


@pytest.mark.parametrize(
    ("text", "pair"),
    [("a=1", ("a", 1)), ("a=null", ("a", None)), ("a=low", ("a", "low")), ('a={"b": [1]}', ("a", {"b": [1]})),
     ("a=", ("a", "")), ("a=b=c", ("a", "b=c")), ("=1", None), ("a", None)],
)  # fmt: skip
def test_an_option_is_a_key_and_json_or_a_text(text, pair):
    assert parsed(key_value, text) == pair


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    (tmp_path / "empty").mkdir()
    (tmp_path / "user" / "empty").mkdir(parents=True)
    for name in ("rows.parquet", "guide.md"):
        (tmp_path / name).touch()
    return tmp_path


GOOD = {
    "dataset": ["rows.parquet", "./rows.parquet", "empty", "user/data", "data"],
    "guidelines": ["guide.md"],
    "model": ["model", "./model", "user/m", "m", "user/empty"],
    "output_dir": ["new", "new/deep", "empty"],
}
BAD = {
    "dataset": {"row.parquet": "No file or folder 'row.parquet'.*rows.parquet", "a/b.csv": "No file", "a/b/c": "No"},
    "eval_dataset": {"rows.csv": "--eval_dataset: No file or folder 'rows.csv'"},
    "guidelines": {"empty": "no file 'empty'", "guides.md": "no file 'guides.md'.*guide.md"},
    "panel": {"panel.yaml": "--panel: no file"},
    "model": {
        "./empty": "the folder './empty' holds no model: none of config.json", "./modle": "no folder './modle'.*model",
        "/nowhere": "no folder", "a/b/c": "no folder 'a/b/c'", "~/nowhere": "no folder",
    },
    "judge_model": {"./modle": "--judge_model: no folder"},
    "output_dir": {"guide.md": "'guide.md' is a file. Give a folder", "guide.md/x": "cannot be made"},
}  # fmt: skip


@pytest.mark.parametrize(("flag", "value"), [(flag, value) for flag, values in GOOD.items() for value in values])
def test_what_is_there_or_may_be_on_the_hub_is_taken(flag, value, here):
    check_given(argparse.Namespace(verb="train", **{flag: value}))


@pytest.mark.parametrize(("flag", "value"), [(flag, value) for flag, values in BAD.items() for value in values])
def test_what_is_not_there_is_told_with_its_flag(flag, value, here):
    with pytest.raises(TrlRealError, match=BAD[flag][value]) as told:
        check_given(argparse.Namespace(verb="train", **{flag: value}))
    assert str(told.value).startswith(f"--{flag}: ") and "\n" not in str(told.value)


def test_the_data_of_a_report_is_a_run_and_a_served_judge_has_a_name_of_its_own(here):
    check_given(argparse.Namespace(verb="report", dataset="a/run/of/mine"))
    check_given(argparse.Namespace(verb="label", judge_model="./modle", base_url="http://127.0.0.1:9/v1"))
    with pytest.raises(TrlRealError, match="--judge_model: no folder"):
        check_given(argparse.Namespace(verb="label", judge_model="./modle", base_url=None))
