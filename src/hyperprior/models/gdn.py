"""Generalized divisive normalization, the nonlinearity of g_a and (inverted) of g_s in figure 4."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from hyperprior.models.bounds import non_negative, non_negative_inverse

BETA_MINIMUM = 1e-6


class GDN(nn.Module):
    """GDN, or IGDN with `inverse=True` (Ballé et al., 2016a; figure 4).

    With s_i = sqrt(beta_i + sum_j gamma_ij x_j^2) over the channels j of one position,

        GDN:  y_i = x_i / s_i        IGDN:  y_i = x_i * s_i.

    beta_i >= 1e-6 and gamma_ij >= 0 by reparametrization. gamma starts at 0.1 on the diagonal and beta at 1.
    """

    def __init__(self, channels: int, *, inverse: bool = False) -> None:
        super().__init__()
        self.inverse = inverse
        self.raw_beta = nn.Parameter(non_negative_inverse(torch.ones(channels)))
        self.raw_gamma = nn.Parameter(non_negative_inverse(0.1 * torch.eye(channels)))

    @property
    def beta(self) -> Float[Tensor, "C"]:
        """Offset of the norm pool, positive."""
        return non_negative(self.raw_beta, BETA_MINIMUM)

    @property
    def gamma(self) -> Float[Tensor, "C C"]:
        """Weights of the norm pool, non-negative; row i holds what divides channel i."""
        return non_negative(self.raw_gamma)

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        pool = F.conv2d(x * x, self.gamma[:, :, None, None], self.beta)
        if torch.is_grad_enabled():
            return x * (pool.sqrt() if self.inverse else pool.rsqrt())
        # The same in place: these are a network's largest arrays, and memory is what they wait for.
        return (pool.sqrt_() if self.inverse else pool.rsqrt_()).mul_(x)
