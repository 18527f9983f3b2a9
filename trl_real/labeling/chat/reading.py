"""Reading of a judge's answer: the probability of each label where the answer names one, or why there is none."""

import math
import unicodedata
from collections.abc import Sequence
from typing import NamedTuple

from trl_real.data.thoughts import without_thoughts
from trl_real.labeling.chat.verdict_text import Named, named, plain


MIN_LABEL_MASS = 0.1
CUT = ("length", "max_tokens", "model_length")  # OpenAI and vLLM, Anthropic and Gemini, Mistral
_AROUND = " \t\n\r\"'“”‘’`*_()[]{}<>.,:;!$"
_SPACES = str.maketrans({"Ġ": " ", "▁": " ", "Ċ": "\n"})


class Place(NamedTuple):
    """
    Token of an answer.

    Args:
        token: Its text.
        top: Likely tokens at its place, itself included, with natural log-probabilities; empty if they are unknown.
    """

    token: str
    top: tuple[tuple[str, float], ...] = ()


class AnswerReading(NamedTuple):
    """
    What an answer says.

    Args:
        shares: Probability of each label, in their order, which add up to 1; empty on failure.
        mass: Probability of all labels together where the answer names one; NaN if it is unknown.
        failure: Reason for a missing verdict; empty if there is one.
    """

    shares: tuple[float, ...] = ()
    mass: float = math.nan
    failure: str = ""


def read(
    text: str,
    places: Sequence[Place] = (),
    reasoning: str = "",
    finish_reason: str = "stop",
    labels: tuple[str, ...] = ("A", "B"),
    min_mass: float = MIN_LABEL_MASS,
) -> AnswerReading:
    """
    Read an answer.

    The words decide which label is named. If the token there has likely alternatives, they give the probabilities.

    Args:
        text: Generated text, which may begin with thoughts.
        places: Tokens of the text, in order, if the server tells them; those of the thoughts may be missing.
        reasoning: Thoughts from a separate field. Nothing is read from them, unless they are a label alone.
        finish_reason: Why the generation ended.
        labels: Labels of the first response, of the second, and, if there is one, of a tie.
        min_mass: Smallest probability of all labels together.
    """
    answered = without_thoughts(text)
    said, cut = plain(answered.text), finish_reason.lower() in CUT
    if not said.strip() and plain(reasoning).strip() in labels:
        return _certain(plain(reasoning).strip(), labels)
    found = named(said, labels, cut)
    if found is None:
        return AnswerReading(failure=_failure(said, answered.thinking or bool(reasoning), cut, finish_reason))
    place, is_exact = _place(said, found, places)
    if place is None:
        return _certain(found.label, labels)
    reading = read_top(place.top, labels, min_mass)
    return reading if is_exact or not reading.failure else _certain(found.label, labels)


def read_top(
    top: Sequence[tuple[str, float]], labels: tuple[str, ...], min_mass: float = MIN_LABEL_MASS
) -> AnswerReading:
    """
    Read the likely tokens of one place: variants of a label (`"A"`, `" A"`, `"Ａ"`, `"(A"`) add up.

    Args:
        top: Tokens with natural log-probabilities.
        labels: As in `read`.
        min_mass: As in `read`; less is a failure, and never a ratio of what is left over.
    """
    mass = dict.fromkeys(labels, 0.0)
    for token, log_probability in top:
        label = bare(token, labels)
        if label in mass:
            mass[label] += math.exp(log_probability)
    total = sum(mass.values())
    if not total > 0 or total < min_mass:
        return AnswerReading(mass=total, failure="an answer without probability on its labels")
    return AnswerReading(tuple(value / total for value in mass.values()), min(total, 1.0))


def bare(token: str, labels: Sequence[str] = ()) -> str:
    """Return a token without spaces, quotes and punctuation, with plain letters; a label stays as it is."""
    token = unicodedata.normalize("NFKC", token.translate(_SPACES)).strip()
    return token if token in labels else token.strip(_AROUND)


def _certain(label: str, labels: tuple[str, ...]) -> AnswerReading:
    return AnswerReading(tuple(float(label == each) for each in labels))


def _failure(said: str, thinks: bool, cut: bool, finish_reason: str) -> str:
    if cut:
        return "the answer was cut off" + (" while thinking" if thinks and not said.strip() else "")
    if finish_reason == "content_filter":
        return "an answer withheld by a content filter"
    return "an answer that names no response"


def _place(said: str, found: Named, places: Sequence[Place]) -> tuple[Place | None, bool]:
    """Return the token that names the label, with its alternatives, and whether it is surely this one."""
    pieces = [unicodedata.normalize("NFKC", place.token.translate(_SPACES)) for place in places]
    start = plain("".join(pieces)).rfind(said.strip()) if said.strip() and found.place is not None else -1
    if start >= 0 and found.place is not None:
        target = start + found.place - (len(said) - len(said.lstrip()))
        for place, piece in zip(places, pieces, strict=True):
            if target < len(piece):
                return (place, True) if place.top and bare(place.token) == found.label else (None, True)
            target -= len(piece)
    same = [place for place in places if place.top and bare(place.token) == found.label]
    return (same[-1] if same and found.place is not None else None), False
