"""How threads wait: set by the command line before torch is loaded, unless the user said so."""

import os
import subprocess
import sys

import pytest

from trl_real.cli.main import SPINS


def environment(**own) -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if "OMP_" not in name} | own


def run(code: str, **own) -> subprocess.CompletedProcess:
    start = "import sys\nfrom trl_real.cli.main import main\nsys.argv = ['trl-real', 'no-verb']\n"
    command = [sys.executable, "-c", start + code]
    return subprocess.run(command, env=environment(**own), capture_output=True, text=True, check=True)


@pytest.mark.parametrize(
    ("own", "spins"),
    [
        ({}, SPINS["GOMP_SPINCOUNT"]),
        ({"OMP_NUM_THREADS": "2"}, SPINS["GOMP_SPINCOUNT"]),
        ({"GOMP_SPINCOUNT": "77"}, "77"),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, "None"),
    ],
    ids=str,
)
def test_threads_wait_as_the_user_says_or_else_briefly(own, spins):
    code = "print('torch' in sys.modules, 'numpy' in sys.modules)\nmain()\nimport os\n"
    code += "print(os.environ.get('GOMP_SPINCOUNT'))"
    assert run(code, **own).stdout.split() == ["False", "False", spins]


def test_torchs_threads_read_the_setting():
    told = run("main()\nimport torch; torch.ones(9)", OMP_DISPLAY_ENV="VERBOSE").stderr
    if "GOMP_SPINCOUNT" not in told:
        pytest.skip("torch does not use GNU OpenMP here")
    assert f"GOMP_SPINCOUNT = '{SPINS['GOMP_SPINCOUNT']}'" in told
