"""The project's address stands in one place, and what machines read of the documentation is complete."""

import re
import runpy

import yaml

from support.project import ROOT
from trl_real.cli.main import VERBS


SCRIPT = runpy.run_path(str(ROOT / "docs" / "project_url.py"))


def test_every_link_to_the_project_is_built_from_one_place():
    owner = SCRIPT["address"]().split("/")[-2]
    links = SCRIPT["links"]()
    assert ROOT / "docs" / "trl_integration.md" in links and ROOT / "examples" / "notebook.ipynb" in links
    assert {name for owners in links.values() for name in owners} == {owner}, "type: make url"


def test_the_address_reaches_every_form_of_link():
    owned = SCRIPT["LINK"].sub(
        r"github\g<home>/me/trl_real", "https://github.com/a/trl_real research/github/b-c/trl_real/x"
    )
    assert owned == "https://github.com/me/trl_real research/github/me/trl_real/x"


def test_the_list_for_language_models_has_every_page():
    listed = re.findall(r"\]\(([^)]+)\.md\)", (ROOT / "docs" / "llms.txt").read_text(encoding="utf-8"))
    pages = {path.relative_to(ROOT / "docs").with_suffix("").as_posix() for path in (ROOT / "docs").glob("**/*.md")}
    assert sorted(listed) == sorted(pages)


def test_the_skill_names_every_verb_and_its_commands_exist():
    text = (ROOT / "skills" / "trl-real" / "SKILL.md").read_text(encoding="utf-8")
    head = yaml.safe_load(text.split("---\n")[1])
    assert {command.removeprefix("trl-real ") for command in head["metadata"]["commands"]} == set(VERBS)
    assert head["name"] == "trl-real" and head["license"] == "Apache-2.0"
    commands = (ROOT / "docs" / "reference" / "commands.md").read_text(encoding="utf-8")
    passed_on = {"--help", "--use_peft", "--learning_rate", "--bf16"}
    assert set(re.findall(r"--\w+", text)) <= set(re.findall(r"--\w+", commands)) | passed_on
