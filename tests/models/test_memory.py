"""A lack of memory halves the batch, says so in one line, and changes no result."""

import logging

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaForSequenceClassification

from support.tiny import SENTENCES, tiny_model, tiny_tokenizer
from trl_real.models.choice import ChoiceReader
from trl_real.models.embed import Embedder, EmbedderOptions
from trl_real.models.generate import generate
from trl_real.models.gradients import GradientFeatures, GradientOptions
from trl_real.models.log_probs import ResponseLogProbs
from trl_real.models.reward import RewardReader


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


JOBS = {
    "embedding": (tiny_model, lambda model: Embedder(model, TOKENIZER, EmbedderOptions())(PROMPTS, RESPONSES).vectors),
    "scoring": (tiny_model, lambda model: ResponseLogProbs(model, TOKENIZER)(PROMPTS, RESPONSES).sums),
    "gradients": (
        adapted,
        lambda model: (
            GradientFeatures(model, TOKENIZER, GradientOptions(projection_dim=64))(PROMPTS, RESPONSES).vectors
        ),
    ),
    "judging": (tiny_model, lambda model: ChoiceReader(model, TOKENIZER)(CHATS, ("A", "B"))),
    "rewards": (classifier, lambda model: RewardReader(model, TOKENIZER)(PROMPTS, RESPONSES).scores),
    "generation": (tiny_model, lambda model: generate(model, TOKENIZER, PROMPTS, n=2, max_new_tokens=6).texts),
}


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
    expected = job(make())
    model = make()
    failed = run_out(model, 40 if job is JOBS["generation"][1] else 90, torch.OutOfMemoryError(MESSAGE))
    with caplog.at_level(logging.WARNING):
        found = job(model)
    assert failed
    assert found == expected if isinstance(found, list) else torch.allclose(found, expected, atol=1e-5)
    said = [record.message for record in caplog.records if record.name == "trl_real.models.memory"]
    assert len(said) == len(failed) and all("Out of memory at" in line for line in said)


@pytest.mark.parametrize(("make", "job"), JOBS.values(), ids=JOBS)
def test_a_single_row_that_does_not_fit_raises_the_error(make, job):
    model = make()
    run_out(model, 0, torch.OutOfMemoryError(MESSAGE))
    with pytest.raises(torch.OutOfMemoryError, match="CUDA out of memory"):
        job(model)


def test_other_errors_are_raised_at_once():
    model = tiny_model()
    failed = run_out(model, 90, RuntimeError("shapes differ"))
    with pytest.raises(RuntimeError, match="shapes differ"):
        JOBS["judging"][1](model)
    assert len(failed) == 1
