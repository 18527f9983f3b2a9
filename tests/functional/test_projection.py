"""Random projections: unbiased, as accurate as theory states, and the same in every process (T6, T13)."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from support.claims import uncertainty
from trl_real.errors import TrlRealError
from trl_real.functional import projection as functional_projection
from trl_real.functional.design import pair_features
from trl_real.functional.projection import PROJECTIONS, make_projection


pytestmark = pytest.mark.usefixtures("one_thread")

SHAPES = {"b.lora_B": (12, 3), "a.lora_A": (3, 20), "c.bias": (1, 7)}
KINDS = [kind for kind in PROJECTIONS if kind]


def random_gradients(seed, n_rows, shapes=SHAPES):
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(n_rows, *shape, generator=generator) for name, shape in shapes.items()}


def project(kind, gradients, dim=64, seed=0, order=None, shapes=SHAPES):
    projection = make_projection(kind, shapes, dim, seed)
    buffer = projection.buffer(len(next(iter(gradients.values()))))
    for name in order or gradients:
        projection.add(buffer, name, gradients[name])
    return projection.finish(buffer)


def whole(gradients):
    return torch.cat([gradients[name].flatten(1) for name in sorted(gradients)], dim=1)


@pytest.mark.parametrize("kind", KINDS)
def test_projection_is_linear_and_independent_of_parameter_order(kind):
    one, two = random_gradients(0, 4), random_gradients(1, 4)
    both = {name: 2 * one[name] - two[name] for name in one}
    found = project(kind, both, order=sorted(SHAPES))
    assert found.shape == (4, 64)
    torch.testing.assert_close(found, 2 * project(kind, one) - project(kind, two), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_does_not_depend_on_other_rows(kind):
    gradients = random_gradients(2, 5)
    alone = project(kind, {name: values[3:4] for name, values in gradients.items()})
    torch.testing.assert_close(project(kind, gradients)[3:4], alone)


@pytest.mark.parametrize("kind", KINDS)
def test_t6_lengths_and_products_are_right_on_average(kind):
    gradients = random_gradients(3, 2)
    exact = whole(gradients)
    found = torch.stack([project(kind, gradients, seed=seed) for seed in range(200)]).double()  # (200, 2, d)
    for estimate, true in (
        (found[:, 0].square().sum(1), exact[0] @ exact[0]),
        ((found[:, 0] * found[:, 1]).sum(1), exact[0] @ exact[1]),
    ):
        assert abs(estimate.mean() - true) < 3 * estimate.std() / 200**0.5
    spread = (found[:, 0].square().sum(1) / (exact[0] @ exact[0])).std()
    assert spread < (1.4 if kind != "kronecker" else 3) * (2 / 64) ** 0.5


@pytest.mark.parametrize("kind", KINDS)
def test_t6_parts_of_a_gradient_that_are_equal_do_not_add_up(kind, monkeypatch):
    # Random gradients would hide signs that are missing, or that repeat from block to block.
    monkeypatch.setattr(functional_projection, "MAX_ELEMENTS", 16 * 10)
    gradients = {name: torch.ones(1, *shape) for name, shape in SHAPES.items()}
    lengths = torch.stack([project(kind, gradients, 16, seed).square().sum() for seed in range(400)]).double()
    assert abs(lengths.mean() - whole(gradients).sum()) < 4 * lengths.std() / 400**0.5


@pytest.mark.parametrize("kind", KINDS)
def test_t6_scores_keep_their_order_at_8192(kind):
    generator = torch.Generator().manual_seed(0)
    shapes = {f"layer {i}": (4, 30) for i in range(12)}
    low_rank = [torch.randn(80, 6, generator=generator) @ torch.randn(6, 120, generator=generator) for _ in shapes]
    gradients = {name: values.view(80, 4, 30) for name, values in zip(shapes, low_rank, strict=True)}
    exact, found = whole(gradients), project(kind, gradients, 8192, shapes=shapes)
    scores = [uncertainties(pair_features(v[:40], v[40:]), pair_features(v[:10], v[30:40])) for v in (exact, found)]
    assert spearmanr(*scores).statistic > 0.99


def uncertainties(features, history):
    """`phi^T (I + H^T H)^-1 phi` by Woodbury's identity: the inverse of 8192 x 8192 takes 15 seconds."""
    inner = features @ history.T
    outer = torch.linalg.inv(torch.eye(len(history)) + history @ history.T)
    return features.square().sum(1) - ((inner @ outer) * inner).sum(1)


def test_woodburys_identity_is_the_explicit_inverse():
    features, history = (random_gradients(seed, n, {"w": (3, 4)})["w"].flatten(1) for seed, n in ((0, 9), (1, 5)))
    torch.testing.assert_close(uncertainties(features, history), uncertainty(features, history))


@pytest.mark.parametrize("kind", PROJECTIONS)
def test_no_dimension_leaves_gradients_unprojected(kind):
    gradients = random_gradients(5, 3)
    assert torch.equal(project(kind, gradients, dim=None, order=["b.lora_B", "c.bias", "a.lora_A"]), whole(gradients))


PROGRAM = """
import torch
from trl_real.functional.projection import PROJECTIONS, make_projection
shapes = {name: (5, 6) for name in {"x", "y", "z"}}
for kind in ("count_sketch", "rademacher", "kronecker"):
    projection = make_projection(kind, shapes, 16, 3)
    buffer = projection.buffer(1)
    for name in shapes:
        projection.add(buffer, name, torch.arange(30.0).view(1, 5, 6))
    print(projection.fingerprint, projection.finish(buffer).flatten().round().int().tolist())
"""


def test_t13_every_process_draws_the_same_with_any_hash_seed(capsys):
    environment = {**os.environ, "PYTHONHASHSEED": "12345"}
    other = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=environment, text=True, capture_output=True, check=True
    )
    exec(PROGRAM, {})
    assert capsys.readouterr().out == other.stdout and "count_sketch-16-" in other.stdout


def test_draws_depend_only_on_seed_name_and_shape():
    gradients = {"w": torch.randn(1, 4, 6, generator=torch.Generator().manual_seed(0))}
    for kind in KINDS:
        before = torch.get_rng_state(), np.random.get_state()[1].copy()
        one = project(kind, gradients, shapes={"w": (4, 6)})
        assert torch.equal(before[0], torch.get_rng_state()) and (before[1] == np.random.get_state()[1]).all()
        assert torch.equal(one, project(kind, gradients, shapes={"w": (4, 6), "v": (2, 2)}))
        assert not torch.equal(one, project(kind, gradients, seed=1, shapes={"w": (4, 6)}))
        assert not torch.equal(one, project(kind, {"v": gradients["w"]}, shapes={"v": (4, 6)}))


def test_projections_have_different_fingerprints():
    made = [
        make_projection("count_sketch", SHAPES, 64, 0),
        make_projection("count_sketch", SHAPES, 64, 1),
        make_projection("count_sketch", SHAPES, 32, 0),
        make_projection("rademacher", SHAPES, 64, 0),
        make_projection("count_sketch", {**SHAPES, "c.bias": (1, 8)}, 64, 0),
    ]
    assert len({projection.fingerprint for projection in made}) == len(made)
    assert make_projection("count_sketch", dict(reversed(SHAPES.items())), 64, 0).fingerprint == made[0].fingerprint


def test_invalid_arguments_are_refused():
    with pytest.raises(TrlRealError, match="count_sketch"):
        make_projection("sketch", SHAPES)
    with pytest.raises(TrlRealError, match="projection_dim"):
        make_projection("count_sketch", SHAPES, 0)
