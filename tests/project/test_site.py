"""The site: menus match the files, code prints the shown output, every public name is documented."""

import re
from pathlib import Path

import pytest
import yaml

import trl_real
from support.project import ROOT, page_blocks
from support.tiny import save_tiny


DOCS = ROOT / "docs"
PAGES = sorted(path.relative_to(DOCS).with_suffix("").as_posix() for path in DOCS.glob("**/*.md"))
MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
OTHERS_FLAGS = {"nproc_per_node", "nnodes", "rdzv_backend", "rdzv_endpoint", "num_processes", "cpu"}  # the launchers'
NUMBER = re.compile(r" *[+-]?(\d+(\.\d+)?|nan|inf)")  # with its padding


class _Loader(yaml.SafeLoader):
    """mkdocs.yml may name Python objects; they are not made here."""


_Loader.add_multi_constructor("tag:yaml.org,2002:python/", lambda loader, suffix, node: suffix)


def menu() -> list[tuple[str, str, str]]:
    """Section, title and page of each entry of mkdocs.yml."""
    nav = yaml.load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"), _Loader)["nav"]
    entries = [(part, *next(iter(page.items()))) for group in nav for part, pages in group.items() for page in pages]
    return [(part, title, page.removesuffix(".md")) for part, title, page in entries]


class TestMenus:
    def test_every_page_is_in_the_menu_once(self):
        assert sorted(page for _, _, page in menu()) == PAGES

    def test_both_builders_have_the_same_menu(self):
        tree = yaml.safe_load((DOCS / "_toctree.yml").read_text(encoding="utf-8"))
        entries = [(part["title"], page["title"], page["local"]) for part in tree for page in part["sections"]]
        assert entries == menu()

    def test_a_page_has_one_title(self):
        for page in PAGES:
            text = re.sub(r"```.*?```", "", (DOCS / f"{page}.md").read_text(encoding="utf-8"), flags=re.DOTALL)
            assert len(re.findall(r"^# ", text, re.MULTILINE)) == 1 and text.startswith("# "), page


class TestReference:
    def text(self) -> str:
        return "".join(path.read_text(encoding="utf-8") for path in sorted(DOCS.glob("reference/*.md")))

    def documented(self) -> list[str]:
        return re.findall(r"^\[\[autodoc\]\] (\S+)$", self.text(), re.MULTILINE)

    def test_every_public_name_is_in_it_once(self):
        known = self.documented() + re.findall(r"^## (\S+)$", self.text(), re.MULTILINE)
        assert set(trl_real.__all__) <= set(known)
        assert len(set(known)) == len(known)

    def test_every_name_in_the_reference_exists(self):
        """Tables and numbers have no docstring: they have a heading of their own."""
        from pkgutil import resolve_name

        for name in self.documented():
            home, _, attribute = name.rpartition(".")
            assert callable(resolve_name(f"trl_real{'.' * bool(home)}{home}:{attribute}")), name


def test_table_and_pages_know_the_same_judges():
    from trl_real.labeling.judges import JUDGES

    pages = "".join((DOCS / f"{page}.md").read_text(encoding="utf-8") for page in ("labels", "self_annotation"))
    for name in JUDGES:
        assert re.search(rf"`(--judge )?{name}`", pages), name


def test_every_converter_and_strategy_is_on_its_page():
    from trl_real.data.sources import SOURCES
    from trl_real.selection.strategies import STRATEGIES

    data, strategies = ((DOCS / name).read_text(encoding="utf-8") for name in ("data.md", "strategies.md"))
    assert all(f"`{name}`" in data and f"`{convert.__name__}`" in data for name, convert in SOURCES.items())
    assert all(f'`"{name}"`' in strategies for name in STRATEGIES)


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """A folder with the examples, and a tiny model where the Hub's is looked for: pages run there as they are."""
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    (tmp_path / MODEL).parent.mkdir()
    save_tiny(tmp_path / MODEL)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(page: str) -> list[str]:
    """Run the page's blocks; what a page shows without running bears a title, ```python title="fragment…"."""
    code = "\n".join(page_blocks(page, "python"))
    exec(compile(code, page, "exec"), {"__name__": "__main__"})
    return "".join(page_blocks(page, "text")).splitlines()


@pytest.mark.parametrize("page", ["data.md", "trainers.md", "publishing.md", "troubleshooting.md", "adding.md"])
def test_code_of_a_page_prints_the_shown_output(page, elsewhere, capsys):
    shown = run(page)
    printed = capsys.readouterr().out.splitlines()
    assert printed and printed == shown[-len(printed) :]


@pytest.mark.parametrize("page", ["quickstart.md", "real.md", "active.md", "self_annotation.md", "study.md"])
def test_code_of_a_page_with_a_model_prints_the_shown_output_except_numbers(page, elsewhere, capsys, one_thread):
    """The numbers shown are those of the real model."""
    shown = run(page)
    printed = [_masked(line) for line in capsys.readouterr().out.splitlines() if not _is_log(line)]
    assert printed and printed == [_masked(line) for line in shown[-len(printed) :]]


@pytest.mark.parametrize("page", ["quickstart.md", "../README.md"])
def test_first_command_prints_the_shown_output(page, elsewhere, capsys):
    from trl_real.cli.main import main

    command = re.search(r"^trl-real (select .*)", _shell(page), re.MULTILINE)[1]
    assert main(command.replace("mine.parquet", "examples/pool.jsonl").split()) == 0
    told = capsys.readouterr()
    printed = [_masked(line) for line in (told.err + told.out).splitlines()]
    assert all(_masked(line) in printed for line in page_blocks(page, "text")[0].splitlines())


def test_plan_prints_the_shown_output_except_numbers(elsewhere, capsys):
    from datasets import Dataset

    from trl_real.cli.main import main

    (elsewhere / "smollm2").symlink_to(MODEL)
    rows = [{"prompt": f"{i}?", "responses": [f"yes {i}", f"no {i}" if i % 300 else f"yes {i}"]} for i in range(1855)]
    Dataset.from_list(rows).to_parquet("pool.parquet")
    command = re.search(r"^trl-real (select --plan .*)", _shell("scale.md"), re.MULTILINE)[1]
    assert main(command.split()) == 0
    number = re.compile(r"\d[\d.,]*(e[+-]\d+)?( [kMG]?B\b)?")
    printed, shown = (number.sub("#", text) for text in (capsys.readouterr().out, page_blocks("scale.md", "text")[0]))
    assert printed == shown


def _masked(line: str) -> str:
    """Without its numbers, and without what a study saved: a tiny model learns nothing, and so saves nothing."""
    return NUMBER.sub("#", re.sub(r"( +saves \S+ \[\S+ \S+\])+", "", line)).rstrip()


def _is_log(line: str) -> bool:
    """A trainer prints its log, as dicts of texts."""
    return line.startswith("{'loss'") or line.startswith("{'train_") or line.startswith("{'eval_")


@pytest.mark.parametrize("page", [page for page in PAGES if page not in ("log", "results")])
def test_code_fragments_are_valid_python(page):
    text = (DOCS / f"{page}.md").read_text(encoding="utf-8")
    for code in re.findall(r'```python title="fragment[^"\n]*"\n(.*?)```', text, re.DOTALL):
        compile(code, page, "exec")
    assert not re.search(r'```python (?!title="fragment)', text), "only fragments bear a title"


@pytest.mark.parametrize(
    "page",
    [
        "quickstart.md",
        "real.md",
        "study.md",
        "publishing.md",
        "troubleshooting.md",
        "papers.md",
        "data.md",
        "trainers.md",
    ]
    + ["own_data.md", "labelling_team.md", "trl_integration.md", "../README.md"],
)
def test_every_flag_on_a_page_exists(page):
    for command in re.findall(r"(?:trl-real|trl_real\.cli) (.*)", _shell(page)):
        _parsed(command.split("#")[0].split())


def test_every_flag_in_prose_and_tables_exists(capsys):
    """What stands in backticks outside of code blocks, on all pages but the log."""
    from dataclasses import fields

    from trl import ModelConfig

    from trl_real.cli.main import VERBS, main

    known = {field.name for config in (trl_real.REALDPOConfig, ModelConfig) for field in fields(config)}
    for verb in VERBS:
        with pytest.raises(SystemExit):
            main([verb, "--help"])
        known |= set(re.findall(r"--(\w+)", capsys.readouterr().out))
    known |= OTHERS_FLAGS
    for page in ["../README", *PAGES]:
        text = re.sub(r"```.*?```", "", (DOCS / f"{page}.md").read_text(encoding="utf-8"), flags=re.DOTALL)
        if page != "log":
            named = {flag for code in re.findall(r"`([^`\n]+)`", text) for flag in re.findall(r"--(\w+)", code)}
            assert named <= known, (page, named - known)


@pytest.mark.parametrize("config", page_blocks("papers.md", "yaml"))
def test_paper_settings_equal_those_of_the_commands(config, tmp_path):
    command = re.match(r"# trl-real (.*) --config (\S+)\n", config)
    file = tmp_path / command[2]
    file.write_text(config, encoding="utf-8")
    _parsed([command[1], "--config", str(file)])


def _shell(page: str) -> str:
    return "\n".join(page_blocks(page, "bash")).replace("\\\n", " ")


def _parsed(argv: list[str]) -> None:
    """Parse a command line as its verb does, the trainer's part included; files that are named only are left out."""
    from importlib import import_module

    from trl import ModelConfig, SFTConfig, TrlParser

    from trl_real.cli.main import VERBS, _parse
    from trl_real.cli.train import EvalArguments, PreferenceArguments
    from trl_real.training.config import REALDPOConfig
    from trl_real.training.trainers import TRAINERS

    verb, *flags = argv
    if verb not in VERBS:
        assert verb == "VERB"
        return
    if "--config" in flags and not Path(flags[flags.index("--config") + 1]).exists():
        at = flags.index("--config")
        flags = flags[:at] + flags[at + 2 :]
    module = import_module(f"trl_real.cli.{verb.replace('-', '_')}")
    args = _parse(verb, module, flags)

    trainer = TRAINERS[getattr(args, "trainer", None) or "dpo"]
    configs = (PreferenceArguments, EvalArguments, trainer.config, ModelConfig)
    if verb == "sft":
        configs = (PreferenceArguments, SFTConfig, ModelConfig)
    if verb in ("active", "self-annotate"):
        configs = (REALDPOConfig, ModelConfig)
    if getattr(module, "PASSES_FLAGS_ON", False):
        config = ["--config", args.config] if args.config and verb in ("train", "sft") else []
        TrlParser(configs).parse_args_and_config([*args.rest, *config, "--output_dir", "out", "--use_cpu", "True"])
