"""The two models of the paper: the factorized prior (section 2) and the scale hyperprior (section 3)."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from hyperprior.models import transforms
from hyperprior.models.factorized_density import FactorizedDensity
from hyperprior.models.gaussian import bound_scale, gaussian_bits

STRIDE_Y = 16  # pixels of the image to one position of y
STRIDE_Z = 4  # positions of y to one of z


class Compressed(NamedTuple):
    """What a model makes of a batch: the reconstruction, and the bits of y and of z for each image.

    Bits are cross entropies under the model's densities (eq. 10). z has none in the factorized-prior model: zeros.
    """

    x_hat: Float[Tensor, "B 3 H W"]
    bits_y: Float[Tensor, "B"]
    bits_z: Float[Tensor, "B"]


class Noise(NamedTuple):
    """Uniform noise on [-1/2, 1/2), the stand-in for quantization in training (eq. 4 and 8)."""

    y: Float[Tensor, "B M h w"]
    z: Float[Tensor, "B N k l"]


class CompressionModel(nn.Module, ABC):
    """g_a, g_s and what both priors share. Images are float RGB in [0, 1], of any size from 1 x 1."""

    name: str

    def __init__(self, N: int, M: int, K: int = 4, r: int | Sequence[int] = 3) -> None:
        super().__init__()
        if N < 1 or M < 1:
            raise ValueError(f"N and M must be positive, not {N} and {M}")
        self.N, self.M, self.K, self.r = N, M, K, r
        self.analysis = transforms.analysis(N, M)
        self.synthesis = transforms.synthesis(N, M)

    @property
    def architecture(self) -> dict[str, Any]:
        """The arguments of `build_model` that make this model again (without its weights)."""
        r = self.r if isinstance(self.r, int) else list(self.r)
        return {"name": self.name, "N": self.N, "M": self.M, "K": self.K, "r": r}

    def analyze(self, x: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B M h w"]:
        """y = g_a(x), with ceil(H/16) x ceil(W/16) positions. The image is first extended to whole multiples of 16
        by repeating its last row and column, so that its border is transformed like its inside."""
        height, width = x.shape[-2:]
        if height % STRIDE_Y or width % STRIDE_Y:
            x = F.pad(x, (0, -width % STRIDE_Y, 0, -height % STRIDE_Y), mode="replicate")
        y: Tensor = self.analysis(x)
        return y.float()

    def synthesize(self, y_hat: Float[Tensor, "B M h w"], height: int, width: int) -> Float[Tensor, "B 3 H W"]:
        """x-hat = g_s(y-hat), cropped to height x width. Not clamped to [0, 1]."""
        x_hat: Tensor = self.synthesis(y_hat)
        return x_hat[..., :height, :width].float()

    def latent_shapes(self, height: int, width: int) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
        """Channels, rows and columns of y and of z for an image of height x width."""
        h, w = -(-height // STRIDE_Y), -(-width // STRIDE_Y)
        return (self.M, h, w), (self.N, -(-h // STRIDE_Z), -(-w // STRIDE_Z))

    def draw_noise(self, seeds: Int[Tensor, "B"], height: int, width: int, device: torch.device) -> Noise:
        """Noise for a batch of height x width images, each image's drawn from its own seed.

        So it does not depend on the batch around an image, nor on the rank it is on, nor on what was drawn before.
        """
        shape_y, shape_z = self.latent_shapes(height, width)
        generator = torch.Generator(device)
        samples = []
        for seed in seeds.tolist():
            generator.manual_seed(seed)
            y = torch.rand(shape_y, generator=generator, device=device)
            samples.append((y, torch.rand(shape_z, generator=generator, device=device)))
        return Noise(torch.stack([y for y, _ in samples]) - 0.5, torch.stack([z for _, z in samples]) - 0.5)

    @property
    @abstractmethod
    def density(self) -> FactorizedDensity:
        """The non-parametric density: of y in the factorized-prior model, of z in the hyperprior model."""

    @abstractmethod
    def forward(self, x: Float[Tensor, "B 3 H W"], noise: Noise | None = None) -> Compressed:
        """Reconstruction and bits: with additive `noise` in training (y-tilde, z-tilde), else rounded (y-hat, z-hat).

        The transforms follow the caller's autocast; densities and bits are float32 throughout.
        """


def quantize(
    values: Float[Tensor, "B C H W"], noise: Float[Tensor, "B C H W"] | None, medians: Float[Tensor, "C"] | None = None
) -> Float[Tensor, "B C H W"]:
    """values + noise; or, without noise, values rounded to the integers (offset by `medians`, a channel each)."""
    if noise is not None:
        return values + noise
    if medians is None:
        return values.round()
    offsets = medians.detach()[:, None, None]
    return (values - offsets).round() + offsets


def _per_image(bits: Float[Tensor, "B C H W"]) -> Float[Tensor, "B"]:
    return bits.sum(dim=(1, 2, 3))


class FactorizedPrior(CompressionModel):
    """The factorized-prior model (eq. 6): every channel of y has one non-parametric density for all positions."""

    name = "factorized"

    def __init__(self, N: int, M: int, K: int = 4, r: int | Sequence[int] = 3) -> None:
        super().__init__(N, M, K, r)
        self.density_y = FactorizedDensity(M, K, r)

    @property
    def density(self) -> FactorizedDensity:
        return self.density_y

    def forward(self, x: Float[Tensor, "B 3 H W"], noise: Noise | None = None) -> Compressed:
        y = self.analyze(x)
        with torch.autocast(x.device.type, enabled=False):
            y_hat = quantize(y, noise.y if noise else None, self.density_y.medians)
            bits_y = _per_image(self.density_y(y_hat))
        x_hat = self.synthesize(y_hat, x.shape[-2], x.shape[-1])
        return Compressed(x_hat, bits_y, torch.zeros_like(bits_y))


class ScaleHyperprior(CompressionModel):
    """The scale-hyperprior model (eq. 7 to 10): y is Gaussian given sigma = h_s(z), and z is side information."""

    name = "hyperprior"

    def __init__(self, N: int, M: int, K: int = 4, r: int | Sequence[int] = 3) -> None:
        super().__init__(N, M, K, r)
        self.hyper_analysis = transforms.hyper_analysis(N, M)
        self.hyper_synthesis = transforms.hyper_synthesis(N, M)
        self.density_z = FactorizedDensity(N, K, r)

    @property
    def density(self) -> FactorizedDensity:
        return self.density_z

    def hyper_analyze(self, y: Float[Tensor, "B M h w"]) -> Float[Tensor, "B N k l"]:
        """z = h_a(|y|), one position to four by four of y (rounded up)."""
        z: Tensor = self.hyper_analysis(y.abs())
        return z.float()

    def scales(self, z_hat: Float[Tensor, "B N k l"], rows: int, columns: int) -> Float[Tensor, "B M h w"]:
        """sigma = h_s(z-hat) within its bounds, for the rows x columns positions of y."""
        raw: Tensor = self.hyper_synthesis(z_hat)[..., :rows, :columns]
        return bound_scale(raw if raw.dtype == torch.float64 else raw.float())

    def forward(self, x: Float[Tensor, "B 3 H W"], noise: Noise | None = None) -> Compressed:
        y = self.analyze(x)
        z = self.hyper_analyze(y)
        with torch.autocast(x.device.type, enabled=False):
            z_hat = quantize(z, noise.z if noise else None, self.density_z.medians)
            bits_z = _per_image(self.density_z(z_hat))
        sigma = self.scales(z_hat, y.shape[-2], y.shape[-1])
        with torch.autocast(x.device.type, enabled=False):
            y_hat = quantize(y, noise.y if noise else None)
            bits_y = _per_image(gaussian_bits(y_hat, sigma))
        x_hat = self.synthesize(y_hat, x.shape[-2], x.shape[-1])
        return Compressed(x_hat, bits_y, bits_z)


MODELS: dict[str, type[CompressionModel]] = {kind.name: kind for kind in (FactorizedPrior, ScaleHyperprior)}


def build_model(name: str, N: int, M: int, K: int = 4, r: int | Sequence[int] = 3) -> CompressionModel:
    """A new model, `name` being "factorized" or "hyperprior". Raises ValueError for another name."""
    if name not in MODELS:
        raise ValueError(f"unknown model {name!r}; choose from {', '.join(sorted(MODELS))}")
    return MODELS[name](N, M, K, r)
