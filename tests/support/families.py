"""Tiny models with random weights of every model family that is tested."""

import torch
from transformers import (
    AutoModelForCausalLM,
    FalconConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    OPTConfig,
    PhiConfig,
    Qwen3Config,
)


SIZES = {"vocab_size": 304, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
WIDE = {**SIZES, "intermediate_size": 64, "max_position_embeddings": 256, "initializer_range": 0.3}
CONFIGS = {
    "llama": LlamaConfig(**WIDE, num_key_value_heads=2),
    "gpt_neox": GPTNeoXConfig(**WIDE),
    "phi": PhiConfig(**WIDE),
    "opt": OPTConfig(**SIZES, ffn_dim=64, max_position_embeddings=256, word_embed_proj_dim=32, init_std=0.3),
    "gpt2": GPT2Config(vocab_size=304, n_embd=32, n_layer=2, n_head=4, n_positions=256, initializer_range=0.3),
    "qwen3": Qwen3Config(**WIDE, num_key_value_heads=2, head_dim=8),
    "gemma3": Gemma3TextConfig(**WIDE, num_key_value_heads=2, head_dim=8, sliding_window=512),
    "gemma2": Gemma2Config(**WIDE, num_key_value_heads=2, head_dim=8, sliding_window=512, attn_logit_softcapping=2.0),
    "mistral": MistralConfig(**WIDE, num_key_value_heads=2, sliding_window=8),
    "falcon": FalconConfig(**SIZES, initializer_range=0.3, new_decoder_architecture=False),
}
# Own attention code, a cap on the logits, a window shorter than the responses; OPT packs, as positions are given.
PADDED = {"falcon", "gemma2", "mistral"}


def family(name: str, seed: int = 0, **kwargs):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(CONFIGS[name], **kwargs).eval()
