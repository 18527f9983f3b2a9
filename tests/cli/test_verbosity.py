"""One line of progress with the time left; the bars and warnings of other libraries only with `--verbose`."""

import json
import os
import subprocess
import sys

import pytest

from trl_real.cli import options
from trl_real.cli.options import TimeLeft


@pytest.fixture
def clock(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(options.time, "monotonic", lambda: now[0])
    return now


@pytest.mark.parametrize(
    ("seconds", "told"),
    [
        ([120, 240], ["a", "a, about 6 minutes left", "a, about 6 minutes left"]),
        ([0.1, 30], ["a", "a", "a, about 1 minute left"]),  # the first step was there before
        ([7200, 7200], ["a", "a, about 6 hours left", "a, about 4 hours left"]),
    ],
    ids=str,
)
def test_time_left_is_that_of_the_steps_that_were_worked_on(seconds, told, clock, capsys):
    progress = TimeLeft(4)
    for done, spent in enumerate([0, *seconds]):
        clock[0] += spent
        progress.tell("a", done)
    assert capsys.readouterr().err.splitlines() == told


@pytest.mark.parametrize("verbose", [False, True])
def test_other_libraries_are_heard_only_on_request(verbose, tmp_path):
    rows = [{"prompt": f"p{i}", "responses": ["a", "b"]} for i in range(4)]
    (tmp_path / "pool.jsonl").write_text("\n".join(map(json.dumps, rows)))
    flags = ["--dataset", "pool.jsonl", "--strategy", "random", "--output_dir", "out", *["--verbose"] * verbose]
    code = (
        "import sys, warnings\nfrom trl_real.cli.main import main\nimport trl_real.runtime.distributed as there\n"
        "begin = there.init_distributed\n"
        "def warn():\n    warnings.warn('soon gone', FutureWarning)\n    begin()\n"
        f"there.init_distributed = warn\nsys.exit(main(['select', *{flags}]))"
    )
    environment = {name: value for name, value in os.environ.items() if "PROGRESS" not in name}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout == "out\n", done.stderr
    assert [word in done.stderr for word in ("soon gone", "Saving the dataset")] == [verbose, verbose]
