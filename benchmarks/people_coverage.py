"""
How often the intervals of `people_win_rate` contain what people say about all rows, and how wide they are.

    python benchmarks/people_coverage.py --data pandalm [--draws 2000] [--labels 30 60 120] [--cache FOLDER]

Each draw takes as many prompts as the data has, with replacement (so the truth is the mean of the data), asks people
about some of the pairs, uniformly or by the judge's uncertainty, and estimates. Judges: another annotator, the longer
response, a Bradley-Terry model on SmolLM2's embeddings (each pair judged by a fit without it), and made-up ones of
known accuracy, some with a bias for a side or for length. `--cache` keeps the embeddings.
"""

import argparse
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from datasets import load_dataset

from trl_real.demo.model import demo_model
from trl_real.functional.bradley_terry import left_out_margins, tune_bradley_terry
from trl_real.functional.statistics.people import people_win_rate
from trl_real.functional.statistics.sampling import draw_rows, uncertainty
from trl_real.labeling.verdicts import drawn_swap
from trl_real.models.encoder import Encoder


DATA = Path(__file__).parents[2] / "shared" / "data"
SIDE = {1: 1.0, 2: 0.0, 0: 0.5}
CHARACTERS, MOST_EMBEDDED = 300, 800
SHARPNESS = {0.55: 0.1257, 0.7: 0.5244, 0.9: 1.2816}  # normal quantiles of the accuracies


class Pairs(NamedTuple):
    """Pairs of texts with people's verdict on the first; another annotator's where there are several. `(M,)` each."""

    prompts: list[str]
    first: list[str]
    second: list[str]
    people: np.ndarray
    annotator: np.ndarray | None = None


def table(name: str):
    return load_dataset("parquet", data_files=str(DATA / f"{name}.parquet"), split="train")


def texts_of(rows) -> list[list[str]]:
    return [rows[name][:] for name in ("prompt", "response_1", "response_2")]


def pandalm() -> Pairs:
    """The first annotator is the judge, the mean of the others is people's verdict."""
    rows = table("labelled_pairs/labelled_pairs").filter(lambda row: row["source"] == "pandalm")
    votes = [[SIDE[label] for label in labels] for labels in rows["annotator_labels"]]
    others = np.array([np.mean(labels[1:]) for labels in votes])
    return Pairs(
        *(rows[name][:] for name in ("prompt", "response_1", "response_2")), others, np.array([v[0] for v in votes])
    )


def webgpt() -> Pairs:
    rows = table("webgpt/webgpt_test").select(range(400))
    scores = np.array([rows["score_1"][:], rows["score_2"][:]])
    return Pairs(
        *(rows[name][:] for name in ("prompt", "response_1", "response_2")), (np.sign(scores[0] - scores[1]) + 1) / 2
    )


def hh() -> Pairs:
    """Helpful test pairs; sides are drawn by the texts."""
    rows = table("hh/hh_helpful_test")
    swapped = np.array([drawn_swap(a, b, 0) for a, b in zip(rows["chosen"], rows["rejected"], strict=True)])
    texts = [(b, a) if s else (a, b) for a, b, s in zip(rows["chosen"], rows["rejected"], swapped, strict=True)]
    return Pairs(rows["prompt"][:], [a for a, _ in texts], [b for _, b in texts], 1.0 - swapped)


FRAMES = {"pandalm": pandalm, "webgpt": webgpt, "hh": hh}


def judges_of(pairs: Pairs, name: str, cache: Path) -> dict[str, np.ndarray]:
    """Probabilities of every judge on all pairs. Shape `(M,)` each."""
    longer = np.array([len(a) - len(b) for a, b in zip(pairs.first, pairs.second, strict=True)], dtype=float)
    found = {"annotator": pairs.annotator} if pairs.annotator is not None else {}
    found["longer"] = expit(longer / longer.std())
    if len(pairs.people) <= MOST_EMBEDDED:
        found["BT on embeddings"] = bradley_terry(pairs, name, cache)
    draws = np.random.default_rng(5)
    truth = np.where(pairs.people == 0.5, draws.random(len(pairs.people)), pairs.people)
    signs, noise = np.sign(truth - 0.5), draws.normal(size=len(truth))
    for accuracy, sharpness in SHARPNESS.items():
        logits = 2 * sharpness * (signs * sharpness + noise)
        found[f"made-up {accuracy}"] = expit(logits)
        if accuracy != 0.7:
            found[f"made-up {accuracy}, 0 or 1"] = (logits > 0) * 1.0
    logits = 2 * SHARPNESS[0.7] * (signs * SHARPNESS[0.7] + noise)
    found["made-up 0.7, biased to the first"] = expit(logits + 1.0)
    found["made-up 0.7, biased to the longer"] = expit(logits + np.sign(longer))
    return found


def bradley_terry(pairs: Pairs, name: str, cache: Path) -> np.ndarray:
    path = cache / f"people_coverage_{name}.npy"
    if not path.exists():
        encoder = Encoder(demo_model())
        texts = [text[:CHARACTERS] or " " for text in (*pairs.first, *pairs.second)]
        np.save(path, encoder([None] * len(texts), texts).vectors.float().numpy())
    vectors = torch.from_numpy(np.load(path)).double()
    first, second = vectors.chunk(2)
    sides = torch.from_numpy(np.where(pairs.people >= 0.5, 1.0, -1.0))
    x = (first - second) * sides[:, None]
    fit, _ = tune_bradley_terry(x / x.std())
    return expit((left_out_margins(x / x.std(), fit) * sides).numpy())


def expit(logits: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-logits))


def simulate(pairs: Pairs, judge: np.ndarray, n_labels: int, by: str, n_draws: int) -> dict[str, float]:
    """Coverage of both intervals, their mean widths, and the median of the effective number of labels."""
    rng, truth = np.random.default_rng(n_labels), pairs.people.mean()
    names = {prompt: i for i, prompt in enumerate(dict.fromkeys(pairs.prompts))}
    groups = np.array([names[prompt] for prompt in pairs.prompts])
    members = [np.flatnonzero(groups == i) for i in range(len(names))]
    rows: list[tuple[float, ...]] = []
    for _ in range(n_draws):
        chosen = rng.integers(0, len(members), len(members))
        taken = np.concatenate([members[i] for i in chosen])
        prompts = np.repeat(np.arange(len(chosen)), [len(members[i]) for i in chosen])
        f, y = judge[taken], pairs.people[taken]
        scores = uncertainty(f) if by == "uncertainty" else np.zeros(len(f))
        strata = prompts % 4 if by == "strata" else None
        drawn = draw_rows(scores, rng.random(len(f)).clip(1e-12, 1 - 1e-12), n_labels, strata=strata)
        votes = np.full(len(f), np.nan)
        votes[drawn.rows] = y[drawn.rows]
        found = people_win_rate(f, votes, drawn.inclusion_probabilities, clusters=prompts)
        ends = [found[f"{who}ci_{end}"] for who in ("", "people_only_") for end in ("low", "high")]
        rows.append((*ends, found["effective_people"], found["judge_win_rate"]))
    low, high, low_alone, high_alone, effective, judged = np.array(rows).T
    return {
        "covers": float(((low <= truth) & (truth <= high)).mean()),
        "alone_covers": float(((low_alone <= truth) & (truth <= high_alone)).mean()),
        "width": float(np.nanmean(high - low) / np.nanmean(high_alone - low_alone)),
        "effective": float(np.nanmedian(effective)),
        "judge_bias": float(judged.mean() - truth),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=FRAMES, default="pandalm")
    parser.add_argument("--draws", type=int, default=2000)
    parser.add_argument("--labels", type=int, nargs="+", default=[30, 60, 120])
    parser.add_argument("--by", nargs="+", default=["uniform", "uncertainty"])
    parser.add_argument("--judges", nargs="+")
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache" / "trl_real")
    args = parser.parse_args()
    pairs = FRAMES[args.data]()
    print(f"{args.data}: {len(pairs.people)} pairs, {len(set(pairs.prompts))} prompts, rate {pairs.people.mean():.3f}")
    decided = pairs.people != 0.5
    print("| judge | accuracy | its bias | labels | drawn by | covers | people alone | width | effective |")
    print("|---|---|---|---:|---|---|---|---|---:|")
    for name, judge in judges_of(pairs, args.data, args.cache).items():
        if args.judges and name not in args.judges:
            continue
        agree = (np.sign(judge - 0.5) + 1) / 2 - (np.sign(pairs.people - 0.5) + 1) / 2
        accuracy = float((1 - np.abs(agree))[decided].mean())
        for n_labels in args.labels:
            for by in args.by:
                r = simulate(pairs, judge, n_labels, by, args.draws)
                print(
                    f"| {name} | {accuracy:.2f} | {r['judge_bias']:+.3f} | {n_labels} | {by} | {r['covers']:.3f} | "
                    f"{r['alone_covers']:.3f} | {r['width']:.2f} | {r['effective']:.0f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
