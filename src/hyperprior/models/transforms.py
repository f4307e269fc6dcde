"""The four transforms of figure 4. N filters inside, M channels in y."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from hyperprior.models.gdn import GDN


class OutputConv2d(nn.Conv2d):
    """A convolution that stays in float32 under autocast.

    The last layers of g_a and of h_a feed the quantizer: bfloat16 keeps eight bits, so a response of 100 would be
    off by up to 0.25 before it is rounded.
    """

    def forward(self, input: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D h w"]:
        with torch.autocast(input.device.type, enabled=False):
            return super().forward(input.to(self.weight.dtype))


class OutputConvTranspose2d(nn.ConvTranspose2d):
    """A transposed convolution (5x5, stride 1/2) that stays in float32 under autocast: g_s's last layer makes the
    pixels.

    It is computed as a 3x3 convolution whose outputs are the four phases of every channel, interleaved afterwards:
    libraries are slow at transposed convolutions with as few as three outputs. Output 2 j + p is the sum over
    d = -1, 0, 1 of input j + d with kernel element 2 + p - 2 d, where there is such an element.
    """

    def forward(
        self, input: Float[Tensor, "B C H W"], output_size: list[int] | None = None
    ) -> Float[Tensor, "B D h w"]:
        with torch.autocast(input.device.type, enabled=False):
            channels_in, channels_out = self.weight.shape[:2]
            # Element 2 a + p, for a = 0, 1, 2 and p = 0, 1 in both directions, goes to phase p and place d = 1 - a.
            elements = F.pad(self.weight, (0, 1, 0, 1)).reshape(channels_in, channels_out, 3, 2, 3, 2).flip(2, 4)
            kernel = elements.permute(1, 3, 5, 0, 2, 4).reshape(4 * channels_out, channels_in, 3, 3)
            bias = None if self.bias is None else self.bias.repeat_interleave(4)
            return F.pixel_shuffle(F.conv2d(input.to(self.weight.dtype), kernel, bias, padding=1), 2)


def _down(channels_in: int, channels_out: int, kind: type[nn.Conv2d] = nn.Conv2d) -> nn.Conv2d:
    """5x5, stride 2: a side of n becomes ceil(n / 2)."""
    return kind(channels_in, channels_out, kernel_size=5, stride=2, padding=2)


def _up(channels_in: int, channels_out: int, kind: type[nn.ConvTranspose2d] = nn.ConvTranspose2d) -> nn.ConvTranspose2d:
    """5x5, stride 1/2: a side of n becomes 2 n."""
    return kind(channels_in, channels_out, kernel_size=5, stride=2, padding=2, output_padding=1)


def analysis(N: int, M: int) -> nn.Sequential:
    """g_a: image B x 3 x H x W -> y, B x M x ceil(H/16) x ceil(W/16)."""
    return nn.Sequential(
        _down(3, N), GDN(N),
        _down(N, N), GDN(N),
        _down(N, N), GDN(N),
        _down(N, M, OutputConv2d),
    )  # fmt: skip


def synthesis(N: int, M: int) -> nn.Sequential:
    """g_s: y-hat B x M x h x w -> image B x 3 x 16 h x 16 w."""
    return nn.Sequential(
        _up(M, N), GDN(N, inverse=True),
        _up(N, N), GDN(N, inverse=True),
        _up(N, N), GDN(N, inverse=True),
        _up(N, 3, OutputConvTranspose2d),
    )  # fmt: skip


def hyper_analysis(N: int, M: int) -> nn.Sequential:
    """h_a: |y| B x M x h x w -> z, B x N x ceil(h/4) x ceil(w/4)."""
    return nn.Sequential(
        nn.Conv2d(M, N, kernel_size=3, padding=1), nn.ReLU(),
        _down(N, N), nn.ReLU(),
        _down(N, N, OutputConv2d),
    )  # fmt: skip


def hyper_synthesis(N: int, M: int) -> nn.Sequential:
    """h_s: z-hat B x N x h x w -> standard deviations before their bounds, B x M x 4 h x 4 w.

    The rectifier that ends h_s in figure 4 is `gaussian.bound_scale`: for every sigma_min >= 0,
    max(relu(v), sigma_min) = max(v, sigma_min), and the bound's gradient lets a scale grow again.
    """
    return nn.Sequential(
        _up(N, N), nn.ReLU(),
        _up(N, N), nn.ReLU(),
        OutputConv2d(N, M, kernel_size=3, padding=1),
    )  # fmt: skip
