"""Files of an earlier day still decode: that of another version of the coder's library, or of ours, would not."""

import zlib
from pathlib import Path

import numpy as np
import pytest

from hyperprior.coding.codec import Codec
from hyperprior.coding.container import Container
from tests.conftest import ROOT, leaves

CODEC = next((ROOT / "pretrained").glob("*.safetensors"))
CHECKSUMS = {"z": 2812512335, "y": 2254421607}


@pytest.mark.parametrize("coder", ["range", "binary"])
def test_a_file_that_was_kept_decodes_to_the_symbols_it_was_made_of(coder):
    data = Path(__file__).with_name(f"golden-{coder}.hyp").read_bytes()
    assert Container.from_bytes(data).coder == coder
    codec = Codec.load(CODEC)
    symbols = codec.decode(data)
    found = {"z": zlib.crc32(symbols.z.tobytes()), "y": zlib.crc32(symbols.y.tobytes())}
    assert found == CHECKSUMS
    assert codec.encode(symbols, coder) == data
    # Made of leaves(150, 200, seed=7): still what it shows, to the quality of this codec.
    error = np.square(codec.reconstruct(symbols).astype(float) - leaves(150, 200, seed=7)).mean()
    assert 10 * np.log10(255**2 / error) > 31
