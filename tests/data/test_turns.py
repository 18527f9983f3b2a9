"""Dialogues of several turns: split by preference, and read from the turn on in which they differ."""

from collections import Counter

import pytest
from datasets import Dataset

from support.tiny import tiny_model, tiny_tokenizer
from trl_real import EmbeddingPairSelector, split_turns
from trl_real.data.conversation import implied_prompt, shared_turns
from trl_real.data.pairs import PROMPT_MISMATCH, preference_candidates
from trl_real.errors import MissingColumnError, TrlRealError


def said(*turns: str) -> list[dict]:
    """`u hello` is a message of the user, `a hi` one of the assistant, `t 4` one of a tool."""
    roles = {"u": "user", "a": "assistant", "t": "tool", "s": "system"}
    return [{"role": roles[turn[0]], "content": turn[2:]} for turn in turns]


CHOSEN = said("s be kind", "u one?", "a ONE", "u two?", "a TWO", "u three?", "a THREE")
REJECTED = said("s be kind", "u one?", "a eins", "u two?", "a TWO", "u three?", "a drei")


def test_one_row_a_turn_with_the_history_of_the_chosen_dialogue():
    rows = split_turns(Dataset.from_list([{"chosen": CHOSEN, "rejected": REJECTED, "id": 7}]))
    assert rows.to_list() == [
        {"prompt": CHOSEN[:2], "chosen": CHOSEN[2:3], "rejected": REJECTED[2:3], "turn": 0, "id": 7},
        {"prompt": CHOSEN[:6], "chosen": CHOSEN[6:], "rejected": REJECTED[6:], "turn": 2, "id": 7},
    ]


@pytest.mark.parametrize("prompt", [CHOSEN[:2], CHOSEN[:2] + CHOSEN[2:2]])
@pytest.mark.parametrize("repeats", [False, True])
def test_a_prompt_column_is_the_beginning(prompt, repeats):
    start = 0 if repeats else len(prompt)
    row = {"prompt": prompt, "chosen": CHOSEN[start:], "rejected": REJECTED[start:]}
    implicit = split_turns(Dataset.from_list([{"chosen": CHOSEN, "rejected": REJECTED}]))
    assert split_turns(Dataset.from_list([row])).to_list() == implicit.to_list()


def test_tools_belong_to_the_answer_and_other_user_turns_end_the_split():
    mine = said("u sum?", "a calls", "t 4", "a four", "u more?", "a done", "u bye")
    other = said("u sum?", "a calls", "t 5", "a five", "u else?", "a what", "u bye")
    rows = split_turns(Dataset.from_list([{"chosen": mine, "rejected": other}]))
    assert [(row["chosen"], row["rejected"]) for row in rows] == [(mine[1:4], other[1:4])]


def test_values_by_turn_are_split_too():
    row = {"chosen": CHOSEN, "rejected": REJECTED, "label_confidence": [0.9, 0.5, 0.75], "tags": ["x", "y"]}
    rows = split_turns(Dataset.from_list([row]))
    assert rows["label_confidence"][:] == [0.9, 0.75] and rows["tags"][:] == [["x", "y"]] * 2


def test_dialogues_in_are_dialogues_split_plus_counted():
    counts: Counter = Counter()
    rows = [
        {"chosen": CHOSEN, "rejected": REJECTED},
        {"chosen": CHOSEN, "rejected": CHOSEN},
        {"chosen": said("u a?", "a b"), "rejected": said("u c?", "a d")},
        {"chosen": said("u a?", "a b"), "rejected": said("u a?")},
    ]
    found = split_turns(Dataset.from_list(rows), counts=counts)
    assert len(found) == 2 and counts.total() == 3 and len(counts) == 3


def test_texts_and_missing_columns_are_told():
    with pytest.raises(TrlRealError, match="split_turns reads messages"):
        split_turns(Dataset.from_dict({"chosen": ["a"], "rejected": ["b"]}))
    with pytest.raises(MissingColumnError, match="split_turns needs it"):
        split_turns(Dataset.from_dict({"chosen": ["a"]}))


MARKUP = "\n\nHuman: one?\n\nAssistant: "
LAYOUTS = {
    "implicit": {"chosen": CHOSEN, "rejected": [*CHOSEN[:4], *said("a zwei", "u three?", "a drei")]},
    "first turn as prompt": {
        "prompt": CHOSEN[:2], "chosen": CHOSEN[2:], "rejected": said("a ONE", "u two?", "a zwei", "u three?", "a drei")
    },
    "text prompt beside dialogues": {
        "prompt": "one?", "chosen": CHOSEN[1:], "rejected": [*CHOSEN[1:4], *said("a zwei", "u three?", "a drei")]
    },
}  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
def test_shared_turns_are_the_prompt_in_every_layout(layout):
    row = LAYOUTS[layout]
    found = preference_candidates(row.get("prompt"), row["chosen"], row["rejected"])
    asked = [message for message in found.prompt if message["role"] != "system"]
    assert asked == CHOSEN[1:4] and [str(text) for text in found.texts] == [
        "TWO\nthree?\nTHREE", "zwei\nthree?\ndrei"
    ]  # fmt: skip


def test_markup_that_differs_from_an_earlier_turn_on():
    rest = "\n\nHuman: two?\n\nAssistant: "
    chosen, rejected = f"{MARKUP}ONE{rest}TWO", f"{MARKUP}eins{rest}zwei"
    for one, other in ((chosen, rejected), (rejected, chosen)):
        assert implied_prompt(one, other) == MARKUP.rstrip()
        assert preference_candidates(None, one, other).texts == [one[len(MARKUP) - 1 :], other[len(MARKUP) - 1 :]]
    explicit = preference_candidates(MARKUP.rstrip(), f" ONE{rest}TWO", f" ONE{rest}zwei")
    assert explicit.prompt == f"{MARKUP}ONE{rest}".rstrip() and explicit.texts == [" TWO", " zwei"]
    asked = f"{MARKUP}ONE\n\nHuman: "
    questions = preference_candidates(None, f"{asked}two?\n\nAssistant: x", f"{asked}three?\n\nAssistant: y")
    assert questions.skipped == PROMPT_MISMATCH  # the users said something else


def test_a_dialogue_that_begins_another_keeps_its_last_answer_as_the_response():
    short, long = said("u one?", "a ONE"), said("u one?", "a ONE", "u two?", "a TWO")
    for one, other in ((short, long), (long, short)):
        assert shared_turns(one, other) == said("u one?")
    assert shared_turns(short, short) == said("u one?") and shared_turns(short[:1], long) == []


def test_a_lone_shared_call_before_other_results_stays_in_the_response():
    chosen, rejected = said("a call", "t 4", "a four"), said("a call", "t 5", "a five")
    found = preference_candidates(said("u sum?"), chosen, rejected)
    assert found.prompt == said("u sum?") and len(found.texts) == 2


def test_selection_reads_what_differs():
    split = Dataset.from_list([{"prompt": CHOSEN[1:4], "chosen": said("a TWO"), "rejected": said("a zwei")}])
    whole = Dataset.from_list(
        [{"prompt": CHOSEN[1:2], "chosen": CHOSEN[2:5], "rejected": [*CHOSEN[2:4], *said("a zwei")]}]
    )
    for context in ("response", "prompt+response"):
        selector = EmbeddingPairSelector(tiny_model(), tokenizer=tiny_tokenizer(), context=context)
        similarities = [selector.select(rows)["similarity"][0] for rows in (split, whole)]
        assert similarities[0] == pytest.approx(similarities[1], abs=1e-5)
