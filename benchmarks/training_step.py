"""
Seconds a training step of TRL's DPOTrainer beside ours, interleaved (A B C … A B C …), medians of the rounds.

    python benchmarks/training_step.py --rounds 5
    python benchmarks/training_step.py --model MODEL --lora --pairs 2 --length 128 --rounds 3
    python benchmarks/training_step.py --model MODEL --lora --dataset PREFERENCES.parquet --only shared --steps 4

Without `--model` a random Llama is made whose step takes tens of milliseconds. Beside the last rows stands what the
extrapolation may cost: one pass of the language model's head over the completions. `--dataset` takes real pairs, in
the order of the file; `--prompt 1000 --length 1` is a long prompt with short responses, and `--prompt 0` leaves
nothing in common. `--only shared` leaves TRL's step and ours. The plan of the same steps stands above the table.
"""

import argparse
import copy
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
from datasets import Dataset, disable_progress_bars
from peft import LoraConfig
from transformers import TrainerCallback
from transformers.utils import logging
from trl import DPOConfig, DPOTrainer

from trl_real import REALDPOConfig, REALDPOTrainer
from trl_real.data.files import load
from trl_real.functional.preference import Head, extrapolated_log_probs
from trl_real.training.plan import plan_training


sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from support.tiny import tiny_model, tiny_tokenizer


PLAIN, AGAIN, SHARED = "DPOTrainer", "DPOTrainer, again", "prompts read once"
LORA = LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM")
# On a machine that others use, too, the processor's time says more than the clock on the wall.
clock, CLOCK = (time.perf_counter, "wall time") if torch.cuda.is_available() else (time.process_time, "CPU time")
# Of the smallest window, so that the threshold is there and pairs are smoothed within a few steps.
OFF = {"selection_strategy": "easy", "selection_budget": 1.0, "shared_prompts": False}
NOISE = {"noise_smoothing": 0.1, "noise_share": 25.0, "noise_window": 8, "noise_warmup": 0.0}
VARIANTS = {
    PLAIN: {},
    AGAIN: {},  # What this shows over the first row is the noise of the machine.
    SHARED: {"shared_prompts": True},
    "selection, confidences": OFF,
    "+ noise_smoothing": {**OFF, **NOISE},
    "+ noise_extrapolation": {**OFF, **NOISE, "noise_extrapolation": 0.5},
}
ONLY = {"all": list(VARIANTS), "shared": [PLAIN, SHARED]}


class Watch(TrainerCallback):
    """Times each step but the first ones of a run."""

    def __init__(self, skip: int):
        self.skip, self.seconds = skip, []

    def on_step_begin(self, args, state, control, **kwargs):
        self.began = clock()

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step > self.skip:
            self.seconds.append(clock() - self.began)


def rows(args: argparse.Namespace, n: int, soft: bool) -> Dataset:
    """Pairs of a file, or of `args.length` words each, of which no two are alike."""
    words = "boil the water then let tea stand for four minutes rain on a tin roof sum of two numbers".split()

    def text(i: int, length: int) -> str:
        return " ".join(words[(i * 7 + k * k + i * k) % len(words)] for k in range(length))

    if args.dataset:
        data = list(load(args.dataset).select(range(n)).select_columns(["chosen", "rejected"]))
    else:
        sides = {"chosen": 0, "rejected": n}
        prompts = [f"Question {i}? {text(i + 2 * n, args.prompt)} " if args.prompt else "" for i in range(n)]
        data = [
            {name: text(i + k, args.length) for name, k in sides.items()} | {"prompt": p}
            for i, p in enumerate(prompts)
        ]
    return Dataset.from_list([{**row, "label_confidence": 0.9} for row in data] if soft else data)


def make(name: str, args: argparse.Namespace, model: str, folder: str):
    """A trainer of one variant, made anew for each round, and its watch."""
    plain, watch = name in (PLAIN, AGAIN), Watch(args.skip)
    settings = {
        **{"use_cpu": not torch.cuda.is_available(), "bf16": torch.cuda.is_available(), "report_to": "none"},
        **{"save_strategy": "no", "per_device_train_batch_size": args.pairs, "max_steps": args.steps + args.skip},
        **{"gradient_checkpointing": False, "logging_steps": 1000, "disable_tqdm": True, **VARIANTS[name]},
        **{"precompute_ref_log_probs": args.precompute},
    }
    if not args.lora:
        settings["model_init_kwargs"] = {"dtype": "float32"}
    config = (DPOConfig if plain else REALDPOConfig)(folder, **settings)
    trainer = (DPOTrainer if plain else REALDPOTrainer)(
        model,
        args=config,
        train_dataset=rows(args, (args.steps + args.skip) * args.pairs, soft=not (plain or name == SHARED)),
        peft_config=copy.deepcopy(LORA) if args.lora else None,
        callbacks=[watch],
    )
    return trainer, watch


def head_seconds(trainer: REALDPOTrainer) -> float:
    """Median time of one head pass over the completions of a batch; two, where the reference has its own head."""
    batch = next(iter(trainer.get_train_dataloader()))
    n_tokens = int(batch["completion_mask"].sum())
    layer = trainer.accelerator.unwrap_model(trainer.model).get_output_embeddings()
    states = torch.randn(n_tokens, layer.weight.shape[1], device=layer.weight.device)
    labels = torch.zeros(n_tokens, dtype=torch.long, device=layer.weight.device)
    head, seconds = Head(layer.weight), []
    for _ in range(5):
        began = clock()
        extrapolated_log_probs(states, states, labels, head, head, 0.0)
        seconds.append(clock() - began)
    return statistics.median(seconds)


def measure(args: argparse.Namespace, model: str, folder: str) -> tuple[dict[str, list[list[float]]], float]:
    """Steps of every variant, round by round in turn, and the time of a head pass."""
    seconds: dict[str, list[list[float]]] = {name: [] for name in ONLY[args.only]}
    for _ in range(args.rounds):
        for name in seconds:
            trainer, watch = make(name, args, model, folder)
            trainer.train()
            seconds[name].append(watch.seconds)
    trainer, _ = make(SHARED, args, model, folder)
    adapter = LORA if args.lora else None
    print(plan_training(model, rows(args, args.steps * args.pairs, soft=False), trainer.args, adapter).summary())
    return seconds, head_seconds(trainer)


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="folder or Hub id; by default a small random Llama")
    parser.add_argument(
        "--lora", action="store_true", help="train an adapter, which shares its head with the reference"
    )
    parser.add_argument("--pairs", type=int, default=4, help="pairs a step")
    parser.add_argument("--length", type=int, default=10, help="words a response")
    parser.add_argument("--prompt", type=int, default=5, help="words a prompt")
    parser.add_argument("--dataset", help="labelled pairs in place of made-up ones")
    parser.add_argument("--precompute", action="store_true", help="the reference runs before the training")
    parser.add_argument("--only", choices=ONLY, default="all", help="variants to run")
    parser.add_argument("--skip", type=int, default=2, help="steps to leave out at the beginning of a run")
    parser.add_argument("--steps", type=int, default=20, help="timed steps a round")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 1)))
    disable_progress_bars()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        model = args.model or f"{folder}/model"
        if args.model is None:
            sizes = {"hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 4, "initializer_range": 0.05}
            tiny_model(1, 2048, **sizes).save_pretrained(model)
            tiny_tokenizer().save_pretrained(model)
        seconds, head = measure(args, model, f"{folder}/out")
    report(args, seconds, head)


def processor() -> str:
    """Name of the CPU."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.split(": ")[1] for line in lines if line.startswith("model name")), "unknown processor")


def total(rounds: list[list[float]]) -> float:
    """Seconds of all steps: with real pairs, steps differ by a factor of ten."""
    return sum(map(sum, rounds))


def report(args: argparse.Namespace, seconds: dict[str, list[list[float]]], head: float) -> None:
    """Print medians, and the median over rounds of what a round's steps cost more than DPOTrainer's in that round."""
    kind, threads = "LoRA" if args.lora else "full fine-tuning", torch.get_num_threads()
    what = args.dataset or f"{args.prompt} words a prompt, {args.length} a response"
    print(f"\n{args.pairs} pairs a step, {what}, {kind}, {threads} threads, {processor()}; medians of")
    print(f"{args.rounds} rounds of {args.steps} steps, in {CLOCK}; one head pass {1000 * head:.1f} ms\n")
    print(f"{'trainer':28}{'ms a step':>12}{'over DPO':>12}{'in head passes':>18}{'x DPO, summed':>16}")
    base = [statistics.median(steps) for steps in seconds[PLAIN]]
    for name, rounds in seconds.items():
        steps = [statistics.median(steps) for steps in rounds]
        more = statistics.median(step - plain for step, plain in zip(steps, base, strict=True))
        ratio = total(rounds) / total(seconds[PLAIN])
        share = 100 * more / statistics.median(base)
        print(f"{name:28}{1000 * statistics.median(steps):12.1f}{share:11.1f}%{more / head:18.2f}{ratio:16.3f}")


if __name__ == "__main__":
    main()
