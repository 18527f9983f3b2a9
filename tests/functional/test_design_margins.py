"""How close each row is to another design: equality with a naive reference."""

import pytest
import torch

from support.claims import random_embeddings
from trl_real.functional.design import MARGINS, Design, design_margins, greedy_design


def naive(differences, picked, ridge=1.0):
    """Every step's scores by the explicit inverse."""
    rows, d = differences.double(), differences.shape[1]
    taken = set(picked.indices.tolist())
    outside = [i for i in range(len(rows)) if i not in taken]
    found = torch.full((len(rows),), torch.inf, dtype=torch.float64)
    for step, pick in enumerate(picked.indices.tolist()):
        history = rows[picked.indices[:step]]
        inverse = torch.linalg.inv(ridge * torch.eye(d, dtype=torch.float64) + history.T @ history)
        scores = ((rows @ inverse) * rows).sum(1)
        found[outside] = found[outside].minimum(scores[pick] - scores[outside])
        found[pick] = scores[outside].max() - scores[pick]
    return found


def differences(n, d=5):
    return random_embeddings(0, n, 1, d)[:, 0].double()


@pytest.mark.parametrize("k", [1, 2, 7, 11])
def test_margins_equal_those_of_the_explicit_inverse(k):
    rows = differences(12)
    picked = greedy_design(rows, k)
    found = design_margins(rows, picked)
    torch.testing.assert_close(found, naive(rows, picked), rtol=1e-6, atol=1e-9)
    assert (found[picked.indices] <= 0).all() and found.isfinite().all()


def test_between_two_computed_picks_the_smaller_margin_counts():
    rows = differences(3 * MARGINS)
    picked = greedy_design(rows, 2 * MARGINS)
    found, exact = design_margins(rows, picked), naive(rows, picked)
    at = torch.linspace(0, 2 * MARGINS - 1, MARGINS).long()
    after = [int((at >= step).nonzero()[0]) for step in range(2 * MARGINS)]
    before = [int((at <= step).nonzero()[-1]) for step in range(2 * MARGINS)]
    known = exact[picked.indices[at]]
    expected = known[before].maximum(known[after])
    torch.testing.assert_close(found[picked.indices], expected, rtol=1e-5, atol=1e-8)


def test_without_a_pick_or_without_another_row_nothing_is_near():
    rows = differences(6)
    none = Design(torch.zeros(0, dtype=torch.long), torch.zeros(0, dtype=torch.float64), 0.0)
    assert (design_margins(rows, none) == torch.inf).all()
    assert (design_margins(rows, greedy_design(rows, 6)) == -torch.inf).all()
