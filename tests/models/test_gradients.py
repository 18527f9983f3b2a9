"""Gradient features against ordinary autograd, one response at a time (T1-T5, T10, T12 of ActiveDPO's list)."""

import logging
import os
import subprocess
import sys

import pytest
import torch
from peft import LoraConfig
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GemmaConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    PhiConfig,
    Qwen2Config,
    Qwen3Config,
)

from support.gradients import FIRST, PROMPTS, SECOND, adapted, error, features, log_prob, naive
from support.tiny import tiny_model, tiny_tokenizer
from trl_real.errors import TrlRealError
from trl_real.functional.design import greedy_design, pair_features
from trl_real.models.adapters import adapter_parameters, hidden_from_taps
from trl_real.models.gradients import GradientOptions
from trl_real.models.sequences import tokenize_pairs


pytestmark = pytest.mark.usefixtures("one_thread")

METHODS = ("packed", "padded", "one by one")
SMALL = dict(
    vocab_size=304, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
    max_position_embeddings=256, pad_token_id=0, bos_token_id=None, eos_token_id=2, initializer_range=0.2,
)  # fmt: skip
FAMILIES = {
    "llama": LlamaConfig(**SMALL, num_key_value_heads=2),
    "qwen2": Qwen2Config(**SMALL, num_key_value_heads=2),
    "qwen3": Qwen3Config(**SMALL, num_key_value_heads=2, head_dim=8),
    "gpt-neox": GPTNeoXConfig(**SMALL),
    "phi": PhiConfig(**SMALL),
    "gemma": GemmaConfig(**SMALL, num_key_value_heads=1, head_dim=8),
    "gemma2": Gemma2Config(**SMALL, num_key_value_heads=2, head_dim=8, sliding_window=4096),
    "gpt2": GPT2Config(
        vocab_size=304, n_embd=32, n_layer=2, n_head=4, n_positions=256, bos_token_id=2, eos_token_id=2
    ),
}


def family(name):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return AutoModelForCausalLM.from_config(FAMILIES[name])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)], ids=str)
def test_t1_gradients_equal_autograd_on_ragged_batches(method, dtype, tolerance):
    model = adapted(dtype=dtype, lora_dropout=0.3, use_rslora=True)
    assert error(features(model, method)(PROMPTS, FIRST).vectors, naive(model, PROMPTS, FIRST)) < tolerance


@pytest.mark.parametrize("name", FAMILIES)
def test_t1_gradients_equal_autograd_in_every_family(name):
    model = adapted(family(name))
    made = features(model)
    assert error(made(PROMPTS, FIRST).vectors, naive(model, PROMPTS, FIRST)) < 1e-5  # norms in float32
    assert made.method == ("padded" if name == "gemma2" else "packed")  # soft caps are not packed
    assert error(features(model, "padded")(PROMPTS, FIRST).vectors, naive(model, PROMPTS, FIRST)) < 1e-5


@pytest.mark.parametrize("method", METHODS)
def test_a_pairs_gradient_is_the_difference_of_two(method):
    model = adapted()
    expected = naive(model, PROMPTS, FIRST) - naive(model, PROMPTS, SECOND)
    assert error(features(model, method).differences(PROMPTS, FIRST, SECOND).vectors, expected) < 1e-5


@pytest.mark.parametrize("method", METHODS[:2])
def test_t2_gradients_sum_to_the_gradient_of_the_batch(method):
    model = adapted()
    found = features(model, method)(PROMPTS, FIRST).vectors.sum(0)
    tokenizer, named = tiny_tokenizer(), adapter_parameters(model)
    texts = [tokenizer(p + r + tokenizer.eos_token)["input_ids"] for p, r in zip(PROMPTS, FIRST, strict=True)]
    starts = [len(tokenizer(p)["input_ids"]) for p in PROMPTS]
    sum(log_prob(model, ids, start) for ids, start in zip(texts, starts, strict=True)).backward()
    expected = torch.cat([named[name].grad.flatten() for name in sorted(named)])
    assert error(found[None], expected[None]) < 1e-10


def test_t3_reference_and_beta_cancel():
    model = adapted()
    alone = naive(model, PROMPTS[:2], FIRST[:2])
    assert torch.equal(naive(model, PROMPTS[:2], FIRST[:2], beta=1.0), alone)
    assert error(naive(model, PROMPTS[:2], FIRST[:2], beta=0.1), 0.1 * alone) < 1e-6


@pytest.mark.parametrize("normalize", ["response", "pair"])
def test_t10_beta_does_not_change_what_is_picked(normalize):
    model = adapted()

    def picks(beta, normalize, ridge):
        first, second = (naive(model, PROMPTS, side, beta) for side in (FIRST, SECOND))
        return greedy_design(pair_features(first, second, normalize), 4, ridge=ridge).indices.tolist()

    assert picks(0.1, normalize, 0.5) == picks(3.0, normalize, 0.5) == picks(None, normalize, 0.5)
    assert picks(0.1, None, 0.5) == picks(None, None, 0.5 / 0.1**2)  # and without, beta is a factor of the ridge


@pytest.mark.parametrize("checkpointing", [False, True])
def test_responses_to_one_prompt_share_a_pass_and_get_separate_gradients(checkpointing):
    model = adapted()
    made = features(model, "packed")
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": True})
    prompts = [PROMPTS[i] for i in (3, 0, 3, 3, 1, 0)]
    found = made(prompts, FIRST)
    assert error(found.vectors, naive(model, prompts, FIRST)) < 1e-10
    n_whole = sum(len(s.prompt) + len(s.response) for s in tokenize_pairs(tiny_tokenizer(), prompts, FIRST, 512))
    assert (found.n_tokens == n_whole) == checkpointing
    small = features(model, "packed", GradientOptions(projection_dim=None, batch_tokens=20))
    assert error(small(prompts, FIRST).vectors, found.vectors) < 1e-10
    both = made.differences(prompts, FIRST, SECOND).vectors
    assert error(both, naive(model, prompts, FIRST) - naive(model, prompts, SECOND)) < 1e-5


WORKER = """
import os, sys
import torch
from support.gradients import FIRST, PROMPTS, SECOND, adapted, features
from trl_real.models.gradients import GradientOptions

torch.set_num_threads(1)
torch.distributed.init_process_group("gloo")
made = features(adapted(), "packed", GradientOptions(projection_dim=64, all_processes=True))
found = [made(PROMPTS * 2, FIRST + SECOND), made.differences(PROMPTS, FIRST, SECOND), made(PROMPTS[:1], FIRST[:1])]
rank = torch.distributed.get_rank()
torch.save([(f.vectors, f.norms, f.n_tokens) for f in found], f"{sys.argv[1]}/rank{rank}.pt")
# Leave without the interpreter's clean-up: threads of gloo that still run then abort the process now and then
# ("terminate called without an active exception"). The files are closed, and the barrier keeps both ranks until then.
torch.distributed.barrier()
os._exit(0)
"""


def test_two_processes_share_the_pool_and_equal_one(tmp_path):
    (tmp_path / "worker.py").write_text(WORKER)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [*launch, str(tmp_path / "worker.py"), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=200,
        env=environment,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    made = features(adapted(), "packed", GradientOptions(projection_dim=64))
    expected = [
        made(PROMPTS * 2, FIRST + SECOND),
        made.differences(PROMPTS, FIRST, SECOND),
        made(PROMPTS[:1], FIRST[:1]),
    ]
    for rank in (0, 1):
        for (vectors, norms, n_tokens), alone in zip(torch.load(tmp_path / f"rank{rank}.pt"), expected, strict=True):
            assert error(vectors, alone.vectors) < 1e-10 and n_tokens == alone.n_tokens
            assert torch.allclose(norms, alone.norms)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)], ids=str)
@pytest.mark.parametrize("method", METHODS)
def test_t4_gradients_do_not_depend_on_batches_or_order(method, dtype, tolerance):
    model = adapted(dtype=dtype)
    together = features(model, method, GradientOptions())(PROMPTS, FIRST).vectors
    small = features(model, method, GradientOptions(batch_tokens=20))
    for order in ([3, 0, 5, 1, 4, 2], [2], [4, 4, 1]):
        found = small([PROMPTS[i] for i in order], [FIRST[i] for i in order]).vectors
        assert error(found, together[order]) < tolerance


def test_t5_a_fresh_adapter_has_no_gradient_in_a_and_one_in_b():
    made = features(adapted(init_lora_weights=True))
    vectors, start = made(PROMPTS, FIRST).vectors, 0
    for name, (m, n) in made.projection.shapes.items():
        part = vectors[:, start : start + m * n]
        assert (part == 0).all() if "lora_A" in name else (part.norm(dim=1) > 0).all(), name
        start += m * n


def test_t12_an_empty_response_is_zero_and_counts_no_token():
    found = features(adapted(), options=GradientOptions(projection_dim=64))(["Why?", "Why?"], ["", " So."])
    assert found.norms[0] == 0 and (found.vectors[0] == 0).all() and found.n_scored[0] == 0
    assert found.norms[1] > 0 and found.n_scored[1] > 1
    assert features(adapted(), options=GradientOptions(projection_dim=64))([], []).vectors.shape == (0, 64)


def test_projection_during_the_pass_equals_projecting_the_full_gradient():
    model = adapted()
    options = GradientOptions(projection_dim=128)
    made = features(model, options=options)
    whole, start = naive(model, PROMPTS, FIRST), 0
    buffer = made.projection.buffer(len(PROMPTS), torch.float64)
    for name, (m, n) in made.projection.shapes.items():
        made.projection.add(buffer, name, whole[:, start : start + m * n].unflatten(1, (m, n)))
        start += m * n
    assert error(made(PROMPTS, FIRST).vectors, made.projection.finish(buffer)) < 1e-10


@pytest.mark.parametrize("method", ["packed", "padded"])
@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing_is_kept_and_changes_nothing(method, reentrant):
    model = adapted(lora_dropout=0.3)
    expected = features(model, method)(PROMPTS, FIRST).vectors
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    model.train()
    calls = []
    handle = model.get_base_model().model.layers[0].input_layernorm.register_forward_hook(lambda *_: calls.append(1))
    assert error(features(model, method)(PROMPTS, FIRST).vectors, expected) < 1e-10
    assert len(calls) == 2  # and once again on the way back
    handle.remove()


def test_model_state_is_restored():
    model = adapted(dtype=torch.float32, lora_dropout=0.5).train()
    first = next(p for p in model.parameters() if p.requires_grad)
    first.grad = torch.ones_like(first)
    needed = {name: p.requires_grad for name, p in model.named_parameters()}
    made = features(model)
    train, again = made(PROMPTS, FIRST).vectors, made(PROMPTS, FIRST).vectors
    assert torch.equal(train, again) and torch.equal(
        train, features(model.eval(), made.method)(PROMPTS, FIRST).vectors
    )
    model.train()
    made(PROMPTS, FIRST)
    assert all(module.training for module in model.modules())
    assert needed == {name: p.requires_grad for name, p in model.named_parameters()}
    assert (first.grad == 1).all() and sum(p.grad is not None for p in model.parameters()) == 1
    assert not any("forward" in vars(module) for module in model.modules())
    assert not any(module._forward_hooks for module in model.get_base_model().modules())


HIDDEN = {
    "DoRA": ({"use_dora": True}, "not plain LoRA matrices"),
    "whole modules": ({"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}, "modules_to_save"),
    "biases": ({"target_modules": ["q_proj"], "lora_bias": True}, "lora_B.bias"),
    "the head": ({"target_modules": ["q_proj", "lm_head"]}, "output layer"),
    "embeddings": ({"target_modules": ["q_proj", "embed_tokens"]}, "lora_embedding_A"),
}


@pytest.mark.parametrize("name", HIDDEN)
def test_unsupported_layers_are_reported_once_and_computed_one_at_a_time(name, caplog):
    settings, reason = HIDDEN[name]
    model = adapted(tiny_model(tie_word_embeddings=False, attention_bias=True), **settings)
    made = features(model)
    with caplog.at_level(logging.WARNING, "trl_real"):
        found = made(PROMPTS[:3], FIRST[:3]).vectors
        made(PROMPTS[:1], FIRST[:1])
    assert made.method == "one by one"
    assert (
        sum("one response at a time" in record.message and reason in record.message for record in caplog.records) == 1
    )
    assert error(found, naive(model, PROMPTS[:3], FIRST[:3])) < 1e-10


def test_matrices_that_layers_share_are_found():
    model = adapted(target_modules=["q_proj"])
    layers = model.get_base_model().model.layers
    layers[1].self_attn.q_proj.lora_A["default"].weight = layers[0].self_attn.q_proj.lora_A["default"].weight
    assert hidden_from_taps(model)
    assert error(features(model)(PROMPTS[:2], FIRST[:2]).vectors, naive(model, PROMPTS[:2], FIRST[:2])) < 1e-10


def test_layer_with_a_replaced_forward_is_hooked_from_outside():
    model = adapted()
    expected = features(model, "packed")(PROMPTS, FIRST).vectors
    for module in model.modules():
        if hasattr(module, "base_layer"):
            forward = module.base_layer.forward
            module.base_layer.forward = lambda x, forward=forward: forward(x)  # as offloading would
    assert error(features(model, "packed")(PROMPTS, FIRST).vectors, expected) < 1e-10


def test_bfloat16_products_are_close_and_summed_in_float32():
    model = adapted(dtype=torch.float32, init_lora_weights=True)
    found = features(model, "packed", dtype=torch.bfloat16)(PROMPTS, FIRST).vectors
    assert found.dtype == torch.float32
    assert torch.cosine_similarity(found, naive(model, PROMPTS, FIRST).float()).min() > 0.98


def test_projection_does_not_depend_on_the_adapter_name():
    model = adapted()
    before = features(model, options=GradientOptions()).projection
    model.add_adapter("another", LoraConfig(r=3, target_modules="all-linear"))
    model.set_adapter("another")
    assert features(model, options=GradientOptions()).projection.fingerprint == before.fingerprint
    other = adapted(r=4)
    assert features(other, options=GradientOptions()).projection.fingerprint != before.fingerprint
    reseeded = features(model, options=GradientOptions(seed=1)).projection
    assert reseeded.fingerprint != before.fingerprint


def test_equal_responses_run_once_and_long_ones_are_truncated():
    made = features(adapted(), options=GradientOptions(projection_dim=64, max_length=5))
    once, thrice = made(PROMPTS[:1], FIRST[3:4]), made(PROMPTS[:1] * 3, FIRST[3:4] * 3)
    assert once.truncated.tolist() == [True] and once.n_scored.tolist() == [5]
    assert thrice.n_tokens == once.n_tokens == 10 and torch.equal(thrice.vectors[2], once.vectors[0])


def test_token_ids_equal_those_that_trl_trains_on():
    from trl.data_utils import _tokenize, common_prefix_length

    tokenizer = tiny_tokenizer()
    chat = [{"role": "user", "content": "How do I make tea?"}]
    answer = [{"role": "assistant", "content": "Boil the water."}]
    found = tokenize_pairs(
        tokenizer, ["The cap", chat, chat, None], ["ital of France", answer, "Boil the water.", "x"], 99
    )
    texts = [("The cap", "The capital of France<|im_end|>"), (chat, chat + answer), (chat, chat + answer)]
    for (prompt, both), sequence in zip(texts, found, strict=False):
        prompt_ids = _tokenize(tokenizer, prompt, **({"add_generation_prompt": True} if prompt is chat else {}))[
            "input_ids"
        ]
        both_ids = _tokenize(tokenizer, both)["input_ids"]
        n = common_prefix_length(prompt_ids, both_ids)
        assert (list(sequence.prompt), list(sequence.response)) == (both_ids[:n], both_ids[n:])
    assert found[3].prompt == () and len(found[3].response) == 2


def _two(model):
    model.add_adapter("another", LoraConfig(r=2, target_modules=["q_proj"]))
    model.base_model.set_adapter(["default", "another"])
    return model


def _off(model):
    model.base_model.disable_adapter_layers()
    return model


def _merged(model):
    model.merge_adapter()
    return model


@pytest.mark.parametrize(
    ("make", "words"),
    [(lambda m: tiny_model(), "get_peft_model"), (_two, "set_adapter"), (_off, "enable"), (_merged, "unmerge")],
)
def test_model_without_exactly_one_active_adapter_is_refused(make, words):
    with pytest.raises(TrlRealError, match=words):
        features(make(adapted()))


def test_texts_longer_than_the_context_are_refused():
    with pytest.raises(TrlRealError, match="max_length="):
        features(adapted(tiny_model(max_position_embeddings=16)))(PROMPTS, FIRST)
    with pytest.raises(TrlRealError, match="max_length=0"):
        GradientOptions(max_length=0)
