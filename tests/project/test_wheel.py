"""Tests of the release: the wheel has all it needs and nothing else, and works without the source."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest
import yaml
from datasets import Dataset

from support.project import ROOT
from support.tiny import save_tiny
from trl_real import __version__


PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
ENDINGS = {".py", ".typed", ".md", ".j2", ".css", ".js", ".txt"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built from a copy, so that nothing an earlier build left behind gets in, and without the network."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    shutil.copytree(ROOT / "trl_real", source / "trl_real", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    flags = ["--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check"]
    subprocess.run([sys.executable, "-m", "pip", "wheel", *flags, "-w", out, source], check=True)
    (found,) = out.glob("*.whl")
    return found


def names(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def test_every_file_of_the_package_is_in_the_wheel(wheel):
    package = {path.relative_to(ROOT).as_posix() for path in (ROOT / "trl_real").rglob("*") if path.is_file()}
    package = {name for name in package if "__pycache__" not in name}
    inside = {name for name in names(wheel) if ".dist-info/" not in name}
    assert inside == package
    assert {"trl_real/py.typed", "trl_real/evaluation/metrics/pairwise_win_rate/pairwise_win_rate.py"} <= inside
    for folder in ("reports/templates/comparison.html.j2", "labeling/people/page_assets/page.js"):
        assert f"trl_real/{folder}" in inside


def test_nothing_else_is_in_the_wheel(wheel):
    """Code, pages and templates: no tests, no examples, no data set, and less than three quarters of a megabyte."""
    for name in names(wheel):
        own = name.startswith("trl_real/") and Path(name).suffix in ENDINGS
        assert own or name.startswith(f"trl_real-{__version__}.dist-info/"), name
    assert wheel.stat().st_size < 750_000
    assert f"trl_real-{__version__}.dist-info/licenses/LICENSE" in names(wheel)


def test_the_version_is_the_same_everywhere():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert {citation["version"], PROJECT["version"], __version__} == {__version__}
    assert f"\n## {__version__}" in changelog


def test_ci_covers_the_declared_python_and_trl_versions():
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8"))
    matrix = workflow["jobs"]["tests"]["strategy"]["matrix"]["include"]
    said = {name.rsplit(" ", 1)[-1] for name in PROJECT["classifiers"] if "Python :: 3." in name}
    assert {row["python"] for row in matrix} == said
    (lowest,) = (row["with"].split() for row in matrix if row["name"] == "lowest versions")
    floors = dict(re.match(r"([\w-]+)>=([\d.]+)", need).groups() for need in PROJECT["dependencies"])
    names = ("trl", "transformers", "datasets", "accelerate", "peft")
    assert sorted(lowest) == sorted(f"{name}=={floors[name]}.*" for name in names)
    (newest,) = (row["with"] for row in matrix if row["name"] == "newest versions")
    assert newest.startswith("--upgrade") and all(name in newest for name in names)


@pytest.mark.parametrize("path", sorted((ROOT / ".github" / "workflows").glob("*.yml")), ids=lambda path: path.name)
def test_workflows_pin_actions_and_may_do_little(path):
    workflow = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert workflow["permissions"] == {"contents": "read"}
    for job in workflow["jobs"].values():
        assert job["timeout-minutes"] <= 350
        assert not {"write-all", "read-all"} & {str(job.get("permissions", ""))}
    for used in re.findall(r"uses: (.*)", path.read_text(encoding="utf-8")):
        assert re.fullmatch(r"[\w/-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", used), used


def test_the_release_has_no_token_and_attests():
    text = (ROOT / ".github/workflows/release.yml").read_text(encoding="utf-8")
    publish = yaml.safe_load(text)["jobs"]["publish"]
    assert publish["permissions"] == {"id-token": "write"} and publish["steps"][-1]["with"] == {"attestations": True}
    assert "secrets." not in text and "password" not in text


IMPORT = "import sys; before = set(sys.modules); import trl_real; print(len(set(sys.modules) - before)); "
IMPORT += "print(*sorted({name.partition('.')[0] for name in set(sys.modules) - before}))"


def test_the_import_stays_light():
    """Names are loaded on first use: none of the libraries is imported with the package."""
    done = subprocess.run([sys.executable, "-c", IMPORT], capture_output=True, text=True, check=True)
    n, names = done.stdout.splitlines()
    heavy = {"torch", "transformers", "datasets", "trl", "peft", "accelerate", "evaluate", "numpy", "scipy", "pandas"}
    assert not heavy & set(names.split()) and int(n) < 120, names


METRIC = """
import evaluate, trl_real
folder = trl_real.__path__[0]
print(folder, evaluate.load(folder + "/evaluation/metrics/pairwise_win_rate").compute(preferences=[1, 1, 0, 0.5]))
"""


@pytest.mark.slow
def test_installed_wheel_works_without_the_source(wheel, tmp_path):
    """In a separate environment, which uses this one's dependencies but not its editable install."""
    venv.create(tmp_path / "env", with_pip=True)
    tools = tmp_path / "env" / "bin"
    site = next((tmp_path / "env" / "lib").glob("python*")) / "site-packages"
    (site / "borrowed.pth").write_text(sysconfig.get_paths()["purelib"], encoding="utf-8")
    settings = {**os.environ, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    settings.pop("PYTHONPATH", None)

    def run(*argv: object) -> str:
        done = subprocess.run([*map(str, argv)], cwd=tmp_path, env=settings, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    run(tools / "python", "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", wheel)
    assert run(tools / "trl-real", "--version").strip() == __version__
    rows = {"prompt": ["a", "b", "c"], "responses": [["yes", "no, never"], ["one", "two of them"], ["x", "y or z"]]}
    Dataset.from_dict(rows).to_parquet(str(tmp_path / "pool.parquet"))
    flags = ["--model", save_tiny(tmp_path / "model"), "--budget", 2, "--output_dir", "chosen"]
    assert run(tools / "trl-real", "select", "--dataset", "pool.parquet", *flags).strip() == "chosen"
    told = run(tools / "python", "-c", METRIC)
    assert told.startswith(str(site)) and "'win_rate': 0.625" in told
    assert "--budgets" in run(tools / "trl-real", "demo", "--help")
