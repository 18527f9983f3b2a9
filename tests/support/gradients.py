"""Gradients of a tiny model with an adapter, and the same by ordinary autograd, one response at a time."""

import torch
from peft import LoraConfig, get_peft_model

from support.tiny import SENTENCES, tiny_model, tiny_tokenizer
from trl_real.models.adapters import adapter_parameters
from trl_real.models.gradients import GradientFeatures, GradientOptions


PROMPTS = [SENTENCES[i % 5][: 14 + 3 * i] for i in range(6)]
FIRST = [" " + SENTENCES[(i + 1) % 5][: 9 + 5 * i] for i in range(6)]
SECOND = [" " + SENTENCES[(i + 2) % 5][: 31 - 4 * i] for i in range(6)]
EXACT = GradientOptions(projection_dim=None)


def adapted(model=None, dtype=torch.float64, seed=0, **lora):
    """A tiny model with an adapter in which B is not 0."""
    settings = {"r": 3, "lora_alpha": 7, "target_modules": "all-linear", "init_lora_weights": False, **lora}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = get_peft_model(tiny_model() if model is None else model, LoraConfig(**settings))
    return model.to(dtype).eval()


def naive(model, prompts, responses, beta=None):
    """Whole gradients of the summed log-probabilities, in order of the names, by the definition. Shape `(n, p)`."""
    tokenizer, named = tiny_tokenizer(), adapter_parameters(model)
    for parameter in named.values():
        parameter.requires_grad_(True)
    rows = []
    for prompt, response in zip(prompts, responses, strict=True):
        ids = tokenizer(prompt + response + tokenizer.eos_token)["input_ids"]
        start = len(tokenizer(prompt)["input_ids"])
        assert tokenizer(prompt)["input_ids"] == ids[:start]
        value = log_prob(model, ids, start)
        if beta is not None:
            with model.disable_adapter():
                value = beta * (value - log_prob(model, ids, start))
        found = dict(zip(named, torch.autograd.grad(value, list(named.values())), strict=True))
        rows.append(torch.cat([found[name].flatten() for name in sorted(found)]))
    return torch.stack(rows)


def log_prob(model, ids, start):
    logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0].double()
    return sum(logits[t - 1].log_softmax(-1)[ids[t]] for t in range(start, len(ids)))


def error(found, expected):
    return float((found - expected).norm(dim=1).div(expected.norm(dim=1)).max())


def features(model, method=None, options=EXACT, **kwargs):
    made = GradientFeatures(model, tiny_tokenizer(), options, **kwargs)
    made._method = method
    return made
