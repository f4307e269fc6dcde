"""The zero-mean Gaussian conditional of y given sigma (eq. 7 and 11), and the table of scales the coder uses."""

import math
from typing import Any

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from hyperprior.models.bounds import log_one_minus_exp, lower_bound, upper_bound

SCALE_MINIMUM = 0.11
SCALE_MAXIMUM = 256.0
SCALE_LEVELS = 128


class _LogNormalCumulative(torch.autograd.Function):
    """log Phi(x) with a derivative that holds in float32 far into the tail.

    The derivative is the hazard phi(x) / Phi(x) = sqrt(2 / pi) / erfcx(-x / sqrt(2)). Computed from log Phi(x) itself
    it would be exp(-(log Phi(x) + x^2 / 2)), a difference of two huge numbers: at x = -10^4 its float32 rounding error
    alone is a factor e^2.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return torch.special.log_ndtr(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        (gradient,) = gradients
        hazard = math.sqrt(2 / math.pi) / torch.special.erfcx(-x * math.sqrt(0.5))
        return gradient * hazard


def _log_normal_cumulative(x: Tensor) -> Tensor:
    return _LogNormalCumulative.apply(x)  # type: ignore[no-untyped-call]


def bound_scale(raw: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Standard deviations within [0.11, 256], the range of the coder's tables; gradients can lead back inside."""
    return upper_bound(lower_bound(raw, SCALE_MINIMUM), SCALE_MAXIMUM)


def gaussian_bits(y: Float[Tensor, "*shape"], sigma: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Bits of y under N(0, sigma^2) convolved with a unit uniform (eq. 7; at integers, eq. 11).

    -log2(Phi((1/2 - |y|) / sigma) - Phi((-1/2 - |y|) / sigma)). By symmetry |y| may stand for y, which puts both
    arguments in the lower tail, where Phi is small and keeps its relative precision. The difference is taken in the
    log domain, so that bits are finite and have a gradient at any distance:

        log(A - B) = log A + log(1 - exp(log B - log A)).

    `sigma` must be positive; the result has the shape of y and the dtype of the arguments (float32 or better).
    """
    distance = y.abs()
    log_upper = _log_normal_cumulative((0.5 - distance) / sigma)
    log_lower = _log_normal_cumulative((-0.5 - distance) / sigma)
    log_mass = log_upper + log_one_minus_exp(log_upper - log_lower)
    return log_mass * (-1 / math.log(2))


def scale_table() -> Float64[Tensor, "levels"]:
    """The 128 standard deviations that have a frequency table, spaced evenly in log from 0.11 to 256."""
    logs = torch.linspace(math.log(SCALE_MINIMUM), math.log(SCALE_MAXIMUM), SCALE_LEVELS, dtype=torch.float64)
    return logs.exp()


def scale_thresholds() -> Float64[Tensor, "thresholds"]:
    """Where the nearest table changes: the geometric means of neighbouring scales."""
    table = scale_table()
    return (table[1:] * table[:-1]).sqrt()


def scale_index(sigma: Float[Tensor, "*shape"], thresholds: Float64[Tensor, "thresholds"]) -> Int[Tensor, "*shape"]:
    """Index of the table for each sigma: with `scale_thresholds`, that of the scale nearest in log, 0 to 127."""
    return torch.bucketize(sigma.to(torch.float64).contiguous(), thresholds.to(sigma.device))
