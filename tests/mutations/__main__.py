"""
Apply small mutations to the package, one at a time, run the tests that touch the place, and list who survived.

    python tests/mutations                    # all, each with its own tests
    python tests/mutations projection         # those with this word in the claim or the path
    python tests/mutations --suite            # with the whole suite, for those that survive their own tests

A mutation is what a real bug looks like: a sign, an axis, a dropped condition. One that survives shows where the tests
look away: write the claim that it breaks. The package is copied, so that the working tree stays as it is.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from table import MUTATIONS, Mutation


ROOT = Path(__file__).parents[2]
PLACES = "tests/project/test_tests.py::test_every_mutation_has_one_place_and_tests_that_exist"  # it sees each of them


def is_noticed(mutation: Mutation, tests: list[str], seconds: float) -> bool:
    """Return whether one of the tests fails on a copy of the package with the mutation."""
    with tempfile.TemporaryDirectory() as folder:
        for name in ("trl_real", "tests", "docs", "examples", "benchmarks"):
            shutil.copytree(ROOT / name, Path(folder, name), ignore=shutil.ignore_patterns("__pycache__"))
        for name in ("pyproject.toml", "README.md", "Makefile"):
            shutil.copy(ROOT / name, folder)
        path = Path(folder, "trl_real", mutation.path)
        source = path.read_text("utf-8")
        if source.count(mutation.old) != 1:
            raise SystemExit(
                f"{mutation.claim}: {mutation.path} has {source.count(mutation.old)} of {mutation.old!r}."
            )
        path.write_text(source.replace(mutation.old, mutation.new), "utf-8")
        flags = ["-x", "-q", "-p", "no:cacheprovider", "--deselect", PLACES]
        command = [sys.executable, "-m", "pytest", *flags, *tests]
        environment = {**os.environ, "PYTHONPATH": folder, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
        try:
            done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, timeout=seconds)
        except subprocess.TimeoutExpired:
            return True  # such as a loop without an end
    if done.returncode not in (0, 1):
        raise SystemExit(f"{mutation.claim}: pytest ended with {done.returncode}.\n{done.stdout.decode()[-2000:]}")
    return done.returncode == 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("word", nargs="?", default="", help="only mutations with this word in claim or path")
    parser.add_argument("--suite", action="store_true", help="run the whole suite on those that survive their tests")
    parser.add_argument("--seconds", type=float, default=1200, help="longest run of the tests (default: 1200)")
    args = parser.parse_args()
    chosen = [each for each in MUTATIONS if args.word in f"{each.claim} {each.path}"]
    survived = []
    for number, mutation in enumerate(chosen, 1):
        noticed = is_noticed(mutation, [f"tests/{test}" for test in mutation.tests.split()], args.seconds)
        if not noticed and args.suite:
            noticed = is_noticed(mutation, ["tests"], args.seconds)
        survived += [] if noticed else [mutation]
        outcome = "noticed " if noticed else "SURVIVED"
        print(f"{number}/{len(chosen)} {outcome} {mutation.path}: {mutation.claim}", flush=True)
    print(f"{len(chosen) - len(survived)} of {len(chosen)} noticed")
    sys.exit(bool(survived))


if __name__ == "__main__":
    main()
