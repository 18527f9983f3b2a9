"""Advice before money: which rule, how many labels, and how sure that is, from a pool and a labelled pilot."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from datasets import Dataset
from torch import Tensor

from trl_real.errors import TrlRealError
from trl_real.functional.statistics.label_savings import Saving, ValueWithInterval, percentiles
from trl_real.models.embed import Context, EmbedderOptions
from trl_real.models.encoder import Encoder
from trl_real.study.advice.pool_facts import PoolFacts, pool_facts
from trl_real.study.learning_arms import AUTO
from trl_real.study.pool import StudyPool, split_by_prompt, study_pool
from trl_real.study.report import in_words
from trl_real.study.results import METRICS, RANDOM
from trl_real.study.run import SPLIT_SEED, frozen_cells, grid_cells
from trl_real.study.summarize import Curves, collect
from trl_real.study.trained import FoldedCells


RULES = (AUTO, "easy@centered", "d_optimal@centered", "i_optimal")
BUDGETS, N_FOLDS, POOL_SHARE = (0.1, 0.2, 0.35, 0.5, 0.75), 4, 0.9
LEAST = 40  # labelled pairs of a pilot
LOOK = 500  # rows of the pool to embed
FIRST_PILOT = 200
CONFIDENCE = 0.95


@dataclass
class RuleAdvice:
    """
    What the pilot says of a rule.

    Args:
        rule: Name of the strategy or mixture.
        gain: Mean gain in test loss over random at the same budgets, in nats, with an interval that holds for all
            rules together (Bonferroni).
        worse: Whether it was measurably worse than random at a budget.
        saved: Labels saved at the loss that random has with all labels of the simulation; None without a gain to save.
    """

    rule: str
    gain: ValueWithInterval
    worse: bool
    saved: Saving | None


@dataclass
class Advice:
    """
    Advice of `advise`.

    Args:
        rule: Rule to use.
        budget: Number of labels to buy; None without a pilot that taught anything.
        sure: Whether the rule is measurably better than random on the pilot.
        learned: Whether random labels of the pilot taught anything measurable; None without a pilot.
        n_pilot: Number of labelled pairs of the pilot.
        pilot_needed: Number of pilot labels at which this gain would be measurable; None if it is, or if there is no
            gain. If the pilot taught nothing, twice its labels.
        levelled: Whether more labels stopped helping within the pilot.
        rules: What the pilot says of each rule.
        pool: Facts about the pool.
    """

    rule: str
    budget: int | None
    sure: bool
    learned: bool | None
    n_pilot: int
    pilot_needed: int | None
    levelled: bool
    rules: list[RuleAdvice]
    pool: PoolFacts

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        plain = asdict(self)
        for rule, own in zip(plain["rules"], self.rules, strict=True):
            rule["gain"], rule["saved"] = own.gain._asdict(), own.saved and own.saved._asdict()
        return {**plain, "words": self.words()}

    def words(self) -> str:
        """Return one paragraph: which rule, which budget, what to expect, how sure, what would make it sure."""
        if not self.n_pilot:
            return (
                f"{self.pool.words()} Without labels nobody can say which rule is best here: use {self.rule!r}, a "
                "mixture with a random share, which costs little where a rule fails. To know more, label "
                f"{min(FIRST_PILOT, self.pool.n_rows)} pairs drawn at random and give them as the pilot."
            )
        chosen = next(own for own in self.rules if own.rule == self.rule)
        return " ".join([self.pool.words(), f"Use {self.rule!r}{self._budget()}.", self._expect(chosen), self._sure()])

    def _budget(self) -> str:
        if self.budget is None:
            return " for now"
        if self.levelled:
            return f" with {self.budget:,} labels: more of them taught nothing measurable on the pilot"
        return f" with {self.budget:,} labels or more: the pilot's {self.n_pilot:,} still taught more with every step"

    def _expect(self, chosen: RuleAdvice) -> str:
        if not self.learned:
            return "Random labels taught nothing measurable on the pilot: it tells neither a rule nor a budget."
        gain = chosen.gain
        told = f"On the pilot its test loss minus random's is {-gain.value:+.4f} [{-gain.high:+.4f}, {-gain.low:+.4f}]"
        if chosen.saved is None or not self.sure:
            return f"{told}."
        return f"{told}, and it saves {in_words(chosen.saved)} of the labels."

    def _sure(self) -> str:
        if not self.learned:
            return f"Label about {self.pilot_needed:,} pairs before you decide, or try a larger embedding model."
        if self.sure:
            return "That is measurable, for all rules together."
        if self.pilot_needed is None:
            return "No gain is measured, and none is in sight: expect about what random gives."
        if self.pilot_needed >= self.pool.n_rows:
            return "No gain is measured, and the whole pool would hardly show one of this size: expect little of it."
        return f"No gain is measured; with about {self.pilot_needed:,} pilot labels one of this size would be."


def advise(
    pool: Dataset,
    model: Any = None,
    *,
    pilot: Dataset | None = None,
    tokenizer: Any = None,
    revision: str | None = None,
    context: Context = "response",
    layer: int = -1,
    max_length: int = 512,
    batch_tokens: int | None = None,
    dtype: str | None = None,
    device: str | None = None,
    responses: str = "responses",
    scores: str = "scores",
    seeds: int = 5,
) -> Advice:
    """
    Look at a pool, simulate the rules on a labelled pilot, and advise which rule and how many labels to use.

    The pilot is a study (`run_study`) with a Bradley-Terry head on frozen embeddings: each rule buys parts of the
    pilot, and is tested on the prompts that it could not buy, in four folds. A rule other than `"auto"` is recommended
    only where it is measurably better than random, and nowhere measurably worse.

    Args:
        pool: Dataset with `prompt` and `responses`; labels are not read.
        model: Embedding model, as in `EmbeddingPairSelector`; None to use the column `embeddings`.
        pilot: Labelled pairs (`prompt`, `chosen`, `rejected`), or a pool with `scores`, best drawn at random from the
            pool. Without it, the advice is about the pool alone.
        tokenizer, revision, context, layer, max_length, batch_tokens, dtype, device: As in `run_study`.
        responses, scores: Columns of the pool, and of the pilot if it is one.
        seeds: Number of seeds of the simulation.

    Raises:
        MissingColumnError: If a column is missing.
        TrlRealError: If the pool has no pair, or the pilot fewer than 40 labelled pairs.
    """
    options = EmbedderOptions(context, layer, max_length, batch_tokens)
    encoder = None if model is None else Encoder(model, tokenizer, revision, dtype, device, options)
    names: dict[str, Any] = {"responses": responses, "scores": scores, "embeddings": model is None}
    if seeds < 1:
        raise TrlRealError(f"seeds={seeds} is not 1 or more. Type seeds=5.")
    labelled = None if pilot is None else study_pool(pilot, **names)
    n_pilot = 0 if labelled is None else len(labelled)
    if labelled is not None and n_pilot < LEAST:
        raise TrlRealError(f"The pilot has {n_pilot} labelled pairs. Give {LEAST} or more, drawn at random.")
    rows = study_pool(pool, **names, labels=False)
    facts = pool_facts(pool, rows, _embedded(rows.take(range(min(LOOK, len(rows)))), encoder))
    if labelled is None:
        return Advice(AUTO, None, False, None, 0, min(FIRST_PILOT, len(rows)), False, [], facts)
    labelled.vectors = _embedded(labelled, encoder)
    return _advice(simulate(labelled, seeds), n_pilot, facts)


def _embedded(rows: StudyPool, encoder: Encoder | None) -> list[Tensor]:
    """Return the embeddings of the rows, `(K, d)` each."""
    if encoder is None:
        return rows.vectors or []
    prompts = [row.prompt for row in rows.rows for _ in row.texts]
    found = encoder(prompts, [text for row in rows.rows for text in row.texts])
    return list(found.vectors.split([len(row.texts) for row in rows.rows]))


def simulate(pilot: StudyPool, seeds: int, rules: Sequence[str] = RULES) -> Curves:
    """Return the curves of random and the rules on a pilot with embeddings."""
    assert pilot.vectors is not None
    pilot = pilot.readable()
    splits = split_by_prompt(pilot, 0, min(N_FOLDS, len(set(pilot.prompt_keys()))), SPLIT_SEED)
    run = FoldedCells([frozen_cells(pilot.take(a), pilot.take(b), POOL_SHARE, 0.0) for a, b in splits])
    arms, each = [RANDOM, *rules], list(range(seeds))
    curves = collect({cell: run(cell) for cell in grid_cells(arms, BUDGETS, each)}, arms, BUDGETS, each)
    assert curves is not None
    return curves


def _advice(curves: Curves, n_pilot: int, facts: PoolFacts) -> Advice:
    rules = [_rule(curves, rule) for rule in curves.arms if rule != RANDOM]
    learned = not curves.unlearned([1.0])["loss"]
    better = [own for own in rules if own.gain.low > 0 and not own.worse and learned]
    chosen = max(better, key=lambda own: own.gain.value) if better else next(own for own in rules if own.rule == AUTO)
    budget, levelled = _budget(curves, chosen.rule, facts.n_rows) if learned else (None, False)
    needed = None if learned else min(2 * n_pilot, facts.n_rows)
    if learned and not better and chosen.gain.value > 0:
        half = chosen.gain.value - chosen.gain.low
        needed = _rounded(n_pilot * (half / chosen.gain.value) ** 2)
    return Advice(chosen.rule, budget, bool(better), learned, n_pilot, needed, levelled, rules, facts)


def _rule(curves: Curves, rule: str) -> RuleAdvice:
    sign, means = METRICS["loss"].sign, curves.means["loss"]
    gains = sign * (means[:, curves.arms.index(rule)] - means[:, curves.arms.index(RANDOM)])  # (1 + R, B)
    whole, together = gains.mean(1), 1 - (1 - CONFIDENCE) / (len(curves.arms) - 1)
    gain = ValueWithInterval(float(whole[0]), *percentiles(whole[1:], together))
    worse = any(percentiles(g[1:], together)[1] < 0 for g in gains.T)
    return RuleAdvice(rule, gain, worse, next(iter(curves.savings([1.0])["loss"][rule]), None))


def _budget(curves: Curves, rule: str, n_rows: int) -> tuple[int | None, bool]:
    """
    Return the least budget that is not measurably behind the largest, or twice the largest if all others are, and
    whether more labels stopped helping; None if not even the smallest is behind.
    """
    losses = curves.means["loss"][:, curves.arms.index(rule)]  # (1 + R, B)
    for i, n in enumerate(curves.n_labels[:-1]):
        behind = losses[:, i] - losses[:, -1]
        if percentiles(behind[1:], CONFIDENCE)[0] <= 0:
            return (min(math.ceil(n), n_rows), True) if i else (None, False)
    return min(2 * math.ceil(curves.n_labels[-1]), n_rows), False


def _rounded(n: float) -> int:
    """Round up to two digits."""
    scale = 10 ** max(0, int(np.floor(np.log10(max(n, 1)))) - 1)
    return int(math.ceil(n / scale) * scale)
