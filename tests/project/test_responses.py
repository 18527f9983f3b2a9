"""What a response is: every kind of message is the same response for every reader."""

import copy

import pytest
import torch
from datasets import Dataset
from transformers import LlamaForSequenceClassification

from support.tiny import TOOL_TEMPLATE, tiny_model, tiny_tokenizer
from trl_real import ChatJudge, EmbeddingPairSelector, RewardModelJudge, annotate
from trl_real.data.conversation import Reply, reply_of, text_of, with_template
from trl_real.data.files import load, save
from trl_real.data.pairs import EMPTY, IDENTICAL, SAME_AS_TRAINED, pool_candidates
from trl_real.labeling.people.page_html import pair_html, text_html
from trl_real.labeling.people.queue import Deck, Progress
from trl_real.labeling.people.votes import pair_key
from trl_real.models.log_probs import ResponseLogProbs
from trl_real.models.sequences import tokenize_pairs


PROMPT = [{"role": "user", "content": "The weather in Paris?"}]
TOOLS = [{"type": "function", "function": {"name": "weather", "description": "Tells the weather."}}]


def said(content, **fields):
    return [{"role": "assistant", "content": content, **fields}]


def call(content=None, **arguments):
    function = {"name": "weather", "arguments": arguments}
    return said(content, tool_calls=[{"type": "function", "function": function}])


def answered(result):
    return [*call(town="Paris"), {"role": "tool", "name": "weather", "content": result}, *said("As the tool says.")]


# Two responses of each kind that differ in nothing else, and what people and judges must see of the first.
KINDS = {
    "text": ("Fine.", "Rain.", "Fine."),
    "message": (said("Fine."), said("Rain."), "Fine."),
    "parts": (said([{"type": "text", "text": "Fine."}]), said([{"type": "text", "text": "Rain."}]), "Fine."),
    "image": (
        said([{"type": "image", "image": "sun.png"}]),
        said([{"type": "image", "image": "rain.png"}]),
        "[image sun.png]",
    ),
    "call, null content": (call(town="Paris"), call(city="Paris"), '[call] weather({"town": "Paris"})'),
    "call beside words": (call("Let me see.", town="Paris"), call("Let me see.", town="Lyon"), '{"town": "Paris"}'),
    "call and text": (call(town="Paris"), said("Rain."), "[call] weather"),
    "name": (said("Fine.", name="ann"), said("Fine.", name="bob"), "[ann] Fine."),
    "thoughts": (said("Fine.", reasoning_content="It is June."), said("Fine.", reasoning_content="No idea."), "June"),
    "tool turn": (answered("20 degrees"), answered("2 degrees"), "[tool weather] 20 degrees"),
    "several turns": (
        [*said("Which?"), *PROMPT, *said("Fine.")],
        [*said("Which?"), *PROMPT, *said("Rain.")],
        "Which?\nThe weather in Paris?\nFine.",
    ),
}


def tokenizer():
    found = tiny_tokenizer()
    found.chat_template = TOOL_TEMPLATE
    return found


def one_row(*responses) -> Dataset:
    prompt = "The weather in Paris?" if isinstance(responses[0], str) else PROMPT
    return Dataset.from_list([{"prompt": prompt, "responses": list(responses), "tools": TOOLS}])


def selected(kind):
    first, second, _ = KINDS[kind]
    selector = EmbeddingPairSelector(tiny_model(), tokenizer=tokenizer(), strategy="easy")
    return selector.select(one_row(first, copy.deepcopy(first), second))


def row_of(kind):
    return {name: values[0] for name, values in selected(kind)[:].items()}


def selection(kind, first, second, shown):
    row = row_of(kind)
    assert row["pair"] == [0, 2]
    assert row["similarity"] < 0.9999


def skip_reason(kind, first, second, shown):
    assert pool_candidates(PROMPT, [first, copy.deepcopy(first)]).skipped == IDENTICAL
    assert pool_candidates(PROMPT, [first, said("")]).skipped == EMPTY


def vote_key(kind, first, second, shown):
    row = row_of(kind)
    prompt = row["prompt"]
    assert pair_key(prompt, first, second) == pair_key(prompt, row["response_a"], row["response_b"])
    assert len({pair_key(prompt, first, second), pair_key(prompt, second, first), pair_key(prompt, first, first)}) == 3


def chat_judge(kind, first, second, shown):
    class Model:
        name = "asked"

    Model.answers = None
    (question, _) = ChatJudge(Model()).questions(selected(kind)[:])
    text = question.messages[-1]["content"]
    assert shown in text.split("Response A")[1]
    assert text_of(second) in text.split("Response B")[1]


def page(kind, first, second, shown):
    deck = Deck(selected(kind))
    pair = deck.show(deck.order(0, "ann")[0], 0, "ann")
    counts = dict.fromkeys(("a", "b", "tie", "skip"), 0)
    html = pair_html(pair, Progress(1, counts, 0, 0, float("nan")), "ann", 1)
    assert text_html(shown) in html
    assert text_html(text_of(second)) in html


def log_probs(kind, first, second, shown):
    tok, prompt = tokenizer(), with_template(PROMPT, TOOLS)
    read = [s.response for s in tokenize_pairs(tok, [prompt] * 2, [reply_of(first), reply_of(second)], 512)]
    for ids, response in zip(read, (first, second), strict=True):
        chat = PROMPT + (said(response) if isinstance(response, str) else response)
        whole = tok.apply_chat_template(chat, tools=TOOLS, return_dict=True)["input_ids"]
        assert tuple(whole[-len(ids) :]) == ids
    sums = ResponseLogProbs(tiny_model(), tok)([prompt] * 2, [reply_of(first), reply_of(second)]).sums
    assert sums[0] != sums[1] and (sums < 0).all()


def reward_model(kind, first, second, shown):
    config = tiny_model().config
    config.num_labels = 1
    torch.manual_seed(0)
    judge = RewardModelJudge(LlamaForSequenceClassification(config), tokenizer=tokenizer())
    batch = selected(kind)[:]
    (verdict,) = judge.verdicts(batch)
    with_tools = with_template(batch["prompt"][0], TOOLS)
    stored = [batch["responses"][0][i] for i in batch["pair"][0]]  # Arrow fills absent arguments with None
    scores = judge.score([with_tools] * 2, stored)
    assert verdict.probability == pytest.approx(1 / (1 + 2.718281828459045 ** (scores[1] - scores[0])), abs=1e-6)
    assert verdict.probability != 0.5


def labels_on_disk(kind, first, second, shown, folder):
    label = load(save(annotate(selected(kind), lambda batch: [0.9]), folder / "labels"))[0]
    assert without_none(label["chosen"]) == without_none(first)
    assert without_none(label["rejected"]) == without_none(second)
    assert without_none(label["tools"]) == TOOLS


def without_none(value):
    if isinstance(value, dict):
        return {name: without_none(item) for name, item in value.items() if item is not None}
    return [without_none(item) for item in value] if isinstance(value, list) else value


READERS = (selection, skip_reason, vote_key, chat_judge, page, log_probs, reward_model)


@pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader.__name__)
@pytest.mark.parametrize("kind", KINDS)
def test_two_responses_differ_and_a_copy_does_not_for_every_reader(kind, reader):
    reader(kind, *KINDS[kind])


@pytest.mark.parametrize("kind", KINDS)
def test_labels_keep_the_messages_and_what_a_template_reads(kind, tmp_path):
    labels_on_disk(kind, *KINDS[kind], tmp_path)


def test_keys_of_plain_texts_and_messages_are_those_of_earlier_votes():
    prompt = [{"role": "system", "content": "Short."}, *PROMPT, {"role": "tool", "content": "20"}]
    parts = [*said([{"type": "text", "text": "b"}]), {"role": "user", "content": "c"}]
    assert pair_key("Q", "a", "b") == "063867e30ddb7053ca1340cd8ec81eb6"
    assert pair_key(prompt, said("a"), parts) == "349c55855c2335ce5786703da46ab6d7"


def test_one_assistant_message_is_its_text_and_everything_else_keeps_its_messages():
    assert not isinstance(reply_of(said("Fine.", tool_calls=None)), Reply)
    assert reply_of(call(town="Paris")).messages == call(town="Paris")


def test_responses_that_the_template_writes_alike_are_one():
    tok = tokenizer()
    tok.chat_template = tok.chat_template.replace("{{ m.get('reasoning_content') or '' }}", "")
    first, second, _ = KINDS["thoughts"]
    selector = EmbeddingPairSelector(tiny_model(), tokenizer=tok, strategy="hard")
    rows = Dataset.from_list(
        [
            {"prompt": PROMPT, "responses": [first, second, said("Rain.")]},
            {"prompt": PROMPT, "responses": [first, second]},
        ]
    )
    assert selector.select(rows)["pair"][:] == [[0, 2]]
    assert selector.record.skipped == {SAME_AS_TRAINED: 1}
