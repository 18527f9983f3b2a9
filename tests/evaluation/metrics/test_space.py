"""The metric's Space: its page computes, and `evaluate.load` takes the pushed files."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from support.hub_server import HubServer, Repo
from trl_real.evaluation.metrics.pairwise_win_rate import app
from trl_real.functional.statistics.win_rate import win_rate


FOLDER = Path(app.__file__).parent
SCRIPT = """
import evaluate
print(evaluate.load("user/pairwise_win_rate").compute(preferences=[1, 1, 0, 0.5])["win_rate"])
"""


def test_the_page_shows_the_rates_of_the_metric():
    text = app.rates("1, 1 0\n0.5; 1 -")
    expected = win_rate([1, 1, 0, 0.5, 1, None])
    shown = dict(re.findall(r"^\| (\w+) \| (.*) \|$", text, re.MULTILINE))
    assert set(shown) == set(app.SHOWN)
    assert (shown["win_rate"], shown["n_failed"]) == (f"{expected['win_rate']:.3f}", "1")
    assert "| ci_method | clustered t |" in app.rates("1 0 1 1 0 1", "a a b b c c")


@pytest.mark.parametrize("verdicts", ["", "2", "win", "1 0 1"])
def test_what_cannot_be_computed_is_one_line(verdicts):
    found = app.rates(verdicts, "a b" if verdicts == "1 0 1" else "")
    assert found and "\n" not in found and "|" not in found


def test_the_page_can_be_built():
    gradio = pytest.importorskip("gradio")
    assert isinstance(app.build(), gradio.Blocks)


def test_the_front_matter_and_requirements_are_those_of_a_gradio_space():
    header = yaml.safe_load((FOLDER / "README.md").read_text(encoding="utf-8").split("---\n")[1])
    assert (header["sdk"], header["app_file"]) == ("gradio", "app.py") and (FOLDER / header["app_file"]).exists()
    assert {"evaluate", "metric"} <= set(header["tags"])
    assert (FOLDER / "requirements.txt").read_text(encoding="utf-8").startswith("trl-real")


def test_evaluate_loads_the_pushed_space(tmp_path):
    names = ("app.py", "requirements.txt", "README.md", "pairwise_win_rate.py")
    files = {name: (FOLDER / name).read_bytes() for name in names}
    with HubServer() as hub:
        space = hub.repos["space", "user/pairwise_win_rate"] = Repo(private=False)
        space.commit("main", files)
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT], env=hub.environment(tmp_path), capture_output=True, text=True, cwd=tmp_path
        )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "0.625"
