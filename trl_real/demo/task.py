"""
Small version of the controlled-sentiment task of the DPO paper (Rafailov et al. 2023, section 6).

The annotator is a known reward, VADER's compound score in [-1, 1], so that the effect of labels can be measured.
"""

import re

from trl_real.errors import needs_extra


TASK = (
    "SmolLM2-135M-Instruct writes short replies to prompts made for this demo. The true reward, VADER's lexicon-based "
    "sentiment score, replaces the annotator: the policy should learn to write more positively. The demo shows every "
    "step on a task with a known truth; it does not show how people would judge the replies."
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
    """Return every form of prompt for every topic, as messages."""
    return [[{"role": "user", "content": form.format(topic)}] for topic in topics for form in FORMS]


def whole_sentences(text: str) -> str:
    """
    Cut the text after its last complete sentence, so that truncated replies are not trained on as complete.

    Text without a sentence end stays as it is.
    """
    ends = [match.end() for match in re.finditer(r"[.!?][\"')]*(?=\s|$)", text)]
    return text[: ends[-1]].strip() if ends else text.strip()


def sentiment(texts: list[str]) -> list[float]:
    """
    Return VADER's compound score of each text, in [-1, 1].

    Raises:
        MissingExtraError: If vaderSentiment is not installed.
    """
    with needs_extra("vaderSentiment", "demo"):
        from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer
    analyzer = SentimentIntensityAnalyzer()
    return [analyzer.polarity_scores(text)["compound"] for text in texts]
