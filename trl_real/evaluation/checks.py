"""Reasons to doubt a win rate: constant or equal answers, length, an unfair judge, too little data."""

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

from trl_real.labeling.verdicts import VerdictSummary


# The honest ones of 39 entries on the AlpacaEval boards repeat a text, or share a length, in at most 3 % of the rows.
REPEATED, ENOUGH = 0.1, 20
LENGTH_RATIO, LENGTH_GAP = 1.5, 0.1
BIAS, FLIPS, FAILED, CUT_OFF = 0.1, 0.3, 0.05, 0.05
FEW_PROMPTS = 50


class Doubt(NamedTuple):
    """
    Reason to doubt a win rate.

    Args:
        name: Short name, such as `"duplicates"`.
        words: Finding and meaning in one sentence.
        grave: Whether the finding makes the rate worthless.
    """

    name: str
    words: str
    grave: bool = False


def text_doubts(side: str, prompts: Sequence[str], texts: Sequence[str]) -> list[Doubt]:
    """Check the completions of one side for equal answers to different prompts, and for empty answers."""
    n, doubts = len(texts), []
    texts = [" ".join(text.split()) for text in texts]
    answered: dict[str, set[str]] = {}
    for prompt, text in zip(prompts, texts, strict=True):
        answered.setdefault(text, set()).add(prompt)
    repeated = [text for text in texts if text and len(answered[text]) > 1]
    if n >= ENOUGH and len(repeated) > REPEATED * n:
        words = (
            f"{side} gives the same answer to different prompts in {len(repeated)} of {n} rows "
            f"(distinct texts: {len(set(repeated))}): a constant answer that wins shows a weak judge, not a good model"
        )
        doubts.append(Doubt("duplicates", words, grave=len(repeated) > 0.5 * n))
    n_empty = texts.count("")
    if n_empty:
        doubts.append(Doubt("empty", f"{side} gives an empty answer in {n_empty} of {n} rows"))
    return doubts


def cut_doubts(side: str, cut: Sequence[bool]) -> list[Doubt]:
    """Check whether many completions of one side were cut off at their largest number of tokens (`cut`, by row)."""
    if sum(cut) <= CUT_OFF * len(cut):
        return []
    words = f"{sum(cut)} of {len(cut)} answers of {side} were cut off: raise max_new_tokens"
    return [Doubt("cut", words)]


def identity_doubts(same: Sequence[bool]) -> list[Doubt]:
    """Check whether both sides mostly give the same answers (`same`, by row), as after a training without effect."""
    if sum(same) <= 0.5 * len(same):
        return []
    words = (
        f"both sides give the same answer in {sum(same)} of {len(same)} rows, which were not judged: "
        "check whether training has changed the model at all"
    )
    return [Doubt("identical", words, grave=all(same))]


def length_doubts(side: str, lengths: Sequence[float]) -> list[Doubt]:
    """
    Check whether the completions of one side look like a single text, from their lengths alone, in characters; 0 and
    NaN are ignored.
    """
    lengths = [length for length in lengths if length and not math.isnan(length)]
    if len(lengths) < ENOUGH:
        return []
    length, count = Counter(lengths).most_common(1)[0]
    if count <= REPEATED * len(lengths):
        return []
    words = (
        f"{count} of {len(lengths)} answers of {side} are {length:.0f} characters long: "
        "check whether they are the same text, or were cut off"
    )
    return [Doubt("same length", words, grave=count > 0.5 * len(lengths))]


def rate_doubts(rates: dict[str, Any], model_length: float, baseline_length: float, n_prompts: int) -> list[Doubt]:
    """
    Check the rates of `win_rate` for effects of length, failed verdicts and too few different prompts. The lengths are
    means in characters, NaN if unknown.
    """
    doubts = []
    ratio = model_length / baseline_length if baseline_length else math.nan
    if ratio > LENGTH_RATIO or ratio < 1 / LENGTH_RATIO:
        words = (
            f"the model's answers are {ratio:.2g} times as long as the baseline's: judges tend to take the longer one"
        )
        doubts.append(Doubt("length", words))
    equal = rates.get("equal_length_win_rate", math.nan)
    if abs(equal - rates["win_rate"]) > LENGTH_GAP:
        words = f"at equal length the win rate would be {equal:.2f} instead of {rates['win_rate']:.2f}"
        doubts.append(Doubt("length decides", words))
    n_asked = rates["n_total"] + rates["n_failed"]
    if rates["n_failed"] > FAILED * n_asked:
        words = f"{rates['n_failed']} of {n_asked} rows got no verdict; the rate is biased if they are not random"
        doubts.append(Doubt("failures", words))
    if n_prompts < FEW_PROMPTS:
        doubts.append(Doubt("few prompts", f"{n_prompts} prompts: too few to detect small differences"))
    return doubts


def judge_doubts(summary: VerdictSummary) -> list[Doubt]:
    """Check whether the judge's verdicts depend on the order of the answers."""
    doubts = []
    if abs(summary.position_bias) > BIAS:
        side = "first" if summary.position_bias > 0 else "second"
        words = f"the judge favours the answer that is shown {side} (position bias {summary.position_bias:+.2f})"
        doubts.append(Doubt("position bias", words))
    if summary.flip_rate > FLIPS:
        words = f"the judge's winner changes when the order is swapped in {summary.flip_rate:.0%} of the pairs"
        doubts.append(Doubt("flips", words, grave=summary.flip_rate > 0.5))
    return doubts
