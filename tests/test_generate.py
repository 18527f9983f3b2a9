"""Claims about sampling."""

import pytest
import torch
from tiny import tiny_model, tiny_tokenizer

from trl_real.models.generate import SeededSampling, generate_responses


PROMPTS = ["one", "a much longer prompt than the others are", [{"role": "user", "content": "hello"}], "two"]


@pytest.fixture(scope="module")
def policy():
    return tiny_model(), tiny_tokenizer()


def test_a_prompt_alone_and_in_any_batch_gets_the_same_responses(policy):
    whole = generate_responses(*policy, PROMPTS, n=3, max_new_tokens=6, batch_size=64)
    for batch_size in (1, 5):
        assert generate_responses(*policy, PROMPTS, n=3, max_new_tokens=6, batch_size=batch_size) == whole
    alone = [generate_responses(*policy, [prompt], n=3, max_new_tokens=6)[0] for prompt in PROMPTS]
    assert alone == whole
    assert generate_responses(*policy, PROMPTS[::-1], n=3, max_new_tokens=6) == whole[::-1]


def test_the_seed_decides_and_a_temperature_of_zero_is_greedy(policy):
    first, again, other = (generate_responses(*policy, PROMPTS, max_new_tokens=6, seed=seed) for seed in (1, 1, 2))
    assert first == again != other
    greedy = generate_responses(*policy, PROMPTS, n=2, max_new_tokens=6, temperature=0)
    assert all(a == b for a, b in greedy)


def test_gumbel_noise_draws_from_the_softmax():
    scores = torch.tensor([[2.0, 1.0, 0.0, -1.0]]).repeat(20000, 1)
    drawn = SeededSampling(list(range(20000)), temperature=0.5)(None, scores).argmax(-1)
    expected = (scores[0] / 0.5).softmax(-1)
    assert torch.allclose(torch.bincount(drawn, minlength=4) / 20000, expected, atol=0.015)


def test_top_p_leaves_the_smallest_set_with_that_probability():
    scores = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log().repeat(2000, 1)
    drawn = SeededSampling(list(range(2000)), top_p=0.7)(None, scores).argmax(-1)
    assert set(drawn.tolist()) == {0, 1}


def test_training_mode_and_padding_side_are_given_back(policy):
    model, tokenizer = policy
    model.train()
    tokenizer.padding_side = "right"
    generate_responses(model, tokenizer, ["x"], max_new_tokens=2)
    assert model.training and tokenizer.padding_side == "right"
    model.eval()
