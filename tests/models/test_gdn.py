import pytest
import torch

from hyperprior.models.bounds import non_negative_inverse
from hyperprior.models.gdn import GDN


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("inverse", [False, True])
def test_an_asymmetric_gamma_pools_channels_as_the_formula_says(inverse, training):
    channels = 4
    layer = GDN(channels, inverse=inverse)
    gamma = torch.rand(channels, channels)  # gamma_ij differs from gamma_ji
    beta = torch.rand(channels) + 0.5
    with torch.no_grad():
        layer.raw_gamma.copy_(non_negative_inverse(gamma))
        layer.raw_beta.copy_(non_negative_inverse(beta))
    x = torch.randn(2, channels, 3, 5)
    with torch.set_grad_enabled(training):  # without gradients it works in place
        y = layer(x)
    for b in range(2):
        for row in range(3):
            for column in range(5):
                for i in range(channels):
                    pool = beta[i].item()
                    for j in range(channels):
                        pool += gamma[i, j].item() * x[b, j, row, column].item() ** 2
                    expected = x[b, i, row, column].item() * (pool**0.5 if inverse else pool**-0.5)
                    assert y[b, i, row, column].item() == pytest.approx(expected, rel=1e-5)


def test_weights_stay_feasible_under_any_step():
    layer = GDN(3)
    optimizer = torch.optim.SGD(layer.parameters(), lr=10.0)
    for _ in range(20):
        optimizer.zero_grad()
        layer(torch.randn(1, 3, 2, 2)).square().mean().backward()
        optimizer.step()
        assert (layer.gamma >= 0).all()
        assert (layer.beta > 0).all()


@pytest.mark.parametrize("inverse", [False, True])
def test_gradients_agree_with_finite_differences(inverse):
    layer = GDN(3, inverse=inverse).double()
    with torch.no_grad():
        layer.raw_gamma.copy_(torch.rand(3, 3) + 0.1)
    x = torch.randn(1, 3, 2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(layer, (x,))
