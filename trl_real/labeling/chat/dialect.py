"""What a server accepts: fields that it refuses are replaced by their twin, reduced or left out, and remembered."""

import logging
import re
import threading
from typing import Any

from trl_real.runtime.server_words import words_of


logger = logging.getLogger(__name__)

TOP_TOKENS = 20  # maximum of OpenAI and vLLM
FEWER_TOKENS = 5  # maximum of TGI and many routers
FIRST_BUDGET, RAISED_BUDGET, LEAST_BUDGET = 16, 4096, 512  # tokens of an answer: of a label alone, with thoughts
# Field -> how servers write it.
NAMES = {
    "top_logprobs": r"top_logprobs|top_n_tokens|n_probs",
    "logprobs": r"logprobs|log[ _-]?probabilit\w+|log[ _-]?probs",
    "max_tokens": r"max_tokens|max_new_tokens",
    "max_completion_tokens": r"max_completion_tokens",
    "temperature": r"temperature",
    "seed": r"seed",
}
TOO_MANY = re.compile(r"context|too large|exceed|at most|greater than|less than|max_model_len|maximum", re.IGNORECASE)
UNKNOWN = re.compile(
    r"(?:not|un)[ -]?(?:supported|allowed|permitted|recogni[sz]ed|implemented|known)|unknown|extra", re.I
)


class Dialect:
    """
    Fields that a server accepts, learned from its refusals; thread-safe.

    Args:
        name: Name of the model in messages.
        own: Fields of the request that may be changed; those that the user set may not.
        may_raise: Whether the number of tokens may be raised once an answer was cut off.
    """

    def __init__(self, name: str, own: set[str], may_raise: bool):
        self.name, self.own, self.may_raise = name, own | {"logprobs", "top_logprobs"}, may_raise
        self.top, self.budget = TOP_TOKENS, FIRST_BUDGET
        self._renamed: dict[str, str] = {}
        self._dropped: set[str] = set()
        self._lock = threading.RLock()

    def of(self, body: dict[str, Any]) -> dict[str, Any]:
        """Return a body in the form that the server accepts."""
        with self._lock:
            if self.top:
                body = {**body, "logprobs": True, "top_logprobs": self.top}
            if self.may_raise:
                body = {**body, "max_tokens": self.budget}
            body = {self._renamed.get(name, name): value for name, value in body.items()}
            return {name: value for name, value in body.items() if name not in self._dropped and value is not None}

    def raise_budget(self, cut_at: int) -> bool:
        """Raise the number of tokens, if an answer was cut off at fewer; return whether to ask again."""
        with self._lock:
            if not self.may_raise or cut_at > FIRST_BUDGET:
                return False
            if self.budget == FIRST_BUDGET:
                self.budget = RAISED_BUDGET
                self._tell(f"an answer was cut off at {cut_at} tokens; from now on it may have {self.budget}")
            return True

    def learn(self, body: dict[str, Any], words: str) -> bool:
        """
        Change the field that a server refuses.

        Args:
            body: Body that was refused.
            words: Answer of the server.

        Returns:
            Whether to ask again; if not, the field has no twin, or no field is named.
        """
        with self._lock:
            field = refused_field(words, body)
            is_long = field in (None, "max_tokens", "max_completion_tokens") and TOO_MANY.search(words)
            if is_long and "token" in words and self.may_raise and self.budget > LEAST_BUDGET:
                if self._limit(body) == self.budget:
                    self.budget //= 2
                    self._tell(f"answers may have {self.budget} tokens: {words_of(words)}")
                return True
            if field not in {*self.own, *self._renamed.values()}:
                return False
            if self._is_outdated(field, body):
                return True  # another thread has learned it
            return self._change(str(field), words)

    def _change(self, field: str, words: str) -> bool:
        if field in ("top_logprobs", "logprobs"):
            self.top = 0 if field == "logprobs" or UNKNOWN.search(words) else _fewer(self.top, words)
            self._tell(f"{self.top or 'no'} alternatives are asked for: {words_of(words)}")
        elif field == "max_tokens" and ("max_completion_tokens" in words or not TOO_MANY.search(words)):
            self._renamed[field] = "max_completion_tokens"
            self._tell(f"max_completion_tokens is sent for max_tokens: {words_of(words)}")
        elif field in ("temperature", "seed"):
            self._dropped.add(field)
            self._tell(f"{field} is left out: {words_of(words)}")
        else:
            return False
        return True

    def _is_outdated(self, field: str | None, body: dict[str, Any]) -> bool:
        if field in ("top_logprobs", "logprobs"):
            return body.get("top_logprobs") != self.top
        return field in self._dropped or field in self._renamed

    @staticmethod
    def _limit(body: dict[str, Any]) -> int:
        return body.get("max_tokens") or body.get("max_completion_tokens") or 0

    def _tell(self, what: str) -> None:
        logger.warning("%s: %s", self.name, what)


def refused_field(words: str, body: dict[str, Any]) -> str | None:
    """Return the field of the body that an answer of a server names: as `param`, or else first; None if none."""
    param = re.search(r"\"param\":\s*\"(\w+)\"", words)
    if param and param[1] in body:
        return param[1]
    found = {}
    for field in body.keys() - {"model", "messages"}:
        place = re.search(rf"(?<!\w)(?:{NAMES.get(field, re.escape(field))})(?!\w)", words, re.IGNORECASE)
        if place:
            found[field] = place.start()
    return min(found, key=lambda field: found[field], default=None)


def _fewer(top: int, words: str) -> int:
    """Return the largest allowed number that a refusal names, else the next smaller one."""
    named = [int(number) for number in re.findall(r"(?<![\w.])\d{1,2}(?![\w.]\d|\w)", words)]
    return max((number for number in named if 0 < number < top), default=FEWER_TOKENS if top > FEWER_TOKENS else 0)
