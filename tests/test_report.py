"""Claims about `trl_real.evaluation.report` and `trl_real.evaluation.plots`."""

import base64
import html
import json
import math
import re
import sys
from html.parser import HTMLParser

import numpy as np
import pytest

from trl_real.errors import MissingExtraError, TrlRealError
from trl_real.evaluation import plots
from trl_real.evaluation.comparison import Comparison
from trl_real.evaluation.report import Arm, verdict, write_report
from trl_real.functional.win_rate import win_rate
from trl_real.selection.record import SelectionRecord, describe_similarity


HOSTILE = '<script>alert("x")</script>\u202e\u200f$a$ {{ 7 * 7 }} \ud800\x00<img src=http://evil.example/x>'


def comparison(wins: int, losses: int, ties: int = 0, failed: int = 0, **changes) -> Comparison:
    """So many wins and losses, each on a prompt of its own."""
    rates = win_rate([1.0] * wins + [0.0] * losses + [0.5] * ties + [math.nan] * failed)
    values = dict(model="after", baseline="before", judge="vader", model_length=151.0, baseline_length=149.0)
    return Comparison(rates=rates, **{**values, **changes})


def record(strategy: str = "easy", n_kept: int = 20) -> SelectionRecord:
    """Of 83 rows, 3 without a pair."""
    pool = np.linspace(0.5, 0.98, 80)
    order = {"easy": np.argsort(pool), "hard": np.argsort(-pool)}.get(strategy)
    found = {} if order is None else describe_similarity(pool, pool[order[:n_kept]])
    counts = dict(n_rows=83, n_kept=n_kept, n_not_chosen=80 - n_kept, skipped={"identical": 2, "too few": 1})
    return SelectionRecord(strategy, 0.25, 7, model="tiny", versions={"torch": "2.13.0"}, **counts, **found)


def log_history(steps: int = 6) -> list[dict]:
    """A chosen reward that falls, and a margin that grows."""
    rewards = {"rewards/chosen": -0.05, "rewards/rejected": -0.2, "rewards/margins": 0.15}
    rows = [
        {"step": s, "epoch": s / 2, "loss": 0.69 / s, **{name: s * slope for name, slope in rewards.items()}}
        for s in range(1, steps + 1)
    ]
    return [*rows, {"step": steps, "train_runtime": 12.0, "train_loss": 0.4}]


def kept(n: int = 6) -> list[dict]:
    return [
        {"prompt": f"ask {i}", "response_a": f"first {i}", "response_b": f"second {i}", "similarity": 0.5 + i / 100}
        for i in range(n)
    ]


def arm(strategy: str = "easy", budget=0.25, **changes) -> Arm:
    values = dict(
        name=f"{strategy} {budget}",
        strategy=strategy,
        budget=budget,
        n_labels=20,
        record=record(strategy),
        comparison=comparison(61, 33, failed=2),
        log_history=log_history(),
        seconds=123.4,
        mean_score={"VADER compound": 0.567},
        label_counts={"labeled": 17, "ties": 2, "failed": 1},
        kept=kept(),
    )
    return Arm(**{**values, **changes})


def written(tmp_path, arms, **changes) -> str:
    values = dict(title="A title", task="A task.", pool={"prompts": 83}, recipe={"beta": 0.1})
    path = write_report(tmp_path / "out", arms=arms, **{**values, **changes})
    assert path == tmp_path / "out" / "report.html"
    return path.read_text(encoding="utf-8")


def cells(page: str, row: str) -> list[list[str]]:
    """The cells of every table row whose first cell is `row`."""
    found = re.findall(rf'<tr><th scope="row">{re.escape(row)}</th>(.*?)</tr>', page, re.DOTALL)
    return [
        [html.unescape(" ".join(cell.split())) for cell in re.findall(r"<td[^>]*>(.*?)</td>", r, re.S)] for r in found
    ]


def text_of_page(page: str) -> str:
    body = re.sub(r"<style>.*?</style>", "", page, flags=re.DOTALL)
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", body)).split())


class Loads(HTMLParser):
    """Tags, and what a browser would fetch."""

    def __init__(self, page: str):
        super().__init__()
        self.tags, self.urls = set(), []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.urls += [value for name, value in attrs if name in ("src", "href", "srcset", "data", "action", "poster")]


def test_every_number_of_an_arm_is_on_the_page(tmp_path):
    page = written(tmp_path, [arm(), arm("random", comparison=comparison(40, 50, 4, 2), kept=())])
    easy, chance = cells(page, "easy 0.25"), cells(page, "random 0.25")
    assert easy[0] == ["20", "0.65", "[0.55, 0.74]", "94", "0.57", "123"]
    assert easy[1] == ["61", "0", "33", "2", "0", "151", "149", "–", "wilson"]
    assert chance[1][:4] == ["40", "4", "50", "2"]
    assert easy[2] == ["83", "20", "60", "3", "2 identical, 1 too few", "17 labeled, 2 ties, 1 failed"]
    assert easy[3] == ["0.558", "0.740", "0 of 0", "0.0"] and chance[3][:2] == ["–", "–"]
    assert easy[4] == ["0.150 → 0.900", "−0.050 → −0.300", "−0.200 → −1.200", "0.690 → 0.115"]
    text = text_of_page(page)
    for fact in (
        "prompts 83",
        "beta 0.1",
        "embedding model tiny",
        "selection seed 7",
        "versions torch 2.13.0",
        "A task.",
    ):
        assert fact in text


def test_random_stands_last_beside_each_selection_of_its_budget(tmp_path):
    arms = [arm("random", 8), arm("random", 0.25), arm("hard", 0.25), arm("easy", 0.25), arm("easy", 8)]
    page = written(tmp_path, arms)
    headline = page[: page.index("</table>")]
    order = re.findall(r'<th scope="row">(.*?)</th>|Budget: ([^<]*)<', headline)
    assert ["".join(names) for names in order] == [
        "8 pairs", "easy 8", "random 8", "25% of the pairs", "hard 0.25", "easy 0.25", "random 0.25",
    ]  # fmt: skip
    assert len(re.findall('<p class="verdict', page)) == 3


def test_one_row_and_the_whole_pool_are_two_budgets(tmp_path):
    page = written(tmp_path, [arm("easy", 1), arm("random", 1.0)])
    assert "Budget: 1 pair<" in page and "Budget: 100% of the pairs<" in page
    assert "Budget 1 pair: not measured" in page


def test_hostile_text_is_escaped_everywhere(tmp_path):
    row = {"prompt": [{"role": "user", "content": HOSTILE}], "chosen": HOSTILE, "rejected": HOSTILE, "similarity": 0.5}
    named = dict(name=HOSTILE, strategy=HOSTILE, mean_score={HOSTILE: 1.0}, label_counts={HOSTILE: 3})
    evil = arm(**named, kept=[row], comparison=comparison(5, 5, judge=HOSTILE))
    evil.record.skipped, evil.record.model = {HOSTILE: 3}, HOSTILE
    page = written(tmp_path, [evil], title=HOSTILE, task=HOSTILE, pool={HOSTILE: HOSTILE}, recipe={HOSTILE: [HOSTILE]})
    loads = Loads(page)
    assert "script" not in loads.tags
    assert all(url.startswith("data:image/png;base64,") for url in loads.urls)
    assert "&lt;script&gt;alert" in page and "{{ 7 * 7 }}" in page
    assert not re.search("[\u202a-\u202e\u2066-\u2069\x00]", page)
    assert all(path.parent == tmp_path / "out" for path in tmp_path.rglob("*.png"))


def test_a_long_text_is_shortened(tmp_path):
    row = {"prompt": "p " * 10_000, "response_a": "a" * 20_000, "response_b": "b\n" * 10_000, "similarity": 0.1}
    page = written(tmp_path, [arm(kept=[row])])
    assert "a" * 400 in page and "a" * 500 not in page
    assert len(re.sub(r"data:image/png;base64,[^\"]*", "", page)) < 40_000


def test_right_to_left_text_keeps_its_marks_and_its_own_direction(tmp_path):
    text = "\u200fשלום עולם\u200f, مرحبا"
    page = written(tmp_path, [arm(kept=[{"prompt": text, "response_a": text, "response_b": "b", "similarity": 0.1}])])
    assert page.count(f'<p class="text" dir="auto">{text}</p>') == 2


def test_the_page_loads_nothing(tmp_path):
    page = written(tmp_path, [arm(), arm("random")])
    urls = Loads(page).urls
    assert len(urls) == 4 and all(url.startswith("data:image/png;base64,") for url in urls)
    assert not re.search(r"https?://|url\(|@import|<link|<script", page)
    assert "default-src 'none'" in page


def test_the_pictures_lie_beside_the_page_and_are_those_in_it(tmp_path):
    page = written(tmp_path, [arm(), arm("random")])
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == [
        "report.html", "similarity_1_easy-0.25.png", "training_1_easy-0.25.png", "training_2_random-0.25.png",
        "win_rates.png",
    ]  # fmt: skip
    inside = {base64.b64decode(url.split(",")[1]) for url in Loads(page).urls}
    assert inside == {path.read_bytes() for path in (tmp_path / "out").glob("*.png")}


@pytest.mark.parametrize(
    "changes",
    [
        {"log_history": [], "kept": (), "label_counts": {}, "mean_score": {}, "seconds": math.nan},
        {"record": SelectionRecord("easy", 0.25, 7)},
        {"comparison": comparison(0, 0, failed=3)},
        {"comparison": comparison(0, 0, ties=5)},
        {"kept": [{**kept()[0], "similarity": math.nan}]},
        {"log_history": [{"rewards/chosen": math.nan, "rewards/rejected": None}]},
    ],
    ids=["only what is needed", "empty record", "nothing judged", "only ties", "nan similarity", "nan rewards"],
)
def test_one_arm_and_what_is_missing_still_make_a_page(tmp_path, changes):
    page = written(tmp_path, [arm(**changes)])
    assert "Budget 25% of the pairs: not measured" in page
    assert not re.search(r"\b(nan|None)\b", text_of_page(page))


def test_what_went_through_json_makes_the_same_page(tmp_path):
    one = arm(comparison=comparison(3, 0, ties=1))
    values = json.loads(json.dumps(one.to_dict()))
    values["comparison"] = Comparison(**values["comparison"])
    values["record"] = SelectionRecord.from_dict(values["record"])
    again = Arm(**values, log_history=one.log_history, kept=one.kept)
    assert written(tmp_path / "a", [one]) == written(tmp_path / "b", [again])


def test_examples_are_the_least_similar_pairs_and_those_at_the_cut(tmp_path):
    page = text_of_page(written(tmp_path, [arm(kept=reversed(kept(9)))], n_examples=2))
    shown = re.findall(r"similarity (\S+), (.*?) prompt ask (\d)", page)
    assert [(n, where) for _, where, n in shown] == [
        ("0", "least similar of the kept"), ("1", "least similar of the kept"),
        ("7", "most similar of the kept, at the cut"), ("8", "most similar of the kept, at the cut"),
    ]  # fmt: skip


@pytest.mark.parametrize(("n_rows", "n_examples", "shown"), [(1, 2, "0"), (3, 2, "012"), (5, 0, ""), (2, 1, "01")])
def test_no_example_is_shown_twice(tmp_path, n_rows, n_examples, shown):
    page = text_of_page(written(tmp_path, [arm(kept=kept(n_rows))], n_examples=n_examples))
    assert "".join(re.findall(r"prompt ask (\d)", page)) == shown


@pytest.mark.parametrize(
    ("selection", "random", "outcome"),
    [
        (comparison(60, 40), comparison(60, 40), "no gain measured"),
        (comparison(55, 45), comparison(50, 50), "no gain measured"),
        (comparison(90, 10), comparison(50, 50), "gain"),
        (comparison(100, 0), comparison(50, 50), "gain"),
        (comparison(40, 60), comparison(70, 30), "worse than random"),
        (comparison(9, 0), comparison(0, 50), "not measured"),
        (comparison(10, 0), comparison(0, 10), "gain"),
        (comparison(0, 0, failed=4), comparison(50, 50), "not measured"),
        (comparison(0, 0, ties=50), comparison(0, 0, ties=50), "no gain measured"),
    ],
)
def test_verdict(selection, random, outcome):
    assert verdict(selection, random).outcome == outcome


def test_verdict_of_two_wilson_intervals_is_newcombe_s():
    """Newcombe (1998), table II, (a): 56/70 against 48/80, method 10: 0.0524 to 0.3339."""
    found = verdict(comparison(56, 14), comparison(48, 32))
    assert found.difference == pytest.approx(0.2)
    assert (found.ci_low, found.ci_high) == pytest.approx((0.0524, 0.3339), abs=5e-5)
    assert "MOVER" in found.method


def test_verdict_is_on_the_page_with_its_numbers(tmp_path):
    arms = [arm(comparison=comparison(56, 14)), arm("random", comparison=comparison(48, 32))]
    text = text_of_page(written(tmp_path, arms))
    assert "easy 0.25: gain Win rate of easy 0.25 minus that of random 0.25: +0.20" in text
    assert "95% interval [+0.05, +0.33], which does not contain 0." in text
    equal = text_of_page(written(tmp_path, [arm(), arm("random")]))
    assert "no gain measured" in equal and "[−0.13, +0.13], which contains 0." in equal


@pytest.mark.parametrize("changes", [{"judge": "other"}, {"baseline": "other"}, {"confidence": 0.9}])
def test_arms_that_were_measured_differently_are_not_compared(tmp_path, changes):
    other = comparison(5, 5, **changes)
    with pytest.raises(TrlRealError, match=next(iter(changes))):
        verdict(comparison(5, 5), other)
    with pytest.raises(TrlRealError, match="in the same way"):
        write_report(tmp_path, title="t", task="t", pool={}, arms=[arm(), arm("random", comparison=other)])


def test_no_arms(tmp_path):
    with pytest.raises(TrlRealError, match="arms="):
        write_report(tmp_path / "out", title="t", task="t", pool={}, arms=[])


@pytest.mark.parametrize("package", ["matplotlib", "jinja2"])
def test_a_missing_extra_says_what_to_type_before_anything_is_written(tmp_path, monkeypatch, package):
    for name in [package, *(name for name in sys.modules if name.startswith(f"{package}."))]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingExtraError, match=rf"{package} is not installed.*trl-real\[plots\]"):
        write_report(tmp_path / "out", title="t", task="t", pool={}, arms=[arm()])
    assert not (tmp_path / "out").exists()


def test_figures_leave_pyplot_alone():
    plots.to_data_uri(plots.win_rate_figure([plots.Rate("easy", "easy", 0.6, 0.5, 0.7)]))
    pyplot = sys.modules.get("matplotlib.pyplot")
    assert pyplot is None or pyplot.get_fignums() == []


def test_the_cut_and_both_sets_are_in_the_similarity_picture():
    figure = plots.similarity_figure(record().histogram, name="easy", strategy="easy", cut=0.615)
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["pool (80)", "kept (20)", "cut at 0.615"]


def test_curves_are_drawn_against_labels_seen():
    figure = plots.training_figure(log_history(), name="easy", n_labels=16)
    lines = {line.get_label(): line for line in figure.axes[0].lines}
    assert lines["chosen"].get_xdata().tolist() == [8, 16, 24, 32, 40, 48]
    assert lines["margin"].get_ydata()[-1] == pytest.approx(0.9)
    without_epochs = [{k: v for k, v in row.items() if k != "epoch"} for row in log_history()]
    figure = plots.training_figure(without_epochs, name="easy", n_labels=16)
    assert figure.axes[0].get_xlabel() == "optimizer steps"
