"""A lack of memory halves the batch, says so in one line, and changes no result."""

import logging

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import LlamaForSequenceClassification

from support.tiny import SENTENCES, tiny_model, tiny_tokenizer
from trl_real import EmbeddingPairSelector, GradientPairSelector
from trl_real.models.choice import ChoiceReader
from trl_real.models.embed import Embedder, EmbedderOptions
from trl_real.models.generate import generate
from trl_real.models.gradients import GradientFeatures, GradientOptions
from trl_real.models.log_probs import ResponseLogProbs
from trl_real.models.memory import tokens_that_fit
from trl_real.models.reward import RewardReader
from trl_real.runtime.devices import free_memory
from trl_real.selection.active.margin import MarginPairSelector


pytestmark = pytest.mark.usefixtures("one_thread")

TOKENIZER = tiny_tokenizer()
PROMPTS, RESPONSES = [f"{i}: why?" for i in range(10)], SENTENCES * 2
CHATS = [tuple(ids) for ids in TOKENIZER(RESPONSES)["input_ids"]]
MESSAGE = "CUDA out of memory. Tried to allocate 2.00 GiB."


def adapted():
    torch.manual_seed(0)
    return get_peft_model(tiny_model(), LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False))


def classifier():
    torch.manual_seed(0)
    return LlamaForSequenceClassification(tiny_model(num_labels=1).config)


def gradients(model, tokens):
    return GradientFeatures(model, TOKENIZER, GradientOptions(projection_dim=64, batch_tokens=tokens))


# Job -> its model, and its call with a number of tokens in a pass (of responses, if it generates).
JOBS = {
    "embedding": (
        tiny_model,
        lambda model, tokens: (
            Embedder(model, TOKENIZER, EmbedderOptions(batch_tokens=tokens))(PROMPTS, RESPONSES).vectors
        ),
    ),
    "scoring": (
        tiny_model,
        lambda model, tokens: ResponseLogProbs(model, TOKENIZER, batch_tokens=tokens)(PROMPTS, RESPONSES).sums,
    ),
    "gradients": (adapted, lambda model, tokens: gradients(model, tokens)(PROMPTS, RESPONSES).vectors),
    "judging": (tiny_model, lambda model, tokens: ChoiceReader(model, TOKENIZER, tokens)(CHATS, ("A", "B"))),
    "rewards": (classifier, lambda model, tokens: RewardReader(model, TOKENIZER, tokens)(PROMPTS, RESPONSES).scores),
    "generation": (
        tiny_model,
        lambda model, size: generate(model, TOKENIZER, PROMPTS, n=2, max_new_tokens=6, batch_size=size).texts,
    ),
}
SIZE = (
    256  # tokens in a pass, which is halved a few times: each time, all garbage is collected, the test's longest part
)


def run_out(model, above: int, error: Exception) -> list[int]:
    """Let the model fail in passes of more tokens than `above`; return the sizes of the failed passes."""
    failed = []

    def check(module, inputs):
        if inputs[0].numel() > above:
            failed.append(inputs[0].numel())
            raise error

    model.get_input_embeddings().register_forward_pre_hook(check)
    return failed


@pytest.mark.parametrize(("make", "job"), JOBS.values(), ids=JOBS)
def test_a_lack_of_memory_halves_the_batch(make, job, caplog):
    expected = job(make(), SIZE)
    model = make()
    failed = run_out(model, 40 if job is JOBS["generation"][1] else 90, torch.OutOfMemoryError(MESSAGE))
    with caplog.at_level(logging.WARNING):
        found = job(model, SIZE)
    assert failed
    assert found == expected if isinstance(found, list) else torch.allclose(found, expected, atol=1e-5)
    said = [record.message for record in caplog.records if record.name == "trl_real.models.memory"]
    assert len(said) == len(failed) and all("Out of memory at" in line for line in said)


@pytest.mark.parametrize(("make", "job"), JOBS.values(), ids=JOBS)
def test_a_single_row_that_does_not_fit_raises_the_error(make, job):
    model = make()
    run_out(model, 0, torch.OutOfMemoryError(MESSAGE))
    with pytest.raises(torch.OutOfMemoryError, match="CUDA out of memory"):
        job(model, 4)


def test_other_errors_are_raised_at_once():
    model = tiny_model()
    failed = run_out(model, 90, RuntimeError("shapes differ"))
    with pytest.raises(RuntimeError, match="shapes differ"):
        JOBS["judging"][1](model, SIZE)
    assert len(failed) == 1


CONFIG = tiny_model().config  # 12 x 32 + 4 x 64 numbers a token and layer, 2 layers


@pytest.mark.parametrize(
    ("free", "backward", "tokens"),
    [
        (None, False, 16384),
        (10**12, False, 16384),
        (2 * 640 * 4 * 5000, False, 5000),
        (2 * 640 * 4 * 5000, True, 2500),
        (1000, True, 512),
    ],
)
def test_tokens_of_a_pass_follow_what_is_free_on_the_device(free, backward, tokens, monkeypatch):
    monkeypatch.setattr("trl_real.models.memory.free_memory", lambda device: free)
    assert tokens_that_fit(CONFIG, torch.device("xpu"), 4, backward) == tokens


def test_free_memory_is_what_torch_says_and_unknown_elsewhere(monkeypatch):
    assert free_memory(torch.device("cpu")) is None and free_memory(torch.device("xpu")) is None
    monkeypatch.setattr(torch.accelerator, "get_memory_info", lambda device: (7, 9))
    assert free_memory(torch.device("xpu")) == 7 and free_memory(torch.device("cpu")) is None


def test_readers_on_a_cpu_take_what_its_caches_hold():
    assert Embedder(tiny_model(), TOKENIZER).batch_tokens == 1024


@pytest.mark.parametrize("how", [{"num_proc": 2}, {"shards": "shards", "shard_rows": 4}])
def test_record_has_the_smallest_number_of_tokens_that_any_process_used(how, tmp_path):
    """The model of a worker runs out, after rows that fit; a selection that finds all its shards tells the same."""
    model = tiny_model()
    responses = [["tea", "so"]] * 4 + [[text, text[:9] + "?"] for text in RESPONSES]
    pool = Dataset.from_dict({"prompt": [*"abcd", *PROMPTS], "responses": responses})
    how = {**how, "shards": tmp_path / how["shards"]} if "shards" in how else how
    made = [EmbeddingPairSelector(model, tokenizer=TOKENIZER, batch_tokens=200) for _ in range(2)]
    run_out(model, 60, torch.OutOfMemoryError(MESSAGE))
    for selector in made[: 1 + ("shards" in how)]:
        selector.select(pool, 4, batch_size=4, **how)
        assert selector.record.settings["batch_tokens"] == 50


@pytest.mark.parametrize("selector", ["embeddings", "gradients", "margins"])
def test_record_has_the_tokens_of_a_pass_that_were_used(selector):
    model = tiny_model() if selector == "embeddings" else adapted()
    made = {
        "embeddings": lambda: EmbeddingPairSelector(model, tokenizer=TOKENIZER, batch_tokens=200),
        "gradients": lambda: GradientPairSelector(model, tokenizer=TOKENIZER, batch_tokens=200, projection_dim=64),
        "margins": lambda: MarginPairSelector(model, tokenizer=TOKENIZER, batch_tokens=200),
    }[selector]()
    failed = run_out(model, 60, torch.OutOfMemoryError(MESSAGE))
    pool = Dataset.from_dict({"prompt": PROMPTS, "responses": [[text, text[:9] + "?"] for text in RESPONSES]})
    made.select(pool, 4)
    assert failed and made.record.settings["batch_tokens"] == 200 >> len(failed)
