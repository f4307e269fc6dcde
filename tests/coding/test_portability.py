"""Files decode to the same symbols under every setting; benchmarks/portability.py does it at length, over processes."""

import copy
import itertools
import subprocess
import sys
from contextlib import contextmanager

import numpy as np
import pytest
import torch

from hyperprior.coding.codec import Codec
from hyperprior.coding.tables import TOTAL
from hyperprior.coding.tiling import Region
from hyperprior.data.test_sets import samples
from hyperprior.models.gaussian import scale_index, scale_thresholds
from tests.conftest import ROOT

PRETRAINED = next((ROOT / "pretrained").glob("*.safetensors"))
LAYOUTS = (torch.contiguous_format, torch.channels_last)
SETTINGS = list(itertools.product((1, 2), (torch.float32, torch.bfloat16), LAYOUTS))


@contextmanager
def under(threads: int, precision: torch.dtype, layout: torch.memory_format):
    """The pretrained codec under a setting."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    codec = Codec.load(PRETRAINED).to(transforms=precision)
    codec.model.to(memory_format=layout)
    try:
        yield codec
    finally:
        torch.set_num_threads(before)


@torch.inference_mode()
def floating_point_indexes(
    codec: Codec, z: np.ndarray, precision: torch.dtype, layout: torch.memory_format
) -> np.ndarray:
    """The tables that h_s in floating point would choose."""
    z_hat = torch.from_numpy(z).float()[None] + codec.model.density.medians[:, None, None]
    z_hat = z_hat.contiguous(memory_format=layout)
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
        sigma = codec.model.scales(z_hat, 4 * z.shape[1], 4 * z.shape[2])
    return scale_index(sigma, scale_thresholds()).numpy()


def test_no_symbol_differs_where_floating_point_scales_do():
    image = next(image for image in samples() if image.name == "coffee").read()
    files, indexes = [], []
    for setting in SETTINGS:
        with under(*setting) as codec:
            files.append((codec.compress(image), codec.latents(image)))
            z = codec.decode(files[0][0]).z
            indexes.append(floating_point_indexes(codec, z, *setting[1:]))
    assert any((other != indexes[0]).any() for other in indexes)  # so the comparison has teeth
    assert len({data for data, _ in files}) > 1
    for setting in SETTINGS:
        with under(*setting) as codec:
            for data, (y, z) in files:
                symbols = codec.decode(data)
                medians = codec.model.density.medians[:, None, None]
                np.testing.assert_array_equal(symbols.y, y.round().numpy())
                np.testing.assert_array_equal(symbols.z, (z - medians).round().numpy())


COMPILED = """
import sys, numpy as np
from hyperprior.coding.codec import Codec
from hyperprior.coding.tables import TOTAL
from hyperprior.coding.tiling import Region

eager, compiled = Codec.load(sys.argv[1]), Codec.load(sys.argv[1])
for module in (compiled.model.analysis, compiled.model.hyper_analysis, compiled.exact):
    module.compile()
image = np.load(sys.argv[2])
for data in (eager.compress(image), compiled.compress(image)):
    ours, theirs = eager.decode(data), compiled.decode(data)
    assert (ours.z == theirs.z).all() and (ours.y == theirs.y).all()
"""


@pytest.mark.slow
def test_a_compiled_codec_reads_an_eager_ones_files_and_the_reverse(tmp_path):
    np.save(tmp_path / "image.npy", next(image for image in samples() if image.name == "chelsea").read())
    # In a process of its own: the compiler does not take the shape checks that the tests add.
    subprocess.run([sys.executable, "-c", COMPILED, PRETRAINED, tmp_path / "image.npy"], check=True)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_files_travel_between_cpu_and_gpu():
    image = next(image for image in samples() if image.name == "coffee").read()
    on_cpu, on_gpu = Codec.load(PRETRAINED), Codec.load(PRETRAINED).to("cuda")
    for encoder, decoder in ((on_cpu, on_gpu), (on_gpu, on_cpu)):
        data = encoder.compress(image)
        ours, theirs = encoder.decode(data), decoder.decode(data)
        np.testing.assert_array_equal(ours.z, theirs.z)
        np.testing.assert_array_equal(ours.y, theirs.y)
        assert np.abs(encoder.decompress(data).astype(int) - decoder.decompress(data)).max() <= 1


def test_exact_scales_cost_less_than_a_twentieth_of_a_percent():
    """On a trained model whose weights do not lie on the grid: the pretrained one's, each changed in its 13th bit."""
    model = copy.deepcopy(Codec.load(PRETRAINED).model)
    with torch.no_grad():
        for parameter in model.hyper_synthesis.parameters():
            parameter.mul_(1 + 2**-13 * torch.randn_like(parameter))
    codec = Codec.from_model(model)
    tables = codec.frozen.scale_tables
    symbols = codec.decode(codec.compress(next(image for image in samples() if image.name == "coffee").read()))
    _, rows, columns = symbols.y.shape
    with torch.inference_mode():
        z_hat = torch.tensor(symbols.z).double()[None] + model.density.medians.double()[:, None, None]
        sigma = model.double().scales(z_hat, rows, columns)
    double = scale_index(sigma, scale_thresholds()).reshape(-1).numpy()
    exact = codec.indexes_of(symbols.z, symbols.y.shape, Region(0, rows, 0, columns)).astype(int)
    assert (exact != double).any()

    def bits(indexes: np.ndarray) -> float:
        entries = symbols.y.reshape(-1) - tables.minimums[indexes]
        entries = np.where((entries < 0) | (entries >= tables.escapes[indexes]), tables.escapes[indexes], entries)
        return -np.log2(tables.frequencies[tables.starts[indexes] + entries] / TOTAL).sum()

    assert bits(exact) < 1.0005 * bits(double)
