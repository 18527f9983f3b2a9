"""Pools and short runs in rounds."""

import os

from datasets import Dataset
from peft import LoraConfig

from support.crashes import KILLED, in_child
from support.training import config, pairs
from trl_real import ScoreJudge
from trl_real.models.generation.journal import GenerationCache
from trl_real.rounds.active import ActiveRounds


def pool(n: int = 14, k: int = 3) -> Dataset:
    rows = pairs(n * k)
    return Dataset.from_dict(
        {
            "prompt": [f"Question {i}? " for i in range(n)],
            "responses": [[rows[k * i + j]["chosen"] + f" {j}" for j in range(k)] for i in range(n)],
            "scores": [[float((i + j) % 3) for j in range(k)] for i in range(n)],
        }
    )


def active(model, folder, rounds: int = 2, **changes):
    settings = {
        "pool": pool(), "judge": ScoreJudge(), "model": model, "args": config(folder / "unused", max_steps=2),
        "output_dir": folder / "run", "selector": "easy", "budget": 4, "seed": 1,
        "peft_config": LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"),
        "eval_dataset": Dataset.from_list(pairs(6)),
    }  # fmt: skip
    return ActiveRounds(**{**settings, **changes}).run(rounds)


def killed_while_generating(run, folder, n: int) -> None:
    """Run in a child that is killed when `n` more responses are on disk."""

    def killed() -> None:
        add, left = GenerationCache.add, [n]

        def counted(self, *parts, completions):
            add(self, *parts, completions=completions)
            left[0] -= len(completions)
            if not left[0]:
                os._exit(KILLED)

        GenerationCache.add = counted
        run()

    assert in_child(killed, folder)[0] == KILLED


def prompts(n: int = 30) -> Dataset:
    return Dataset.from_dict({"prompt": [f"Tell me about {i}:\n" for i in range(n)]})
