"""A tiny policy as its own judge, and its rewards by the definition."""

import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model

from support.tiny import SENTENCES, tiny_model, tiny_tokenizer
from trl_real.labeling.implicit_reward import ImplicitRewardJudge
from trl_real.labeling.self_annotate import self_annotate
from trl_real.labeling.self_annotation_report import SelfAnnotationReport


PROMPTS = ["How is tea made?", "Say no.", SENTENCES[2], "A poem?", "Write code:"]

RESPONSES = [[f" {SENTENCES[(i + k) % 5][: 7 + 9 * k + i]}" for k in range(3)] for i in range(5)]

CHAT = [{"role": "user", "content": "How do I make tea?"}]


def policy(seed=0, base=None, **lora):
    """A tiny model with an adapter that is not zero."""
    settings = {"r": 3, "target_modules": "all-linear", "init_lora_weights": False, "task_type": "CAUSAL_LM", **lora}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return get_peft_model(tiny_model() if base is None else base, LoraConfig(**settings)).eval()


def judge(model=None, **settings):
    return ImplicitRewardJudge(policy() if model is None else model, tokenizer=tiny_tokenizer(), **settings)


def pool(**columns):
    return Dataset.from_dict({"prompt": PROMPTS, "responses": RESPONSES, **columns})


def naive(model, prompt, response, end="<|im_end|>"):
    """`log pi(y | x)` in float64, one text at a time, by the definition."""
    tokenizer = tiny_tokenizer()
    ids, start = tokenizer(prompt + response + end)["input_ids"], len(tokenizer(prompt)["input_ids"])
    with torch.no_grad():
        table = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0].double().log_softmax(-1)
    return sum(float(table[t - 1, ids[t]]) for t in range(start, len(ids)))


def annotated(dataset=None, model=None, **settings):
    report = SelfAnnotationReport()
    return self_annotate(pool() if dataset is None else dataset, judge(model), report=report, **settings), report
