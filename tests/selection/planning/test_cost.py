"""Tests of cost: equations against a FLOP counter, and parameter counts without loading weights."""

import math

import pytest
import torch
from cost_model import (
    GradientTokens,
    JudgePrice,
    Writing,
    generation_seconds,
    gradient_flops,
    judge_money,
    mean_context,
    people_money,
    read_rate,
    step_bytes,
    step_flops,
)
from peft import LoraConfig, get_peft_model
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, MixtralConfig, MixtralForCausalLM

from support.tiny import save_tiny, tiny_model, tiny_tokenizer
from trl_real.errors import TrlRealError
from trl_real.models.gradients import GradientFeatures, GradientOptions
from trl_real.models.sequences import tokenize_pairs
from trl_real.selection.planning.cost import (
    feature_bytes,
    folder_bytes,
    forward_flops,
    money_of,
    seconds_of,
    weight_bytes,
)
from trl_real.selection.planning.hardware import HARDWARE, hardware_named
from trl_real.selection.planning.model_shape import empty_model, matmul_rate, model_shape, this_cpu


WIDE = {"hidden_size": 64, "intermediate_size": 192, "num_hidden_layers": 6}
RANK = 4


@pytest.fixture(scope="module")
def model():
    """Eager attention: the counter does not see the CPU's fused kernel."""
    model = tiny_model(**WIDE)
    model.set_attn_implementation("eager")
    return model


@pytest.fixture(scope="module")
def shape(model):
    return model_shape(model)


def counted(run) -> int:
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


@pytest.mark.parametrize("length", [8, 64, 200])
def test_forward_cost_equals_a_flop_counter(model, shape, length):
    ids = torch.randint(0, 300, (3, length))
    found = counted(lambda: model.base_model(ids))
    assert forward_flops(shape, 3 * length, length) == pytest.approx(found, rel=0.02)


def test_head_is_counted_only_for_generated_tokens(model, shape):
    ids = torch.randint(0, 300, (5, 1))
    assert step_flops(shape, 5, 1) == pytest.approx(counted(lambda: model(ids)), rel=0.02)


@pytest.mark.parametrize("length", [16, 100])
def test_gradient_cost_with_frozen_weights_equals_a_flop_counter(length):
    model = tiny_model(**WIDE)
    model.set_attn_implementation("eager")
    shape = model_shape(model)
    adapted = get_peft_model(model, LoraConfig(r=RANK, target_modules="all-linear", init_lora_weights=False))
    ids = torch.randint(0, 300, (2, length))
    kept = length // 2
    found = counted(lambda: adapted(ids, logits_to_keep=kept).logits.sum().backward())
    tokens = GradientTokens(2 * length, 2 * length, 2 * kept)
    # What is over: the first layer's inputs need no gradient.
    assert gradient_flops(shape, tokens, length, RANK) == pytest.approx(found, rel=0.05)
    assert all(p.grad is None for name, p in adapted.named_parameters() if "lora" not in name)


def test_gradient_features_cost_at_most_the_estimate():
    model = tiny_model(**WIDE)
    shape = model_shape(model)
    adapted = get_peft_model(model, LoraConfig(r=RANK, target_modules="all-linear", init_lora_weights=False))
    features = GradientFeatures(adapted, tiny_tokenizer(), GradientOptions(projection_dim=64))
    prompts, responses = ["Where is Paris?"] * 2, ["In France, where else.", "I would rather not say how."]
    assert features.method == "packed"  # asked before, since it is found by trying
    found = counted(lambda: features(prompts, responses, progress=False))
    rows = tokenize_pairs(features.tokenizer, prompts, responses, 512)
    n_prompt, n_scored = len(rows[0].prompt), sum(len(row.response) for row in rows)
    tokens = GradientTokens(n_prompt + n_scored, 2 * n_prompt + n_scored, n_scored)
    # Without attention, which the counter does not see here.
    assert gradient_flops(shape, tokens, 0, RANK) == pytest.approx(found, rel=0.1)


def test_frozen_weights_save_a_third(shape):
    tokens = GradientTokens(1000, 1000, 0)
    assert gradient_flops(shape, tokens, 0, rank=0) == 4 * shape.active * 1000 == 2 * forward_flops(shape, 1000)


def test_costs_are_linear_in_tokens(shape):
    device, judge = HARDWARE["h100"], JudgePrice(1.0, 4.0)
    for scale in (3, 1e6):
        for cost in (
            lambda n: forward_flops(shape, 100 * n, 50),
            lambda n: gradient_flops(shape, GradientTokens(100 * n, 150 * n, 60 * n), 50),
            lambda n: generation_seconds(shape, Writing(10 * n, 20, 40 * n, 30, 8), device, "bfloat16").decode,
            lambda n: seconds_of(1e12 * n, device, "bfloat16", 64),
            lambda n: money_of(60 * n, 2.5),
            lambda n: judge_money(10 * n, 100, 40, judge),
            lambda n: people_money(10 * n, 30, 20),
            lambda n: feature_bytes(10 * n, 8192),
            lambda n: folder_bytes(10 * n, 0),
        ):
            assert cost(scale) == pytest.approx(scale * cost(1))


def test_the_mean_context_counts_long_sequences_by_their_tokens(shape):
    lengths = [10, 30, 200]
    whole = sum(forward_flops(shape, length, length) for length in lengths)
    assert forward_flops(shape, sum(lengths), mean_context(lengths)) == pytest.approx(whole)
    assert mean_context([]) == 0


def test_money_by_hand():
    assert judge_money(1000, 100, 50, JudgePrice(2.0, 8.0, orders=2, template=200, answer=1)) == pytest.approx(1.616)
    assert people_money(120, 30, 20) == pytest.approx(20.0)
    assert money_of(7200 * 8, 2.5) == pytest.approx(40.0)
    assert feature_bytes(10, 100) == 4000 and feature_bytes(10, 100, "bfloat16") == 2000


def test_generation_is_memory_bound_until_the_batch_is_large(shape):
    device = HARDWARE["h100"]
    served = device._replace(shares=device.shares._replace(layer_seconds=0.0, half_width=0))
    one, eight = (generation_seconds(shape, Writing(1, 20, 64, 100, b), served, "bfloat16") for b in (1, 8))
    bytes_of_one, bytes_of_eight = (step_bytes(shape, batch, 70, "bfloat16") for batch in (1, 8))
    assert one.bound == eight.bound == "weights"
    assert one.decode / eight.decode == pytest.approx(8 * bytes_of_one / bytes_of_eight)
    slow = served._replace(half=1e9)
    assert generation_seconds(shape, Writing(1, 20, 64, 100, 8), slow, "bfloat16").bound == "products"


def test_small_model_is_bound_by_kernel_launches(shape):
    device, job = HARDWARE["h100"], Writing(1, 20, 64, 100, 8)
    found = generation_seconds(shape, job, device, "bfloat16")
    served = device._replace(shares=device.shares._replace(layer_seconds=0.0))
    assert found.bound == "launches"
    beside = found.decode - generation_seconds(shape, job, served, "bfloat16").decode
    assert beside == pytest.approx(64 * 100 / 8 * 6 * device.shares.layer_seconds)


@pytest.mark.parametrize("name", HARDWARE)
def test_every_hardware_row_is_complete_and_states_its_assumptions(name):
    device = HARDWARE[name]
    assert all(x > 0 for x in (device.half, device.single, device.bandwidth, device.price))
    assert all(0 < share <= 1 for share in device.shares[:5])
    assert 0 < device.mfu(576) <= device.mfu(4096) <= device.shares.packed
    assert "assumption" in device.source and ("an estimate" in device.source) == (name != "cpu")
    assert device.memory or name == "cpu"
    assert device.peak("float16") == device.peak("bfloat16") == device.half and device.peak("float32") == device.single


def test_unknown_device_gets_a_one_line_error():
    with pytest.raises(TrlRealError, match=r"No hardware 'tpu'; there are cpu, .*h200\. Type --hardware h100\."):
        hardware_named("tpu")


def test_weights_are_counted_without_loading_them(tmp_path):
    folder = save_tiny(tmp_path / "model")
    real = AutoModelForCausalLM.from_pretrained(folder)
    (tmp_path / "model" / "model.safetensors").unlink()
    empty = empty_model(folder)
    assert all(p.is_meta for p in empty.parameters())
    assert model_shape(empty) == model_shape(real)
    shape = model_shape(real)
    assert shape.total == sum(p.numel() for p in real.parameters()) == shape.layers + 304 * 32 + shape.head
    assert weight_bytes(shape, "float32") == 2 * weight_bytes(shape, "bfloat16") == 4 * shape.total


def test_tied_embeddings_are_counted_once():
    tied = model_shape(tiny_model(tie_word_embeddings=True))
    apart = model_shape(tiny_model(tie_word_embeddings=False))
    assert apart.total - tied.total == tied.head and apart[1:] == tied[1:]


def test_adapter_parameters_equal_those_of_peft(shape):
    adapted = get_peft_model(tiny_model(**WIDE), LoraConfig(r=RANK, target_modules="all-linear"))
    assert RANK * shape.per_rank == sum(p.numel() for p in adapted.parameters() if p.requires_grad)


def test_token_cost_includes_only_its_active_experts():
    sizes = {"vocab_size": 100, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": 4, "num_key_value_heads": 2, "num_local_experts": 8}
    configs = (MixtralConfig(**sizes, num_experts_per_tok=n) for n in (2, 8))
    with torch.device("meta"):
        two, all_ = (model_shape(MixtralForCausalLM(config)) for config in configs)
    experts = 2 * 8 * 3 * 32 * 64
    assert all_.active == all_.layers == two.layers
    assert two.layers - two.active == experts * 6 // 8


def test_folder_without_a_config_gets_a_one_line_error(tmp_path):
    with pytest.raises(TrlRealError, match="No config of a causal LM in .*Give a saved model's folder or a Hub id"):
        empty_model(str(tmp_path))


def test_rates_of_this_machine_are_measured(one_thread):
    device = this_cpu(64, "float32", seconds=0.02)
    assert device.single != HARDWARE["cpu"].single and device.single > 1e8 and "this CPU" in device.name
    assert device.half == HARDWARE["cpu"].half and math.isfinite(read_rate(0.02))
    assert matmul_rate(32, "bfloat16", 0.01) > 0
