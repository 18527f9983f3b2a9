"""Texts are cut before they are tokenized, and the tokens that are read stay the same."""

import time

import pytest

from support.tiny import SENTENCES, tiny_model, tiny_tokenizer
from trl_real.models.embed import Embedder, EmbedderOptions
from trl_real.models.sequences import MARGIN, readable, readable_end, tokenize_pairs


tokenizer = tiny_tokenizer()
TEXTS = {
    "sentences": " ".join(SENTENCES) * 200,
    "one word": "a" * 50_000,
    "spaces": " " * 50_000 + "end",
    "accents": "é漢🙂" * 9_000,
    "short": "Tea.",
    "at the bound": "x" * (16 * (8 + MARGIN)),
}


@pytest.mark.parametrize("n_tokens", [1, 8, 500])
@pytest.mark.parametrize("name", TEXTS)
def test_the_first_tokens_do_not_change(name, n_tokens):
    text = TEXTS[name]
    kept = readable(tokenizer, text, n_tokens)
    whole, cut = (tokenizer(each, add_special_tokens=False)["input_ids"] for each in (text, kept))
    assert text.startswith(kept) and cut[:n_tokens] == whole[:n_tokens]
    assert (len(cut) > n_tokens) == (len(whole) > n_tokens)


@pytest.mark.parametrize("n_tokens", [1, 8, 500])
@pytest.mark.parametrize("name", TEXTS)
def test_the_last_tokens_do_not_change(name, n_tokens):
    text = TEXTS[name]
    kept = readable_end(tokenizer, text, n_tokens)
    whole, cut = (tokenizer(each, add_special_tokens=False)["input_ids"] for each in (text, kept))
    assert text.endswith(kept) and cut[-n_tokens:] == whole[-n_tokens:]
    assert (len(cut) > n_tokens) == (len(whole) > n_tokens)
    assert len(kept) < len(text) or name != "sentences" or n_tokens == 500


@pytest.mark.parametrize("prompt", ["text", "messages", "long start"])
def test_pairs_with_a_long_prompt_are_read_as_before(prompt, monkeypatch):
    long = " ".join(SENTENCES) * 400
    asked = [
        {"role": "system", "content": long},
        {"role": "user", "content": "Tea?" if prompt == "long start" else long},
    ]
    given = ([long] if prompt == "text" else [asked], ["Boil the water."], 200)
    found = tokenize_pairs(tokenizer, *given)
    monkeypatch.setattr("trl_real.models.sequences.readable_prompt", lambda tokenizer, prompt, n_tokens: prompt)
    assert found == tokenize_pairs(tokenizer, *given)


class Rare:
    """A tokenizer of which a token holds up to a thousand characters."""

    def __call__(self, text, add_special_tokens=True):
        return {"input_ids": [text[i : i + 1000] for i in range(0, len(text), 1000)]}


@pytest.mark.parametrize("length", [10, 5_000, 1_000_000])
def test_long_tokens_keep_more_characters(length):
    text = "".join(map(str, range(length)))[:length]
    kept = readable(Rare(), text, 20)
    assert Rare()(kept)["input_ids"][:20] == Rare()(text)["input_ids"][:20]


def test_fifty_megabytes_take_no_time():
    text, started = "many words " * 4_500_000, time.perf_counter()
    embedder = Embedder(tiny_model(), tokenizer, options=EmbedderOptions(max_length=64))
    found = embedder([None, None], [text, text[:20_000]])
    assert found.truncated.tolist() == [True, True] and found.vectors[0].equal(found.vectors[1])
    long, short = (tokenize_pairs(tokenizer, ["Tea? "], [each], 64)[0] for each in (text, text[:20_000]))
    assert long == short and long.truncated
    after, later = (tokenize_pairs(tokenizer, [each], ["Tea."], 64)[0] for each in (text, text[-20_000:]))
    assert after == later
    read = Embedder(tiny_model(), tokenizer, options=EmbedderOptions(max_length=64, context="prompt+response"))
    found = read([text, text[-20_000:]], ["Tea.", "Tea."])
    assert found.vectors[0].equal(found.vectors[1])
    assert time.perf_counter() - started < 10
