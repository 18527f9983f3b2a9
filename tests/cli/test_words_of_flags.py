"""How the command line reads flags and settings, and writes the package's hints for a shell."""

import json
import math
from importlib import import_module
from types import SimpleNamespace

import numpy as np
import pytest

from trl_real.cli.main import VERBS
from trl_real.cli.options import _duration, check_output, keep_settings, require, strict_json
from trl_real.cli.parser import Parser, did_you_mean, in_flags, underscored
from trl_real.errors import TrlRealError


FLAGS = {"split": "split", "n_prompts": "n_prompts", "model": "judge_model", "responses": "responses", "name": "as"}


@pytest.mark.parametrize(
    ("told", "written"),
    [
        ("Type split='train'.", "Type --split train."),
        ('Type split="train".', "Type --split train."),
        ("Type n_prompts=10, or give more.", "Type --n_prompts 10, or give more."),
        ("Give model='user/m'.", "Give --judge_model user/m."),
        ("Type responses=['a', 'b'].", "Type --responses a b."),
        ("Type split='two words'.", "Type --split 'two words'."),
        ("Type split=None.", "Leave --split out."),
        ("Give split='train' or None.", "Give --split train, or leave it out."),
        ("n_prompts is too small", "--n_prompts is too small"),
        ("a model is no flag", "a model is no flag"),
        (
            "'n_prompts' in quotes, x.n_prompts and n_prompts.json",
            "'n_prompts' in quotes, x.n_prompts and n_prompts.json",
        ),
        ("my_split='x' and a/split=1", "my_split='x' and a/split=1"),
        ("name='x'", "--as x"),
        ("It is public, so split=True would show it.", "It is public, so --split would show it."),
        ("nothing to write", "nothing to write"),
    ],
)
def test_a_hint_for_python_is_written_for_the_shell(told, written):
    assert in_flags(told, FLAGS) == written
    assert in_flags(told, {}) == told


@pytest.mark.parametrize("verb", VERBS)
def test_each_argument_is_told_by_the_flag_that_sets_it(verb):
    """Of a switch with two flags by the one that turns it on."""
    parser = Parser(verb)
    import_module(f"trl_real.cli.{verb.replace('-', '_')}").register(parser)
    flags = parser.flag_of()
    for action in parser._actions:
        assert f"--{flags[action.dest]}" == next(name for name in action.option_strings if name.startswith("--"))
        if action.nargs == 0 and action.const is not False and action.dest != "help":
            assert getattr(parser.parse_known_args([f"--{flags[action.dest]}"])[0], action.dest) is not False
    assert all(flags[flag[2:]] == flag[2:] for flag in parser.flags())


@pytest.mark.parametrize(
    ("name", "meant"),
    [("--spilt", "--split"), ("--SPLIT", "--split"), ("--n_prompt", "--n_prompts"), ("--banana", ""), ("", "")],
)
def test_a_name_that_is_nearly_right_is_told(name, meant):
    assert did_you_mean(name, ["--split", "--n_prompts"]) == (f" Did you mean {meant}?" if meant else "")
    assert did_you_mean(name, []) == ""


@pytest.mark.parametrize(
    ("typed", "read"),
    [
        ("--n-prompts", "--n_prompts"), ("--n-prompts=a-b", "--n_prompts=a-b"), ("a-b", "a-b"), ("-x-y", "-x-y"),
        ("--no-private", "--no-private"), ("--no_private", "--no-private"), ("--no-page", "--no_page"),
        ("--", "--"), ("--a=--b-c", "--a=--b-c"),
    ],
)  # fmt: skip
def test_dashes_in_the_name_of_a_flag_are_underscores(typed, read):
    assert underscored(typed) == read


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "1 minute"),
        (89, "1 minute"),
        (91, "2 minutes"),
        (7100, "118 minutes"),
        (7200, "2 hours"),
        (36000, "10 hours"),
    ],
)
def test_a_duration_is_told_in_minutes_and_from_two_hours_on_in_hours(seconds, words):
    assert _duration(seconds) == words


def test_json_holds_null_for_what_it_cannot_say_and_text_for_what_is_no_value():
    given = {
        "a": math.nan,
        "b": [math.inf, 1.5],
        "c": {"d": np.float32("nan")},
        "e": np.int64(3),
        "f": {1},
        "g": "ü",
    }
    text = strict_json(given, ensure_ascii=False)
    assert json.loads(text) == {"a": None, "b": [None, 1.5], "c": {"d": None}, "e": 3, "f": "{1}", "g": "ü"}
    assert "ü" in text and "NaN" not in text


def test_the_first_flag_that_is_missing_is_told():
    args = SimpleNamespace(verb="label", dataset=None, model=None, n=0)
    require(args, "n")
    with pytest.raises(TrlRealError, match="--dataset is missing. Type: trl-real label --dataset …"):
        require(args, "n", "dataset", "model")


def test_an_output_folder_remembers_the_settings_that_it_hangs_on(tmp_path, capsys):
    def checked(**changes):
        given = {"output_dir": str(tmp_path / "out"), "seed": 1, "split": None, "price": 3, **changes}
        args = SimpleNamespace(**given)
        settings = check_output(args, "labelling", "seed", "split", judge="score", chat=None)
        (tmp_path / "out").mkdir(exist_ok=True)
        keep_settings(args, settings)
        return settings

    assert checked() == {"seed": 1, "judge": "score"} == checked(price=4)
    for changes in ({"seed": 2}, {"split": "train"}):
        with pytest.raises(TrlRealError, match=next(iter(changes))):
            checked(**changes)
    assert capsys.readouterr().err == ""
    other = SimpleNamespace(output_dir=str(tmp_path), seed=1)
    check_output(other, "labelling", "seed")
    assert f"Replacing the earlier output in {tmp_path}" in capsys.readouterr().err
