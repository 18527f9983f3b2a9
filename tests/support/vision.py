"""The smallest vision-language model, its processor and rows with images: made in memory, always the same."""

from pathlib import Path

import numpy as np
import torch
from datasets import Dataset, Features, Image, List
from PIL import Image as Picture
from transformers import CLIPVisionConfig, LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from support.tiny import tiny_model, tiny_tokenizer


TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SIDE = 8  # pixels


def tiny_processor() -> LlavaProcessor:
    """Return a processor of images of 8 x 8 pixels, four tokens each, with the tokenizer of `tiny.py`."""
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    tokenizer.chat_template = TEMPLATE
    images = CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})
    return LlavaProcessor(
        images, tokenizer, patch_size=4, vision_feature_select_strategy="default", chat_template=TEMPLATE,
        image_token="<image>", num_additional_image_tokens=1,
    )  # fmt: skip


def tiny_vlm(seed: int = 0) -> LlavaForConditionalGeneration:
    """Return a random Llava of two layers whose language model is that of `tiny_model(seed, 320)`."""
    language = tiny_model(seed, vocab_size=320)
    eye = CLIPVisionConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=SIDE,
        patch_size=4, projection_dim=16, initializer_range=0.3,
    )  # fmt: skip
    place = tiny_processor().tokenizer.convert_tokens_to_ids("<image>")
    config = LlavaConfig(vision_config=eye, text_config=language.config, image_token_index=place)
    config.pad_token_id, config.eos_token_id = 0, 2
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = LlavaForConditionalGeneration(config).eval()
    model.model.language_model.load_state_dict(language.model.state_dict())
    model.lm_head.load_state_dict(language.lm_head.state_dict())
    return model


def save_vlm(folder: str | Path, seed: int = 0) -> str:
    """Save the tiny model with its processor for `from_pretrained`; return the folder."""
    tiny_vlm(seed).save_pretrained(folder)
    tiny_processor().save_pretrained(folder)
    return str(folder)


def picture(i: int) -> Picture.Image:
    """Return a picture of noise that depends on the number."""
    return Picture.fromarray(np.random.default_rng(i).integers(0, 255, (SIDE, SIDE, 3), dtype=np.uint8))


def with_pictures(rows: list[dict], column: str = "images", none: int = 0) -> Dataset:
    """Return rows with a column of pictures; the first `none` of them have no picture."""
    features = Dataset.from_list(rows).features
    feature = List(Image()) if column == "images" else Image()
    values = [[] if i < none else [picture(i)] for i in range(len(rows))]
    shown = values if column == "images" else [next(iter(value), None) for value in values]
    given = [{**row, column: each} for row, each in zip(rows, shown, strict=True)]
    return Dataset.from_list(given, features=Features({**features, column: feature}))


def as_parts(row: dict) -> dict:
    """Return a row of texts as messages of parts, the prompt with a place for an image."""

    def parts(text: str, *others: dict) -> list[dict]:
        return [*others, {"type": "text", "text": text}]

    answers = {n: [{"role": "assistant", "content": parts(row[n])}] for n in ("chosen", "rejected")}
    prompt = [{"role": "user", "content": parts(row["prompt"], {"type": "image", "text": None})}]
    return {"prompt": prompt, **answers}
