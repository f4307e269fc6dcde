import numpy as np
import pytest
import torch
from scipy import optimize
from scipy.integrate import quad

from hyperprior.models.factorized_density import TAIL_MASS, FactorizedDensity


def random_density(channels: int = 3, K: int = 4, r: int | list[int] = 3) -> FactorizedDensity:
    """A density that is nothing like its start."""
    density = FactorizedDensity(channels, K, r).double()
    with torch.no_grad():
        for parameters in (density.raw_H, density.b, density.raw_a):
            for parameter in parameters:
                parameter.add_(torch.randn_like(parameter))
    return density


def cumulative(density: FactorizedDensity, x: float) -> np.ndarray:
    """c(x) by eq. (16) to (18) and (22), (23), written as loops over NumPy vectors, one channel at a time."""
    result = []
    K = len(density.raw_H)
    for channel in range(density.channels):
        value = np.array([x])
        for k in range(K):
            H = np.log1p(np.exp(density.raw_H[k][channel].detach().numpy()))
            value = H @ value + density.b[k][channel, :, 0].detach().numpy()
            if k < K - 1:
                a = np.tanh(density.raw_a[k][channel, :, 0].detach().numpy())
                value = value + a * np.tanh(value)
        result.append(1 / (1 + np.exp(-value[0])))
    return np.array(result)


@pytest.mark.parametrize(("K", "r"), [(1, 3), (2, 2), (4, 3), (3, [2, 5])])
def test_bits_are_those_of_the_papers_cumulative_over_a_unit_interval(K, r):
    density = random_density(K=K, r=r)
    for x in (-7.3, -1.0, 0.0, 0.25, 4.0):
        expected = -np.log2(cumulative(density, x + 0.5) - cumulative(density, x - 0.5))
        bits = density.bits(torch.full((3, 1), x, dtype=torch.float64))
        np.testing.assert_allclose(bits[:, 0].detach().numpy(), expected, rtol=1e-9)


@pytest.mark.parametrize(("K", "r"), [(1, 3), (2, 4), (4, 3)])
def test_the_mass_of_the_integers_sums_to_one(K, r):
    density = random_density(K=K, r=r)
    symbols = torch.arange(-3000, 3001, dtype=torch.float64).expand(3, -1)
    total = torch.exp2(-density.bits(symbols)).sum(dim=1)
    np.testing.assert_allclose(total.detach().numpy(), 1, atol=1e-6)


def test_one_layer_is_the_closed_form_of_equation_25():
    density = random_density(channels=1, K=1)
    h = torch.nn.functional.softplus(density.raw_H[0]).item()
    b = density.b[0].item()

    def p(x):  # eq. (25)
        return h / 2 / (1 + np.cosh(h * x + b))

    for x in (-4.0, -0.3, 0.0, 1.0, 6.0):
        mass, _ = quad(p, x - 0.5, x + 0.5)
        bits = density.bits(torch.tensor([[x]], dtype=torch.float64)).item()
        assert bits == pytest.approx(-np.log2(mass), rel=1e-9)
        c = 1 / (1 + np.exp(-(h * x + b)))  # eq. (24)
        assert torch.sigmoid(density.logits(torch.tensor([[x]], dtype=torch.float64))).item() == pytest.approx(c)


def test_a_collapsed_latent_costs_zero_bits():
    """Section 6.2: as the density's scale goes to zero, its convolution becomes the unit uniform around the value."""
    density = FactorizedDensity(1, K=1)
    with torch.no_grad():
        density.raw_H[0].fill_(1e3)
        density.b[0].fill_(-3e3)  # all mass at x = 3
    noisy = 3 + torch.linspace(-0.49, 0.49, 99)[None, :]
    assert density.bits(noisy).abs().max().item() < 1e-3
    assert density.bits(torch.tensor([[3.0]])).item() == pytest.approx(0, abs=1e-6)
    assert density.bits(torch.tensor([[3.6]])).item() > 50


def test_bits_and_gradients_are_finite_at_any_distance():
    density = FactorizedDensity(2)
    x = torch.tensor([[0.0, 1e2, -1e4, 1e6, -1e8], [0.0, -1e2, 1e4, -1e6, 1e8]], requires_grad=True)
    bits = density.bits(x)
    bits.sum().backward()
    assert torch.isfinite(bits).all()
    assert torch.isfinite(x.grad).all()
    assert (x.grad[:, 1:4] * x.detach()[:, 1:4] > 0).all()  # descent leads back to the middle
    for parameter in (*density.raw_H, *density.b, *density.raw_a):
        assert torch.isfinite(parameter.grad).all()


def test_float32_bits_agree_with_float64_in_both_tails():
    exact = random_density()
    density = FactorizedDensity(3)
    density.load_state_dict(exact.state_dict())
    x = torch.linspace(-200, 200, 401, dtype=torch.float64).expand(3, -1)
    torch.testing.assert_close(density.bits(x.float()).double(), exact.bits(x), rtol=1e-4, atol=1e-3)


def test_the_quantile_loss_moves_nothing_but_the_quantiles():
    density = random_density()
    density.quantile_loss().backward()
    assert density.quantiles.grad.abs().min() > 0
    others = [p for name, p in density.named_parameters() if name != "quantiles"]
    assert all(p.grad is None or not p.grad.any() for p in others)


def test_quantiles_converge_to_the_true_ones_found_by_bisection():
    density = random_density(channels=2)
    optimizer = torch.optim.Adam([density.quantiles], lr=2.0)
    decay = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.996)
    for _ in range(4000):
        optimizer.zero_grad()
        density.quantile_loss().backward()
        optimizer.step()
        decay.step()
    for channel in range(2):
        for position, mass in enumerate((TAIL_MASS / 2, 0.5, 1 - TAIL_MASS / 2)):
            target = np.log(mass) - np.log1p(-mass)

            def excess(x, channel=channel, target=target):
                return density.logits(torch.full((2, 1), x, dtype=torch.float64))[channel, 0].item() - target

            true = optimize.bisect(excess, -1e5, 1e5, xtol=1e-9)
            assert density.quantiles[channel, position].item() == pytest.approx(true, abs=2e-3 * max(1, abs(true)))
    np.testing.assert_allclose(density.tail_mass().numpy(), TAIL_MASS, rtol=0.1)


def test_solved_quantiles_leave_the_asked_mass_outside():
    density = random_density()
    edges = density.solve_quantiles(1e-3)
    logits = density.logits(edges)
    np.testing.assert_allclose(torch.sigmoid(logits[:, 0]).detach().numpy(), 5e-4, rtol=1e-6)
    np.testing.assert_allclose(torch.sigmoid(-logits[:, 1]).detach().numpy(), 5e-4, rtol=1e-6)


@pytest.mark.parametrize("arguments", [(0, 4, 3), (2, 0, 3), (2, 3, [1]), (2, 3, 0)])
def test_a_density_that_cannot_be_is_refused(arguments):
    with pytest.raises(ValueError, match="a density needs"):
        FactorizedDensity(*arguments)
