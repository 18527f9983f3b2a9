"""Trees of sequences with common beginnings, which are read once."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from trl_real.models.packing import Line
from trl_real.models.sequences import Ids, common_prefix


LEAST = 16  # minimum number of common tokens; below, an extra segment costs about what it saves
DEPTH = 4


@dataclass
class Branch:
    """
    Tokens that one or more sequences share, from position `start` on: `ids` are the sequences that end here, one at
    most, and `branches` continue the others.
    """

    start: int
    tokens: Ids
    ids: list[int] = field(default_factory=list)
    branches: list["Branch"] = field(default_factory=list)

    @property
    def n_tokens(self) -> int:
        """Number of tokens, with all branches."""
        return len(self.tokens) + sum(branch.n_tokens for branch in self.branches)


def grow(sequences: Sequence[Ids], least: int = LEAST, depth: int = DEPTH) -> list[Branch]:
    """
    Build trees of distinct, non-empty sequences by their common beginnings of at least `least` tokens, with at most
    `depth` branches on the way to a sequence's last token. The trees do not depend on the order of the sequences.
    """
    order = sorted(range(len(sequences)), key=lambda i: sequences[i])
    shared = [common_prefix(sequences[a], sequences[b]) for a, b in zip(order, order[1:], strict=False)]

    def branches(first: int, last: int, start: int, levels: int) -> list[Branch]:
        """Build the branches of `order[first:last]`, which are equal up to `start`."""
        found = []
        while first < last:
            end = first + 1
            while levels > 1 and end < last and shared[end - 1] >= start + least:
                end += 1
            tokens = sequences[order[first]]
            stop = min(shared[first : end - 1], default=len(tokens))
            branch = Branch(start, tokens[start:stop])
            ends_here = len(tokens) == stop
            branch.ids = [order[first]] * ends_here
            branch.branches = branches(first + ends_here, end, stop, levels - 1)
            found.append(branch)
            first = end
        return found

    return branches(0, len(order), 0, depth)


@dataclass
class TreePass(Line):
    """
    One forward pass over parts of trees.

    Args:
        ids: Sequences that end in this pass. `R` of them.
        ends: Index of the last token of each. `R` of them.
        places: Slices of the branches in this pass, by `id(branch)`.
    """

    ids: list[int] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)
    places: dict[int, slice] = field(default_factory=dict)

    def cost(self, chain: tuple[Branch, ...], branch: Branch, whole: bool) -> int:
        """Return the number of tokens that `add` would append."""
        own = branch.n_tokens if whole else len(branch.tokens)
        return own + sum(len(before.tokens) for before in chain if id(before) not in self.places)

    def add(self, chain: tuple[Branch, ...], branch: Branch, whole: bool) -> None:
        """Append a branch, alone or with all its branches, and the missing part of the chain before it."""
        prefix: tuple[slice, ...] = ()
        for before in chain:
            if id(before) not in self.places:
                self._append(before, prefix)
            prefix += (self.places[id(before)],)
        self._append(branch, prefix)
        self.ids += branch.ids
        self.ends += [len(self.tokens) - 1] * len(branch.ids)
        for following in branch.branches if whole else ():
            self.add((*chain, branch), following, True)

    def _append(self, branch: Branch, prefix: tuple[slice, ...]) -> None:
        self.places[id(branch)] = self.append(branch.tokens, branch.start, prefix)


def tree_passes(trees: list[Branch], max_tokens: int) -> Iterator[TreePass]:
    """
    Yield passes of at most `max_tokens` tokens. A larger tree is cut between its branches, and each pass reads their
    common beginning once. A longer sequence gets its own pass.
    """
    step = TreePass()
    for unit in _units(trees, (), max_tokens):
        if step.tokens and len(step.tokens) + step.cost(*unit) > max_tokens:
            yield step
            step = TreePass()
        step.add(*unit)
    if step.tokens:
        yield step


def _units(trees: list[Branch], chain: tuple[Branch, ...], max_tokens: int) -> Iterator[tuple]:
    """Yield the largest parts of the trees that fit into a pass with the chain before them."""
    before = sum(len(branch.tokens) for branch in chain)
    for branch in trees:
        if not branch.branches or before + branch.n_tokens <= max_tokens:
            yield chain, branch, True
        else:
            if branch.ids:
                yield chain, branch, False
            yield from _units(branch.branches, (*chain, branch), max_tokens)
