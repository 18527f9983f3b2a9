"""Parts of a mixture: strategies, geometries and shares, from a name, a text or a mapping."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from numbers import Real
from typing import Any

from trl_real.errors import TrlRealError
from trl_real.selection.strategies import STRATEGIES, Strategy, as_strategy, split_geometry, strategy_name


# Mixtures with a name, and the version of their shares. On public sets (docs/results.md) a random share made rules
# safe; rules that look for different pairs hedge each other; and their parts do not buy a response again while others
# are left. Version 1 was a quarter random, a quarter easy@centered and half i_optimal, and bought responses again.
MIXTURES: dict[str, dict[str, float]] = {
    "auto": {"random": 0.25, "easy@centered": 0.25, "d_optimal@centered": 0.25, "i_optimal": 0.25}
}
MIXTURE_VERSIONS = {"auto": 2}

PART = re.compile(r"\s*(?P<share>\d*\.?\d+)?\s*(?P<name>[^\d\s].*?)\s*")


@dataclass(frozen=True)
class Part:
    """
    Strategy of a mixture, its geometry, and its share of the budget. A plain strategy is one part of share 1. With
    `once`, a response to a prompt waits for a second pair while rows with less used ones are left.
    """

    strategy: Any
    geometry: str = "raw"
    share: float = 1.0
    once: bool = False

    @property
    def rule(self) -> Strategy:
        """Record of the strategy."""
        return as_strategy(self.strategy)

    @property
    def name(self) -> str:
        """Name with the geometry, such as `"easy@centered"`."""
        name = strategy_name(self.strategy)
        return name if self.geometry == "raw" else f"{name}@{self.geometry}"


def parts_of(strategy: Any, geometry: str = "raw") -> tuple[Part, ...]:
    """
    Return the parts of a mixture, random ones first, or the one part of a plain strategy.

    Args:
        strategy: Name, record or function; names with `+` between them and optional shares before them, such as
            `"0.75 easy@centered + 0.25 random"`; a mapping from strategies to shares; or a name in `MIXTURES`.
        geometry: Geometry of the parts that name none.

    Raises:
        TrlRealError: If a part or a share is impossible.
    """
    named = isinstance(strategy, str) and strategy in MIXTURES
    if named:
        strategy = MIXTURES[strategy]
    if isinstance(strategy, str) and "+" in strategy:
        strategy = _parsed(strategy)
    if not isinstance(strategy, Mapping):
        return (Part(*split_geometry(strategy, geometry)),)
    if not strategy:
        raise TrlRealError("A mixture needs parts. Type strategy={'easy': 0.5, 'random': 0.5}.")
    total = sum(_checked_share(name, share) for name, share in strategy.items())
    parts = [Part(*split_geometry(name, geometry), share / total) for name, share in strategy.items()]
    parts = [replace(part, once=named and not is_chance(part)) for part in parts]
    return tuple(sorted(parts, key=lambda part: not is_chance(part)))


def is_mixture(strategy: Any) -> bool:
    """Return whether a strategy is a mixture, which ranks a whole pool."""
    return isinstance(strategy, Mapping) or (isinstance(strategy, str) and (strategy in MIXTURES or "+" in strategy))


def mixture_name(strategy: Any) -> str:
    """Return a mixture as text that `parts_of` reads, such as `"0.25random+0.75easy@centered"`."""
    if isinstance(strategy, Mapping):
        return "+".join(f"{part.share:.4g}{part.name}" for part in parts_of(strategy))
    return "".join(strategy.split())


def is_chance(part: Part) -> bool:
    """Return whether the part draws rows with equal probability."""
    return part.rule is STRATEGIES["random"]


def _parsed(text: str) -> dict[str, float]:
    """Parse `"0.75 easy@centered + 0.25 random"`; without any share, all parts have the same."""
    found = [PART.fullmatch(part) for part in text.split("+")]
    names = [match["name"] for match in found if match]
    shares = [match["share"] for match in found if match]
    if len(names) < len(found) or len(set(names)) < len(names) or (any(shares) and not all(shares)):
        raise TrlRealError(
            f"strategy={text!r} is no mixture of different strategies, with a share before each or none. "
            "Type 'easy@centered+random', or '0.75easy@centered+0.25random'."
        )
    return {name: float(share or 1) for name, share in zip(names, shares, strict=True)}


def _checked_share(name: Any, share: Any) -> float:
    if isinstance(share, bool) or not isinstance(share, Real) or not 0 < float(share) < float("inf"):
        raise TrlRealError(f"The share {share!r} of {strategy_name(name)!r} is not above 0. Type 0.5 for a half.")
    return float(share)
