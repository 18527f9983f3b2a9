"""
Seconds of a greedy design beside Sherman-Morrison scores, interleaved (A B A B …), medians of the rounds.

    python benchmarks/design.py --rounds 3

Both pick the same number from the same made-up features, in float32: a spectrum that falls as a power, of length 1 or
of log-normal lengths as raw gradients have, and an isotropic one of length 1, the hardest, since all candidates are
nearly ties until the end. There the order of the picks hangs on rounding; `log det V` says what the picks are worth,
and is computed anew from each list of picks. Seconds are those of the processor, so that a busy machine matters less.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor
from tqdm.auto import tqdm

from trl_real.functional.design import greedy_design


def _unit(features: Tensor) -> Tensor:
    return features / features.norm(dim=1, keepdim=True)


def power_law(n: int, d: int, generator: torch.Generator) -> Tensor:
    """Unit vectors whose coordinates have standard deviations `1 / sqrt(j)`."""
    return _unit(torch.randn(n, d, generator=generator) * torch.arange(1, d + 1) ** -0.5)


def raw_norms(n: int, d: int, generator: torch.Generator) -> Tensor:
    """The same, with log-normal lengths."""
    return power_law(n, d, generator) * torch.randn(n, 1, generator=generator).mul(0.5).exp()


def isotropic(n: int, d: int, generator: torch.Generator) -> Tensor:
    """Unit vectors of any direction."""
    return _unit(torch.randn(n, d, generator=generator))


FEATURES: dict[str, Callable[[int, int, torch.Generator], Tensor]] = {
    "power law, length 1": power_law,
    "power law, log-normal lengths": raw_norms,
    "isotropic, length 1": isotropic,
}


def sherman_morrison(features: Tensor, k: int) -> Tensor:
    """Every score after every pick, by one product of a matrix and a vector. Shape `(P, d)` to `(k,)`."""
    inverse = torch.eye(features.shape[1])
    scores, picks = features.square().sum(1), []
    for _ in range(k):
        best = int(scores.argmax())
        picks.append(best)
        u = inverse @ features[best]
        q = u / (1 + features[best] @ u).sqrt()
        inverse.addr_(q, q, alpha=-1)
        scores.sub_((features @ q).square_())
        scores[picks] = -torch.inf
    return torch.tensor(picks)


def ours(features: Tensor, k: int) -> Tensor:
    """The same picks. Shape `(P, d)` to `(k,)`."""
    return greedy_design(features, k).indices


METHODS: dict[str, Callable[[Tensor, int], Tensor]] = {"Sherman-Morrison": sherman_morrison, "greedy_design": ours}


def log_det(features: Tensor) -> float:
    """`log det (I + sum phi phi^T)` of some candidates, in float64."""
    v = features.double().T @ features.double()
    v.diagonal().add_(1)
    return float(torch.linalg.slogdet(v).logabsdet)


def measure(features: Tensor, k: int, rounds: int) -> tuple[dict[str, list[float]], dict[str, Tensor]]:
    """Seconds of the processor by method and round, and the picks."""
    seconds, picks = {name: [] for name in METHODS}, {}
    for _ in tqdm(range(rounds), desc="Rounds", leave=False):
        for name, method in METHODS.items():
            start = time.process_time()
            picks[name] = method(features, k)
            seconds[name].append(time.process_time() - start)
    return seconds, picks


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--candidates", type=int, default=50_000)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--picks", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--features", nargs="+", choices=list(FEATURES), default=list(FEATURES))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    for name in args.features:
        features = FEATURES[name](args.candidates, args.width, torch.Generator().manual_seed(0))
        seconds, picks = measure(features, args.picks, args.rounds)
        median = {method: statistics.median(values) for method, values in seconds.items()}
        ratios = [a / b for a, b in zip(*seconds.values(), strict=True)]
        worth = {method: log_det(features[some]) for method, some in picks.items()}
        common = len(set.intersection(*(set(some.tolist()) for some in picks.values())))
        for method in METHODS:
            print(f"{name:30} {method:17} {median[method]:6.2f} s  log det {worth[method]:.3f}")
        print(f"{name:30} {'ratio':17} {statistics.median(ratios):6.2f}x ({min(ratios):.2f} to {max(ratios):.2f}), "
              f"{common} of {args.picks} picks in common", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
