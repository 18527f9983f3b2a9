"""Styles of a study's arms in its figures."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from trl_real.reports.figures import OTHER_COLOR


# Colours for strategies of users, from Tol's muted scheme: all differ clearly from those above.
USER_COLORS = (OTHER_COLOR, "#882255", "#999933", "#332288", "#AA4499")
# Geometry variants of a strategy: a darker (< 0) or lighter shade of its colour, a line style and a marker.
VARIANTS = ((-0.45, "--", "s"), (0.35, "-.", "D"), (-0.7, ":", "^"), (0.55, (0, (4, 1, 1, 1, 1, 1)), "v"))


class ArmStyle(NamedTuple):
    """Colour, line style and marker of an arm, in matplotlib's form."""

    color: str
    line: str | tuple = "-"
    marker: str = "o"


def arm_styles(arms: Sequence[str], colors: Mapping[str, str]) -> dict[str, ArmStyle]:
    """
    Return a distinct style for each arm: the colour shows the strategy, the line and the marker the geometry.

    Args:
        arms: All arms of a study, `"strategy"` or `"strategy@geometry"`; the same list gives the same styles.
        colors: Colour of each known strategy, as `#rrggbb`.
    """
    strategies = list(dict.fromkeys(arm.partition("@")[0] for arm in arms))
    users = [name for name in strategies if name not in colors]
    hues = {**colors} | {name: USER_COLORS[i % len(USER_COLORS)] for i, name in enumerate(users)}
    styles: dict[str, ArmStyle] = {}
    for strategy in strategies:
        variants = [arm for arm in arms if arm.startswith(f"{strategy}@")]
        styles[strategy] = ArmStyle(hues[strategy])
        for i, arm in enumerate(variants):
            shade, line, marker = VARIANTS[i % len(VARIANTS)]
            styles[arm] = ArmStyle(_shade(hues[strategy], shade), line, marker)
    return {arm: styles[arm] for arm in arms}


def _shade(color: str, by: float) -> str:
    """Mix a colour with white (`by` > 0) or black; return `#rrggbb`."""
    target = 255 if by > 0 else 0
    parts = [int(color[i : i + 2], 16) for i in (1, 3, 5)]
    return "#" + "".join(f"{round(part + abs(by) * (target - part)):02x}" for part in parts)
