import numpy as np
import torch

from hyperprior.data.dead_leaves import DeadLeaves, render
from hyperprior.data.test_sets import samples


def statistics(image: np.ndarray) -> dict[str, float]:
    """Of one 256 x 256 image: slope of log power over log frequency, spread of luminance and colours, kurtosis of the
    luminance's horizontal differences (3 for a Gaussian)."""
    rgb = image / 255.0
    luminance = rgb @ [0.299, 0.587, 0.114]
    window = np.hanning(len(luminance))
    power = np.abs(np.fft.fft2((luminance - luminance.mean()) * window[:, None] * window)) ** 2
    frequency = np.hypot(np.fft.fftfreq(256)[:, None], np.fft.fftfreq(256))
    edges = np.geomspace(0.02, 0.35, 12)
    ring = np.digitize(frequency, edges)
    rings = [power[ring == k].mean() for k in range(1, 12)]
    difference = np.diff(luminance, axis=1)
    return {
        "slope": np.polyfit(np.log(np.sqrt(edges[1:] * edges[:-1])), np.log(rings), 1)[0],
        "luminance": luminance.std(),
        "colour": max((rgb[..., 2] - luminance).std(), (rgb[..., 0] - luminance).std()),
        "kurtosis": (difference**4).mean() / (difference**2).mean() ** 2,
    }


def test_statistics_are_those_of_photographs():
    photographs = []
    for image in samples():
        pixels = image.read()
        top, left = (pixels.shape[0] - 256) // 2, (pixels.shape[1] - 256) // 2
        photographs.append(statistics(pixels[top : top + 256, left : left + 256]))
    synthetic = [statistics(render(np.random.default_rng(seed), 256)) for seed in range(30)]
    median = {key: np.median([one[key] for one in synthetic]) for key in synthetic[0]}
    natural = {key: np.median([one[key] for one in photographs]) for key in photographs[0]}
    # Power falls as about 1/f^2 to 1/f^3 in single photographs; white noise would have 0.
    assert abs(median["slope"] - natural["slope"]) < 0.7
    assert 0.5 < median["luminance"] / natural["luminance"] < 2
    assert 0.3 < median["colour"] / natural["colour"] < 2
    assert median["colour"] < median["luminance"]
    assert median["kurtosis"] > 6  # edges: far heavier tails than a Gaussian


def test_a_crop_is_a_pure_function_of_seed_and_index():
    first, again, other = DeadLeaves(64, seed=3), DeadLeaves(64, seed=3), DeadLeaves(64, seed=4)
    first[0], first[9]
    assert torch.equal(first[5], again[5])
    assert not torch.equal(first[5], first[6])
    assert not torch.equal(first[5], other[5])
    assert first[5].shape == (3, 64, 64)
    assert first[5].dtype == torch.uint8
