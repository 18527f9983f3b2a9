"""The page of all verbs and flags is what the parsers say."""

import importlib.util
import re
import subprocess
import sys

import pytest

from support.project import ROOT
from trl_real.cli.main import VERBS, main


SCRIPT = ROOT / "docs" / "commands.py"
PAGE = (ROOT / "docs" / "reference" / "commands.md").read_text(encoding="utf-8")


def test_the_page_is_current():
    spec = importlib.util.spec_from_file_location("commands", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.page() == PAGE, "the flags changed. Type: python docs/commands.py"


@pytest.mark.parametrize("verb", VERBS)
def test_the_page_and_help_have_the_same_flags(verb, capsys):
    section = PAGE.partition(f"\n## trl-real {verb}\n")[2].partition("\n## ")[0]
    shown = {flag for usage in re.findall(r"^\| `(--[^`]*)`", section, re.MULTILINE) for flag in usage.split(" / ")}
    with pytest.raises(SystemExit):
        main([verb, "--help"])
    usage = capsys.readouterr().out.partition("\n\n")[0]
    assert {re.match(r"--[\w-]+", flag)[0] for flag in shown} == set(
        re.findall(r"\[(?:-\w, )?(--[\w-]+)", usage)
    ) | set(re.findall(r"\| (--[\w-]+)", usage))


def test_the_page_is_written_without_torch():
    code = f"import runpy, sys; runpy.run_path({str(SCRIPT)!r})['page'](); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
