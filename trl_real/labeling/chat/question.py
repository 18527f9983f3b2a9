"""What a chat model is asked and what it answers: the contract between a judge and its models."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol


class Question(NamedTuple):
    """A chat to be answered by one of a few labels."""

    messages: list[dict[str, str]]
    labels: tuple[str, ...]


@dataclass(frozen=True)
class Answer:
    """
    What a chat model said to a question.

    Args:
        top: Likely tokens at the answer's first place with their log-probabilities (natural); None if not told.
        text: What it wrote, where it wrote.
        failure: Why there is no answer; empty where there is one.
        cached: Whether it was there from before.
        input_tokens: Read.
        output_tokens: Written.
        cost: What it cost when it was bought.
    """

    top: tuple[tuple[str, float], ...] | None = None
    text: str = ""
    failure: str = ""
    cached: bool = False
    input_tokens: int = 0
    output_tokens: int = 0
    cost: float = 0.0


class ChatModel(Protocol):
    """Answers questions: `trl_real.labeling.chat.local.LocalChat` and `trl_real.labeling.chat.server.Endpoint`."""

    name: str

    def answers(self, questions: Sequence[Question]) -> list[Answer]:
        """An answer to each question, in order."""
        ...
