"""
From a pool of scored responses to a trained adapter: select, label, train.

    python examples/pool_to_policy.py --model HuggingFaceTB/SmolLM2-135M-Instruct --budget 0.5
"""

import argparse

import torch
from datasets import load_dataset
from peft import LoraConfig
from transformers import AutoTokenizer

from trl_real import EmbeddingPairSelector, REALDPOConfig, REALDPOTrainer, ScoreJudge, annotate


def main() -> None:
    """Run the three steps."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="HuggingFaceTB/SmolLM2-135M-Instruct")
    parser.add_argument("--pool", default="examples/pool.jsonl")
    parser.add_argument("--strategy", default="easy")
    parser.add_argument("--budget", type=float, default=0.5)
    parser.add_argument("--output_dir", default="aligned")
    parser.add_argument("--max_steps", type=int, default=-1)
    args = parser.parse_args()

    pool = load_dataset("json", data_files=args.pool, split="train")
    selector = EmbeddingPairSelector(args.model, strategy=args.strategy)
    worth_a_label = selector.select(pool, args.budget)
    print(selector.record.summary())

    preferences = annotate(worth_a_label, ScoreJudge("scores", min_gap=0.05))
    print(f"{len(preferences)} preferences from {len(worth_a_label)} labels")

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
        train_dataset=preferences,
        processing_class=AutoTokenizer.from_pretrained(args.model),
        peft_config=LoraConfig(r=16, target_modules="all-linear", task_type="CAUSAL_LM"),
    )
    trainer.train()
    trainer.save_model()


if __name__ == "__main__":
    main()
