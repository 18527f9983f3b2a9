"""What a card says of the labels and the responses: each fact where the data has it, and nothing else."""

import pytest
from datasets import Dataset, DatasetDict

from trl_real.hub.card import size_category
from trl_real.hub.facts import CardFacts, as_pushed, authors, columns_of, label_sources


SOURCES = {"label_source": ["a", "b", "b", None], "label_confidence": [1.0, 0.5, 0.75, None]}


def test_sources_of_labels_are_counted_the_most_frequent_first_over_all_splits():
    rows = Dataset.from_dict(SOURCES)
    ((title, header, found),) = label_sources(rows)
    assert (title, header) == ("Labels", ["labelled by", "rows", "mean confidence"])
    assert found == [("b", 2, "0.625"), ("None", 1, "0.000"), ("a", 1, "1.000")]
    ((_, _, both),) = label_sources(DatasetDict(train=rows, test=rows.select([0, 0])))
    assert both == [("a", 3, "1.000"), ("b", 2, "0.625"), ("None", 1, "0.000")]


@pytest.mark.parametrize("missing", SOURCES)
def test_without_a_source_or_a_confidence_nothing_is_said_of_labels(missing):
    assert label_sources(Dataset.from_dict(SOURCES).remove_columns(missing)) == []


def labelled(**changes):
    rows = {
        "prompt": ["p", "q", "r"], "chosen": ["x", "y", "z"], "rejected": ["y", "x", "w"],
        "response_a": ["x", "x", "w"],
        "response_b": ["y", "y", "z"], "skipped": ["", "", ""], "pair": [[1, 0], [2, 1], [0, 1]],
        "models": [["m0", "m1"], ["m0", "m1", "m2"], ["m0", None]],
    }  # fmt: skip
    return Dataset.from_dict({name: values for name, values in {**rows, **changes}.items() if values is not None})


def test_each_side_has_the_model_that_wrote_it():
    """The first of the pair wrote `response_a`, which is the chosen or the rejected response."""
    found = as_pushed(labelled())
    assert found["chosen_model"][:] == ["m1", "m1", None] and found["rejected_model"][:] == ["m0", "m2", "m0"]
    ((title, header, rows),) = authors(found)
    assert (title, header) == ("Who wrote the responses", ["model", "chosen", "rejected"])
    assert rows == [("m0", 0, 2), ("m1", 2, 0), ("not known", 1, 0), ("m2", 0, 1)]
    again = as_pushed(found.add_column("response_a", ["x", "x", "w"]))
    assert again["chosen_model"][:] == ["m1", "m1", None], "what was pushed before is replaced"


def test_of_rows_without_labels_all_responses_are_counted():
    pool = Dataset.from_dict({"responses": [["a", "b"], ["c"], ["d"]], "models": [["m", "n"], ["n"], None]})
    assert authors(pool) == [("Who wrote the responses", ["model", "responses"], [("n", 2), ("m", 1)])]
    assert authors(pool.remove_columns("models")) == authors(pool.remove_columns("responses")) == []


REPEATED = {"response_a", "response_b", "skipped"}


@pytest.mark.parametrize(
    ("changes", "kept"),
    [
        ({}, set()),
        ({"skipped": ["", "empty response", ""]}, {"skipped"}),
        ({"rejected": None}, REPEATED),
        ({"chosen": None}, REPEATED),
        ({"skipped": None}, set()),
        ({"models": None}, set()),
        ({"models": ["m0", "m1", "m2"]}, set()),  # one name a row, for example of a judge
    ],
)
def test_labelled_rows_lose_what_repeats_in_one_split_as_in_several(changes, kept):
    rows = labelled(**changes)
    for found in (as_pushed(rows), as_pushed(DatasetDict(train=rows))["train"]):
        assert set(found.column_names) & REPEATED == kept
        assert set(rows.column_names) - REPEATED <= set(found.column_names) and len(found) == 3


def test_a_column_is_dropped_from_all_splits_or_from_none():
    splits = DatasetDict(train=labelled(), test=labelled(skipped=["", "", "empty response"]))
    assert columns_of(splits) == labelled().column_names
    found = as_pushed(splits)
    assert found["train"].column_names == found["test"].column_names and "skipped" in columns_of(found)


@pytest.mark.parametrize(
    ("report", "rows"),
    [
        ({"judge": "j", "labeled": 3, "ties": 0}, [("judge", "j"), ("pairs with a label", 3), ("ties, left out", 0)]),
        ({"judge": "j", "failed": 2}, [("judge", "j"), ("pairs without a verdict, left out", 2)]),
        (
            {"judge": "j", "panel": {"alpha": 0.25, "ci_low": 0.125, "ci_high": 0.5, "n_pairs": 9}},
            [("judge", "j"), ("agreement of the judges", "Krippendorff's alpha 0.25 [0.12, 0.50], n = 9")],
        ),
        (
            {"judge": "j", "gold": {"rate": 0.75, "ci_low": 0.5, "ci_high": 0.875, "n": 9}},
            [("judge", "j"), ("agreement with gold labels", "0.75 [0.50, 0.88], n = 9")],
        ),
        ({"judge": "j", "gold": {"rate": None}, "votes": {"alpha": None}}, [("judge", "j")]),
        (
            {"judge": "j", "verdicts": {"position_bias": -0.5, "input_tokens": 7, "cost": 0.0}},
            [("judge", "j"), ("bias for the response shown first", "-0.500"),
             ("tokens of the judge", "7 read, 0 generated")],
        ),
    ],
)  # fmt: skip
def test_a_labelling_is_told_by_what_its_report_holds(report, rows):
    assert CardFacts(labels=report).label_table() == [("Labelling", ["what", "value"], rows)]
    assert CardFacts().label_table() == CardFacts(labels={}).label_table() == []


def test_only_what_is_given_goes_into_the_metadata():
    assert CardFacts(license="mit", language=[], title="").metadata() == {"license": "mit"}
    assert CardFacts(title="T", language="en").metadata() == {"pretty_name": "T", "language": "en"}


@pytest.mark.parametrize(
    ("n_rows", "name"),
    [
        (0, "n<1K"), (999, "n<1K"), (1000, "1K<n<10K"), (9_999, "1K<n<10K"), (10_000, "10K<n<100K"),
        (100_000, "100K<n<1M"), (999_999, "100K<n<1M"), (1_000_000, "n>1M"),
    ],
)  # fmt: skip
def test_sizes_have_the_names_of_the_hub(n_rows, name):
    assert size_category(n_rows) == name
