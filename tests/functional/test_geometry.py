"""Tests of every geometry and its purpose."""

import pytest
import torch

from trl_real.functional.geometry import GEOMETRIES, WHITENING_FLOOR


def anisotropic(n: int = 300, d: int = 20) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    spread = torch.logspace(1, -1, d, dtype=torch.float64)
    return 30 + spread * torch.randn(n, d, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("name", GEOMETRIES)
def test_the_order_of_the_sample_does_not_matter(name):
    x = anisotropic()
    first, second = GEOMETRIES[name](x)(x), GEOMETRIES[name](x.flip(0))(x)
    cosines = [torch.nn.functional.cosine_similarity(y[::2], y[1::2]) for y in (first, second)]
    torch.testing.assert_close(*cosines, atol=1e-8, rtol=0)


@pytest.mark.parametrize("name", GEOMETRIES)
def test_shape_and_precision_are_kept_and_rows_are_independent(name):
    x = anisotropic().float()
    change = GEOMETRIES[name](x)
    pairs = x[:10].view(5, 2, -1)
    assert change(pairs).shape == pairs.shape and change(pairs).dtype == torch.float32
    torch.testing.assert_close(change(pairs)[3], change(pairs[3]), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", [name for name in GEOMETRIES if name != "raw"])
def test_every_geometry_but_raw_is_centred(name):
    x = anisotropic()
    assert GEOMETRIES[name](x)(x).mean(0).abs().max() < 1e-9


def test_raw_changes_nothing():
    x = anisotropic()
    assert torch.equal(GEOMETRIES["raw"](x)(x), x)


def test_standardized_has_unit_variances_and_whitened_no_correlations():
    x = anisotropic() @ torch.linalg.qr(torch.randn(20, 20, generator=torch.Generator().manual_seed(1)).double())[0]
    assert torch.allclose(GEOMETRIES["standardized"](x)(x).var(0), torch.ones(20, dtype=torch.float64))
    covariance = GEOMETRIES["whitened"](x)(x).T.cov()
    assert (covariance - covariance.diagonal().diag()).abs().max() < 1e-8
    variances = torch.linalg.eigvalsh(x.T.cov())
    damped = variances / (variances + WHITENING_FLOOR * variances.mean())  # 1, but for small directions
    torch.testing.assert_close(covariance.diagonal().sort().values, damped.sort().values)


def test_debiased_removes_the_leading_direction():
    x = anisotropic()
    before, after = (torch.linalg.eigvalsh(y.T.cov()) for y in (x, GEOMETRIES["debiased"](x)(x)))
    assert after[-1] == pytest.approx(float(before[-2]), rel=1e-6) and after[0] < 1e-9


def test_constant_coordinate_causes_no_nan():
    x = anisotropic()
    x[:, 3] = 7.0
    for name, fit in GEOMETRIES.items():
        assert torch.isfinite(fit(x)(x)).all(), name
