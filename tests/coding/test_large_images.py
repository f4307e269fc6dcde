"""Memory stays bounded where images do not. benchmarks/large_image.py has the paper's sizes."""

import subprocess
import sys

import numpy as np
import pytest

from hyperprior.coding.codec import Codec
from tests.conftest import leaves, lively_model

SCRIPT = """
import resource, sys
import numpy as np
import torch
from hyperprior.coding import codec as module
from hyperprior.coding.codec import Codec

torch.set_num_threads(1)
codec = Codec.load(sys.argv[1])
image = np.tile(np.load(sys.argv[2]), (8, 8, 1))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
if sys.argv[3] == "whole":
    module.WHOLE = 1 << 30
image = codec.decompress(codec.compress(image))
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


@pytest.mark.slow
def test_a_large_image_takes_little_more_memory_than_its_latents(tmp_path):
    Codec.from_model(lively_model("hyperprior", N=32, M=48)).save(tmp_path / "codec.safetensors")
    np.save(tmp_path / "tile.npy", leaves(450, 450))

    def mebibytes(how: str) -> float:
        command = [sys.executable, "-c", SCRIPT, tmp_path / "codec.safetensors", tmp_path / "tile.npy", how]
        return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    pixels = 3600 * 3600
    latents = 48 / 256 * pixels * 8 / 2**20  # y as floats and as integers
    decoded = 3 * pixels / 2**20
    assert mebibytes("tiles") < latents + decoded + 400
    assert mebibytes("whole") > 2 * 32 / 4 * pixels * 4 / 2**20  # two arrays of g_a's first layer: the test has teeth
