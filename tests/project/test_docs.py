"""The README's code runs and prints the shown output; its links work."""

import re
import runpy

import pytest

from support.judge_server import MODEL as JUDGE
from support.judge_server import JudgeServer
from support.pools import pool_of
from support.project import MODEL, ROOT, page_blocks
from support.tiny import save_tiny


README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


@pytest.fixture
def in_root(tmp_path, monkeypatch):
    """Run where the examples lie, with a tiny model in place of the Hub's; what is written goes elsewhere."""
    model = save_tiny(tmp_path / "model")
    monkeypatch.chdir(ROOT)
    return lambda code: code.replace(MODEL, model).replace('"aligned"', f'"{tmp_path / "aligned"}", use_cpu=True')


def test_python_blocks_print_the_shown_output(in_root, capsys):
    code = "\n".join(blocks("python"))
    exec(compile(in_root(code), "README.md", "exec"), {"__name__": "readme"})
    printed = capsys.readouterr().out
    shown = "\n".join(blocks("text"))
    for line in printed.splitlines():
        if "similarity" not in line or "[" in line:  # what another model's embeddings would change
            assert line in shown, line
    assert "'similarity', 'skipped']" in printed


def test_both_sides_of_the_diff_are_working_scripts(in_root, capsys):
    (diff,) = blocks("diff")
    lines = diff.splitlines()
    after = "\n".join(line[1:] for line in lines if not line.startswith("-"))
    before = "\n".join(line[1:] for line in lines if not line.startswith("+"))
    compile(before, "before", "exec")
    exec(compile(in_root(after).replace("num_train_epochs=1", "max_steps=1"), "after", "exec"), {"__name__": "after"})
    assert "48 rows in: 24 kept, 24 not chosen, 0 skipped" in capsys.readouterr().out


def test_every_flag_in_the_shell_blocks_exists(capsys):
    from trl_real.cli.main import main

    for line in "\n".join(blocks("bash")).splitlines():
        verb = re.match(r"trl-real (\S+)", line)
        if verb is None:
            continue
        with pytest.raises(SystemExit):
            main([verb[1], "--help"])
        text = capsys.readouterr().out
        for flag in re.findall(r"--\w+", line):
            assert flag in text, f"{verb[1]} {flag}"


@pytest.mark.parametrize(
    "page", sorted(path.relative_to(ROOT) for path in [ROOT / "README.md", *ROOT.glob("docs/**/*.md")])
)
def test_internal_links_lead_somewhere(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", text):
        if not target.startswith("http"):
            assert ((ROOT / page).parent / target).exists(), target


def test_no_page_is_unfinished():
    assert "@@" not in README


def test_the_readme_is_read_in_minutes():
    assert len(README.split()) < 900


def test_the_example_runs(in_root, tmp_path, monkeypatch, capsys):
    model = in_root(MODEL)
    flags = ["--model", model, "--output_dir", str(tmp_path / "example"), "--max_steps", "1"]
    monkeypatch.setattr("sys.argv", ["pool_to_policy.py", *flags])
    runpy.run_path(str(ROOT / "examples" / "pool_to_policy.py"), run_name="__main__")
    assert "40 rows in: 20 kept, 20 not chosen, 0 skipped" in capsys.readouterr().out
    assert (tmp_path / "example" / "adapter_model.safetensors").exists()


@pytest.mark.parametrize("page", ["labels.md", "win_rates.md", "people_and_judges.md"])
def test_code_of_the_pages_prints_the_shown_output(page, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    with JudgeServer(bias=0.05) as server:
        code = "\n".join(page_blocks(page, "python")).replace("http://127.0.0.1:8000/v1", server.url)
        code = code.replace('"my-model", ', f'"{JUDGE}", cache="{tmp_path / "c.sqlite"}", ')
        code = code.replace('"verdicts.jsonl"', f'"{tmp_path / "verdicts.jsonl"}"')
        monkeypatch.chdir(ROOT)
        exec(compile(code, page, "exec"), {"__name__": page})
    assert capsys.readouterr().out == "".join(page_blocks(page, "text"))


def test_streaming_code_of_the_scale_page_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    pool_of(40, 2).to_parquet("pool.parquet")
    code = "\n".join(page_blocks("scale.md", "python")).replace(MODEL, save_tiny(tmp_path / "model"))
    found = {"__name__": "page"}
    exec(compile(code, "scale.md", "exec"), found)
    assert "40 rows in: 8 kept, 26 not chosen, 6 skipped" in capsys.readouterr().out
    assert len(list(found["kept"])) == 8


@pytest.mark.parametrize(
    "page", ["labels.md", "win_rates.md", "people_and_judges.md", "active.md", "self_annotation.md", "scale.md"]
)
def test_every_flag_on_the_pages_exists(page, capsys):
    from trl_real.cli.main import main

    lines = "\n".join(page_blocks(page, "bash")).replace("\\\n", " ")
    for command in re.findall(r"^ *(?:trl-real|.* -m trl_real\.cli) (.*)", lines, re.MULTILINE):
        verb = command.split()[0]
        with pytest.raises(SystemExit):
            main([verb, "--help"])
        text = capsys.readouterr().out
        passed_on = (
            ("--use_peft", "--lora_r", "--learning_rate", "--num_train_epochs")
            if verb in ("active", "self-annotate")
            else ()
        )
        for flag in re.findall(r"--\w+", command):
            assert flag in text or flag in passed_on, f"{verb} {flag}"
