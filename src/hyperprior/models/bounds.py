"""Bounds whose gradient lets a parameter come back from the wrong side.

A plain clamp has zero gradient outside its range: a parameter that has crossed the bound stays there for good. These
bounds pass the gradient on wherever a step of gradient descent would move the value towards the feasible side.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

# Distance kept from zero by `non_negative`: at u = 0 the derivative of u^2 vanishes and learning would stop.
PEDESTAL = 2.0**-36
SMALLEST_STEP = 1e-9


class _LowerBound(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, bound: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.bound = bound
        return x.clamp(min=bound)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        (gradient,) = gradients
        # Descent moves x by -gradient, so a negative gradient pushes an infeasible x up, towards the bound.
        return gradient * ((x >= ctx.bound) | (gradient < 0)), None


def lower_bound(x: Float[Tensor, "*shape"], bound: float) -> Float[Tensor, "*shape"]:
    """max(x, bound); where x < bound the gradient passes only if descent would raise x."""
    return _LowerBound.apply(x, bound)  # type: ignore[no-untyped-call]


def upper_bound(x: Float[Tensor, "*shape"], bound: float) -> Float[Tensor, "*shape"]:
    """min(x, bound); where x > bound the gradient passes only if descent would lower x."""
    return -lower_bound(-x, -bound)


def log_one_minus_exp(step: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """log(1 - exp(-step)) for step > 0: what is left of a mass A in A - B, with step = log A - log B.

    Steps are bounded below at 10^-9. Smaller ones arise only where x + 1/2 and x - 1/2 have become the same number, and
    would make the bits of a far outlier infinite.
    """
    return torch.log(-torch.expm1(-lower_bound(step, SMALLEST_STEP)))


def non_negative(u: Float[Tensor, "*shape"], minimum: float = 0.0) -> Float[Tensor, "*shape"]:
    """Maps a free parameter u to a value >= `minimum`: max(u, sqrt(minimum + eps))^2 - eps, eps = 2^-36.

    The square makes steps near zero small, which keeps GDN's weights from jumping across it; `non_negative_inverse`
    gives the u that maps to a wanted value.
    """
    return lower_bound(u, (minimum + PEDESTAL) ** 0.5).square() - PEDESTAL


def non_negative_inverse(value: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """The u for which `non_negative(u)` equals `value` (>= 0)."""
    return (value + PEDESTAL).sqrt()
