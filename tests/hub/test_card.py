"""Content of the dataset card, and what a second push keeps. No network."""

import numpy as np
import pytest
from huggingface_hub import DatasetCard

from trl_real.errors import TrlRealError
from trl_real.hub.card import (
    HISTOGRAM_ROWS,
    check_record,
    escape,
    histogram,
    public_record,
    render_section,
    replace_section,
    update_card,
)
from trl_real.hub.push import checked_config_name, default_config_name
from trl_real.selection.record import SelectionRecord, describe_similarity


OTHER = "<!-- trl-real:begin hard-5 -->\nkept 3\n<!-- trl-real:end hard-5 -->"
BEGIN, END = "<!-- trl-real:begin easy-0.25 -->", "<!-- trl-real:end easy-0.25 -->"
METADATA = """---
license: mit
tags:
- mine
dataset_info:
- config_name: easy-0.25
  splits:
  - name: train
    num_examples: 25
  - name: test
    num_examples: 5
configs:
- config_name: easy-0.25
  data_files:
  - split: train
    path: easy-0.25/train-*
---
"""
HOSTILE = [
    "a | b",
    "two\nlines\r\n| x | y |",
    END,
    BEGIN + "\n" + END,
    "--> <script>alert(1)</script>",
    "`code` ``` fence",
    "*bold* _under_ [link](javascript:x) ~~gone~~ $$x$$",
    "back\\slash \\| pipe",
    "\u202egnp.exe \x00 \x1b[31m",
    "&lt;b&gt;",
]


def make_record(**changes) -> SelectionRecord:
    """A record with counts that add up: 100 in, 25 kept, 70 not chosen, 5 skipped."""
    similarity = np.linspace(-0.2, 0.9, 95)
    values = {
        **{"strategy": "easy", "budget": 0.25, "seed": 42, "model": "user/encoder", "revision": "abc123"},
        **{"settings": {"layer": -1, "context": "response"}, "n_rows": 100, "n_kept": 25, "n_not_chosen": 70},
        **{"skipped": {"identical responses": 3, "empty response": 2}, "n_responses": 200, "n_truncated": 3},
        **describe_similarity(similarity, similarity[:25]),
        **changes,
    }
    return SelectionRecord(**values)


def section(config_name: str = "easy-0.25", **changes) -> str:
    return render_section(make_record(**changes), config_name, "user/subset", {"train": 25})


def cells(markdown: str) -> dict[str, str]:
    """First and second column of every table row, as they stand in the source."""
    rows = [line[2:-2].split(" | ") for line in markdown.splitlines() if line.startswith("| ")]
    assert all(len(row) in (2, 3) for row in rows)
    return {row[0]: row[1] for row in rows}


def test_section_states_recipe_counts_and_the_line_that_loads_it():
    shown = cells(section())
    assert (shown["strategy"], shown["seed"], shown["model"]) == ("easy", "42", "user/encoder")
    assert shown["budget"] == "0.25 of the rows with a pair"
    assert shown["responses cut to the context"] == "3 of 200 (1.5%)"
    rows = ["in the pool", "kept", "not chosen", "skipped: identical responses", "skipped: empty response"]
    assert [shown[name] for name in rows] == ["100", "25", "70", "3", "2"]
    assert 'load_dataset("user/subset", "easy-0.25", split="train")' in section()


@pytest.mark.parametrize(
    ("budget", "said", "name"),
    [(0.25, "0.25 of the rows with a pair", "easy-0.25"), (500, "500 rows", "easy-500"), (None, "all", "easy-all")],
)
def test_budget_is_shown_and_names_the_config(budget, said, name):
    assert said in cells(section(budget=budget))["budget"]
    assert default_config_name(make_record(budget=budget)) == name


def test_a_share_of_one_and_one_row_have_names_of_their_own():
    assert default_config_name(make_record(budget=1.0)) != default_config_name(make_record(budget=1))


@pytest.mark.parametrize("strategy", ["__main__.<lambda>", "my_module.least_similar", "ähnlich", "…", "x" * 300])
def test_every_strategy_gives_a_valid_hub_config_name(strategy):
    name = default_config_name(make_record(strategy=strategy))
    assert checked_config_name(name) == name


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_stays_in_its_cell_and_creates_no_marker(text):
    values = {"strategy": text, "model": text, "revision": text, "versions": {text: text}, "settings": {text: text}}
    hostile = section(**values, skipped={text: 5})
    assert len(cells(hostile)) == len(cells(section(skipped={"x": 5}, settings={"x": 1})))
    assert hostile.count("<!--") == 3 and hostile.count("-->") == 3 and hostile.count("```") % 2 == 0
    assert "<script" not in hostile and "\x1b" not in hostile and "\u202e" not in hostile
    assert replace_section(replace_section("", hostile, "easy-0.25"), hostile, "easy-0.25").count(BEGIN) == 1


def test_escape_leaves_ordinary_names_readable():
    assert escape("HuggingFaceTB/SmolLM2-135M-Instruct 0.25") == "HuggingFaceTB/SmolLM2-135M-Instruct 0.25"


@pytest.mark.parametrize("columns", [[], ["prompt", "chosen", "rejected"]])
@pytest.mark.parametrize("metadata", ["", METADATA])
def test_rendering_is_idempotent(metadata, columns):
    arguments = (make_record(), "easy-0.25", "user/subset")
    once = update_card(metadata, *arguments, columns=columns)
    assert update_card(once, *arguments, columns=columns) == once
    assert once.count(BEGIN) == once.count(END) == 1


def test_metadata_keeps_what_it_had_and_gains_tags_once():
    arguments = (make_record(), "easy-0.25", "user/subset")
    card = DatasetCard(update_card(METADATA, *arguments, columns=["chosen", "rejected"]))
    assert card.data.tags == ["mine", "trl", "trl-real", "library:trl-real", "preference", "dpo"]
    assert card.data.license == "mit" and card.data.task_categories == ["text-generation"]
    card.data.tags.remove("dpo")
    assert "dpo" not in DatasetCard(update_card(str(card), *arguments, columns=["chosen", "rejected"])).data.tags


def test_unlabelled_rows_are_not_tagged_as_dpo_data():
    card = DatasetCard(update_card(METADATA, make_record(), "easy-0.25", "user/subset", columns=["prompt", "pair"]))
    assert "preference" in card.data.tags and "dpo" not in card.data.tags


def test_rows_of_every_split_come_from_the_metadata():
    shown = cells(update_card(METADATA, make_record(), "easy-0.25", "user/subset"))
    assert shown["in this repository, split train"] == "25" and shown["in this repository, split test"] == "5"


def test_unreadable_metadata_gets_a_one_line_error():
    for block in ("---\n- a list\n---\n", "---\n a: [\n---\n"):
        with pytest.raises(TrlRealError, match="metadata block") as error:
            update_card(block + "text", make_record(), "easy-0.25", "user/subset")
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
def test_text_around_the_section_survives_byte_for_byte(line_end):
    before, after = f"# Mine{line_end}{line_end}Words  {line_end}", f"{line_end}{line_end}More <b>words</b>"
    first = replace_section(before, section(), "easy-0.25") + after
    second = replace_section(first, section(seed=7), "easy-0.25")
    assert second.startswith(before) and second.endswith(after)
    assert "| seed | 7 |" in second and "| seed | 42 |" not in second
    assert line_end == "\n" or "\n" not in second.replace("\r\n", "")


def test_other_configs_are_left_alone_even_if_one_name_begins_the_other():
    text = replace_section(replace_section("", section("easy-0.2"), "easy-0.2"), section("easy-0.25"), "easy-0.25")
    changed = replace_section(text, section("easy-0.2", seed=7), "easy-0.2")
    assert section("easy-0.25") in changed and section("easy-0.2", seed=7) in changed
    assert changed.count("trl-real:begin") == 2


@pytest.mark.parametrize(
    "text",
    [
        f"kept 1\n{BEGIN}\nkept 2",
        f"kept 1\n{END}\nkept 2",
        f"kept 1\n{END}\nkept 2\n{BEGIN}\nkept 3",
        f"kept 1\n{BEGIN}\nkept 2\n{OTHER}\nkept 4\n{END}",
        f"kept 1\n{BEGIN}\nkept 2\n{BEGIN}\nold\n{END}\nkept 3",
        f"kept 1\n{BEGIN}\nold\n{END}\nkept 2\n{END}\nkept 3",
        f"kept 1\n{BEGIN}\nold\n{END}\nkept 2\n{BEGIN}\nkept 3",
        f"{BEGIN}\nkept 1\n{END}\nkept 2\n{BEGIN}\nold\n{END}\nkept 3",
        f"the words `{BEGIN}` and `{END}` kept 1 inside a line",
        f"{BEGIN} kept 1",
    ],
)
def test_broken_or_doubled_markers_lose_no_text(text):
    kept = [f"kept {i}" for i in range(1, 5) if f"kept {i}" in text]
    for _ in range(3):
        text = replace_section(text, section(), "easy-0.25")
        assert [word for word in kept if word in text] == kept
        assert text.count(section()) == 1 and "\nold\n" not in text


def test_histogram_counts_every_row_and_scales_to_its_own_largest_bin():
    lines = histogram({"edges": list(range(42)), "pool": [10] * 40 + [0], "kept": [2] + [0] * 40}).splitlines()[2:-1]
    numbers = [[int(word) for word in line.split() if word.isdigit()] for line in lines]
    assert len(lines) <= HISTOGRAM_ROWS
    assert np.sum(numbers, axis=0).tolist() == [400, 2]
    longest = max(len(word) for line in lines for word in line.split() if word.startswith("█"))
    assert lines[0].split()[-2] == "█" * longest


def test_histogram_shows_the_edges_and_counts_of_each_bin():
    found = histogram({"edges": [-1.0, 0.0, 0.5, 1.0], "pool": [20, 0, 5], "kept": [0, 0, 3]}).splitlines()
    lines = [line.replace("█", "").split() for line in found[2:-1]]
    assert lines == [["-1.000", "to", "0.000", "20", "0"], ["0.000", "to", "0.500", "0", "0"],
                     ["0.500", "to", "1.000", "5", "3"]]  # fmt: skip
    bars = [line.count("█") for line in found[2:-1]]
    assert bars[1] == 0 and bars[0] * 5 / 20 + bars[0] == bars[2], "each column by its own largest bin"


def test_histogram_of_nothing_kept_and_of_one_value():
    nothing = section(histogram=describe_similarity(np.ones(3), np.array([]))["histogram"])
    assert "kept" in nothing and nothing.count("█") == 24, "one whole bar of the pool, and none of what is kept"
    assert "Similarity" not in section(similarity={}, similarity_kept={}, histogram={})
    assert "| median | 1.000 | – |" in section(**describe_similarity(np.ones(3), np.array([])))


def test_a_record_that_loses_rows_or_bins_is_refused():
    check_record(make_record())
    check_record(make_record(histogram={"edges": [0, 1], "pool": [95], "kept": [25]}))  # one bin is enough
    for changes in ({"n_kept": 24}, {"n_kept": 26}, {"n_not_chosen": 71}, {"n_rows": 101}, {"skipped": {}}):
        with pytest.raises(TrlRealError, match="rows in, but .* kept .* not chosen .* skipped"):
            check_record(make_record(**changes))
    with pytest.raises(TrlRealError, match="2 edges, 2 pool counts and 2 kept"):
        check_record(make_record(histogram={"edges": [0, 1], "pool": [1, 1], "kept": [0, 1]}))


def test_local_paths_and_tokens_are_not_published(tmp_path, monkeypatch):
    (tmp_path / "models" / "mine").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert public_record(make_record(model="models/mine"))["model"] == "mine"
    assert public_record(make_record(model="user/encoder"))["model"] == "user/encoder"
    for model in (
        str(tmp_path / "mine"),
        "~/models/mine",
        "./mine",
        "../x/mine/",
        "C:\\Users\\me\\mine",
        "file:/x/mine",
    ):
        assert public_record(make_record(model=model))["model"] == "mine"
    settings = {"cache": f"in {tmp_path}/mine, or so", "key": "hf_abcdefghijklmnop", "list": ["/root/a/b"]}
    shown = public_record(make_record(settings=settings, skipped={"no file /home/me/x": 5}))
    assert shown["settings"] == {"cache": "in mine, or so", "key": "[removed]", "list": ["b"]}
    assert shown["skipped"] == {"no file x": 5}
