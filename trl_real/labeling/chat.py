"""A chat model that reads two responses and names the better one, in this process or behind an endpoint."""

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from trl_real.data.conversation import text_of
from trl_real.errors import TrlRealError
from trl_real.labeling.templates import JudgeTemplate, as_template
from trl_real.labeling.verdicts import TIE, Verdict, VerdictJudge


CUT = " […]"


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
    """Answers questions: `trl_real.labeling.local_chat.LocalChat` and `trl_real.labeling.endpoint.Endpoint`."""

    name: str

    def answers(self, questions: Sequence[Question]) -> list[Answer]:
        """An answer to each question, in order."""
        ...


def mean(a_first: float, b_first: float) -> float:
    """The mean of the two orders: what a judge with a position bias still has to say."""
    return (a_first + b_first) / 2


def agree(a_first: float, b_first: float) -> float:
    """MT-bench's rule: a win if both orders name the same winner, else a tie."""
    sides = {a_first > TIE, b_first > TIE} if TIE not in (a_first, b_first) else {None}
    return TIE if len(sides) > 1 or None in sides else float(sides.pop())


RULES: dict[str, Callable[[float, float], float]] = {"mean": mean, "agree": agree}
