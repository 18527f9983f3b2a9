"""Preference pairs, trainer settings and a naive reference for tests that train."""

import numpy as np
import torch
from peft import LoraConfig

from trl_real import REALDPOConfig


WORDS = "tea rain poem lock Paris water number larger minutes roof sum say open".split()
LORA = LoraConfig(r=4, task_type="CAUSAL_LM", lora_dropout=0.1)
TIMES = {"train_runtime", "train_samples_per_second", "train_steps_per_second"}


def words(i: int, n: int) -> str:
    return " ".join(WORDS[(i * i * 7 + i * k + k * k * 3) % len(WORDS)] for k in range(n))


def pairs(n: int = 16) -> list[dict]:
    return [
        {"prompt": f"Question {i}? ", "chosen": words(i, 3 + i % 4), "rejected": words(i + 50, 2 + i % 5)}
        for i in range(n)
    ]


def as_messages(row: dict) -> dict:
    messages = {name: [{"role": "assistant", "content": row[name]}] for name in ("chosen", "rejected")}
    return {"prompt": [{"role": "user", "content": row["prompt"]}], **messages}


def as_dialogues(row: dict) -> dict:
    row = as_messages(row)
    return {name: row["prompt"] + row[name] for name in ("chosen", "rejected")}


def config(folder, kind=REALDPOConfig, **changes):
    fixed = {"use_cpu": True, "bf16": False, "report_to": "none", "save_strategy": "no", "learning_rate": 1e-2}
    size = {"per_device_train_batch_size": 2, "logging_steps": 1, "max_steps": 3, "disable_tqdm": True}
    return kind(str(folder), **{**fixed, **size, **changes})


def history(trainer) -> list[dict]:
    trainer.train()
    return [{name: x for name, x in log.items() if name not in TIMES} for log in trainer.state.log_history]


def naive_logits(model, row):
    with torch.no_grad():
        return model(input_ids=row[None]).logits[0, :-1].double()


def naive_log_probs(models, inputs, strength=0.0, ld_alpha=1.0):
    """Return summed log-probabilities of the completions under `(1 + strength) policy - strength reference`."""
    mask, sums = inputs["completion_mask"].bool(), []
    half = len(mask) // 2
    for i, ids in enumerate(inputs["input_ids"]):
        length = int(inputs["attention_mask"][i].sum())
        logits = [naive_logits(model, ids[:length]) for model in models]
        mixed = (1 + strength) * logits[0] - strength * logits[1] if strength else logits[0]
        per_token = mixed.log_softmax(-1)[range(length - 1), ids[1:length]][mask[i, 1:length]]
        shared = int(min(mask[i % half, 1:].sum(), mask[half + i % half, 1:].sum()))
        sums.append((per_token[:shared].sum() + ld_alpha * per_token[shared:].sum()).item())
    return np.array(sums[:half]), np.array(sums[half:])
