"""On an accelerator, transformers' continuous batching decodes greedily: the same texts, where it is exact."""

import pytest
import torch
from peft import LoraConfig, get_peft_model

from support.tiny import tiny_model, tiny_tokenizer
from trl_real.models import generate as generate_module
from trl_real.models.generate import generate
from trl_real.models.generation import paged
from trl_real.models.generation.decoding import Sampler


pytestmark = pytest.mark.usefixtures("one_thread")

PROMPTS = ["one", "a much longer prompt than the others are", [{"role": "user", "content": "hello"}], "two"]


@pytest.fixture(scope="module")
def policy():
    return tiny_model(), tiny_tokenizer()


@pytest.fixture
def paged_calls(monkeypatch):
    """Let a CPU be taken for an accelerator; return the numbers of responses that transformers was given."""
    calls, own = [], paged.decode_paged
    monkeypatch.setattr(paged, "computes_ahead", lambda device: True)
    for module in (paged, generate_module):
        monkeypatch.setattr(module, "decode_paged", lambda m, e, b, r: calls.append(len(r)) or own(m, e, b, r))
    return calls


def test_greedy_decoding_is_left_to_transformers_on_an_accelerator(policy, paged_calls, monkeypatch):
    """Also that of an adapter; the model alone is decoded below."""
    torch.manual_seed(0)
    config = LoraConfig(r=4, lora_alpha=16, target_modules="all-linear", init_lora_weights=False)
    model = get_peft_model(tiny_model(), config).eval()
    settings = {"max_new_tokens": 9, "temperature": 0.0, "batch_size": 3}
    with pytest.MonkeyPatch.context() as plain:
        plain.setattr(paged, "computes_ahead", lambda device: False)
        expected = generate(model, policy[1], PROMPTS, **settings)
    assert paged_calls == []
    monkeypatch.setattr(generate_module, "PART", 3)
    found = generate(model, policy[1], PROMPTS, **settings)
    assert paged_calls == [3, 3, 1]  # the check, and four prompts
    assert (found.texts, found.finish_reasons) == (expected.texts, expected.finish_reasons)


def test_samples_with_a_seed_each_are_not(policy, paged_calls):
    generate(*policy, PROMPTS, max_new_tokens=3)
    assert paged_calls == []


def test_what_transformers_gives_up_on_is_decoded_here(policy, paged_calls, monkeypatch):
    expected = generate(*policy, PROMPTS, max_new_tokens=5, temperature=0.0).texts
    own = generate_module.decode_paged

    def some(model, ends, batch_size, responses):
        own(model, ends, batch_size, responses)
        responses[1].tokens = []

    monkeypatch.setattr(generate_module, "decode_paged", some)
    assert generate(*policy, PROMPTS, max_new_tokens=5, temperature=0.0).texts == expected

    def refuses(*_):
        raise ValueError("not supported")

    monkeypatch.setattr(paged, "decode_paged", refuses)
    assert not paged.pages_well(policy[0], Sampler(0.0))
