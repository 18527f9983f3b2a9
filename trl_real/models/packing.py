"""
Many short sequences in one forward pass without padding.

Sequences are concatenated into one row of tokens. Responses to the same prompt share it: the prompt is read once and
every response attends to it. `Segment`s describe who attends to whom; `attention` computes it.
"""

from dataclasses import dataclass, field
from typing import Any

from trl_real.runtime.devices import send


@dataclass
class Segment:
    """
    `count` adjacent sequences of `length` tokens each, from index `start` on; each token attends to itself and to
    earlier ones of its sequence. A segment with a `prefix`, the slices of the segments that it continues, from the
    first token on, has one sequence, which attends to these, too.
    """

    start: int
    count: int
    length: int
    prefix: tuple[slice, ...] = ()

    @property
    def stop(self) -> int:
        """Index after the last token."""
        return self.start + self.count * self.length


class Segments(list[Segment]):
    """Segments of one row of tokens, and the masks that the first layer's attention made of them, for the others."""

    def __init__(self) -> None:
        super().__init__()
        self.masks: dict[Any, Any] = {}


@dataclass
class Line:
    """
    Sequences in one row of tokens.

    Args:
        tokens: Token ids. `T` of them.
        positions: Position of each token in its own sequence. `T` of them.
        segments: Segments of the row, for the attention.
    """

    tokens: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    segments: Segments = field(default_factory=Segments)

    def append(
        self, tokens: tuple[int, ...], position: int = 0, prefix: tuple[slice, ...] = (), merge: bool = False
    ) -> slice:
        """
        Append tokens and return their slice.

        Args:
            tokens: Token ids.
            position: Position of the first one in its sequence.
            prefix: Slices of the tokens that they continue.
            merge: Whether they may join the segment of equally long tokens before them; no others can continue them.
        """
        start, length = len(self.tokens), len(tokens)
        last = self.segments[-1] if self.segments else None
        if merge and last and not prefix and not last.prefix and last.length == length:
            last.count += 1
        elif length:
            self.segments.append(Segment(start, 1, length, prefix))
        self.tokens += tokens
        self.positions += range(position, position + length)
        return slice(start, start + length)

    def inputs(self, device: Any) -> dict[str, Any]:
        """Return the inputs of the model."""
        tokens, positions = (send([values], device) for values in (self.tokens, self.positions))
        return {"input_ids": tokens, "position_ids": positions, "segments": self.segments}


@dataclass
class Tree:
    """Tokens of a prompt (none, if responses are read alone) and of the responses that share it."""

    prompt: tuple[int, ...]
    responses: list[tuple[int, ...]]
    ids: list[int]

    @property
    def n_tokens(self) -> int:
        """Number of tokens, the prompt counted once."""
        return len(self.prompt) + sum(map(len, self.responses))


@dataclass
class Pack(Line):
    """
    One forward pass over trees.

    Args:
        owners: Output row that each token is averaged into, -1 for a prompt's. `T` of them.
        ids: Response of each output row. `R` of them.
    """

    owners: list[int] = field(default_factory=list)
    ids: list[int] = field(default_factory=list)

    def add(self, tree: Tree) -> None:
        """Append a tree's tokens."""
        prefix = (self.append(tree.prompt),) if tree.prompt else ()
        self.owners += [-1] * len(tree.prompt)
        for response, identifier in zip(tree.responses, tree.ids, strict=True):
            self.append(response, len(tree.prompt), prefix, merge=True)
            self.owners += [len(self.ids)] * len(response)
            self.ids.append(identifier)


def make_packs(trees: list[Tree], max_tokens: int) -> list[Pack]:
    """
    Put trees, longest first, into packs of at most `max_tokens` tokens (a longer tree gets its own pack). The packs do
    not depend on the order of the trees, except for the order of equal trees.
    """
    packs: list[Pack] = []
    room = 0
    for tree in sorted(trees, key=lambda t: (-t.n_tokens, t.prompt, t.responses)):
        if tree.n_tokens > room:
            packs.append(Pack())
            room = max_tokens
        packs[-1].add(tree)
        room -= tree.n_tokens
    return packs
