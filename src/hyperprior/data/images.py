"""Image files: which ones there are and how they are read."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from os import PathLike
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageCms, ImageOps

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".ppm"})

_SRGB = ImageCms.createProfile("sRGB")
LARGEST_IMAGE = 1 << 28  # pixels
# Greys, reds, greens and blues.
_RAMPS = np.arange(256, dtype=np.uint8)[None, :, None] * np.array([[1, 1, 1], *np.eye(3)], np.uint8)[:, None]

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
    """A whole image (of an animation, its first) as 8-bit sRGB, turned as its EXIF orientation says; `to_rgb` has the
    rules.

    Raises one of DAMAGE if it is damaged, and ValueError, before anything is decoded, above 2^28 pixels.
    """
    try:
        with _large_images_allowed(), Image.open(source) as image:
            width, height = image.size
            if width * height > LARGEST_IMAGE:
                raise ValueError(f"an image of {width}x{height} pixels is above the limit of {LARGEST_IMAGE}")
            ImageOps.exif_transpose(image, in_place=True)
            return np.array(to_rgb(image))
    except DAMAGE:
        raise
    except Exception as error:  # each of Pillow's plugins has its own for a damaged file
        reason = f"{type(error).__name__}: {error}"
        raise ValueError(f"damaged, or of a kind that Pillow does not read ({reason})") from error


@contextmanager
def _large_images_allowed() -> Iterator[None]:
    """Pillow's own limit, against images made to exhaust memory, is below ours, which is checked instead."""
    before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = before


def to_rgb(image: Image.Image) -> Image.Image:
    """Any image as 8-bit sRGB.

    16-bit grey is scaled and rounded (Pillow would cut it off at 255); of 16-bit colour Pillow reads the high bytes.
    Colours are converted from the embedded ICC profile to sRGB; without a profile, or with a broken one, they are taken
    to be sRGB. Transparent pixels are blended onto white.

    Raises ValueError for floating-point pixels and for integers beyond 16 bits, whose range is not known.
    """
    if image.mode == "F":
        raise ValueError("floating-point pixels")
    profile = image.info.get("icc_profile")
    alpha = None
    if image.mode.startswith("I"):
        levels = np.asarray(image).astype(np.float64)
        if levels.max(initial=0) > 65535 or levels.min(initial=0) < 0:
            raise ValueError("integer pixels outside 0 to 65535")
        if isinstance(invisible := image.info.get("transparency"), int):
            alpha = Image.fromarray(np.where(levels == invisible, 0, 255).astype(np.uint8))
        image = Image.fromarray((levels / 257).round().astype(np.uint8))
    elif image.has_transparency_data:
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
        convert = ImageCms.buildTransform(source, _SRGB, image.mode, "RGB")
        if image.mode == "RGB":
            # Most profiles are sRGB's, by whatever name: where nothing but rounding would change, nothing does.
            ramps = Image.fromarray(_RAMPS)
            moved = np.abs(np.asarray(ImageCms.applyTransform(ramps, convert)).astype(int) - _RAMPS)
            if moved.max() <= 1:
                return image
        converted = ImageCms.applyTransform(image, convert)
    except (OSError, ValueError, ImageCms.PyCMSError):
        return image  # broken, or for another kind of pixels
    assert converted is not None  # it was not asked to work in place
    return converted
