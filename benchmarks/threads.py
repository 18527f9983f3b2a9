"""
What waiting threads cost: forward and training steps with two threads, for settings of GNU OpenMP, on an idle or a
busy machine.

    python benchmarks/threads.py                # on an idle machine
    python benchmarks/threads.py --busy 4       # next to four processes that compute

Each setting runs in a process of its own (OpenMP reads the environment once); rounds are interleaved, and a figure is
the median over rounds of the ratio to the default's time in the same round.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time


SETTINGS = {
    "default": {},
    "GOMP_SPINCOUNT=300": {"GOMP_SPINCOUNT": "300"},
    "GOMP_SPINCOUNT=1000": {"GOMP_SPINCOUNT": "1000"},
    "GOMP_SPINCOUNT=3000": {"GOMP_SPINCOUNT": "3000"},
    "GOMP_SPINCOUNT=10000": {"GOMP_SPINCOUNT": "10000"},
    "OMP_WAIT_POLICY=PASSIVE": {"OMP_WAIT_POLICY": "PASSIVE"},
}
OF_OPENMP = ("OMP_", "GOMP_", "KMP_")
MODEL = {"hidden_size": 576, "intermediate_size": 1536, "num_attention_heads": 9, "num_key_value_heads": 3}  # SmolLM2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=4, help="number of passes of each kind in a process")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--busy", type=int, default=0, help="number of processes that compute all the time")
    parser.add_argument("--only", nargs="*", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.work:
        print(*work(args.steps))
        return
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(args.busy)]
    try:
        measure(args)
    finally:
        for other in others:
            other.kill()


def measure(args: argparse.Namespace) -> None:
    """Print the ratio of each setting's time to the default's, by kind of work."""
    found: dict[str, list[list[float]]] = {name: [] for name in args.only}
    for _ in range(args.rounds):
        for name in args.only:
            own = {key: value for key, value in os.environ.items() if not key.startswith(OF_OPENMP)}
            own |= {"OMP_NUM_THREADS": str(args.threads), **SETTINGS[name]}
            command = [sys.executable, __file__, "--work", "--steps", str(args.steps)]
            output = subprocess.run(command, env=own, check=True, capture_output=True, text=True).stdout
            found[name].append([float(word) for word in output.split()])
            print(f"{name:<24} {output.strip()}", file=sys.stderr, flush=True)
    load = os.getloadavg()[0]
    print(f"{args.threads} threads, {args.busy} busy processes of its own, load {load:.1f}, {args.rounds} rounds\n")
    print("| setting | forward | training step | generation |\n|---|---|---|---|")
    for name, rounds in found.items():
        pairs = list(zip(rounds, found[args.only[0]], strict=True))
        ratios = [statistics.median(own[i] / base[i] for own, base in pairs) for i in range(3)]
        print(f"| {name} | " + " | ".join(f"{ratio:.2f}" for ratio in ratios) + " |")


def work(steps: int) -> list[float]:
    """Return seconds of forward passes, of training steps and of decoding, each after one that does not count."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=4096, num_hidden_layers=4, **MODEL))
    tokens = torch.randint(4096, (1, 512))
    prompts = torch.randint(4096, (8, 16))

    def forward() -> None:
        with torch.inference_mode():
            model(input_ids=tokens)

    def train() -> None:
        model(input_ids=tokens[:, :256], labels=tokens[:, :256]).loss.backward()
        model.zero_grad()

    def write() -> None:
        model.generate(prompts, max_new_tokens=8, do_sample=False, eos_token_id=None, pad_token_id=0)

    return [seconds(job, steps) for job in (forward, train, write)]


def seconds(job, steps: int) -> float:
    """Return the duration of a job run a number of times."""
    job()
    started = time.perf_counter()
    for _ in range(steps):
        job()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
