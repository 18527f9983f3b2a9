"""Rows with images: responses are read by the language model alone, or after their images by the whole model."""

import pickle

import numpy as np
import pytest
import torch
from datasets import Dataset

from support.tiny import tiny_model
from support.training import as_messages, pairs, words
from support.vision import picture, save_vlm, tiny_processor, tiny_vlm, with_pictures
from trl_real import EmbeddingPairSelector
from trl_real.errors import TrlRealError
from trl_real.models.embed import Embedder, EmbedderOptions
from trl_real.models.encoder import Encoder


pytestmark = pytest.mark.usefixtures("one_thread")
STRATEGIES = ("easy", "hard", "centroid", "easy@centered")


def pool(n: int = 10) -> list[dict]:
    return [
        {"prompt": [{"role": "user", "content": f"What is {i}?"}],
         "responses": [words(i + 9 * k, 2 + (i + k) % 4) for k in range(3)]}
        for i in range(n)
    ]  # fmt: skip


@pytest.mark.parametrize("column", ["image", "images"])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_selection_equals_that_of_the_texts_with_the_language_model_alone(strategy, column):
    rows, processor = pool(), tiny_processor()
    seen = EmbeddingPairSelector(tiny_vlm(), tokenizer=processor, strategy=strategy)
    alone = EmbeddingPairSelector(tiny_model(0, 320), tokenizer=processor.tokenizer, strategy=strategy)
    kept = seen.select(with_pictures(rows, column), 0.5)
    expected = alone.select(Dataset.from_list(rows), 0.5)
    assert kept.remove_columns(column).to_dict() == expected.to_dict()
    own = [row["prompt"] for row in rows]
    pictures = [own.index(prompt) for prompt in kept["prompt"]]
    shown = [value[0] if column == "images" else value for value in kept[column]]
    assert [np.array(each).tolist() for each in shown] == [np.array(picture(i)).tolist() for i in pictures]


def test_a_response_alone_runs_the_language_model_only():
    model, options = tiny_vlm(), EmbedderOptions()
    assert Embedder(model, tiny_processor().tokenizer, options).body is model.model.language_model


@pytest.mark.parametrize("context", ["response", "prompt+response"])
def test_map_adds_columns_and_leaves_images_as_they_are(context):
    rows = with_pictures(pool(4))
    selector = EmbeddingPairSelector(tiny_vlm(), tokenizer=tiny_processor(), context=context)
    mapped = rows.map(selector, **selector.map_kwargs())
    assert mapped.features["images"] == rows.features["images"]
    assert mapped.data.column("images").equals(rows.data.column("images"))
    for column in ("pair", "similarity"):
        assert mapped[column][:] == selector.select(rows)[column][:]


def test_a_model_given_by_name_reads_the_same(tmp_path):
    folder = save_vlm(tmp_path / "vlm")
    for context in ("response", "prompt+response"):
        loaded = EmbeddingPairSelector(tiny_vlm(), tokenizer=tiny_processor(), context=context)
        named = pickle.loads(pickle.dumps(EmbeddingPairSelector(folder, context=context)))
        rows = with_pictures(pool(4), none=1)
        assert loaded.select(rows)["similarity"][:] == pytest.approx(named.select(rows)["similarity"][:], abs=1e-5)


def test_context_equals_one_row_at_a_time_through_processor_and_model():
    model, processor = tiny_vlm(), tiny_processor()
    prompts = ["What is it?", "A longer question about the picture.", "Two of them?"]
    texts = ["A roof.", "Rain, and nothing else to say.", "No"]
    images = [[picture(1)], [picture(2)], [picture(3), picture(4)]]
    chats = [[{"role": "user", "content": prompt}] for prompt in prompts]
    encoder = Encoder(model, processor, options=EmbedderOptions(context="prompt+response", batch_tokens=64))
    found = encoder(chats, texts, images=images).vectors
    for i, (prompt, text) in enumerate(zip(prompts, texts, strict=True)):
        parts = [*({"type": "image"} for _ in images[i]), {"type": "text", "text": prompt}]
        written = processor.apply_chat_template([{"role": "user", "content": parts}], add_generation_prompt=True)
        n = len(processor.tokenizer(text, add_special_tokens=False)["input_ids"])
        inputs = processor(images=[images[i]], text=[written + text], return_tensors="pt")
        with torch.no_grad():
            hidden = model.model(**inputs).last_hidden_state
        torch.testing.assert_close(found[i], hidden[0, -n:].mean(0), atol=1e-4, rtol=1e-4)
    other = encoder(chats[:1], texts[:1], images=[[picture(9)]]).vectors
    assert not torch.allclose(other[0], found[0], atol=1e-3)  # it looks


def test_rows_without_an_image_are_read_as_texts():
    rows, settings = pool(4), {"tokenizer": tiny_processor(), "context": "prompt+response"}
    mixed = EmbeddingPairSelector(tiny_vlm(), **settings).select(with_pictures(rows, none=2))
    plain = EmbeddingPairSelector(tiny_vlm(), **settings).select(Dataset.from_list(rows))
    assert mixed["similarity"][:2] == pytest.approx(plain["similarity"][:2], abs=1e-6)
    assert mixed["similarity"][2:] != pytest.approx(plain["similarity"][2:], abs=1e-3)


def test_labelled_pairs_with_images():
    rows = with_pictures([as_messages(row) for row in pairs(6)])
    kept = EmbeddingPairSelector(tiny_vlm(), tokenizer=tiny_processor(), context="prompt+response").select(rows, 3)
    assert len(kept) == 3 and kept.features["images"] == rows.features["images"]


@pytest.mark.parametrize(
    ("n_images", "tokenizer", "message"),
    [
        (2, "processor", "A row has 2 images, and its messages have places for 1"),
        (1, "tokenizer", "needs the processor"),
    ],
)
def test_what_does_not_fit_is_told(n_images, tokenizer, message):
    prompt = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]}]
    processor = tiny_processor()
    given = processor if tokenizer == "processor" else processor.tokenizer
    encoder = Encoder(tiny_vlm(), given, options=EmbedderOptions(context="prompt+response"))
    with pytest.raises(TrlRealError, match=message):
        encoder([prompt], ["A roof."], images=[[picture(i) for i in range(n_images)]])


def test_a_layer_of_the_whole_model_is_read_and_one_that_is_not_there_is_told():
    rows = pool(1)

    def read(layer: int) -> torch.Tensor:
        options = EmbedderOptions(context="prompt+response", layer=layer)
        encoder = Encoder(tiny_vlm(), tiny_processor(), options=options)
        return encoder([rows[0]["prompt"]], rows[0]["responses"][:1], images=[[picture(0)]]).vectors

    last = len(tiny_model(0, 320).model.layers)
    assert torch.allclose(read(last), read(-1), atol=1e-6) and not torch.allclose(read(1), read(-1), atol=1e-3)
    with pytest.raises(TrlRealError, match="layer=9, but the model has hidden states 0 to"):
        read(9)
