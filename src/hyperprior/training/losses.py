"""The training objective: rate + lambda * distortion."""

from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from pytorch_msssim import ms_ssim
from torch import Tensor

from hyperprior.models.compression import Compressed

LossName = Literal["mse", "ms_ssim"]


class RateDistortion(NamedTuple):
    """The objective over a batch and its parts, each a mean over the images."""

    loss: Float[Tensor, ""]  # bpp + lambda * distortion
    bpp_y: Float[Tensor, ""]
    bpp_z: Float[Tensor, ""]
    distortion: Float[Tensor, ""]  # 255^2 MSE, or 1 - MS-SSIM
    mse: Float[Tensor, ""]  # over values in [0, 1]


def rate_distortion(
    compressed: Compressed, x: Float[Tensor, "B 3 H W"], name: LossName, lmbda: float
) -> RateDistortion:
    """Bits per pixel + lambda * D (eq. 10), with D = 255^2 * MSE ("mse") or D = 1 - MS-SSIM ("ms_ssim").

    Images are in [0, 1]; MS-SSIM needs 161 pixels or more on a side.
    """
    pixels = x.shape[-2] * x.shape[-1]
    bpp_y = compressed.bits_y.mean() / pixels
    bpp_z = compressed.bits_z.mean() / pixels
    with torch.autocast(x.device.type, enabled=False):
        x_hat = compressed.x_hat.float()
        mse = (x_hat - x).square().mean()
        distortion = 255**2 * mse if name == "mse" else 1 - ms_ssim(x_hat, x, data_range=1.0)
    return RateDistortion(bpp_y + bpp_z + lmbda * distortion, bpp_y, bpp_z, distortion, mse)
