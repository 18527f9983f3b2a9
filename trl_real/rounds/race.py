"""`auto` with labels: the parts of a mixture race from round to round, and the leaders get the labels."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from datasets import Dataset

from trl_real.functional.race import Labels, losses_of_heads, race
from trl_real.selection.active.pool import History, read_history
from trl_real.selection.mixture.parts import mixture_name
from trl_real.selection.record import SelectionRecord
from trl_real.selection.selector import EmbeddingPairSelector


SELECTED_BY, ROUND = "selected_by", "round"  # columns of a history


class RaceSelector:
    """
    Selector of a round's pairs by a mixture whose shares follow the labels so far (`trl_real.functional.race`).

    A Bradley-Terry head on the embeddings stands for the policy: one learns from each part's labels, and the random
    labels of the next round test it. The shares of a first round are the mixture's own.

    Args:
        selector: Selector with the mixture as its strategy, random first, and a model.
        without_labeled: Function that takes a pool and a history and leaves out the responses in labelled pairs.
        responses: Column with the list of responses.

    Attributes:
        record (`SelectionRecord`): Record of the last selection; `settings["race"]` has the rules, their shares of
            this round, which are out, and, from the third round on, estimated losses, differences from random and
            regret, in nats per pair, as `[value, low, high]` with 95 % intervals.
    """

    def __init__(
        self,
        selector: EmbeddingPairSelector,
        without_labeled: Callable[[Dataset, Dataset | None], Dataset],
        responses: str,
    ):
        self.selector, self.without_labeled, self.responses = selector, without_labeled, responses
        self.parts = selector.parts

    @property
    def record(self) -> SelectionRecord:
        """Record of the last selection."""
        return self.selector.record

    def select(self, dataset: Dataset, budget: int, *, history: Dataset | None = None) -> Dataset:
        """Select among the responses that are not in a labelled pair, with the shares of the standing."""
        pool = self.without_labeled(dataset, history)
        n_left = sum(len(responses or ()) > 1 for responses in pool.with_format(None)[self.responses])
        standing = self._standing(history, n_left)
        shares = standing["shares"]
        self.selector.parts = tuple(replace(part, share=share) for part, share in zip(self.parts, shares, strict=True))
        running = {part.name: share for part, share in zip(self.parts, shares, strict=True) if share > 0}
        self.selector.strategy = mixture_name(running)
        kept = self.selector.select(pool, budget)
        self.selector.record.settings["race"] = standing
        return kept

    def _standing(self, history: Dataset | None, n_left: int) -> dict[str, Any]:
        """Return the shares of the next round, and what they follow from."""
        start, names = np.array([part.share for part in self.parts]), [part.name for part in self.parts]
        tests = []
        if history is not None and {SELECTED_BY, ROUND} <= set(history.column_names):
            labels = self._labels(history, names)
            n_pool = n_left + len(labels.rules)
            numbers = range(2, int(labels.rounds.max(initial=0)) + 1)
            tests = [losses_of_heads(labels, number, len(names), n_pool) for number in numbers]
        now, found = race(tests, start)
        out = [name for name, is_out in zip(names, now.out, strict=True) if is_out]
        return {
            "rules": names,
            "shares": now.shares.tolist(),
            "leader": names[now.leader],
            "out": out,
            **(found or {}),
        }

    def _labels(self, history: Dataset, names: list[str]) -> Labels:
        """Return the labels that the parts picked, with differences of embeddings in units of their spread."""
        plain = history.with_format(None)
        plain = plain.select([i for i, name in enumerate(plain[SELECTED_BY]) if name in names])
        read = read_history(plain)
        plain = plain.select(read.places)
        rules = np.array([names.index(name) for name in plain[SELECTED_BY]], int)
        return Labels(self._differences(read), read.confidences, rules, np.array(plain[ROUND][:], int))

    def _differences(self, read: History) -> torch.Tensor:
        encoder = self.selector.encoder
        assert encoder is not None  # a run in rounds has a model
        found = encoder(read.prompts * 2, [*read.chosen, *read.rejected]).vectors.double()
        x = found[: len(read)] - found[len(read) :]
        return x / x.square().mean(0).sqrt().clamp_min(1e-12)
