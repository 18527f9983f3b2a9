"""Log-probabilities of responses against the definition and against those that TRL precomputes."""

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, Gemma2Config, GPT2Config, GPTNeoXConfig, Qwen2Config

from support.tiny import SENTENCES, save_tiny, tiny_model, tiny_tokenizer
from trl_real.errors import TrlRealError
from trl_real.models.load import load_model
from trl_real.models.log_probs import ResponseLogProbs, prompt_trees
from trl_real.models.passes import Row


pytestmark = pytest.mark.usefixtures("one_thread")

PROMPTS = [SENTENCES[i % 3][: 14 + 5 * (i % 3)] for i in range(9)]
RESPONSES = [" " + SENTENCES[(i + 1) % 5][: 5 + 6 * i] for i in range(9)]
CHAT = [{"role": "user", "content": "How do I make tea?"}]

SMALL = dict(
    vocab_size=304, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
    max_position_embeddings=256, pad_token_id=0, bos_token_id=None, eos_token_id=2, initializer_range=0.2,
)  # fmt: skip
FAMILIES = {
    "qwen2": Qwen2Config(**SMALL, num_key_value_heads=2),
    "gpt-neox": GPTNeoXConfig(**SMALL),
    "gemma2": Gemma2Config(**SMALL, num_key_value_heads=2, head_dim=8),
    "gpt2": GPT2Config(vocab_size=304, n_embd=32, n_layer=2, n_head=4, n_positions=256),
}


def adapted(dtype=torch.float32, **lora):
    settings = {"r": 3, "target_modules": "all-linear", "init_lora_weights": False, "task_type": "CAUSAL_LM", **lora}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return get_peft_model(tiny_model(), LoraConfig(**settings)).to(dtype).eval()


def naive(model, prompts, responses):
    """The definition, one response at a time."""
    tokenizer, found = tiny_tokenizer(), []
    for prompt, response in zip(prompts, responses, strict=True):
        ids = tokenizer(prompt + response + tokenizer.eos_token)["input_ids"]
        start = len(tokenizer(prompt)["input_ids"])
        assert ids[:start] == tokenizer(prompt)["input_ids"]
        with torch.no_grad():
            table = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0].double().log_softmax(-1)
        found.append(sum(table[t - 1, ids[t]] for t in range(start, len(ids))))
    return torch.stack(found)


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("packs", [True, False], ids=["packed", "padded"])
@pytest.mark.parametrize("batch_tokens", [None, 40, 1])
def test_sums_equal_the_definition_for_any_batch(packs, batch_tokens):
    model = adapted()
    made = ResponseLogProbs(model, tiny_tokenizer(), batch_tokens=batch_tokens)
    assert made(PROMPTS[:1], RESPONSES[:1]).sums.dtype == torch.float64 and made.packs_well
    made.packs_well = packs
    found = made(PROMPTS, RESPONSES)
    close(found.sums, naive(model, PROMPTS, RESPONSES))
    order = [4, 0, 8, 4, 2]
    again = made([PROMPTS[i] for i in order], [RESPONSES[i] for i in order])
    close(again.sums, found.sums[order])
    assert again.n_scored.tolist() == found.n_scored[order].tolist()


@pytest.mark.parametrize("name", FAMILIES)
def test_sums_equal_the_definition_in_every_family(name):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = AutoModelForCausalLM.from_config(FAMILIES[name]).eval()
    made = ResponseLogProbs(model, tiny_tokenizer())
    close(made(PROMPTS, RESPONSES).sums, naive(model, PROMPTS, RESPONSES))
    assert made.packs_well == (name != "gemma2")  # soft caps are not packed


def test_prompt_is_encoded_once_for_all_its_responses():
    model = adapted()
    made = ResponseLogProbs(model, tiny_tokenizer())
    prompts, responses = [SENTENCES[0]] * 4, [SENTENCES[i] for i in (1, 2, 3, 1)]
    found = made(prompts, responses)
    n_prompt = len(tiny_tokenizer()(SENTENCES[0])["input_ids"])
    assert found.n_tokens == n_prompt + int(found.n_scored[:3].sum())
    assert found.sums[0] == found.sums[3]
    close(found.sums, naive(model, prompts, responses))


def test_prompt_with_many_responses_is_split_into_passes():
    rows = [Row((1, 2, 3), ((i, 5, 6, 7),)) for i in range(10)] + [Row((), ((9, 9),)), Row((), ((8, 9),))]
    trees = prompt_trees(rows, 12)
    assert max(tree.n_tokens for tree in trees) <= 12
    assert sorted(i for tree in trees for i in tree.ids) == list(range(12))


def test_sums_equal_those_that_trl_precomputes(tmp_path):
    from trl import DPOConfig, DPOTrainer

    rows = [
        {"prompt": p, "chosen": r, "rejected": s} for p, r, s in zip(PROMPTS, RESPONSES, RESPONSES[::-1], strict=True)
    ][:4]
    rows[3]["rejected"] = " no."
    args = DPOConfig(
        output_dir=str(tmp_path), precompute_ref_log_probs=True, per_device_train_batch_size=3, report_to=[],
        use_cpu=True, bf16=False, max_length=None, gradient_checkpointing=False, disable_tqdm=True,
    )  # fmt: skip
    model = tiny_model()
    trainer = DPOTrainer(model, args=args, train_dataset=Dataset.from_list(rows), processing_class=tiny_tokenizer())
    trainer.get_train_dataloader()
    made = ResponseLogProbs(tiny_model(), tiny_tokenizer())
    for side in ("chosen", "rejected"):
        found = made([row["prompt"] for row in rows], [row[side] for row in rows]).sums
        close(found, torch.tensor(trainer.train_dataset[f"ref_{side}_logps"][:]).double())


def test_blank_responses_missing_prompts_messages_and_truncation():
    made = ResponseLogProbs(adapted(), tiny_tokenizer(), max_length=6)
    answer = [{"role": "assistant", "content": "Boil the water."}]
    found = made(["Why?", None, CHAT, CHAT, PROMPTS[1]], ["", "So.", answer, "Boil the water.", RESPONSES[8]])
    assert found.sums[0] == 0 and found.n_scored[0] == 0
    assert found.sums[1] < 0 and found.sums[2] == found.sums[3]
    assert found.truncated.tolist()[-1] and found.n_scored[-1] == 6
    assert made([], []).sums.shape == (0,)


def test_model_state_is_restored():
    model = adapted(lora_dropout=0.5).train()
    needed = {name: p.requires_grad for name, p in model.named_parameters()}
    implementation = model.config._attn_implementation
    made = ResponseLogProbs(model, tiny_tokenizer())
    assert torch.equal(made(PROMPTS, RESPONSES).sums, made(PROMPTS, RESPONSES).sums)  # no dropout
    assert all(module.training for module in model.modules())
    assert needed == {name: p.requires_grad for name, p in model.named_parameters()}
    assert model.config._attn_implementation == implementation


def test_half_precision_products_are_summed_in_float32():
    model = adapted()
    found = ResponseLogProbs(model, tiny_tokenizer(), dtype=torch.bfloat16)(PROMPTS, RESPONSES).sums
    assert ((found - naive(model, PROMPTS, RESPONSES)) / naive(model, PROMPTS, RESPONSES)).abs().max() < 0.05


def test_too_long_texts_and_impossible_settings_are_refused():
    with pytest.raises(TrlRealError, match="Type max_length=8"):
        ResponseLogProbs(tiny_model(max_position_embeddings=16), tiny_tokenizer())(PROMPTS, RESPONSES)
    for settings in ({"max_length": 0}, {"batch_tokens": 0}):
        with pytest.raises(TrlRealError, match="reads nothing"):
            ResponseLogProbs(tiny_model(), tiny_tokenizer(), **settings)


def test_policy_loads_with_its_adapter_and_the_base_tokenizer(tmp_path):
    base = save_tiny(tmp_path / "base")
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(base),
        LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False, task_type="CAUSAL_LM"),
    )
    model.save_pretrained(tmp_path / "adapter")
    loaded, tokenizer = load_model(str(tmp_path / "adapter"), "sha256:1", None, "cpu", adapters=True)
    close(
        ResponseLogProbs(loaded, tokenizer)(PROMPTS, RESPONSES).sums,
        ResponseLogProbs(model, tiny_tokenizer())(PROMPTS, RESPONSES).sums,
    )
    plain, _ = load_model(base, "sha256:1", None, "cpu", adapters=True)
    assert not hasattr(plain, "get_base_model")
