"""Money for the answers of a server: prices, what is spent, and a limit that is never exceeded."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

from trl_real.errors import TrlRealError
from trl_real.labeling.chat.claims import Ledger


class Price(NamedTuple):
    """Price of a million tokens read and generated, in any currency."""

    input: float
    output: float

    def of(self, input_tokens: int, output_tokens: int) -> float:
        """Return the cost of tokens."""
        return (input_tokens * self.input + output_tokens * self.output) / 1e6


@dataclass
class Bill:
    """What one question has taken, over all answers to it."""

    input_tokens: int = 0
    output_tokens: int = 0
    cost: float = 0.0


class Purse:
    """
    Money that is reserved before a question is asked and spent when an answer comes; thread-safe.

    Args:
        price: Prices; None if nothing is counted.
        max_cost: Maximum of what is spent.
        ledger: Called for the ledger of the processes that share `max_cost`, if there is one.

    Raises:
        TrlRealError: If a price is below 0, or `max_cost` is given without prices.
    """

    def __init__(
        self, price: tuple[float, float] | None, max_cost: float | None, ledger: Callable[[], Ledger] | None = None
    ):
        if price is not None and not (len(price) == 2 and min(price) >= 0):
            raise TrlRealError(
                f"price={price}: give the prices of a million tokens read and generated, such as price=(0.15, 0.6)."
            )
        if max_cost is not None and price is None:
            raise TrlRealError("max_cost needs the prices of a million tokens read and generated: price=(0.15, 0.6).")
        self.price, self.max_cost = Price(*price) if price else Price(0.0, 0.0), max_cost
        self._ledger = None if max_cost is None or ledger is None else ledger()
        self._own = 0.0  # without what is in the ledger
        self._reserved: list[float] = []  # for questions in flight
        self._counted: set[str] = set()
        self._change = threading.Condition()

    @property
    def spent(self) -> float:
        """What was spent: with a ledger, by all processes that share the limit, since the first of them began."""
        return self._own + (self._ledger.total() - self._ledger.start if self._ledger else 0.0)

    @contextmanager
    def reserving(self, input_tokens: int, output_tokens: int) -> Iterator[None]:
        """
        Reserve the cost of a question; wait while questions in flight might exceed `max_cost` with it.

        Raises:
            TrlRealError: If it would exceed `max_cost`.
        """
        needed = self.price.of(input_tokens, output_tokens)
        with self._change:
            while self._reserved and not self._fits(needed + sum(self._reserved)):
                self._change.wait()
            if not self._fits(needed):
                raise TrlRealError(
                    f"The next question would exceed max_cost={self.max_cost:g}: {self.spent:.4g} are spent, with "
                    "what other processes spend on this judge through the same cache now. "
                    "The answers so far are cached; raise max_cost and run again."
                )
            self._reserved.append(needed)
        try:
            yield
        finally:
            with self._change:
                self._reserved.remove(needed)
                self._change.notify_all()

    def affords(self, input_tokens: int, output_tokens: int) -> bool:
        """Return whether the question fits beside those in flight."""
        with self._change:
            return self._fits(self.price.of(input_tokens, output_tokens) + sum(self._reserved))

    def pay(self, bill: Bill, input_tokens: int, output_tokens: int) -> None:
        """Add an answer to what is spent, and to a bill."""
        cost = self.price.of(input_tokens, output_tokens)
        bill.input_tokens, bill.output_tokens = bill.input_tokens + input_tokens, bill.output_tokens + output_tokens
        bill.cost += cost
        with self._change:
            if self._ledger:
                self._ledger.add(cost)
            else:
                self._own += cost

    def mark(self) -> dict[str, float]:
        """Return what a kept answer notes of the ledger: its total, which shows later whose limit holds the answer."""
        return {"paid_at": self._ledger.total()} if self._ledger else {}

    def count(self, key: str, cost: float = 0.0, paid_at: float = 0.0) -> None:
        """Add the cost of a cached answer, once; 0 for one that is paid, or is in the ledger already."""
        with self._change:
            if key not in self._counted:
                self._counted.add(key)
                self._own += 0.0 if self._ledger and paid_at > self._ledger.start else cost

    def _fits(self, cost: float) -> bool:
        return self.max_cost is None or self.spent + cost <= self.max_cost
