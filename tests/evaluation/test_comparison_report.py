"""Tests of `trl-real win-rate`, its files and its report page."""

import json
import re

import numpy as np
import pytest
from datasets import Dataset, load_dataset

from support.judge_server import MODEL, JudgeServer
from support.pages import HOSTILE, Loads, cells, text_of_page
from support.tiny import save_tiny
from trl_real.cli.main import main
from trl_real.evaluation.compare import compare_columns
from trl_real.evaluation.plots import length_figure
from trl_real.evaluation.report import example_rows, write_comparison_report
from trl_real.evaluation.tournament import tournament
from trl_real.reports.figures import Rate, win_rate_figure


pytestmark = pytest.mark.usefixtures("one_thread")

SIZES = {"small": 10, "medium": 16, "large": 24}


def graded(batch):
    pairs = zip(batch["response_a"], batch["response_b"], strict=True)
    return [1 / (1 + np.exp((len(b) - len(a)) / 4)) for a, b in pairs]


def completions(n: int = 60, **columns) -> Dataset:
    draw = np.random.default_rng(0)
    sides = {name: [f"{name} {i} " + "x" * draw.integers(1, size) for i in range(n)] for name, size in SIZES.items()}
    return Dataset.from_dict({"prompt": [f"p{i}" for i in range(n)], **sides, **columns})


def page_of(folder, *args, **changes) -> str:
    return write_comparison_report(folder, *args, **changes).read_text(encoding="utf-8")


def test_page_shows_rates_ranking_and_tests_and_loads_nothing(tmp_path):
    found = tournament(completions(), graded, list(SIZES), reference="small", rounds=50)
    paired = {" : ".join(names): test.words() for names, (test, _) in found.against_reference.items()}
    page = page_of(tmp_path, found.comparisons, ranking=found.ranking, paired=paired, facts={"judge": "made up"})
    first = found.comparisons[0]
    row = cells(page, "medium<small>against small</small>")[0]
    assert row[0].startswith(f"{first.rates['win_rate']:.3f}<small>[") and row[-1] == "60"
    assert [int(x) for x in row[-5:-1]] == [first.rates[k] for k in ("n_wins", "n_ties", "n_losses", "n_failed")]
    text = text_of_page(page)
    assert "large" in text and "1000" in text and "medium : large" in text and "made up" in text
    urls = Loads(page).urls
    assert len(urls) == 4 and all(url.startswith("data:image/png;base64,") for url in urls)
    assert not re.search(r"https?://|url\(|@import|<link|<script", page)


@pytest.mark.parametrize(
    ("preference", "told"),
    [
        (0.9, '<p class="verdict gain"><b>medium is better than small.</b>Win rate 0.90, 95 % interval ['),
        (0.1, '<p class="verdict worse"><b>medium is worse than small.</b>Win rate 0.10, 95 % interval ['),
        (0.5, '<p class="verdict "><b>No difference was measured between medium and small.</b>Win rate 0.5'),
        (None, "</b>No row was judged.</p>"),
    ],
)
def test_page_says_the_outcome_in_one_sentence(preference, told, tmp_path):
    rows = completions()
    draw = np.random.default_rng(0).uniform(-0.1, 0.1, 60)

    def judge(batch):
        return [None if preference is None else preference + draw[int(p[1:])] for p in batch["prompt"]]

    found = compare_columns(rows, judge, model="medium", baseline="small")
    assert told in page_of(tmp_path, [found])


def test_page_shows_answers_side_by_side(tmp_path):
    rows = completions(12)
    preferences = [0.9, 0.95, 0.6, 0.5, None, 0.2, 0.1, 0.3, 0.99, 0.5, 0.5, 0.4]
    found = compare_columns(rows, lambda batch: preferences, model="large", baseline="small")
    shown = example_rows(found, rows["prompt"], rows["large"], rows["small"])
    assert [row["prompt"] for row in shown] == ["p8", "p1", "p6", "p5", "p3", "p9"]
    assert shown[0]["texts"] == (("large", rows["large"][8]), ("small", rows["small"][8]))
    text = text_of_page(page_of(tmp_path, [found], examples={"large : small": shown}))
    assert "win, row 8, probability 0.99 that large is better" in text and rows["small"][8] in text


def test_no_column_is_off_a_screen_of_1280_pixels(tmp_path):
    """As wide as it gets: cells do not wrap. DejaVu Sans is wider than the fonts of the page."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import TextPath

    def width(text: str, size: float) -> float:
        return TextPath((0, 0), text.strip(), size, prop=FontProperties()).get_extents().width if text.strip() else 0

    found = tournament(completions(), graded, list(SIZES), reference="small", rounds=50).comparisons
    for comparison in found:
        comparison.model = comparison.baseline = "a-very-long-name/of-a-policy-and-its-version"
        comparison.rates |= dict.fromkeys(("n_wins", "n_ties", "n_losses", "n_failed"), 99999)
        comparison.rates["length_controlled_win_rate"] = 0.5
    page = page_of(tmp_path, found)
    table = re.search(r"<table>(.*?)</table>", page, re.DOTALL)[1]
    names = re.findall(r'<th scope="col">(.*?)</th>', table, re.DOTALL)
    heads = [max(width(word, 14.4) for word in name.split()) for name in names]
    row = re.findall(r"<td>(.*?)</td>", re.search(r"<tbody>.*?</tr>", table, re.DOTALL)[0], re.S)
    lines = [re.sub("<[^>]+>", "", cell.replace("<small>", "\n")).split("\n") for cell in row]
    parts = [[width(cell[0], 17), *(width(small, 12.8) for small in cell[1:])] for cell in lines]
    columns = [14 * 16, *(max(*cell, head) for cell, head in zip(parts, heads[1:], strict=True))]
    assert len(columns) == len(heads) == 9
    assert sum(columns) + 2 * 0.5 * 16 * len(columns) <= 60 * 16 - 32


def test_texts_of_the_figures_are_inside_and_their_titles_differ(tmp_path):
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    found = tournament(completions(), graded, list(SIZES), reference="small", rounds=50).comparisons
    figures = [length_figure(c.rows, f"{c.model} : {c.baseline}") for c in found]
    rates = [Rate(f"{c.model} : {c.baseline}", 0.5, 0.4, 0.6) for c in found]
    for figure in [*figures, win_rate_figure(rates)]:
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        renderer, axes = canvas.get_renderer(), figure.axes[0]
        low, high = axes.get_ylim()
        shown = [label for label in axes.get_yticklabels() if low <= label.get_position()[1] <= high]
        for text in (axes.xaxis.label, axes.yaxis.label, axes.title, axes._left_title, *shown):
            box = text.get_window_extent(renderer)
            if text.get_text():
                assert box.x0 >= 0 and box.x1 <= figure.bbox.width, text.get_text()
                assert box.y0 >= 0 and box.y1 <= figure.bbox.height, text.get_text()
    assert len({figure.axes[0]._left_title.get_text() for figure in figures}) == len(figures)


def test_constant_response_warning_is_at_the_top_of_the_page(tmp_path):
    rows = completions(constant=["Prefer this."] * 60)
    found = compare_columns(rows, lambda batch: [0.9] * len(batch["prompt"]), model="constant", baseline="small")
    page = page_of(tmp_path, [found])
    assert page.index("Do not trust the rate of constant") < page.index("<table>")
    assert "gives the same answer to different prompts in 60 of 60 rows" in page
    assert "Nothing is known about constant and small: the rate is not to be trusted" in page
    assert "constant is better" not in page


def test_page_survives_hostile_names_and_few_rows(tmp_path):
    rows = Dataset.from_dict({"prompt": ["p"], "a": ["x"], "b": ["y"]})
    found = compare_columns(rows, lambda batch: [None], model="a", baseline="b")
    found.model = found.baseline = found.judge = HOSTILE
    page = page_of(tmp_path, [found], title=HOSTILE, facts={HOSTILE: HOSTILE}, paired={HOSTILE: HOSTILE})
    assert "script" not in Loads(page).tags and "&lt;script&gt;alert" in page


def run(capsys, *argv) -> dict:
    assert main(["win-rate", *map(str, argv), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.fixture
def rows(tmp_path):
    path = tmp_path / "rows.parquet"
    completions(30).to_parquet(str(path))
    return path


def test_two_columns_with_a_chat_judge_write_all_files(rows, tmp_path, capsys):
    with JudgeServer(bias=0.05) as server:
        judge = ["--judge", "chat", "--judge_model", MODEL, "--base_url", server.url, "--cache", tmp_path / "c.sqlite"]
        sides = ["--dataset", rows, "--model", "large", "--baseline", "small"]
        plan = run(capsys, *sides, *judge, "--price", 1, 2, "--plan")
        assert plan["n_asked"] == 60 and plan["cost"] > 0 and not server.bodies
        out = tmp_path / "out"
        found = run(capsys, *sides, *judge, "--output_dir", out)
        assert len(server.bodies) == 60
        assert run(capsys, *sides, *judge)["win_rate"] == found["win_rate"] and len(server.bodies) == 60
    assert found["verdicts"]["position_bias"] == pytest.approx(0.05, abs=0.02)
    assert json.loads((out / "comparison.json").read_text())["rates"]["win_rate"] == found["win_rate"]
    kept = load_dataset("parquet", data_files=str(out / "verdicts.parquet"), split="train", cache_dir=str(tmp_path))
    assert np.mean(kept["preference"]) == pytest.approx(found["win_rate"]) and len(kept) == 30
    assert {"report.html", "win_rates.png", "completions.parquet"} <= {path.name for path in out.iterdir()}


def test_two_policies_generate_their_responses(tmp_path, rows, capsys):
    policies = [save_tiny(tmp_path / name, seed) for seed, name in enumerate(("one", "other"))]
    with JudgeServer() as server:
        judge = ["--judge", "chat", "--judge_model", MODEL, "--base_url", server.url, "--cache", tmp_path / "c.sqlite"]
        sides = [
            "--model",
            policies[0],
            "--baseline",
            policies[1],
            "--max_new_tokens",
            5,
            "--output_dir",
            tmp_path / "o",
        ]
        found = run(capsys, "--dataset", rows, "--split", "train[:6]", *sides, *judge)
    assert (found["model"], found["baseline"], found["n_total"]) == ("model: one", "baseline: other", 6)


def test_several_columns_are_ranked(rows, tmp_path, capsys):
    with JudgeServer() as server:
        judge = ["--judge", "chat", "--judge_model", MODEL, "--base_url", server.url, "--cache", tmp_path / "c.sqlite"]
        argv = ["win-rate", "--dataset", rows, "--models", *SIZES, *judge, "--output_dir", tmp_path / "out"]
        assert main(list(map(str, argv))) == 0
    lines = capsys.readouterr().out.strip().splitlines()
    assert {line.split()[0] for line in lines[:3]} == set(SIZES) and "1000" in "".join(lines)
    assert "Ranking on one scale" in (tmp_path / "out" / "report.html").read_text()


def test_verdicts_with_lengths_are_checked(tmp_path, capsys):
    draw = np.random.default_rng(0)
    columns = {"verdict": [0.9] * 40, "own": [872] * 40, "theirs": draw.integers(100, 900, 40).tolist()}
    Dataset.from_dict(columns).to_parquet(str(tmp_path / "v.parquet"))
    flags = ["--preferences", "verdict", "--lengths", "own", "--baseline_lengths", "theirs"]
    found = run(capsys, "--dataset", tmp_path / "v.parquet", *flags, "--output_dir", tmp_path / "out")
    assert found["win_rate"] == pytest.approx(0.9) and "equal_length_win_rate" in found
    assert any("40 of 40 answers of the model are 872 characters long" in doubt for doubt in found["doubts"])
    assert (tmp_path / "out" / "comparison.json").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--judge", "chat"], "The judge 'chat' needs --judge_model"),
        (["--judge", "chta"], "Unknown judge 'chta': choose from score, reward, chat, votes, implicit_reward, panel"),
        (
            ["--judge", "chat", "--judge_model", "m", "--price", "1", "1"],
            "--price is not a setting of the judge 'chat' without --base_url",
        ),
        (["--judge", "votes", "--votes", "v"], "votes belong to selected pairs"),
        (["--models", "small", "large"], "--models needs a judge that reads"),
        (["--min_ratio", "2", "--judge", "reward", "--judge_model", "m"], "--min_ratio is not a setting of the judge"),
        (["--judge", "panel", "--panel", "nowhere.yaml"], "no file 'nowhere.yaml'"),
        (["--preferences", "nowhere"], "No column 'nowhere'"),
    ],
)
def test_mistakes_get_a_one_line_error(rows, flags, message, capsys):
    assert main(["win-rate", "--dataset", str(rows), "--model", "large", "--baseline", "small", *flags]) == 2
    assert message in capsys.readouterr().err.strip().splitlines()[-1]
