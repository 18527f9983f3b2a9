"""Tests of `trl_real.study.report` and `trl_real.study.plots`."""

import base64
import math
import re
import sys

import pytest

from support.pages import HOSTILE, Loads, text_of_page
from trl_real.cli.study import savings_table, worse_than_random
from trl_real.errors import MissingExtraError
from trl_real.evaluation.comparison import Comparison
from trl_real.evaluation.report import write_comparison_report
from trl_real.functional.statistics.agreement_by_similarity import AgreementBin
from trl_real.functional.statistics.label_savings import Saving, ValueWithInterval
from trl_real.functional.statistics.win_rate import win_rate
from trl_real.reports.arm_styles import arm_styles
from trl_real.selection.strategies import COLORS
from trl_real.study import plots
from trl_real.study.report import _labels_of_run, _same_end, in_words, study_verdict, write_study_report
from trl_real.study.results import ENGINES, METRICS, Curve, Study


ARMS = ["easy", "easy@centered", "random"]
BUDGETS = [0.1, 0.4, 1.0]
GAIN, LOSS = ValueWithInterval(-0.021, -0.032, -0.011), ValueWithInterval(0.03, 0.02, 0.04)
NOTHING, EQUAL = ValueWithInterval(-0.004, -0.013, 0.006), ValueWithInterval(0.0, 0.0, 0.0)
UNKNOWN = ValueWithInterval(0.1, math.nan, math.nan)
REACHED = Saving(1.0, 0.6123, 1000.0, 590.0, 0.41, 0.125, 0.55, 1.0)
HALF_OPEN = Saving(0.5, 0.6456, 500.0, 610.0, -0.22, -math.inf, 0.08, 0.87)
NOT_REACHED = Saving(1.0, 0.6123, 1000.0, math.inf, -math.inf, -math.inf, -math.inf, 0.0)
SELDOM_REACHED = Saving(0.5, 0.6456, 500.0, math.inf, -math.inf, -math.inf, 0.05, 0.31)


def curve(start: float = 0.68, n_points: int = 3) -> Curve:
    n_labels = [100.0, 400.0, 1000.0][:n_points]
    values = [start - 0.03 * i for i in range(n_points)]
    return Curve(n_labels, [ValueWithInterval(value, value - 0.012, value + 0.013) for value in values])


def rewards() -> list[dict]:
    slopes = {"rewards/chosen": -0.05, "rewards/rejected": -0.2, "rewards/margins": 0.15}
    return [{"step": s, "epoch": s / 4, **{name: s * slope for name, slope in slopes.items()}} for s in range(1, 5)]


# Each part of a study by its fields.
PARTS = {
    "curves": {"curves": {"loss": {"easy": curve(0.67), "easy@centered": curve(0.66), "random": curve()}}},
    "differences": {
        "curves": {"loss": {"easy": curve(), "random": curve()}},
        "differences": {"loss": {"easy": [GAIN, NOTHING, EQUAL], "easy@centered": [NOTHING, NOTHING, EQUAL]}},
    },
    "savings": {"savings": {"loss": {"easy": [HALF_OPEN, REACHED], "easy@centered": [SELDOM_REACHED, NOT_REACHED]}}},
    "run curves": {"run_curves": {"margin": {"easy": curve(), "random": curve()}}},
    "run savings": {
        "run_curves": {"margin": {"easy": curve(), "random": curve()}},
        "run_savings": {"margin": {"easy": [REACHED._replace(n_labels=777.0)]}},
    },
    "rewards": {"rewards": {"easy": rewards(), "random": []}},
    "agreement": {
        "agreement": {
            "the scores": [
                AgreementBin(0.1234, 0.4, 187, 13, 0.812, 0.75, 0.861),
                AgreementBin(0.41, 0.9, 0, 4, math.nan, math.nan, math.nan),
            ]
        }
    },
    "histograms": {"histograms": {"easy@centered": {"edges": [0.0, 0.5, 1.0], "pool": [30, 70], "kept": [30, 0]}}},
    "examples": {
        "examples": {
            "easy": [{"where": "just kept", "similarity": 0.4567, "prompt": "ask", "texts": [("response a", "one")]}]
        }
    },
    "drift": {"drift": [{"labels": 640, "relative_l2": 0.123, "cosine": 0.987, "spearman": 0.876, "jaccard": 0.765}]},
    "tuning": {
        "tuning": [
            {"arm": "easy", "budget": 0.1, "chosen": 31.62, "loss": 0.6789, "loss_if_best": 0.6757},
            {"arm": "easy", "budget": 0.4, "chosen": 10.0, "loss": 0.65, "loss_if_best": 0.65},
        ]
    },
}


def study(*parts: str, **changes) -> Study:
    """Finished, with ten seeds and the named parts."""
    values = {name: value for part in parts for name, value in PARTS[part].items()}
    values |= {"n_done": 90, "n_cells": 90, "recipe": {"embedding model": "tiny", "min_gap": 0.25}}
    sides = dict(arms=ARMS, budgets=BUDGETS, seeds=list(range(10)))
    return Study(
        **{"title": "A title", "engine": "dpo", **sides, "n_pool": 1000.0, "n_test": 321, **values, **changes}
    )


def written(folder, found: Study) -> str:
    path = write_study_report(folder / "out", found)
    assert path == folder / "out" / "report.html"
    return path.read_text(encoding="utf-8")


def cells(page: str, row: str) -> list[list[str]]:
    """The cells of every table row with the first cell `row`."""
    found = re.findall(rf'<tr><th scope="row">{re.escape(row)}</th>(.*?)</tr>', page, re.DOTALL)
    return [[text_of_page(cell) for cell in re.findall(r"<td[^>]*>(.*?)</td>", r, re.DOTALL)] for r in found]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder and the page of a study with every part."""
    folder = tmp_path_factory.mktemp("study")
    return folder / "out", written(folder, study(*PARTS, curves=PARTS["curves"]["curves"]))


def test_page_shows_every_number_of_a_study(whole):
    _, page = whole
    easy = cells(page, "easy")
    assert easy[0] == ["50%", "0.6456", "500", "610", "−22%", "[not reached, +8%]", "87%"]
    assert easy[1] == ["100%", "0.6123", "1,000", "590", "+41%", "[+12%, +55%]", "100%"]
    assert easy[2] == ["0.6700 [0.6580, 0.6830]", "0.6400 [0.6280, 0.6530]", "0.6100 [0.5980, 0.6230]"]
    assert easy[3] == ["−0.0210 [−0.0320, −0.0110]", "−0.0040 [−0.0130, +0.0060]", "+0.0000 [+0.0000, +0.0000]"]
    assert easy[4] == ["0.150 → 0.600", "−0.050 → −0.200", "−0.200 → −0.800"]
    assert easy[5][3:5] == ["777", "+41%"]
    assert easy[6:] == [["10%", "31.62", "0.6789", "0.6757"], ["40%", "10", "0.6500", "0.6500"]]
    assert cells(page, "random") == [["0.6800 [0.6680, 0.6930]", "0.6500 [0.6380, 0.6630]", "0.6200 [0.6080, 0.6330]"]]
    assert cells(page, "0.123 to 0.400") == [["187", "13", "0.812", "[0.750, 0.861]"]]
    assert cells(page, "640") == [["0.123", "0.987", "0.876", "0.765"]]
    text = text_of_page(page)
    for fact in (
        "n = 321 test pairs, 10 seeds",
        "a pool of 1,000 pairs",
        "3 budgets (10%, 40%, 100%)",
        "0.0016 nats per pair lower",
        "similarity 0.457, just kept prompt ask response a one",
        "embedding model tiny",
        "min_gap 0.25",
        "Cells: 90 of 90",
    ):
        assert fact in text


def test_verdict_comes_first_and_states_the_savings(whole):
    text = text_of_page(whole[1])
    assert "easy: gain on the test loss at 10% Test loss minus that of random at the same budget:" in text
    assert "−0.0210 [−0.0320, −0.0110] at 10%. At the other budgets the interval contains 0. What random" in text
    assert "with 1,000 labels, all of them (test loss 0.6123): 590 labels, +41% saved [+12%, +55%]." in text
    assert "easy@centered: no gain measured on the test loss The interval of the difference" in text
    assert "contains 0 at each of the 2 budgets below the whole pool" in text
    assert "with 500 labels (test loss 0.6456): not reached, save in 31% of the resamples." in text
    assert text.index("easy: gain") < text.index("Labels saved") < text.index("Loss, margin and accuracy")
    assert "A falling chosen reward is not an error" in text and "are not labels avoided by selection" in text


def test_unreached_and_unknown_values_are_shown_in_words(whole, tmp_path):
    unknown = {"loss": {"easy": [REACHED._replace(low=math.nan, high=math.nan, reached=math.nan)]}}
    differences = {"loss": {"easy": [UNKNOWN] * 3}}
    bare = study("curves", savings=unknown, differences=differences)
    for page in (whole[1], written(tmp_path, bare)):
        assert not re.search(r"\b(nan|inf|None|infinity)\b", text_of_page(page))
    assert "590 labels, +41% saved no interval" in text_of_page(page)


def test_hostile_text_is_escaped_everywhere(tmp_path):
    example = {"where": HOSTILE, "similarity": 0.5, "prompt": HOSTILE, "texts": [(HOSTILE, HOSTILE)]}
    evil = study(
        arms=[HOSTILE, "random"],
        title=HOSTILE,
        curves={"loss": {HOSTILE: curve(), "random": curve()}},
        differences={"loss": {HOSTILE: [GAIN, LOSS, EQUAL]}},
        savings={"loss": {HOSTILE: [REACHED]}},
        agreement={HOSTILE: PARTS["agreement"]["agreement"]["the scores"]},
        histograms={HOSTILE: PARTS["histograms"]["histograms"]["easy@centered"]},
        rewards={HOSTILE: rewards()},
        examples={HOSTILE: [example]},
        tuning=[{"arm": HOSTILE, "budget": 0.1, "chosen": HOSTILE, "loss": 0.6, "loss_if_best": 0.6}],
        recipe={HOSTILE: {HOSTILE: HOSTILE}},
    )
    page = written(tmp_path, evil)
    loads = Loads(page)
    assert "script" not in loads.tags
    assert all(url.startswith("data:image/png;base64,") for url in loads.urls)
    assert "&lt;script&gt;alert" in page and "{{ 7 * 7 }}" in page
    assert not re.search("[\u202a-\u202e\u2066-\u2069\x00]", page)
    assert all(path.parent == tmp_path / "out" / "plots" for path in tmp_path.rglob("*.png"))


def test_long_text_is_shortened_and_right_to_left_text_keeps_its_marks(tmp_path):
    hebrew = "\u200fשלום עולם\u200f, مرحبا"
    texts = [("chosen", "a" * 20_000), ("rejected", hebrew)]
    example = {"where": "w", "similarity": 0.5, "prompt": "p " * 10_000, "texts": texts}
    page = written(tmp_path, study(examples={"easy": [example]}))
    assert "a" * 400 in page and "a" * 500 not in page and len(page) < 30_000
    assert f'<p class="text" dir="auto">{hebrew}</p>' in page


def test_page_loads_nothing_and_its_pictures_are_in_its_folder(whole):
    folder, page = whole
    urls = Loads(page).urls
    assert not re.search(r"https?://|url\(|@import|<link|<script", page)
    assert "default-src 'none'" in page
    inside = {base64.b64decode(url.split(",")[1]) for url in urls}
    assert inside == {path.read_bytes() for path in (folder / "plots").glob("*.png")}
    assert sorted(path.name for path in (folder / "plots").iterdir()) == [
        "agreement_1_the-scores.png", "curves_loss.png", "drift.png", "rewards_1_easy.png", "run_curves_margin.png",
        "run_savings_margin.png", "savings_loss.png", "similarity_1_easy-centered.png",
    ]  # fmt: skip


@pytest.mark.parametrize("part", [(), *((part,) for part in PARTS)], ids=lambda part: "".join(part) or "none")
def test_page_is_written_for_each_part_alone(tmp_path, part):
    text = text_of_page(written(tmp_path, study(*part)))
    assert not re.search(r"\b(nan|inf|None)\b", text)
    assert ("No savings:" in text) == (part != ("savings",))
    assert "Not in this report:" in text and ("Examples" in text) == (part == ("examples",))


@pytest.mark.parametrize("engine", ENGINES)
def test_engine_is_named_next_to_every_figure_that_depends_on_it(tmp_path, engine):
    text = text_of_page(written(tmp_path, study("tuning", engine=engine)))
    assert text.count(f"Engine {engine} : {ENGINES[engine]}.") == 4
    assert ("frozen features are fitted at once" in text) == (engine == "frozen")


def test_page_notes_unfinished_studies_and_few_seeds(tmp_path):
    text = text_of_page(written(tmp_path, study(n_done=7)))
    assert text.index("Not finished: 7 of 90 cells are done") < text.index("Results")
    assert "those of the 10 seeds that have all their cells" in text
    one = text_of_page(written(tmp_path, study(seeds=[3])))
    assert "With one seed, the intervals do not include" in one and "draws test prompts with" in one
    assert "3 seeds are few" in text_of_page(written(tmp_path, study(seeds=[1, 2, 3])))
    assert not re.search("Not finished|With one seed|are few", text_of_page(written(tmp_path, study())))


def test_page_of_one_budget_has_no_savings(tmp_path):
    curves = {"loss": {"easy": curve(n_points=1), "random": curve(n_points=1)}}
    found = study(budgets=[100], curves=curves, differences={"loss": {"easy": [GAIN]}})
    text = text_of_page(written(tmp_path, found))
    assert "easy: gain on the test loss at 100 pairs" in text and "No savings: they need" in text


@pytest.mark.parametrize(
    ("differences", "outcome"),
    [
        ([NOTHING, NOTHING, EQUAL], "no gain measured"),
        ([GAIN, NOTHING, EQUAL], "gain"),
        ([NOTHING, LOSS, EQUAL], "worse than random"),
        ([GAIN, LOSS, EQUAL], "mixed"),
        ([UNKNOWN, UNKNOWN, EQUAL], "not measured"),
        ([UNKNOWN, GAIN, EQUAL], "gain"),
        ([], "not measured"),
    ],
)
def test_gain_is_a_difference_with_an_interval_without_0(differences, outcome):
    assert study_verdict(study(differences={"loss": {"easy": differences}}), "loss", "easy").outcome == outcome


def test_more_accuracy_and_less_loss_are_gains():
    found = study(differences={name: {"easy": [LOSS, LOSS, EQUAL]} for name in METRICS})
    outcomes = {name: study_verdict(found, name, "easy").outcome for name in METRICS}
    assert outcomes == {"loss": "worse than random", "margin": "gain", "accuracy": "gain"}


@pytest.mark.parametrize(
    ("changes", "same"),
    [
        ({}, True),
        ({"budgets": [0.1, 0.4, 0.9]}, False),
        ({"budgets": [100, 400, 1000]}, True),
        ({"differences": {}}, False),
        ({"differences": {"loss": {"easy": [GAIN, NOTHING, EQUAL]}, "margin": {"easy": [GAIN, EQUAL, GAIN]}}}, False),
    ],
)
def test_arms_end_at_the_same_values_only_where_they_were_compared_at_the_whole_pool(changes, same, whole):
    assert _same_end(study("differences", "savings", **changes)) == same
    assert "every arm has the same pairs and the same values" in text_of_page(whole[1])


@pytest.mark.parametrize(
    ("budgets", "curves", "n"),
    [
        ([0.1, 0.4, 1.0], curve(), 400), ([0.1, 0.4, 0.9], curve(), 1000), ([1.0], curve(n_points=1), 100),
        ([100, 400, 1000], curve(), 400), ([0.1, 0.4, 1.0], None, 400), ([64, 1000], None, 64),
        ([0.1, 0.4, 1.0], curve(n_points=1), 400),
    ],
)  # fmt: skip
def test_a_run_is_drawn_over_the_labels_of_the_largest_budget_below_the_whole_pool(budgets, curves, n):
    found = study(budgets=budgets, curves={"loss": {"easy": curves}} if curves else {})
    assert _labels_of_run(found, "easy") == n


def test_whole_pool_is_not_compared():
    found = study(budgets=[1.0], differences={"loss": {"easy": [NOTHING]}})
    assert study_verdict(found, "loss", "easy").outcome == "not measured"
    found = study(budgets=[1, 1000], differences={"loss": {"easy": [GAIN, LOSS]}})
    assert study_verdict(found, "loss", "easy").better == ["1 pair"]


@pytest.mark.parametrize(
    ("saving", "words"),
    [(REACHED, "+41% [+12%, +55%]"), (HALF_OPEN, "−22% [not reached, +8%]"), (NOT_REACHED, "not reached")],
)
def test_a_saving_in_words(saving, words):
    assert in_words(saving) == words


def test_every_arm_has_its_own_fixed_style():
    arms = ["random", "easy", "easy@centered", "easy@whitened", "hard", "hard@centered", "mine", "yours", "yours@x"]
    styles = arm_styles(arms, COLORS)
    assert list(styles) == arms and len(set(styles.values())) == len({s.color for s in styles.values()}) == len(arms)
    assert styles["random"].color == "#000000"
    picture = plots.curve_figure({arm: curve() for arm in arms}, METRICS["loss"], styles, title="")
    lines = {line.get_label(): line for line in picture.axes[0].lines}
    assert {arm: lines[arm].get_color() for arm in arms} == {arm: style.color for arm, style in styles.items()}
    savings = plots.savings_figure({arm: [REACHED] for arm in arms}, styles, title="")
    names = {text.get_text(): text.get_color() for text in savings.axes[0].texts}
    assert names.items() >= {arm: style.color for arm, style in styles.items()}.items()


def test_wide_budget_ranges_use_a_logarithmic_axis():
    styles = arm_styles(ARMS, COLORS)
    near = plots.curve_figure({"easy": Curve([200.0, 400.0], curve().points[:2])}, METRICS["loss"], styles, title="")
    far = plots.curve_figure({"easy": curve()}, METRICS["loss"], styles, title="")
    assert near.axes[0].get_xscale() == "linear" and far.axes[0].get_xscale() == "log"
    assert [label.get_text() for label in far.axes[0].get_xticklabels()] == ["1000", "400", "100"]


def test_unbounded_interval_is_drawn_as_an_arrow_to_the_edge():
    savings = {"easy": [REACHED, HALF_OPEN], "easy@centered": [SELDOM_REACHED, NOT_REACHED]}
    axes = plots.savings_figure(savings, arm_styles(ARMS, COLORS), title="").axes[0]
    arrows = [text for text in axes.texts if getattr(text, "arrow_patch", None) is not None]
    words = [text.get_text() for text in axes.texts]
    assert len(arrows) == 2 and all(arrow.xy[0] == axes.get_xlim()[0] for arrow in arrows)
    assert words.count("not reached") == 2 and "+41%" in words and "−22%" in words


def test_all_reports_share_their_style(whole, tmp_path):
    rates = Comparison(
        rates=win_rate([1.0, 0.0]), model="after", baseline="before", judge="j", model_length=9.0, baseline_length=8.0
    )
    path = write_comparison_report(tmp_path, [rates], title="A title")
    shared = path.read_text(encoding="utf-8").split("h2, h3 { break-after")[0]
    assert len(shared) > 3000 and whole[1].startswith(shared)


@pytest.mark.parametrize("package", ["matplotlib", "jinja2"])
def test_missing_extra_is_reported_before_anything_is_written(tmp_path, monkeypatch, package):
    for name in [package, *(name for name in sys.modules if name.startswith(f"{package}."))]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingExtraError, match=rf"{package} is not installed.*trl-real\[plots\]"):
        write_study_report(tmp_path / "out", study())
    assert not (tmp_path / "out").exists()


def test_arms_whose_whole_interval_lies_above_the_loss_of_random_are_listed():
    found = worse_than_random(
        study(differences={"loss": {"easy": [GAIN, LOSS, UNKNOWN], "hard": [NOTHING, EQUAL, LOSS]}})
    )
    assert [(row["arm"], row["budget"]) for row in found] == [("easy", BUDGETS[1]), ("hard", BUDGETS[2])]
    assert found[0]["value"] == LOSS.value and worse_than_random(study()) == []


def test_the_table_of_savings_has_a_column_for_each_level_or_says_why_there_is_none():
    lines = savings_table(study("savings")).splitlines()
    assert [line.split("  ")[0] for line in lines] == [
        "Labels saved compared with random, by test loss:", "arm", "easy", "easy@centered",
    ]  # fmt: skip
    rows = [[cell.strip() for cell in re.split(r"\s{2,}", line)] for line in lines[1:]]
    assert rows[0] == ["arm", "level of 50%", "level of 100%"]
    assert rows[1] == ["easy", in_words(HALF_OPEN), in_words(REACHED)]
    assert rows[2] == ["easy@centered", in_words(SELDOM_REACHED), in_words(NOT_REACHED)]
    assert "learned nothing measurable" in savings_table(study(savings={"loss": {"easy": []}}))
    assert "need a random arm and a seed with at least two finished budgets" in savings_table(study())
