"""
Select, let a chat model label, train, and let it compare the trained model with the one before.

    python examples/chat_judge.py --base_url http://127.0.0.1:8000/v1 --judge my-model --max_cost 1

Without --base_url the judge runs in this process. The default, SmolLM2-135M, shows that the steps work; as a judge it
cannot be told from a coin. Check yours first: trl-real label --judge chat --check labelled_pairs.parquet …
"""

import argparse
from pathlib import Path

import torch
from datasets import load_dataset
from peft import LoraConfig
from transformers import AutoTokenizer

from trl_real import (
    ChatJudge,
    EmbeddingPairSelector,
    LabelReport,
    REALDPOConfig,
    REALDPOTrainer,
    annotate,
    compare,
)


SMALL = "HuggingFaceTB/SmolLM2-135M-Instruct"


def main() -> None:
    """Run the four steps."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=SMALL)
    parser.add_argument("--judge", default=SMALL, help="path or Hub id; with --base_url the server's name of it")
    parser.add_argument("--base_url", help="an OpenAI-compatible server; its key: TRL_REAL_JUDGE_API_KEY")
    parser.add_argument("--max_cost", type=float, help="with --base_url: the most that the answers may cost")
    parser.add_argument("--price", type=float, nargs=2, default=(0.15, 0.60), help="of a million tokens, in and out")
    parser.add_argument("--pool", default="examples/pool.jsonl")
    parser.add_argument("--n_test", type=int, default=8, help="prompts, from the end of the pool, for the comparison")
    parser.add_argument("--budget", type=int, default=16, help="labels")
    parser.add_argument("--max_new_tokens", type=int, default=40)
    parser.add_argument("--max_steps", type=int, default=-1)
    parser.add_argument("--output_dir", default="runs/chat_judge")
    args = parser.parse_args()

    rows = load_dataset("json", data_files=args.pool, split="train")
    pool, test = rows.select(range(len(rows) - args.n_test)), rows.select(range(len(rows) - args.n_test, len(rows)))
    selector = EmbeddingPairSelector(args.model, strategy="easy")
    pairs = selector.select(pool, args.budget)
    print(selector.record.summary())

    paid = {"base_url": args.base_url, "price": args.price, "max_cost": args.max_cost} if args.base_url else {}
    judge, report = ChatJudge(args.judge, **paid), LabelReport()
    print(f"{judge.estimate(pairs[:])['n_asked']} questions")
    Path(args.output_dir).mkdir(parents=True, exist_ok=True)
    preferences = annotate(pairs, judge, journal=f"{args.output_dir}.verdicts.jsonl", report=report)
    print(report.words())
    if not len(preferences):
        raise SystemExit("The judge decided no pair, so there is nothing to train on.")

    train(args, preferences)
    sampling = {"max_new_tokens": args.max_new_tokens, "seed": 42}
    names = ("trained", "before")
    print(compare(test["prompt"][:], args.output_dir, args.model, judge, names=names, generation=sampling).summary())


def train(args: argparse.Namespace, preferences) -> None:
    """DPO with LoRA; the adapter goes to `output_dir`."""
    config = REALDPOConfig(
        args.output_dir,
        max_steps=args.max_steps,
        learning_rate=2e-4,
        use_cpu=not torch.cuda.is_available(),
        bf16=False,
        report_to="none",
    )
    trainer = REALDPOTrainer(
        args.model,
        args=config,
        train_dataset=preferences,
        processing_class=AutoTokenizer.from_pretrained(args.model),
        peft_config=LoraConfig(r=16, target_modules="all-linear", task_type="CAUSAL_LM"),
    )
    trainer.train()
    trainer.save_model()


if __name__ == "__main__":
    main()
