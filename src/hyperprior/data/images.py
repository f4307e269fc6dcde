"""Image files: which ones there are and how they are read."""

import warnings
from io import BytesIO
from os import PathLike
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageCms, ImageOps

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".ppm"})

_SRGB = ImageCms.createProfile("sRGB")

# What Pillow raises for a damaged file, by format: a broken PNG chunk is a SyntaxError, a bad PPM header a ValueError.
DAMAGE = (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError)


class NoImagesError(ValueError):
    """There is nothing to train on or to test with."""


class SkippedImage(UserWarning):
    """An image file was left out, and why."""


def find_images(root: Path, smallest_side: int) -> list[Path]:
    """The image files below a folder, at any depth, sorted by path.

    A file whose header cannot be read, or whose shorter side has fewer than `smallest_side` pixels, is left out with a
    warning that names it. Raises NoImagesError if the folder is missing or nothing is left.
    """
    if not root.is_dir():
        raise NoImagesError(f"no folder at {root}")
    usable = []
    for path in sorted(path for path in root.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file()):
        try:
            with Image.open(path) as image:
                width, height = image.size
        except DAMAGE as error:
            warnings.warn(f"skipped {path}: not a readable image ({error})", SkippedImage, stacklevel=2)
            continue
        if min(width, height) < smallest_side:
            reason = f"{width}x{height} is below {smallest_side} pixels on a side"
            warnings.warn(f"skipped {path}: {reason}", SkippedImage, stacklevel=2)
            continue
        usable.append(path)
    if not usable:
        raise NoImagesError(
            f"no image of {smallest_side} pixels or more on its shorter side below {root} (looked for "
            f"{' '.join(sorted(SUFFIXES))})"
        )
    return usable


def read_rgb(source: str | PathLike[str] | BytesIO) -> UInt8[np.ndarray, "H W 3"]:
    """A whole image as 8-bit sRGB, turned as its EXIF orientation says; `to_rgb` has the rules.

    Raises one of DAMAGE if it is damaged.
    """
    with Image.open(source) as image:
        return np.asarray(to_rgb(ImageOps.exif_transpose(image)))


def to_rgb(image: Image.Image) -> Image.Image:
    """Any image as 8-bit sRGB.

    16-bit grey is scaled and rounded (Pillow would cut it off at 255); of 16-bit colour Pillow reads the high bytes.
    Colours are converted from the embedded ICC profile to sRGB; without a profile, or with a broken one, they are taken
    to be sRGB. Transparent pixels are blended onto white.

    Raises ValueError for floating-point pixels, whose range is not known.
    """
    if image.mode == "F":
        raise ValueError("floating-point pixels")
    profile = image.info.get("icc_profile")
    if image.mode.startswith("I"):
        levels = (np.asarray(image).astype(np.float64).clip(0, 65535) / 257).round()
        image = Image.fromarray(levels.astype(np.uint8))
    alpha = None
    if image.has_transparency_data:
        alpha = image.convert("RGBA").getchannel("A")
    if alpha is not None or image.mode not in ("L", "RGB", "CMYK", "LAB"):
        image = image.convert("L" if image.mode in ("1", "LA", "La") else "RGB")
    if profile:
        image = _to_srgb(image, profile)
    rgb = image.convert("RGB")
    if alpha is None or alpha.getextrema() == (255, 255):
        return rgb
    return Image.composite(rgb, Image.new("RGB", rgb.size, "white"), alpha)


def _to_srgb(image: Image.Image, profile: bytes) -> Image.Image:
    """An image whose colours are those of an ICC profile, in sRGB."""
    try:
        source = ImageCms.ImageCmsProfile(BytesIO(profile))
        if "srgb" in ImageCms.getProfileDescription(source).lower():
            return image  # as most are; the conversion would only add rounding
        converted = ImageCms.profileToProfile(image, source, _SRGB, outputMode="RGB")
    except (OSError, ImageCms.PyCMSError):
        return image  # broken, or for another kind of pixels
    return image if converted is None else converted
