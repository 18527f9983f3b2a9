"""
The controlled-sentiment task of the DPO paper (Rafailov et al. 2023, section 6), small: the policy writes, and a known
reward, here VADER's compound score in [-1, 1], stands for the annotator, so that what a label taught can be measured.
"""

import re

from trl_real.errors import MissingExtraError


TASK = (
    "SmolLM2-135M-Instruct writes short replies to prompts made for this demo; the true reward is VADER's compound "
    "sentiment score, a lexicon, which plays the annotator. The policy is to write more positively. This shows the "
    "machinery on a task with a known truth; it says nothing about how people would judge the replies."
)

FORMS = (
    "Write two sentences of a diary entry about {}.",
    "Tell me in two sentences how you feel about {}.",
)

TRAIN_TOPICS = (
    "the night shift", "the first snow", "a long train ride", "the new neighbour", "an exam", "the old piano",
    "Monday morning", "a lost umbrella", "the school reunion", "a visit to the dentist", "the village market",
    "moving house", "a power cut", "the broken lift", "learning to swim", "a letter from abroad", "the empty fridge",
    "a job interview", "the rain in April", "a birthday alone", "the last bus", "cooking for guests", "a stray cat",
    "the traffic jam", "a hike in the fog", "the library", "a haircut", "the office party", "an early alarm",
    "a walk by the river", "the football match", "a cold coffee", "the garden in autumn", "a phone call at night",
    "the crowded beach", "a flat tyre", "the theatre", "waiting for results", "a chess game", "the attic",
)  # fmt: skip

TEST_TOPICS = (
    "the summer holiday", "a missed flight", "the new manager", "a thunderstorm", "the farewell dinner",
    "a broken window", "the morning run", "a hospital visit", "the street musician", "a second-hand bicycle",
    "the tax return", "a wedding in the family",
)  # fmt: skip


def prompts(topics: tuple[str, ...]) -> list[list[dict[str, str]]]:
    """Every form of prompt about every topic, as messages."""
    return [[{"role": "user", "content": form.format(topic)}] for topic in topics for form in FORMS]


def whole_sentences(text: str) -> str:
    """
    The text up to its last full stop: a reply that was cut off must not be taught as complete.

    Text without one stays as it is.
    """
    ends = [match.end() for match in re.finditer(r"[.!?][\"')]*(?=\s|$)", text)]
    return text[: ends[-1]].strip() if ends else text.strip()


def sentiment(texts: list[str]) -> list[float]:
    """
    VADER's compound score of each text, in [-1, 1].

    Raises:
        MissingExtraError: If vaderSentiment is not installed.
    """
    try:
        from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer
    except ImportError as error:
        raise MissingExtraError("vaderSentiment", "demo") from error
    analyzer = SentimentIntensityAnalyzer()
    return [analyzer.polarity_scores(text)["compound"] for text in texts]
