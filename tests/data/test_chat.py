"""Text prompts and responses as messages: one function for all verbs, and one warning where they stay texts."""

import logging

import numpy as np
import pytest
from datasets import Dataset, DatasetDict, IterableDataset

import trl_real.models.sequences as sequences
from support.tiny import save_tiny, tiny_model, tiny_tokenizer
from support.training import config
from trl_real import EmbeddingPairSelector, REALDPOTrainer, annotate, as_chat, compare, warm_start
from trl_real.cli.main import main
from trl_real.data.chat import PLAIN_PROMPTS
from trl_real.data.files import save
from trl_real.errors import MissingColumnError, TrlRealError
from trl_real.models.embed import Embedder, EmbedderOptions
from trl_real.models.generate import generate, generate_responses
from trl_real.models.sequences import tokenize_pairs


QUESTIONS = ["When was Canada colonized?", "Tea or rain?", "A poem?", "Say two"]


def user(text):
    return [{"role": "user", "content": text}]


def assistant(text):
    return [{"role": "assistant", "content": text}]


POOL = [{"prompt": q, "responses": [f"Paris {i}", " tea", "a poem about rain"]} for i, q in enumerate(QUESTIONS)]
LABELS = [{"prompt": q, "chosen": f"Paris {i}", "rejected": " rain"} for i, q in enumerate(QUESTIONS)]
CHATS = {
    "pool": (POOL, lambda r: {"prompt": user(r["prompt"]), "responses": list(map(assistant, r["responses"]))}),
    "preferences": (
        LABELS,
        lambda r: {"prompt": user(r["prompt"]), **{k: assistant(r[k]) for k in ("chosen", "rejected")}},
    ),
    "ready pairs": (
        [{"prompt": r["prompt"], "response_a": r["chosen"], "response_b": r["rejected"]} for r in LABELS],
        lambda r: {"prompt": user(r["prompt"]), **{k: assistant(r[k]) for k in ("response_a", "response_b")}},
    ),
}


@pytest.mark.parametrize("kind", CHATS)
@pytest.mark.parametrize("form", ["dataset", "numpy", "stream", "untyped stream", "dict"])
def test_every_form_of_every_kind_is_wrapped(kind, form):
    rows, wrapped = CHATS[kind]
    expected, dataset = [wrapped(row) for row in rows], Dataset.from_list(rows)
    if form == "dict":
        found = as_chat(DatasetDict({"train": dataset}))["train"]
    elif form == "untyped stream":
        found = as_chat(IterableDataset.from_generator(lambda: iter(rows)))
    else:
        given = {"stream": dataset.to_iterable_dataset, "numpy": lambda: dataset.with_format("numpy")}
        found = as_chat(given.get(form, lambda: dataset)())
    assert [dict(row) for row in (found.with_format(None) if isinstance(found, Dataset) else found)] == expected
    if form == "numpy":
        assert found.format["type"] == "numpy"


def test_messages_missing_responses_and_other_columns_stay():
    rows = [{"prompt": None, "responses": ["a", None], "n": 1, "response_a": "a", "pair": [0, 1]}]
    once = as_chat(Dataset.from_list(rows).with_format(None))
    assert once[0] == {**rows[0], "responses": [assistant("a"), None]}
    assert as_chat(once)[0] == once[0]
    assert as_chat("any other value") == "any other value"


def test_a_dialogue_with_marks_becomes_its_turns():
    text = "\n\nHuman: Tea?\n\nAssistant: Yes.\nOr no.\n\nHuman: Why: so?\n\nAssistant:"
    found = as_chat(Dataset.from_list([{"prompt": text, "chosen": " a", "rejected": " b"}]))[0]
    assert found["prompt"] == [*user("Tea?"), *assistant("Yes.\nOr no."), *user("Why: so?")]
    half = "\n\nHuman: Tea?"  # no dialogue that an answer follows
    assert as_chat(Dataset.from_list([{"prompt": half}]))[0]["prompt"] == user(half)


def test_whole_dialogues_need_a_prompt_first():
    with pytest.raises(MissingColumnError, match="from_hh_rlhf"):
        as_chat(Dataset.from_list([{"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "c"}]))


# `as_messages=True` is `as_chat` beforehand, in every function that has it.


def test_generation_reads_the_template():
    model, tokenizer = tiny_model(), tiny_tokenizer()
    settings = {"max_new_tokens": 4, "seed": 3}
    chats = generate_responses(model, tokenizer, [user(q) for q in QUESTIONS], **settings)
    assert generate_responses(model, tokenizer, QUESTIONS, as_messages=True, **settings) == chats
    assert generate_responses(model, tokenizer, QUESTIONS, **settings) != chats


def test_a_comparison_generates_and_judges_chats():
    seen = []

    def judge(batch):
        seen.extend(batch["prompt"])
        return [0.5] * len(batch["prompt"])

    model, tokenizer = tiny_model(), tiny_tokenizer()
    settings = {"tokenizer": tokenizer, "generation": {"max_new_tokens": 4}}
    found = compare(QUESTIONS, model, ["x"] * 4, judge, as_messages=True, **settings)
    again = compare([user(q) for q in QUESTIONS], model, ["x"] * 4, judge, **settings)
    assert seen[:4] == [user(q) for q in QUESTIONS] and found.rows == again.rows


@pytest.mark.parametrize("column", ["responses", "answers"])
@pytest.mark.parametrize("stream", [False, True])
def test_a_selection_reads_and_writes_chats(stream, column, tmp_path):
    pool = Dataset.from_list([{"prompt": row["prompt"], column: row["responses"]} for row in POOL])

    def select(rows, name, **more):
        settings = {"context": "prompt+response", "responses": column}
        selector = EmbeddingPairSelector(tiny_model(), tokenizer=tiny_tokenizer(), **settings)
        given = {"shards": tmp_path / name} if stream else {}
        return list(selector.select(rows.to_iterable_dataset() if stream else rows, 0.5, **given, **more))

    chats = select(pool, "texts", as_messages=True)
    assert chats == select(as_chat(pool, responses=column), "chats") and chats[0]["prompt"] == user(
        chats[0]["prompt"][0]["content"]
    )
    assert chats[0]["response_a"] in POOL[0]["responses"][1:] or chats[0]["response_a"].startswith("Paris")
    plain = select(pool, "plain")
    assert not np.allclose([r["similarity"] for r in plain], [r["similarity"] for r in chats], atol=1e-3)


def test_labels_of_chats_are_chats():
    pairs = Dataset.from_list(CHATS["ready pairs"][0])
    found = annotate(pairs, lambda batch: [0.9] * len(batch["prompt"]), as_messages=True)
    assert found[0]["prompt"] == user(QUESTIONS[0]) and found[0]["chosen"] == assistant("Paris 0")


@pytest.mark.parametrize("selection", [{}, {"selection_strategy": "easy", "selection_budget": 0.5}])
def test_the_trainer_trains_and_evaluates_on_chats(selection, tmp_path):
    rows, tokenizer = Dataset.from_list(LABELS), tiny_tokenizer()

    def trainer(train, held_out, **changes):
        args = config(tmp_path / "out", **selection, **changes)
        sets = {"train_dataset": train, "eval_dataset": held_out}
        return REALDPOTrainer(save_tiny(tmp_path / "model"), args=args, processing_class=tokenizer, **sets)

    found = trainer(rows, {"a": rows}, as_messages=True)
    expected = trainer(as_chat(rows), {"a": as_chat(rows)})
    for name in ("prompt_ids", "chosen_ids", "rejected_ids"):
        assert found.train_dataset[name][:] == expected.train_dataset[name][:]
        assert found.eval_dataset["a"][name][:] == expected.eval_dataset["a"][name][:]
    assert "<|im_start|>user" in tokenizer.decode(found.train_dataset[0]["prompt_ids"])
    assert found.evaluate(rows)["eval_loss"] == expected.evaluate(as_chat(rows))["eval_loss"]


def test_the_warm_start_learns_chats(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr("trl_real.training.warm_start._warm_start", lambda model, rows, *_: seen.append(rows[:]))
    warm_start("m", Dataset.from_list(LABELS), config(tmp_path), as_messages=True)
    assert seen[0]["completion"][0] == assistant("Paris 0") and seen[0]["prompt"][0] == user(QUESTIONS[0])


def test_messages_for_a_base_model_are_one_line():
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = None
    with pytest.raises(TrlRealError, match="has no chat template: it is a base model"):
        generate(tiny_model(), tokenizer, QUESTIONS, as_messages=True, max_new_tokens=2)


# The warning: once in a process, whatever reads the prompts first.


@pytest.fixture
def warnings(caplog):
    sequences._tell_plain.cache_clear()
    with caplog.at_level(logging.WARNING, logger="trl_real"):
        yield lambda: [record.getMessage() for record in caplog.records if record.getMessage() == PLAIN_PROMPTS]
    sequences._tell_plain.cache_clear()


def embed(tokenizer, prompts, _folder):
    options = EmbedderOptions(context="prompt+response")
    Embedder(tiny_model(), tokenizer, options=options)(prompts, ["tea"] * len(prompts))


def train(tokenizer, prompts, folder):
    texts = isinstance(prompts[0], str)
    rows = [{"prompt": p, "chosen": "tea" if texts else assistant("tea"),
             "rejected": "rain" if texts else assistant("rain")} for p in prompts]  # fmt: skip
    model, args = save_tiny(folder / "model"), config(folder / "out")
    REALDPOTrainer(model, args=args, processing_class=tokenizer, train_dataset=Dataset.from_list(rows))


READERS = {
    "generation": lambda tokenizer, prompts, _: generate(tiny_model(), tokenizer, prompts, max_new_tokens=1),
    "log-probabilities": lambda tokenizer, prompts, _: tokenize_pairs(tokenizer, prompts, ["tea"] * len(prompts), 64),
    "embeddings in context": embed,
    "training": train,
}


@pytest.mark.parametrize("reader", READERS)
def test_each_reader_of_plain_prompts_warns_once(reader, warnings, tmp_path):
    for _ in range(2):
        READERS[reader](tiny_tokenizer(), QUESTIONS, tmp_path)
    assert len(warnings()) == 1


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("prompts", ["messages", "rendered", "base model"])
def test_no_reader_warns_where_nothing_is_left_out(reader, prompts, warnings, tmp_path):
    tokenizer = tiny_tokenizer()
    given = [user(q) for q in QUESTIONS] if prompts == "messages" else QUESTIONS
    if prompts == "rendered":
        given = [f"<|im_start|>user\n{q}<|im_end|>\n<|im_start|>assistant\n" for q in QUESTIONS]
    if prompts == "base model":
        tokenizer.chat_template = None
    READERS[reader](tokenizer, given, tmp_path)
    assert not warnings()


def test_the_warning_says_what_to_type():
    assert "--chat" in PLAIN_PROMPTS and "as_messages=True" in PLAIN_PROMPTS


@pytest.mark.parametrize("chat", [False, True])
def test_the_command_line_generates_by_the_template(chat, tmp_path, warnings):
    model = save_tiny(tmp_path / "model")
    save(Dataset.from_dict({"prompt": QUESTIONS, "reply": ["tea"] * 4}), tmp_path / "rows")
    argv = ["win-rate", "--dataset", str(tmp_path / "rows"), "--model", model, "--baseline", "reply"]
    argv += ["--judge", "reward", "--judge_model", save_tiny_reward(tmp_path), "--max_new_tokens", "4"]
    argv += ["--temperature", "0", "--output_dir", str(tmp_path / "out")]
    assert main([*argv, *["--chat"] * chat]) == 0
    written = Dataset.from_parquet(str(tmp_path / "out" / "completions.parquet"), cache_dir=str(tmp_path / "cache"))
    prompts = [user(q) if chat else q for q in QUESTIONS]
    assert bool(warnings()) is not chat
    expected = generate_responses(tiny_model(), tiny_tokenizer(), prompts, max_new_tokens=4, temperature=0)
    assert [[text] for text in written["model: model"][:]] == expected


def save_tiny_reward(folder) -> str:
    from transformers import LlamaForSequenceClassification

    settings = tiny_model().config
    settings.num_labels = 1
    LlamaForSequenceClassification(settings).save_pretrained(folder / "reward")
    tiny_tokenizer().save_pretrained(folder / "reward")
    return str(folder / "reward")
