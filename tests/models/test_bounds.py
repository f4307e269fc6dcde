import pytest
import torch

from hyperprior.models.bounds import lower_bound, non_negative, non_negative_inverse, upper_bound


@pytest.mark.parametrize(
    ("bound", "x", "gradient", "passes"),
    [
        (lower_bound, 2.0, 1.0, True),  # feasible: both signs pass
        (lower_bound, 2.0, -1.0, True),
        (lower_bound, 0.0, -1.0, True),  # descent raises x, towards the bound
        (lower_bound, 0.0, 1.0, False),  # descent would push x further away
        (upper_bound, 0.0, 1.0, True),
        (upper_bound, 0.0, -1.0, True),
        (upper_bound, 2.0, 1.0, True),  # descent lowers x, towards the bound
        (upper_bound, 2.0, -1.0, False),
    ],
)
def test_gradients_of_both_signs_pass_exactly_towards_the_feasible_side(bound, x, gradient, passes):
    value = torch.tensor([x], requires_grad=True)
    (bound(value, 1.0) * gradient).sum().backward()
    assert value.grad is not None
    assert value.grad.item() == (gradient if passes else 0.0)


def test_values_are_clamped():
    x = torch.tensor([-1.0, 0.5, 3.0])
    assert torch.equal(lower_bound(x, 0.5), torch.tensor([0.5, 0.5, 3.0]))
    assert torch.equal(upper_bound(x, 0.5), torch.tensor([-1.0, 0.5, 0.5]))


def test_an_infeasible_value_comes_back_by_descent():
    x = torch.tensor([-3.0], requires_grad=True)
    optimizer = torch.optim.SGD([x], lr=0.5)
    for _ in range(20):
        optimizer.zero_grad()
        (lower_bound(x, 1.0) - 2.0).square().sum().backward()
        optimizer.step()
    assert x.item() == pytest.approx(2.0, abs=1e-3)


def test_non_negative_keeps_its_minimum_and_inverts():
    values = torch.tensor([0.0, 1e-4, 0.1, 1.0, 30.0])
    torch.testing.assert_close(non_negative(non_negative_inverse(values)), values, rtol=1e-5, atol=1e-9)
    anywhere = torch.linspace(-3, 3, 101)
    assert (non_negative(anywhere) >= 0).all()
    assert (non_negative(anywhere, 1e-6) >= 0.999e-6).all()
