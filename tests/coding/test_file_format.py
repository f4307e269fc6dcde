import numpy as np
import pytest
import torch

from hyperprior.coding.codec import Codec
from hyperprior.coding.entropy_coding import CODERS
from tests.coding.second_implementation import Decoder
from tests.conftest import leaves, lively_model


@pytest.mark.parametrize("coder", sorted(CODERS))
@pytest.mark.parametrize("name", ["factorized", "hyperprior"])
def test_a_decoder_written_from_the_document_finds_the_same_symbols(tmp_path, name, coder):
    model = lively_model(name)
    with torch.no_grad():
        model.analysis[-1].bias[0] = 40_000  # beyond every table: escapes on both sides
        model.analysis[-1].bias[1] = -3_000
    codec = Codec.from_model(model)
    codec.save(tmp_path / "codec.safetensors")
    second = Decoder(tmp_path / "codec.safetensors")
    assert second.fingerprint == codec.fingerprint
    data = codec.compress(leaves(70, 100), coder)
    z, y, height, width = second.decode(data)
    ours = codec.decode(data)
    assert (height, width) == (70, 100)
    np.testing.assert_array_equal(z, ours.z)
    np.testing.assert_array_equal(y, ours.y)
    assert np.abs(y).max() > 30_000


def test_it_finds_them_across_tiles(tmp_path):
    """A wide image, whose y has three tiles."""
    codec = Codec.from_model(lively_model("hyperprior", N=2, M=2))
    codec.save(tmp_path / "codec.safetensors")
    data = codec.compress(np.tile(leaves(20, 100), (1, 21, 1)))
    z, y, _, _ = Decoder(tmp_path / "codec.safetensors").decode(data)
    assert y.shape == (2, 2, 132)
    np.testing.assert_array_equal(z, codec.decode(data).z)
    np.testing.assert_array_equal(y, codec.decode(data).y)
