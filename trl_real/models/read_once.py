"""A padded batch laid out so that tokens are read once: no padding, no common beginning twice, nothing unused."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from trl_real.models.attention.exactness import fits_window
from trl_real.models.packing import Line
from trl_real.models.prefixes import LEAST, Branch, grow
from trl_real.models.sequences import Ids


MOVING = ("dynamic", "longrope")  # kinds of RoPE whose angles depend on the length of the longest row


@dataclass
class Layout(Line):
    """
    Rows of a batch in one row of tokens.

    Args:
        paths: Index of each token of a row, by the row's tokens.
    """

    paths: dict[Ids, list[int]] = field(default_factory=dict)

    def add(self, rows: Sequence[Ids], branch: Branch, prefix: tuple[slice, ...] = (), path: tuple = ()) -> None:
        """Append a branch that continues the tokens at `prefix`, and all its branches."""
        place = self.append(branch.tokens, branch.start, prefix, merge=not branch.branches)
        path = (*path, *range(place.start, place.stop))
        for i in branch.ids:
            self.paths[rows[i]] = list(path)
        for following in branch.branches:
            self.add(rows, following, (*prefix, place), path)


def lay_out(tokens: Tensor, mask: Tensor, labelled: Tensor, least: int = LEAST) -> tuple[Layout, list[int]] | None:
    """
    Lay out the tokens on which labels depend.

    Args:
        tokens: Token ids, padded on the right. Shape `(B, L)`.
        mask: 1 at tokens, 0 at padding. Shape `(B, L)`.
        labelled: Whether the token after each one is a label. Shape `(B, L - 1)`.
        least: Minimum number of common tokens that are read once.

    Returns:
        The layout, and the index of the token before each label, by rows; None without a label, or if the padding is
        not on the right.
    """
    if not bool((mask[:, 1:] <= mask[:, :-1]).all()):
        return None
    labels: list[list[int]] = [[] for _ in range(len(tokens))]
    for row, column in labelled.nonzero().tolist():
        labels[row].append(column)
    rows = [
        tuple(ids[: before[-1] + 1]) if before else () for ids, before in zip(tokens.tolist(), labels, strict=True)
    ]
    distinct = list(dict.fromkeys(row for row in rows if row))
    if not distinct:
        return None
    layout = Layout()
    for tree in sorted(grow(distinct, least), key=lambda tree: (bool(tree.branches), len(tree.tokens))):
        layout.add(distinct, tree)
    return layout, [layout.paths[row][i] for row, before in zip(rows, labels, strict=True) for i in before]


def fits(config: Any, longest: int) -> bool:
    """Return whether `longest` tokens are within all windows, and within the length at which RoPE's angles change."""
    rope = getattr(config, "rope_parameters", None) or {}
    kinds = [kind for kind in (rope, *rope.values()) if isinstance(kind, dict) and kind.get("rope_type") in MOVING]
    limits = [kind.get("original_max_position_embeddings") or config.max_position_embeddings for kind in kinds]
    return fits_window(config, longest) and all(longest <= limit for limit in limits)


def is_random(model: nn.Module) -> bool:
    """Return whether the model drops anything in training: dropout layers, rates of its functions, skipped layers."""
    rates = (
        rate
        for module in model.modules()
        for name, rate in vars(module).items()
        if "drop" in name or (name == "p" and "Dropout" in type(module).__name__)
    )
    return any(isinstance(rate, float) and rate > 0 for rate in rates)
