"""Questions to a chat model and its answers: the interface between a judge and its models."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from trl_real.labeling.chat.reading import MIN_LABEL_MASS, AnswerReading, Place, read, read_top


CHARACTERS_PER_TOKEN = 3.0  # more in Latin script, so estimates are high
IMAGE_TOKENS = 1600  # of an image of about a million pixels


class Question(NamedTuple):
    """Chat that is answered by one of a few labels."""

    messages: list[dict[str, Any]]
    labels: tuple[str, ...]

    @property
    def n_tokens(self) -> int:
        """Estimate of its tokens."""
        contents = [message["content"] for message in self.messages]
        parts = [part for content in contents if isinstance(content, list) for part in content]
        texts = [content for content in contents if isinstance(content, str)]
        texts += [part["text"] for part in parts if part["type"] == "text"]
        return round(sum(map(len, texts)) / CHARACTERS_PER_TOKEN) + IMAGE_TOKENS * sum(
            part["type"] == "image_url" for part in parts
        )

    def with_images(self, urls: Sequence[str]) -> "Question":
        """Return the question with images, given as URLs, before the text of its last message."""
        *before, last = self.messages
        shown = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
        content = [*shown, {"type": "text", "text": last["content"]}]
        return self._replace(messages=[*before, {**last, "content": content}]) if urls else self


@dataclass(frozen=True)
class Answer:
    """
    Answer of a chat model to a question.

    Args:
        top: Likely tokens where the label stands, with natural log-probabilities; None if they are unknown, or in
            `places`.
        text: Generated text; empty if the model did not generate.
        places: Tokens of the text, with alternatives where they are known.
        reasoning: Thoughts outside the text.
        finish_reason: Why the generation ended: `"stop"`, or `"length"` if it was cut.
        failure: Reason for a missing answer; empty if there is an answer.
        cached: Whether the answer comes from the cache.
        input_tokens: Number of tokens read.
        output_tokens: Number of tokens generated.
        cost: Price paid for the answer.
    """

    top: tuple[tuple[str, float], ...] | None = None
    text: str = ""
    failure: str = ""
    cached: bool = False
    input_tokens: int = 0
    output_tokens: int = 0
    cost: float = 0.0
    places: tuple[Place, ...] = ()
    reasoning: str = ""
    finish_reason: str = "stop"

    def read(self, labels: tuple[str, ...], min_mass: float = MIN_LABEL_MASS) -> AnswerReading:
        """Return the probabilities of the labels, or why there are none; see `trl_real.labeling.chat.reading.read`."""
        if self.failure:
            return AnswerReading(failure=self.failure)
        if self.top and not self.text:
            return read_top(self.top, labels, min_mass)
        likeliest = [Place(max(self.top, key=lambda each: each[1])[0], self.top)] if self.top else []
        return read(self.text, self.places or likeliest, self.reasoning, self.finish_reason, labels, min_mass)


class ChatModel(Protocol):
    """Model that answers questions, such as `LocalChat` and `Endpoint` in this folder."""

    name: str

    def answers(self, questions: Sequence[Question]) -> list[Answer]:
        """Answer each question, in order."""
        ...
