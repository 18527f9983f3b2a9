"""Texts, labels and picks that several processes make together."""

from pathlib import Path

from datasets import Dataset

from support.active_selectors import adapted
from support.tiny import SENTENCES, tiny_model, tiny_tokenizer
from trl_real.labeling.annotate import LabelReport, annotate
from trl_real.models.generate import generate
from trl_real.selection.active.gradient import GradientPairSelector


TEXTS = [f"{sentence} {i}" for i in range(4) for sentence in SENTENCES]
POOL = Dataset.from_list(
    [{"prompt": f"prompt {i // 2}", "responses": [TEXTS[i], TEXTS[i - 1], TEXTS[i - 3]]} for i in range(14)]
)


class Counting:
    """A judge that prefers the longer text, does not know what to say of some, and counts what it is asked."""

    name, asked = "longer", 0

    def __call__(self, batch):
        self.asked += len(batch["response_a"])
        pairs = zip(batch["response_a"], batch["response_b"], strict=True)
        return [float("nan") if len(a) % 5 == 0 else float(len(a) > len(b)) for a, b in pairs]


def pairs_of(pool):
    columns = {"pair": [[0, 1]] * len(pool)}
    columns |= {f"response_{side}": [row[i] for row in pool["responses"]] for i, side in enumerate("ab")}
    return Dataset.from_dict({**pool[:], **columns, "similarity": [0.5] * len(pool), "skipped": [""] * len(pool)})


def work(folder: Path, together: bool) -> dict:
    """Texts, labels and picks, with how much was done for them here and now."""
    prompts = [f"tell me {i}" for i in range(7)]
    settings = {"n": 2, "max_new_tokens": 6, "journal": folder / "texts.jsonl", "all_processes": together}
    texts = generate(tiny_model(), tiny_tokenizer(), prompts, **settings)
    judge, free, report = Counting(), Counting(), LabelReport()
    settings = {"batch_size": 3, "all_processes": together}
    labels = annotate(pairs_of(POOL), judge, journal=folder / "verdicts.jsonl", report=report, **settings)
    assert annotate(pairs_of(POOL), free, **settings)[:] == labels[:]
    selector = GradientPairSelector(
        adapted(), tokenizer=tiny_tokenizer(), projection_dim=64, shards=folder / "gradients"
    )
    picks = selector.select(POOL, 5)
    return {
        "texts": texts.texts,
        "written": texts.n_tokens,
        "labels": labels[:],
        "failed": report.verdicts.n_failed,
        "asked": (judge.asked, free.asked),
        "picks": (picks["prompt"][:], picks["pair"][:]),
        "uncertainty": picks["uncertainty"][:],
        "tokens": selector.record.tokens,
    }
