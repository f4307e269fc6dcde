"""Dead leaves: endless synthetic images with the statistics of photographs, from a seed.

Opaque shapes fall on each other; what is seen is occlusion, as in a natural scene. With radii distributed as r^-3 the
result looks alike at every scale and its power spectrum falls as about 1/f^2 (Lee, Mumford and Huang, 2001). Colours
vary mostly in luminance, and each shape carries a noise texture of its own strength.
"""

import numpy as np
import torch
from jaxtyping import Float32, Int64, UInt8
from PIL import Image, ImageDraw, ImageFilter
from torch import Tensor

SUPERSAMPLING = 2  # the scene is drawn this much larger, so that edges are smooth
SMALLEST_RADIUS = (2.0, 24.0)  # pixels of the result; the range that each scene draws its own from
COVERAGE = 4.0  # expected number of shapes over a point: exp(-4) of the background stays visible
CORNERS = 14


class DeadLeaves:
    """Training crops of `patch_size` x `patch_size` pixels, without end.

    Crop i is a pure function of (seed, i): any worker, rank or resumed run makes the same one.
    """

    def __init__(self, patch_size: int, seed: int) -> None:
        self.patch_size = patch_size
        self.seed = seed

    def __getitem__(self, index: int) -> UInt8[Tensor, "3 P P"]:
        rng = np.random.default_rng([self.seed, index])
        return torch.tensor(render(rng, self.patch_size)).permute(2, 0, 1)


def render(rng: np.random.Generator, size: int) -> UInt8[np.ndarray, "size size 3"]:
    """One dead-leaves image, 8-bit RGB."""
    labels, shapes = _occlusion(rng, size * SUPERSAMPLING)
    # Per shape: red, green, blue, and the strengths of two textures.
    properties = np.concatenate([_colours(rng, shapes), rng.exponential(0.04, (shapes, 2))], axis=1)
    fine = np.take(properties.astype(np.float32), labels, axis=0)
    blocks = fine.reshape(size, SUPERSAMPLING, size, SUPERSAMPLING, 5)
    scene = blocks.mean(axis=(1, 3))
    texture = scene[..., 3] * _noise(rng, size, rng.uniform(0.5, 1.0))
    texture += scene[..., 4] * _noise(rng, size, rng.uniform(1.0, 1.8))
    light = 1 + _ramp(rng, size)
    pixels = (scene[..., :3] + texture[..., None]) * light[..., None]
    image = Image.fromarray((pixels.clip(0, 1) * 255).round().astype(np.uint8))
    return np.asarray(image.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 0.9))))


def _occlusion(rng: np.random.Generator, size: int) -> tuple[Int64[np.ndarray, "size size"], int]:
    """Which shape is seen at each pixel, and how many shapes there are (0 is the background)."""
    smallest = np.exp(rng.uniform(*np.log(SMALLEST_RADIUS))) * SUPERSAMPLING
    largest = max(size / 2, 2 * smallest)
    # Density r^-3 on [smallest, largest], by inversion; E[r^2] = 2 ln(largest / smallest) / (smallest^-2 - largest^-2).
    inner, outer = smallest**-2.0, largest**-2.0
    mean_square = 2 * np.log(largest / smallest) / (inner - outer)
    count = int(COVERAGE * (size + 2 * smallest) ** 2 / (np.pi * mean_square))
    radii = (inner - rng.random(count) * (inner - outer)) ** -0.5
    centres = rng.uniform(-smallest, size + smallest, (count, 2))

    # Outlines: points on a circle, flattened and turned, and for half of the shapes roughened; few points make
    # polygons, many make smooth leaves.
    corners = rng.choice([3, 4, 4, 5, 8, CORNERS, CORNERS], count)
    step = np.minimum(np.arange(CORNERS)[None, :], corners[:, None] - 1) / corners[:, None]
    angles = 2 * np.pi * step + rng.uniform(0, 2 * np.pi, (count, 1))
    roughness = rng.uniform(0, 0.35, (count, 1)) * (rng.random((count, 1)) < 0.5)
    reach = radii[:, None] * (1 + roughness * rng.standard_normal((count, CORNERS)))
    points = np.stack([reach * np.cos(angles), reach * np.sin(angles)], axis=-1)
    aspect = np.exp(rng.uniform(0, 1.2, count) * 0.5)
    turn = rng.uniform(0, np.pi, count)
    cos, sin = np.cos(turn)[:, None], np.sin(turn)[:, None]
    u, v = points[..., 0] * aspect[:, None], points[..., 1] / aspect[:, None]
    outlines = np.stack([cos * u - sin * v, sin * u + cos * v], axis=-1) + centres[:, None, :]

    canvas = Image.new("I", (size, size), 0)
    draw = ImageDraw.Draw(canvas)
    for label, (outline, used) in enumerate(zip(outlines.reshape(count, -1).tolist(), corners, strict=True), start=1):
        draw.polygon(outline[: 2 * used], fill=label)
    return np.asarray(canvas).astype(np.int64), count + 1


def _colours(rng: np.random.Generator, count: int) -> Float32[np.ndarray, "count 3"]:
    """RGB in about [0, 1]: luminance varies widely, the two opponent colours little and around the image's own cast."""
    luminance = rng.normal(rng.uniform(0.3, 0.6), rng.uniform(0.12, 0.26), count)
    saturation = rng.uniform(0.02, 0.09)
    blue_yellow = rng.normal(rng.normal(0, 0.05), saturation, count)
    red_green = rng.normal(rng.normal(0, 0.02), saturation / 2.5, count)
    red = luminance + blue_yellow + red_green
    green = luminance + blue_yellow / 3 - red_green
    blue = luminance - blue_yellow
    return np.stack([red, green, blue], axis=1).astype(np.float32)


def _noise(rng: np.random.Generator, size: int, exponent: float) -> Float32[np.ndarray, "size size"]:
    """Gaussian noise of unit variance whose amplitude spectrum falls as f^-exponent."""
    spectrum = np.fft.rfft2(rng.standard_normal((size, size), dtype=np.float32))
    frequency = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None, :])
    frequency[0, 0] = 1
    field = np.fft.irfft2(spectrum * frequency**-exponent, s=(size, size))
    field -= field.mean()
    return (field / field.std()).astype(np.float32)


def _ramp(rng: np.random.Generator, size: int) -> Float32[np.ndarray, "size size"]:
    """A slow change of light across the image."""
    position = np.linspace(-1, 1, size, dtype=np.float32)
    slope = rng.normal(0, 0.12, 2)
    return (slope[0] * position[:, None] + slope[1] * position[None, :]).astype(np.float32)
