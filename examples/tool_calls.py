"""
Preferences over calls of tools: select, label by a judge that is shown the calls, train with the tools, push.

    python examples/tool_calls.py --model HuggingFaceTB/SmolLM2-135M-Instruct --budget 8 --repo_id you/calls

Without --base_url a function judges: the call that the task expects is better than another, and any call than a guess.
With --base_url http://127.0.0.1:8000/v1 --judge my-model a chat model judges; it reads `[call] get_rate({…})`.
"""

import argparse
import json

import torch
from datasets import load_dataset
from peft import LoraConfig
from transformers import AutoTokenizer

from trl_real import ChatJudge, EmbeddingPairSelector, REALDPOConfig, REALDPOTrainer, annotate, push_subset


def expected_call(batch: dict) -> list[float]:
    """Return the probability that the first response is better: a judge is a function of a batch."""

    def worth(response: str, expected: dict) -> int:
        written = f"[call] {expected['name']}({json.dumps(expected['arguments'], sort_keys=True)})"
        return 2 if written in response else int("[call]" in response)

    rows = zip(batch["response_a"], batch["response_b"], map(json.loads, batch["expected"]), strict=True)
    gaps = [worth(a, expected) - worth(b, expected) for a, b, expected in rows]
    return [0.5 if gap == 0 else float(gap > 0) for gap in gaps]


def main() -> None:
    """Run the steps."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="HuggingFaceTB/SmolLM2-135M-Instruct")
    parser.add_argument("--pool", default="examples/tool_pool.jsonl")
    parser.add_argument("--budget", type=int, default=8)
    parser.add_argument("--base_url")
    parser.add_argument("--judge")
    parser.add_argument("--output_dir", default="runs/tools")
    parser.add_argument("--max_steps", type=int, default=-1)
    parser.add_argument("--repo_id", help="dataset on the Hub that gets the labels")
    args = parser.parse_args()

    pool = load_dataset("json", data_files=args.pool, split="train")
    selector = EmbeddingPairSelector(args.model, strategy="easy")
    pairs = selector.select(pool, args.budget)
    print(selector.record.summary())
    print(pairs[0]["response_a"])

    judge = ChatJudge(args.judge, base_url=args.base_url) if args.base_url else expected_call
    labels = annotate(pairs, judge)
    print(f"{len(labels)} labels; columns {labels.column_names}")

    trainer = REALDPOTrainer(
        args.model,
        args=REALDPOConfig(
            args.output_dir,
            max_steps=args.max_steps,
            learning_rate=2e-4,
            use_cpu=not torch.cuda.is_available(),
            bf16=False,
            report_to="none",
        ),
        train_dataset=labels,
        processing_class=AutoTokenizer.from_pretrained(args.model),
        peft_config=LoraConfig(r=16, target_modules="all-linear", task_type="CAUSAL_LM"),
    )
    trainer.train()
    trainer.save_model()
    if args.repo_id:
        print(push_subset(labels, args.repo_id, record=selector.record))


if __name__ == "__main__":
    main()
