import numpy as np
import pytest
import torch
from scipy import stats
from scipy.special import log_ndtr

from hyperprior.models.gaussian import (
    SCALE_MAXIMUM,
    SCALE_MINIMUM,
    bound_scale,
    gaussian_bits,
    scale_index,
    scale_table,
    scale_thresholds,
)


def scipy_bits(y: np.ndarray, sigma: float) -> np.ndarray:
    """-log2(Phi(b) - Phi(a)) by SciPy in float64, from the upper tail mirrored down."""
    upper, lower = log_ndtr((0.5 - np.abs(y)) / sigma), log_ndtr((-0.5 - np.abs(y)) / sigma)
    return -(upper + np.log1p(-np.exp(lower - upper))) / np.log(2)


@pytest.mark.parametrize("sigma", [0.11, 0.3, 1.0, 7.0, 60.0, 256.0])
def test_bits_agree_with_scipy_far_into_the_tails(sigma):
    y = np.concatenate([np.linspace(-3, 3, 61), np.array([10, 100, 1e3, 1e4, -1e5]), sigma * np.array([5, 20, 37])])
    values = torch.tensor(y, dtype=torch.float32)
    bits = gaussian_bits(values, torch.full_like(values, sigma))
    # float32 rounds sigma and y themselves; the tail's bits grow with the square of y / sigma.
    np.testing.assert_allclose(bits.numpy(), scipy_bits(y, sigma), rtol=2e-6, atol=1e-4)


@pytest.mark.parametrize("sigma", [0.3, 1.0, 7.0])
def test_mass_is_the_difference_of_scipys_cumulatives(sigma):
    y = np.arange(-20, 21).astype(float)
    expected = stats.norm.cdf((y + 0.5) / sigma) - stats.norm.cdf((y - 0.5) / sigma)
    mass = torch.exp2(-gaussian_bits(torch.tensor(y), torch.full((41,), sigma, dtype=torch.float64)))
    np.testing.assert_allclose(mass.numpy(), expected, rtol=1e-9, atol=1e-16)
    assert mass.sum().item() == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("y", [0.0, 0.4, 3.0, 300.0, 3e4])
@pytest.mark.parametrize("sigma", [0.11, 1.0, 256.0])
def test_gradients_agree_with_a_difference_quotient_of_scipys_bits(y, sigma):
    value = torch.tensor([y], requires_grad=True)
    scale = torch.tensor([sigma], requires_grad=True)
    gaussian_bits(value, scale).sum().backward()
    step_y, step_s = 1e-4 * max(sigma, 1e-2), 1e-4 * sigma
    by_y = (scipy_bits(np.array(y + step_y), sigma) - scipy_bits(np.array(y - step_y), sigma)) / (2 * step_y)
    by_s = (scipy_bits(np.array(y), sigma + step_s) - scipy_bits(np.array(y), sigma - step_s)) / (2 * step_s)
    tolerance = {"rel": 2e-3, "abs": 2e-2 / sigma}
    assert value.grad.item() == pytest.approx(by_y, **tolerance)
    assert scale.grad.item() == pytest.approx(by_s, **tolerance)


def test_bits_and_gradients_are_finite_at_any_distance():
    y = torch.tensor([0.0, 1e2, 1e4, 1e6, 1e8], requires_grad=True)
    sigma = torch.full((5,), SCALE_MINIMUM, requires_grad=True)
    bits = gaussian_bits(y, sigma)
    bits.sum().backward()
    for values in (bits, y.grad, sigma.grad):
        assert torch.isfinite(values).all()
    assert (bits.diff() > 0).all()


def test_a_scale_outside_its_range_can_come_back():
    raw = torch.tensor([-5.0, 1e4], requires_grad=True)
    sigma = bound_scale(raw)
    assert sigma.tolist() == pytest.approx([SCALE_MINIMUM, SCALE_MAXIMUM])
    # The first element's y asks for a larger scale, the second's for a smaller one.
    gaussian_bits(torch.tensor([3.0, 0.0]), sigma).sum().backward()
    assert raw.grad[0] < 0 < raw.grad[1]


def test_each_scale_has_the_nearest_table_in_log():
    table = scale_table()
    assert table[0].item() == pytest.approx(SCALE_MINIMUM)
    assert table[-1].item() == pytest.approx(SCALE_MAXIMUM)
    sigma = torch.tensor(np.exp(np.random.default_rng(0).uniform(np.log(0.05), np.log(500), 2000)))
    nearest = (sigma.log()[:, None] - table.log()[None, :]).abs().argmin(dim=1)
    assert torch.equal(scale_index(sigma, scale_thresholds()), nearest)
