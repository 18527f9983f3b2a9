"""
SPA where the true reward is known: the controlled-sentiment task of the demo, with VADER as the annotator of the seed.

    python benchmarks/spa_sentiment.py --model SmolLM2-135M-Instruct --output_dir spa --seeds 0 1 2

Prints, for each arm and stage, the mean true reward and length of what the policy writes to prompts that no round
sees, and how often its own labels agree with the true reward. Arms of a seed share the seed stage and what round 1
wrote.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, load_from_disk
from peft import LoraConfig

from trl_real import REALDPOConfig
from trl_real.demo.task import TEST_TOPICS, TRAIN_TOPICS, prompts, sentiment, whole_sentences
from trl_real.models.generate import generate_responses
from trl_real.rounds.ablations import ABLATIONS
from trl_real.rounds.report import SELF_ANNOTATION, Arms, write_rounds_report
from trl_real.rounds.self_annotation import SelfAnnotationRounds
from trl_real.training.adapters import load_base


N_SEED_TOPICS = 16


def main() -> None:
    """Run all arms and seeds, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--output_dir", required=True, type=Path)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--learning_rate", type=float, default=2e-4)
    parser.add_argument("--bf16", action="store_true", help="for a CPU that computes in bfloat16")
    args = parser.parse_args()
    found: dict[str, list[list[dict[str, Any]]]] = {arm: [] for arm in ABLATIONS}
    for seed in args.seeds:
        labels = seed_labels(args, seed)
        for arm in ABLATIONS:
            rounds = run_of(args, labels, arm, seed)
            if arm != "expansion":
                rounds.begin_like(args.output_dir / f"expansion-{seed}")
            found[arm].append(rounds.run(args.rounds).rounds)
    print(write_rounds_report(args.output_dir, found, kind=SELF_ANNOTATION, facts={"model": "SmolLM2-135M-Instruct"}))
    table(args, Arms(found, SELF_ANNOTATION))


def seed_labels(args: argparse.Namespace, seed: int) -> Dataset:
    """The best against the worst of four replies to each of the seed's prompts, by the true reward."""
    path = args.output_dir / f"seed-{seed}"
    if not path.exists():
        base, tokenizer = load_base(args.model, None, cpu=True)
        asked = prompts(TRAIN_TOPICS[:N_SEED_TOPICS])
        written = generate_responses(base, tokenizer, asked, n=4, max_new_tokens=args.tokens, seed=1000 + seed)
        rows = []
        for prompt, texts in zip(asked, written, strict=True):
            ranked = sorted(map(whole_sentences, texts), key=lambda text: sentiment([text])[0])
            sides = {
                name: [{"role": "assistant", "content": ranked[i]}] for name, i in (("chosen", -1), ("rejected", 0))
            }
            rows.append({"prompt": prompt, **sides})
        Dataset.from_list(rows).save_to_disk(str(path))
    return load_from_disk(str(path))


def run_of(args: argparse.Namespace, labels: Dataset, arm: str, seed: int) -> SelfAnnotationRounds:
    """The run of an arm and seed, ready to go on."""
    trainer = {"learning_rate": args.learning_rate, "per_device_train_batch_size": 4, "logging_steps": 1}
    quiet = {"report_to": "none", "disable_tqdm": True, "use_cpu": True, "save_strategy": "no"}
    config = REALDPOConfig(
        "unused",
        bf16=args.bf16,
        gradient_checkpointing=False,
        noise_smoothing=0.1,
        noise_window=16,
        **trainer,
        **quiet,
    )
    unseen = Dataset.from_dict({"prompt": prompts(TRAIN_TOPICS[N_SEED_TOPICS:])})
    return SelfAnnotationRounds(
        seed_labels=labels,
        prompts=unseen,
        n_prompts=len(unseen) // args.rounds,
        model=args.model,
        args=config,
        output_dir=args.output_dir / f"{arm}-{seed}",
        ablation=arm,
        generation={"n": 4, "temperature": 1.0, "max_new_tokens": args.tokens},
        peft_config=LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"),
        evaluate=lambda policy, tokenizer: true_reward(policy, tokenizer, args.tokens),
        seed=seed,
    )


def true_reward(policy: Any, tokenizer: Any, tokens: int) -> dict[str, float]:
    """Mean reward and length, in characters, of two replies to each test prompt."""
    written = generate_responses(policy, tokenizer, prompts(TEST_TOPICS), n=2, max_new_tokens=tokens, seed=7)
    texts = [whole_sentences(text) for row in written for text in row]
    return {"reward": float(np.mean(sentiment(texts))), "length": float(np.mean([len(text) for text in texts]))}


def agreements(folder: Path) -> np.ndarray:
    """Whether each of a round's own labels agrees with the true reward, where that tells the two apart. Booleans."""
    rows = load_from_disk(str(folder / "self_labels"))
    better, worse = (sentiment([text_of(row[side]) for row in rows]) for side in ("chosen", "rejected"))
    gaps = np.array(better) - np.array(worse)
    return gaps[gaps != 0] > 0


def text_of(side: list[dict[str, str]]) -> str:
    """What a side says."""
    return side[-1]["content"]


def table(args: argparse.Namespace, arms: Arms) -> None:
    """Print a row an arm and stage, a mean over seeds."""
    print("| arm | stage | pairs | reward | length | own labels agree |\n|---|---|---:|---:|---:|---:|")
    for arm, runs in arms.runs.items():
        for stage, rows in enumerate(zip(*runs, strict=True)):
            told = [f"{np.mean([row[name] for row in rows]):.3f}" for name in ("n_pairs", "reward", "length")]
            folders = [args.output_dir / f"{arm}-{seed}" / f"round-{stage - 1:02d}" for seed in args.seeds]
            agrees = f"{np.mean([agreements(folder).mean() for folder in folders]):.2f}" if stage > 1 else ""
            print(f"| {arm} | {rows[0]['stage']} | {' | '.join(told)} | {agrees} |")


if __name__ == "__main__":
    main()
