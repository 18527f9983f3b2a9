"""Tests of sampling."""

import json
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tokenizers.processors import TemplateProcessing
from transformers import Qwen3NextConfig, Qwen3NextForCausalLM

from support.tiny import save_tiny, tiny_model, tiny_tokenizer
from trl_real.errors import TrlRealError
from trl_real.models.generate import ends_of, generate, generate_responses, seed_of
from trl_real.models.generation import decoding
from trl_real.models.generation.decoding import Decoder, Response, Sampler, decodes_well, nucleus


pytestmark = pytest.mark.usefixtures("one_thread")

PROMPTS = ["one", "a much longer prompt than the others are", [{"role": "user", "content": "hello"}], "two"]
END = 2


@pytest.fixture(scope="module")
def policy():
    return tiny_model(), tiny_tokenizer()


def with_adapter(seed: int = 0) -> PeftModel:
    """A tiny model with an adapter that does something."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = LoraConfig(r=4, lora_alpha=16, target_modules="all-linear", init_lora_weights=False)
        return get_peft_model(tiny_model(), config).eval()


@torch.inference_mode()
def one_by_one(model, ids: list[int], seed: int, limit: int, temperature: float = 1.0) -> tuple[list[int], str]:
    """A response written without a cache and without a batch."""
    state, written = np.random.default_rng(seed), []
    while len(written) < limit:
        logits = model(input_ids=torch.tensor([[*ids, *written]]), use_cache=False).logits[0, -1]
        if temperature:
            noise = -np.log(state.standard_exponential(len(logits)))
            logits = logits.double() / temperature + torch.from_numpy(noise)
        written.append(int(logits.argmax()))
        if written[-1] == END:
            return written[:-1], "stop"
    return written, "length"


@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("adapted", [False, True])
def test_rows_in_a_changing_batch_are_generated_as_if_alone(policy, temperature, adapted, monkeypatch):
    monkeypatch.setattr(decoding, "STEPS", 8)  # memory is made anew several times
    model, tokenizer = (with_adapter(), policy[1]) if adapted else policy
    found = generate(model, tokenizer, PROMPTS, n=3, max_new_tokens=20, temperature=temperature, batch_size=4)
    expected = []
    for prompt in PROMPTS:
        text = prompt
        if isinstance(prompt, list):
            text = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, tokenize=False)
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        expected.append([one_by_one(model, ids, seed_of(42, text, k), 20, temperature) for k in range(3)])
    decoded = [[tokenizer.decode(ids, skip_special_tokens=True) for ids, _ in row] for row in expected]
    assert found.texts == decoded
    assert found.finish_reasons == [[reason for _, reason in row] for row in expected]
    assert found.n_tokens == sum(len(ids) + (reason == "stop") for row in expected for ids, reason in row)


def test_responses_do_not_depend_on_the_batch(policy):
    whole = generate_responses(*policy, PROMPTS, n=3, max_new_tokens=6, batch_size=64)
    for batch_size in (1, 5):
        assert generate_responses(*policy, PROMPTS, n=3, max_new_tokens=6, batch_size=batch_size) == whole
    alone = [generate_responses(*policy, [prompt], n=3, max_new_tokens=6)[0] for prompt in PROMPTS]
    assert alone == whole
    assert generate_responses(*policy, PROMPTS[::-1], n=3, max_new_tokens=6) == whole[::-1]
    assert generate_responses(*policy, PROMPTS, n=2, max_new_tokens=6) == [row[:2] for row in whole]


def test_seed_decides_and_temperature_zero_is_greedy(policy):
    first, again, other = (generate_responses(*policy, PROMPTS, max_new_tokens=6, seed=seed) for seed in (1, 1, 2))
    assert first == again != other
    greedy = generate_responses(*policy, PROMPTS, n=2, max_new_tokens=6, temperature=0)
    assert all(a == b for a, b in greedy)


def test_many_short_responses_run_in_few_passes(policy):
    model, rows = policy[0], [Response((5 + i % 7,), limit, i) for i, limit in enumerate([2] * 28 + [40] * 4)]
    passes = []
    handle = model.register_forward_hook(lambda *_: passes.append(1))
    with torch.inference_mode():
        done = list(Decoder(model, Sampler(), (), 8)(rows))
    handle.remove()
    assert sorted(row.seed for row in done) == list(range(32))
    assert len(passes) < 40 + 2 * 4 + 12  # one batch after the other: 3 * 2 + 40; had rows not left, 8 * 40 / 2


def test_prompt_is_encoded_once_for_all_responses(policy):
    shapes = []
    hook = policy[0].register_forward_pre_hook(
        lambda _, __, inputs: shapes.append(tuple(inputs["input_ids"].shape)), with_kwargs=True
    )
    decoder = Decoder(policy[0], Sampler(), (), 8)
    with torch.inference_mode():
        list(decoder([Response((5, 6, 7, 8), 3, seed) for seed in range(6)]))
    hook.remove()
    assert shapes == [(1, 4), (6, 1), (6, 1)]


def test_gumbel_noise_draws_from_the_softmax():
    scores = torch.tensor([[2.0, 1.0, 0.0, -1.0]]).repeat(8000, 1)
    drawn = torch.tensor(Sampler(0.5)(scores, [np.random.default_rng(seed) for seed in range(8000)]))
    expected = (scores[0] / 0.5).softmax(-1)
    assert torch.allclose(torch.bincount(drawn, minlength=4) / 8000, expected, atol=0.02)


def test_top_p_leaves_the_smallest_set_with_that_probability():
    scores = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log().repeat(2000, 1)
    drawn = Sampler(top_p=0.7)(scores, [np.random.default_rng(seed) for seed in range(2000)])
    assert set(drawn) == {0, 1}


def test_nucleus_larger_than_the_first_top_k_is_found():
    scores = torch.randn(3, 2000, generator=torch.Generator().manual_seed(0)) * torch.tensor([[0.1], [1.0], [9.0]])
    kept = nucleus(scores, 0.9).isfinite()
    probabilities = scores.softmax(-1)
    for row, chosen in zip(probabilities, kept, strict=True):
        ranked = row.sort(descending=True).values
        size = int((ranked.cumsum(0) < 0.9).sum()) + 1
        assert chosen.sum() == size and row[chosen].min() >= ranked[size - 1]


def test_training_mode_is_restored_and_global_state_is_unchanged(policy):
    model, tokenizer = policy
    model.train()
    before = torch.get_rng_state()
    generate_responses(model, tokenizer, ["x"], max_new_tokens=2)
    assert model.training and torch.equal(torch.get_rng_state(), before)
    model.eval()


def test_switching_the_adapter_switches_the_policy_and_keeps_its_weights(policy):
    model, tokenizer = with_adapter(), policy[1]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    adapted = generate_responses(model, tokenizer, PROMPTS, max_new_tokens=8, temperature=0)
    with model.disable_adapter():
        start = generate_responses(model, tokenizer, PROMPTS, max_new_tokens=8, temperature=0)
    assert start == generate_responses(*policy, PROMPTS, max_new_tokens=8, temperature=0) != adapted
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_model_with_unsupported_layers_uses_transformers_generate(policy):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = Qwen3NextConfig(
            vocab_size=304, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, head_dim=8, linear_num_key_heads=2, linear_num_value_heads=2,
            linear_key_head_dim=8, linear_value_head_dim=8, num_experts=0, mlp_only_layers=[0, 1], eos_token_id=END,
            layer_types=["linear_attention", "full_attention"],
        )  # fmt: skip
        model = Qwen3NextForCausalLM(config).eval()
    with torch.inference_mode():
        assert decodes_well(policy[0]) and not decodes_well(model)
    whole = generate(model, policy[1], PROMPTS[:2], n=2, max_new_tokens=5)
    alone = [generate_responses(model, policy[1], [prompt], n=2, max_new_tokens=5)[0] for prompt in PROMPTS[:2]]
    assert whole.texts == alone and whole.n_tokens <= 20


def test_prompt_gets_exactly_one_bos_token_where_the_tokenizer_adds_one(policy):
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"bos_token": "<|im_start|>"})
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|im_start|> $A <|im_end|>", special_tokens=[("<|im_start|>", 1), ("<|im_end|>", 2)]
    )
    seen = []
    hook = policy[0].register_forward_pre_hook(
        lambda _, __, inputs: seen.append(inputs["input_ids"][0].tolist()), with_kwargs=True
    )
    for prompt in ("hi", "<|im_start|>hi", PROMPTS[2]):
        seen.clear()
        generate_responses(policy[0], tokenizer, [prompt], max_new_tokens=1)
        ids = seen[-1]
        assert ids[0] == 1 and ids[1] != 1 and ids[-1] != END
    hook.remove()
    assert tokenizer.decode(ids).endswith("<|im_start|>assistant\n")


BAD = [
    ({"n": 0}, "n=0 generates nothing"),
    ({"max_new_tokens": 0}, "max_new_tokens=0"),
    ({"temperature": -1.0}, "temperature=-1.0 is out of range"),
    ({"top_p": 0.0}, "top_p=0.0 is out of range"),
    ({"prompts": ["a", ""]}, "Prompt 1 is empty"),
    ({"prompts": ["a " * 600]}, "but the model reads 512"),
]


@pytest.mark.parametrize(("settings", "message"), BAD)
def test_invalid_requests_get_a_one_line_error(policy, settings, message):
    with pytest.raises(TrlRealError, match=message):
        generate(*policy, **{"prompts": ["a"], **settings})


def test_response_is_truncated_at_the_context_length(policy):
    model = tiny_model(max_position_embeddings=16)
    found = generate(model, policy[1], ["abcdefghijkl"], max_new_tokens=50, n=4)
    assert found.n_tokens <= 4 * 16 and "length" in found.finish_reasons[0]


def test_journal_is_reused_only_for_the_same_policy(policy, tmp_path):
    path = tmp_path / "responses.jsonl"
    first = generate(*policy, PROMPTS[:2], n=2, max_new_tokens=6, journal=path)
    more = generate(*policy, PROMPTS, n=2, max_new_tokens=6, journal=path)
    assert more.texts == generate_responses(*policy, PROMPTS, n=2, max_new_tokens=6) and more.texts[:2] == first.texts
    assert 0 < more.n_tokens <= 2 * 2 * 6
    assert generate(*policy, PROMPTS, n=2, max_new_tokens=6, journal=path).n_tokens == 0
    for other in ({"temperature": 0.5}, {"seed": 1}, {"max_new_tokens": 5}):
        assert generate(*policy, PROMPTS, **{"n": 2, "max_new_tokens": 6, "journal": path, **other}).n_tokens
    assert generate(tiny_model(1), policy[1], PROMPTS, n=2, max_new_tokens=6, journal=path).n_tokens


def test_journal_of_an_older_version_is_read_without_its_tokens(policy, tmp_path):
    path = tmp_path / "responses.jsonl"
    first = generate(*policy, PROMPTS, max_new_tokens=6, journal=path)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for line in lines:
        assert line["written"][0].pop("n_tokens") > 0
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    again = generate(*policy, PROMPTS, max_new_tokens=6, journal=path)
    assert again.texts == first.texts and (again.n_tokens, again.n_kept) == (0, 0)


def test_equal_prompts_are_generated_once(policy):
    once = generate(*policy, ["one"], n=2, max_new_tokens=6)
    twice = generate(*policy, ["one", "one"], n=2, max_new_tokens=6)
    assert twice.texts == once.texts * 2 and twice.n_tokens == once.n_tokens


KILLED = """
import sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl_real.models.generate import generate
torch.set_num_threads(1)
model, tokenizer = AutoModelForCausalLM.from_pretrained(sys.argv[1]), AutoTokenizer.from_pretrained(sys.argv[1])
prompts = [f"prompt {i}" for i in range(40)]
generate(model, tokenizer, prompts, n=2, max_new_tokens=20, batch_size=4, journal=sys.argv[2])
"""


def test_killed_run_resumes_and_generates_nothing_twice(tmp_path):
    folder, path = save_tiny(tmp_path / "model"), tmp_path / "responses.jsonl"
    process = subprocess.Popen([sys.executable, "-c", KILLED, folder, str(path)], stderr=subprocess.DEVNULL)
    while process.poll() is None and (not path.exists() or path.read_bytes().count(b"\n") < 8):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    n_before = path.read_bytes().count(b"\n")
    assert 8 <= n_before < 80
    model, tokenizer, prompts = tiny_model(), tiny_tokenizer(), [f"prompt {i}" for i in range(40)]
    settings = {"n": 2, "max_new_tokens": 20, "batch_size": 64}
    resumed = generate(model, tokenizer, prompts, journal=path, **settings)
    whole = generate(model, tokenizer, prompts, **settings)
    assert resumed.texts == whole.texts and resumed.finish_reasons == whole.finish_reasons
    assert 0 < resumed.n_tokens < whole.n_tokens == resumed.n_tokens + resumed.n_kept
    keys = [json.loads(line)["key"] for line in path.read_text().splitlines()]
    assert len(keys) == len(set(keys)) == 80


@pytest.mark.slow
def test_responses_of_a_real_model_do_not_depend_on_the_batch():
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from trl_real.demo.model import demo_model

    folder = demo_model()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="float32")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    topics = ("tea", "a lock that will not open", "France", "rain on a tin roof in the night", "sums", "bread")
    prompts = [[{"role": "user", "content": f"Tell me about {topic}."}] for topic in topics]
    settings = {"max_new_tokens": 32, "temperature": 0}
    whole = generate(model, tokenizer, prompts, batch_size=64, **settings)
    assert generate(model, tokenizer, prompts, batch_size=3, **settings).texts == whole.texts
    for prompt, (text,) in zip(prompts, whole.texts, strict=True):
        assert generate_responses(model, tokenizer, [prompt], **settings) == [[text]]
        chat = tokenizer.apply_chat_template(
            [prompt], add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        output = model.generate(**chat, do_sample=False, max_new_tokens=32)[0, chat["input_ids"].shape[1] :]
        assert tokenizer.decode(output, skip_special_tokens=True) == text


@pytest.mark.parametrize("given, ends", [(None, {END}), (7, {7, END}), ([7, 9], {7, 9, END}), ((), {END})])
def test_a_response_ends_with_an_end_of_the_tokenizer_or_of_the_generation_config(given, ends):
    model, tokenizer = tiny_model(), tiny_tokenizer()
    model.generation_config.eos_token_id = given
    assert ends_of(model, tokenizer) == ends
    tokenizer.eos_token = None
    assert ends_of(model, tokenizer) == ends - ({END} if given != END else set())


def test_generation_stops_at_an_end_that_only_the_generation_config_names(policy):
    model, tokenizer = tiny_model(), policy[1]
    written, _ = one_by_one(model, tokenizer("one")["input_ids"], 0, 12, temperature=0.0)
    model.generation_config.eos_token_id = [END, written[3]]
    found = generate(model, tokenizer, ["one"], max_new_tokens=12, temperature=0.0)
    said = tokenizer.decode(written[: written.index(written[3])])
    assert found.texts == [[said]] and found.finish_reasons == [["stop"]]
