"""The non-parametric density of appendix 6.1, one for each channel, its quantiles and their auxiliary loss."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from hyperprior.models.bounds import log_one_minus_exp

# Width of the density at the start: its cumulative climbs over some tens of integers around zero, which is wide enough
# for untrained latents.
INITIAL_SCALE = 10.0
TAIL_MASS = 1e-9


class _Layer(NamedTuple):
    """One f_k of eq. (16), ready to apply: H^(k), b^(k) and, but for the last layer, a^(k)."""

    H: Float[Tensor, "C d_out d_in"]
    b: Float[Tensor, "C d_out 1"]
    a: Float[Tensor, "C d_out 1"] | None


class FactorizedDensity(nn.Module):
    """A univariate density for each of `channels` channels, convolved with a unit uniform (eq. 6, 9 and 30).

    The cumulative is c = f_K o ... o f_1 (eq. 13 to 18); `K` is the number of layers and `r` their inner width, one
    number for all or K - 1 of them. The paper has K = 4, r = 3. K = 1 is a logistic density (eq. 24, 25).

    `quantiles` (C x 3: the lower tail's, the median, the upper tail's) are parameters that only `quantile_loss`
    trains. The median is the offset of quantization: z-hat = round(z - median) + median.

    Raises ValueError if `channels` or `K` is below one, or `r` does not give K - 1 positive widths.
    """

    def __init__(self, channels: int, K: int = 4, r: int | Sequence[int] = 3) -> None:
        super().__init__()
        inner = [r] * (K - 1) if isinstance(r, int) else list(r)
        if channels < 1 or K < 1 or len(inner) != K - 1 or any(width < 1 for width in inner):
            raise ValueError(f"a density needs channels >= 1, K >= 1 and K - 1 widths r >= 1, not {channels}, {K}, {r}")
        self.channels = channels
        widths = [1, *inner, 1]
        self.raw_H = nn.ParameterList()
        self.b = nn.ParameterList()
        self.raw_a = nn.ParameterList()
        for d_in, d_out in pairwise(widths):
            # softplus(raw_H) = 1 / (scale^(1/K) d_out): each layer shrinks by scale^(1/K), all of them by `scale`.
            H = INITIAL_SCALE ** (-1 / K) / d_out
            self.raw_H.append(nn.Parameter(torch.full((channels, d_out, d_in), math.log(math.expm1(H)))))
            self.b.append(nn.Parameter(torch.empty(channels, d_out, 1).uniform_(-0.5, 0.5)))
        for width in inner:
            self.raw_a.append(nn.Parameter(torch.zeros(channels, width, 1)))
        self.quantiles = nn.Parameter(torch.tensor([-INITIAL_SCALE, 0.0, INITIAL_SCALE]).repeat(channels, 1))

    @property
    def medians(self) -> Float[Tensor, "C"]:
        """Offsets of quantization, one a channel."""
        return self.quantiles[:, 1]

    def _layers(self) -> list[_Layer]:
        rates = [torch.tanh(raw) for raw in self.raw_a]  # eq. (23)
        return [
            _Layer(F.softplus(raw_H), b, a)  # eq. (22)
            for raw_H, b, a in zip(self.raw_H, self.b, [*rates, None], strict=True)
        ]

    def logits(self, x: Float[Tensor, "C L"], *, trainable: bool = True) -> Float[Tensor, "C L"]:
        """The cumulative before its sigmoid: logit c(x) for L values in each channel (eq. 16 to 18).

        With `trainable=False` the density's parameters are held constant, so that a gradient reaches x alone.
        """
        value = x[:, None, :]
        for H, b, a in self._layers():
            if not trainable:
                H, b, a = H.detach(), b.detach(), None if a is None else a.detach()
            value = H @ value + b
            if a is not None:
                value = value + a * torch.tanh(value)
        return value[:, 0, :]

    def bits(self, x: Float[Tensor, "C L"]) -> Float[Tensor, "C L"]:
        """Bits of each value, -log2(c(x + 1/2) - c(x - 1/2)) (eq. 30).

        With u and l the logits at x + 1/2 and x - 1/2, and S the sigmoid,

            S(u) - S(l) = S(u) S(-l) (1 - exp(l - u)),

        an identity without cancellation: in either tail one factor is close to one and the other carries the
        magnitude. Every term is taken by its logarithm, so bits stay finite and keep a gradient.
        """
        length = x.shape[1]
        both = self.logits(torch.cat([x + 0.5, x - 0.5], dim=1))
        upper, lower = both[:, :length], both[:, length:]
        log_mass = F.logsigmoid(upper) + F.logsigmoid(-lower) + log_one_minus_exp(upper - lower)
        return log_mass * (-1 / math.log(2))

    def forward(self, z: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        """Bits of each element of a latent."""
        batch, channels, height, width = z.shape
        flat = z.transpose(0, 1).reshape(channels, -1)
        return self.bits(flat).reshape(channels, batch, height, width).transpose(0, 1)

    def quantile_loss(self) -> Float[Tensor, ""]:
        """Sum over channels of |logit c(q) - logit t| for the targets t = 5e-10, 1/2 and 1 - 5e-10.

        Its gradient is zero on everything but `quantiles`, and its minimum is where they are true quantiles.
        """
        target = _logit_of_tail(TAIL_MASS / 2)
        targets = self.quantiles.new_tensor([target, 0.0, -target])
        return (self.logits(self.quantiles, trainable=False) - targets).abs().sum()

    @torch.no_grad()
    def tail_mass(self) -> Float[Tensor, "C"]:
        """Probability outside the outer quantiles, for each channel; near 1e-9 once they have converged."""
        logits = self.logits(self.quantiles)
        return torch.sigmoid(logits[:, 0]) + torch.sigmoid(-logits[:, 2])

    @torch.no_grad()
    def solve_quantiles(self, tail_mass: float) -> Float[Tensor, "C 2"]:
        """The two values with probability tail_mass / 2 beyond each, by bisection (to 1e-6 of their distance).

        Independent of `quantiles`, which a short training leaves unconverged.
        """
        target = _logit_of_tail(tail_mass / 2)
        targets = self.quantiles.new_tensor([target, -target])
        low = self.quantiles.new_full((self.channels, 2), -1.0)
        high = -low
        while (outside := self.logits(low) > targets).any() and low.abs().max() < 1e9:
            low = torch.where(outside, 2 * low, low)
        while (outside := self.logits(high) < targets).any() and high.abs().max() < 1e9:
            high = torch.where(outside, 2 * high, high)
        for _ in range(60):
            middle = (low + high) / 2
            below = self.logits(middle) < targets
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        return (low + high) / 2


def _logit_of_tail(mass: float) -> float:
    return math.log(mass) - math.log1p(-mass)
