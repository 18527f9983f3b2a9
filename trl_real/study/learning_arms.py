"""Arms of a study that choose in rounds, by what the labels so far teach: acquisitions of a head, and a race."""

from collections.abc import Iterator

import numpy as np
import torch

from trl_real.functional.bayesian_head import ACQUISITIONS, Acquisition, Posterior, fit_head, normal_draws
from trl_real.functional.race import Labels, losses_of_heads, race
from trl_real.functional.similarity import candidate_pairs
from trl_real.selection.budget import budget_size, lowest_rows
from trl_real.selection.mixture.parts import Part
from trl_real.selection.strategies import lowest
from trl_real.study.arms import ArmSelector, Bought, MixedPairs
from trl_real.study.pool import decided


ROUNDS = 4  # rounds of equal size; of a head's arm the first is random
AUTO, AUTO_IN_ROUNDS = "auto", "auto_in_rounds"
LEARNING = (*ACQUISITIONS, AUTO_IN_ROUNDS)


class LearningArms(ArmSelector):
    """
    Selects pairs also for the arms in `LEARNING`: names in `ACQUISITIONS`, by which a head chooses in rounds, and
    `"auto_in_rounds"`, a race of the parts of `"auto"` (`trl_real.functional.race`).
    """

    def bought(self, arm: str, budget: float | int, seed: int) -> Bought:
        """Return the rows that an arm labels, and the pair of each."""
        if arm in ACQUISITIONS:
            return self._by_head(ACQUISITIONS[arm], budget, seed)
        return self._by_race(budget, seed) if arm == AUTO_IN_ROUNDS else super().bought(arm, budget, seed)

    def _by_head(self, acquire: Acquisition, budget: float | int, seed: int) -> Bought:
        """A random first round; then the pairs that a head, fitted to all labels so far, would label next."""
        random = self.of_part(Part("random"), seed)
        sizes = list(round_sizes(budget_size(budget, len(random.places))))
        rows, pairs = random.selected(max(1, sizes[0])), random.pairs.copy()
        for size in sizes[1:]:
            known = decided(self.pool, random.places[rows], pairs[rows], self.min_gap)
            x = self.differences(*known)
            head = fit_head(x, torch.zeros_like(x), ridge=None)
            scores, favourites = self._acquired(acquire, head, random.places, seed)
            scores[rows] = np.nan
            new = lowest_rows(scores, min(size, int(np.isfinite(scores).sum())))
            pairs[new] = favourites[new]
            rows = np.sort(np.concatenate([rows, new]))
        return Bought(random.places[rows], pairs[rows])

    def _acquired(
        self, acquire: Acquisition, head: Posterior, places: np.ndarray, seed: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the score and the candidates of each row's best pair. Shapes `(n,)` and `(n, 2)`."""
        scores, pairs = np.zeros(len(places)), np.zeros((len(places), 2), int)
        sizes = np.array([len(self.vectors[place]) for place in places])
        for k in np.unique(sizes).tolist():
            rows = np.flatnonzero(sizes == k)
            features = torch.stack([self.vectors[place] for place in places[rows]]).double() / self.scale
            draws = normal_draws(len(rows), k, torch.Generator().manual_seed(seed))
            found = acquire(*head.utilities(features), draws)
            best = lowest(found)
            scores[rows] = found.gather(1, best[:, None])[:, 0].numpy()
            pairs[rows] = candidate_pairs(k).T[best].numpy()
        return scores, pairs

    def _by_race(self, budget: float | int, seed: int) -> Bought:
        """Shares of `auto`'s parts in a first round; then those that the random labels speak for."""
        arms = self.scored_pairs(AUTO, seed)
        assert isinstance(arms, MixedPairs)
        shares = np.array([part.share for part in arms.mixture])
        n_rows, tests, found = len(arms.similarity), [], None
        before, now = np.zeros(n_rows, bool), shares
        labels = Labels(self.differences(*decided(self.pool, *NOTHING)), *np.zeros((3, 0), int))
        places, pairs = NOTHING
        for number, size in enumerate(round_sizes(budget_size(budget, n_rows)), start=1):
            taken = arms.taken(size, now.tolist(), before)
            before[taken.rows] = True
            new = arms.rows_of(taken)
            places, pairs = np.concatenate([places, new[0]]), np.concatenate([pairs, new[1]])
            labels = self._with_labels(labels, *new, taken.parts, number)
            if number > 1:
                tests.append(losses_of_heads(labels, number, len(shares), n_rows))
            standing, found = race(tests, shares)
            now = standing.shares
        order = np.argsort(places, kind="stable")
        notes = {"rules": [part.name for part in arms.mixture], "shares": now.tolist(), "race": found}
        return Bought(places[order], pairs[order], notes)

    def _with_labels(
        self, labels: Labels, places: np.ndarray, pairs: np.ndarray, rules: np.ndarray, number: int
    ) -> Labels:
        """Add the labels of a round; ties and missing scores are none."""
        known, better_first = decided(self.pool, places, pairs, self.min_gap)
        rule_of = dict(zip(places.tolist(), rules.tolist(), strict=True))
        return Labels(
            torch.cat([labels.differences, self.differences(known, better_first)]),
            np.concatenate([labels.confidences, np.ones(len(known))]),
            np.concatenate([labels.rules, np.array([rule_of[place] for place in known.tolist()], int)]),
            np.concatenate([labels.rounds, np.full(len(known), number)]),
        )


NOTHING = np.zeros(0, int), np.zeros((0, 2), int)


def round_sizes(size: int) -> Iterator[int]:
    """Return the labels of each of `ROUNDS` rounds, which add up to `size`."""
    ends = [round(size * number / ROUNDS) for number in range(ROUNDS + 1)]
    return (after - before for before, after in zip(ends, ends[1:], strict=False))
