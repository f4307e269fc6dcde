"""What is reported of a decoded image: PSNR, MS-SSIM and its decibels, bits per pixel."""

import math

import numpy as np
import torch
from jaxtyping import UInt8
from pytorch_msssim import ms_ssim as _ms_ssim


def psnr_db(original: UInt8[np.ndarray, "H W 3"], decoded: UInt8[np.ndarray, "H W 3"]) -> float:
    """Peak signal-to-noise ratio in dB, 10 log10(255^2 / d) with d the mean squared error over pixels and channels
    (figure 5). Infinite for equal images."""
    error = np.square(original.astype(np.float64) - decoded.astype(np.float64)).mean()
    return math.inf if error == 0 else 10 * math.log10(255**2 / error)


def ms_ssim(original: UInt8[np.ndarray, "H W 3"], decoded: UInt8[np.ndarray, "H W 3"]) -> float:
    """Multi-scale structural similarity, 0 to 1, averaged over the color channels, for a dynamic range of 255.

    NaN for an image with a side below 161 pixels, where the five scales with their 11 x 11 window are not defined.
    """
    if min(original.shape[:2]) < 161:
        return math.nan
    first, second = (torch.tensor(image).permute(2, 0, 1)[None].float() for image in (original, decoded))
    return float(_ms_ssim(first, second, data_range=255.0))


def decibels(similarity: float) -> float:
    """-10 log10(1 - d), the scale on which the paper plots an MS-SSIM of d (figure 5). Infinite at 1."""
    return math.inf if similarity >= 1 else -10 * math.log10(1 - similarity)


def bits_per_pixel(file_bytes: int, width: int, height: int) -> float:
    """Bits of a whole file for each pixel of the original image (bpp)."""
    return 8 * file_bytes / (width * height)
