"""
Make small mutations at random places, run the tests that run the line, and list who survived.

    make test PYTEST_FLAGS="--cov=trl_real --cov-context=test --cov-report= --junitxml=tests.xml"   # once
    python tests/mutations/at_random.py 100 --seed 1
    python tests/mutations/at_random.py 30 --only selection/active

The first command writes which test runs which line (`.coverage`) and how long each takes (`tests.xml`). A room is
drawn by its weight, then a kind of mutation (`kinds.py`), then a place. Each is tried in a fork of a process that has
imported the heavy libraries, with a copy of the package: first the fastest tests of each file, then the others. Read
what survives: one in ten changes nothing that matters (a colour, a name, a condition that always holds).
"""

import argparse
import contextlib
import os
import random
import shutil
import signal
import sqlite3
import sys
import tempfile
import time
import xml.etree.ElementTree
from pathlib import Path

from coverage.numbits import numbits_to_nums
from kinds import Site, sites


ROOT = Path(__file__).parents[2]
ROOMS = {"functional": 5, "selection": 5, "labeling": 5, "training": 4, "models": 4, "data": 3, "evaluation": 3}
ROOMS |= {"rounds": 3, "study": 3, "cli": 3, "hub": 2, "runtime": 2, "reports": 2}
HEAVY = ("torch", "pandas", "scipy.stats", "datasets", "transformers", "trl", "evaluate", "peft", "accelerate")
QUIET = {"HF_UPDATE_DOWNLOAD_COUNTS": "0", "HF_HUB_DISABLE_TELEMETRY": "1", "RAY_USAGE_STATS_ENABLED": "0"}
PLACES = "test_every_mutation_has_one_place"  # sees each mutation of the table
ENDED = {0: "SURVIVED", 1: "noticed", 124: "noticed (time)"}


def tests_by_line(coverage: Path) -> dict[str, dict[int, set[str]]]:
    """Return the tests that run each line of each file of the package."""
    database = sqlite3.connect(coverage)
    files, contexts = (dict(database.execute(f"select * from {table}")) for table in ("file", "context"))
    found: dict[str, dict[int, set[str]]] = {}
    for file, context, bits in database.execute("select file_id, context_id, numbits from line_bits"):
        name, test = files[file].split("/trl_real/", 1)[-1], contexts[context].split("|")[0]
        if test and test.isprintable() and PLACES not in test:
            for line in numbits_to_nums(bits):
                found.setdefault(name, {}).setdefault(line, set()).add(test)
    return found


def durations(report: Path) -> dict[str, float]:
    """Return the seconds of each test."""
    found = {}
    for case in xml.etree.ElementTree.parse(report).iter("testcase"):
        file, *inner = case.get("classname", "").replace(".", "/").partition("/test_")
        name, *classes = inner[1].split("/")
        found["::".join((f"{file}/test_{name}.py", *classes, case.get("name", "")))] = float(case.get("time", 0))
    return found


def in_turn(tests: set[str], seconds: dict[str, float]) -> list[str]:
    """Return the tests, the fastest of each file first, so that claims of several kinds are tried early."""
    files: dict[str, list[str]] = {}
    for test in sorted(tests, key=lambda test: (seconds.get(test, 0.1), test)):
        files.setdefault(test.split("::")[0], []).append(test)
    longest = max(map(len, files.values()), default=0)
    return [test for turn in range(longest) for group in files.values() for test in group[turn : turn + 1]]


def within(tests: list[str], seconds: dict[str, float], budget: float) -> list[str]:
    """Return the first tests that together take this many seconds, at least one."""
    spent, found = 0.0, []
    for test in tests:
        spent += seconds.get(test, 0.1)
        if found and spent > budget:
            break
        found.append(test)
    return sorted(found, key=lambda test: seconds.get(test, 0.1))


class Bench:
    """A copy of the project in which one mutation after the other is tried."""

    def __init__(self, seconds: dict[str, float], longest: float):
        for name in HEAVY:
            __import__(name)
        self.seconds, self.longest = seconds, longest
        self.folder = Path(tempfile.mkdtemp(prefix="mutations."))
        self.clean: dict[str, bool] = {}  # tests that pass without a mutation
        for name in ("trl_real", "tests", "docs", "examples", "benchmarks", ".github"):
            shutil.copytree(ROOT / name, self.folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        for path in ROOT.iterdir():
            if path.is_file():
                shutil.copy(path, self.folder)

    def outcome(self, file: str, site: Site, tests: list[str]) -> str:
        """Return what becomes of a mutation, and the test that noticed it."""
        path = self.folder / "trl_real" / file
        source = path.read_text("utf-8")
        tests = [test for test in tests if self.clean.get(test, True)]
        path.write_text(site.applied(source), "utf-8")
        code, failed = self._run(tests) if tests else (0, "")
        path.write_text(source, "utf-8")
        if failed and failed not in self.clean:
            self.clean[failed] = not self._run([failed])[0]
        if failed and not self.clean[failed]:
            return self.outcome(file, site, tests)
        return " ".join(filter(None, (ENDED.get(code, f"pytest ended with {code}"), failed and f"by {failed}")))

    def _run(self, tests: list[str]) -> tuple[int, str]:
        """Run tests in a fork; return pytest's exit code and the test that failed."""
        log, child = self.folder / "log.txt", os.fork()
        if not child:
            os.setsid()
            for stream in (1, 2):
                os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
            os.chdir(self.folder)
            sys.path[:] = [str(self.folder), *(path for path in sys.path if path not in (str(ROOT), ""))]
            os.environ["PYTHONPATH"], sys.dont_write_bytecode = str(self.folder), True
            import pytest

            os._exit(int(pytest.main(["-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "--tb=no", *tests])))
        code = self._end_of(child)
        if code == 4 and any("[" in test for test in tests):  # a name that no command line can give
            return self._run(sorted({test.split("[")[0] for test in tests}))
        lines = [line.split(" - ")[0].split(" ", 1) for line in log.read_text("utf-8", "replace").splitlines()]
        return code, next((line[1] for line in lines if line[0] in ("FAILED", "ERROR") and "::" in line[-1]), "")

    def _end_of(self, child: int) -> int:
        until = time.monotonic() + self.longest
        while time.monotonic() < until:
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.02)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)
        os.waitpid(child, 0)
        return 124


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("number", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="only files whose path in trl_real/ starts so")
    parser.add_argument("--coverage", type=Path, default=ROOT / ".coverage")
    parser.add_argument("--times", type=Path, default=ROOT / "tests.xml")
    parser.add_argument("--budget", type=float, default=4, help="seconds of the first tests (default: 4)")
    parser.add_argument("--more", type=float, default=40, help="seconds of the others, for survivors (default: 40)")
    parser.add_argument("--longest", type=float, default=400, help="seconds after which a run counts as noticed")
    args = parser.parse_args()
    os.environ.update(QUIET)
    lines, seconds, chance = tests_by_line(args.coverage), durations(args.times), random.Random(args.seed)
    pool: dict[str, dict[str, list[tuple[str, Site]]]] = {}
    for path in sorted((ROOT / "trl_real").rglob("*.py")):
        file = path.relative_to(ROOT / "trl_real").as_posix()
        if file.split("/")[0] in ROOMS and file.startswith(args.only):
            for site in sites(path):
                if lines.get(file, {}).get(site.line):
                    pool.setdefault(file.split("/")[0], {}).setdefault(site.kind, []).append((file, site))
    bench, survived = Bench(seconds, args.longest), []
    for number in range(1, args.number + 1):
        room = chance.choices(sorted(pool), [ROOMS[room] for room in sorted(pool)])[0]
        file, site = chance.choice(pool[room][chance.choice(sorted(pool[room]))])
        tests = in_turn(lines[file][site.line], seconds)
        first = within(tests, seconds, args.budget)
        found = bench.outcome(file, site, first)
        if found == ENDED[0] and (rest := [test for test in tests if test not in set(first)]):
            found = bench.outcome(file, site, within(rest, seconds, args.more))
        what = f"{file}:{site.line} [{site.kind}] {site.words((ROOT / 'trl_real' / file).read_text('utf-8'))}"
        survived += [what] if found == ENDED[0] else []
        print(f"{number}/{args.number} {what}: {found}", flush=True)
    shutil.rmtree(bench.folder)
    print("\n".join([f"{args.number - len(survived)} of {args.number} noticed. Survived:", *survived]))


if __name__ == "__main__":
    main()
