"""Claims about types: checkers and editors see the public names, and `import trl_real` still loads nothing heavy."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import trl_real
from support.project import ROOT


SCRIPT = """
from trl_real import {name}, annotate
selector = {name}({keyword})
record = selector.record
labels = annotate
"""
# Only the modules of the package are read: other packages count as Any, which keeps the run short.
CONFIG = """
[mypy]
ignore_missing_imports = True
follow_imports = silent
cache_dir = {cache}
[mypy-accelerate.*,datasets.*,evaluate.*,matplotlib.*,numpy.*,pandas.*,peft.*,scipy.*,torch.*,transformers.*,trl.*]
follow_imports = skip
"""


def _imported_for_checkers() -> dict[str, str]:
    tree = ast.parse((ROOT / "trl_real/__init__.py").read_text(encoding="utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
    named = {}
    for node in block.body:
        assert isinstance(node, ast.ImportFrom) and node.module
        for alias in node.names:
            assert alias.asname == alias.name, "only `import X as X` is a public name to a checker"
            named[alias.name] = node.module
    return named


def test_checkers_see_the_names_that_the_runtime_gives():
    assert _imported_for_checkers() == trl_real._HOME


def test_import_loads_nothing_heavy():
    code = "import sys, trl_real; print(*{'torch', 'datasets', 'transformers', 'trl', 'numpy'} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert run.stdout.split() == []


@pytest.fixture(scope="module")
def mypy(tmp_path_factory):
    pytest.importorskip("mypy")
    folder = tmp_path_factory.mktemp("mypy")
    (folder / "mypy.ini").write_text(CONFIG.format(cache=folder / "cache"), encoding="utf-8")

    def check(name: str = "EmbeddingPairSelector", keyword: str = 'strategy="easy"') -> str:
        script = Path(folder, "script.py")
        script.write_text(SCRIPT.format(name=name, keyword=keyword), encoding="utf-8")
        command = [sys.executable, "-m", "mypy", "--config-file", str(folder / "mypy.ini"), str(script)]
        return subprocess.run(command, capture_output=True, text=True, cwd=ROOT).stdout

    return check


class TestUserScript:
    def test_a_right_script_passes(self, mypy):
        assert "no issues found" in mypy()

    def test_a_wrong_keyword_is_reported(self, mypy):
        assert 'Unexpected keyword argument "stratgy" for "EmbeddingPairSelector"' in mypy(keyword='stratgy="easy"')

    def test_a_wrong_type_of_a_keyword_is_reported(self, mypy):
        assert 'Argument "strategy" to "EmbeddingPairSelector" has incompatible type "int"' in mypy(
            keyword="strategy=3"
        )

    def test_a_wrong_name_is_reported(self, mypy):
        assert 'Module "trl_real" has no attribute "EmbeddingPairSelektor"' in mypy(name="EmbeddingPairSelektor")
