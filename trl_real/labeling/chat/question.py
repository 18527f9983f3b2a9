"""Questions to a chat model and its answers: the interface between a judge and its models."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol


class Question(NamedTuple):
    """Chat that is answered by one of a few labels."""

    messages: list[dict[str, str]]
    labels: tuple[str, ...]


@dataclass(frozen=True)
class Answer:
    """
    Answer of a chat model to a question.

    Args:
        top: Likely tokens at the first position, with natural log-probabilities; None if they are unknown.
        text: Generated text; empty if the model did not generate.
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


class ChatModel(Protocol):
    """Model that answers questions, such as `LocalChat` and `Endpoint` in this folder."""

    name: str

    def answers(self, questions: Sequence[Question]) -> list[Answer]:
        """Answer each question, in order."""
        ...
