import math

import numpy as np
import pytest
from skimage.metrics import peak_signal_noise_ratio

from hyperprior.evaluation.metrics import bits_per_pixel, decibels, ms_ssim, psnr_db
from tests.conftest import leaves


def test_psnr_is_scikit_images():
    original, decoded = leaves(50, 60), leaves(50, 60, seed=1)
    expected = peak_signal_noise_ratio(original, decoded, data_range=255)
    assert psnr_db(original, decoded) == pytest.approx(expected, rel=1e-12)
    assert psnr_db(original, original) == math.inf


def ms_ssim_by_the_paper(first: np.ndarray, second: np.ndarray) -> float:
    """Wang, Simoncelli and Bovik (2003) by SciPy: 11 x 11 Gaussian windows, five scales, mean over the channels."""
    from scipy.signal import convolve2d

    grid = np.arange(11) - 5
    window = np.exp(-(grid[:, None] ** 2 + grid**2) / (2 * 1.5**2))
    window /= window.sum()
    weights = [0.0448, 0.2856, 0.3001, 0.2363, 0.1333]
    results = []
    for channel in range(3):
        a, b = first[..., channel].astype(float), second[..., channel].astype(float)
        value = 1.0
        for scale, weight in enumerate(weights):
            mean_a, mean_b = (convolve2d(image, window, "valid") for image in (a, b))
            var_a = convolve2d(a * a, window, "valid") - mean_a**2
            var_b = convolve2d(b * b, window, "valid") - mean_b**2
            covariance = convolve2d(a * b, window, "valid") - mean_a * mean_b
            c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
            contrast = (2 * covariance + c2) / (var_a + var_b + c2)
            if scale == 4:
                contrast = contrast * (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
            value *= contrast.mean() ** weight
            if scale == 4:
                break
            a, b = ((i[0::2, 0::2] + i[1::2, 0::2] + i[0::2, 1::2] + i[1::2, 1::2]) / 4 for i in (a, b))
        results.append(value)
    return float(np.mean(results))


def test_ms_ssim_is_the_papers():
    original = leaves(192, 224)
    noise = np.random.default_rng(0).normal(0, 12, original.shape)
    decoded = (original + noise).clip(0, 255).astype(np.uint8)
    assert ms_ssim(original, decoded) == pytest.approx(ms_ssim_by_the_paper(original, decoded), abs=3e-6)
    assert ms_ssim(original, original) == pytest.approx(1)


def test_ms_ssim_is_not_a_number_where_it_is_not_defined():
    assert math.isnan(ms_ssim(leaves(160, 300), leaves(160, 300)))
    assert not math.isnan(ms_ssim(leaves(161, 161), leaves(161, 161)))


def test_decibels_and_bits_per_pixel():
    assert decibels(0.99) == pytest.approx(20)
    assert decibels(1.0) == math.inf
    assert bits_per_pixel(1000, 100, 40) == 2
