import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hyperprior.coding import codec as codec_module
from hyperprior.coding.tiling import Region, tiles, with_surroundings
from hyperprior.models import transforms


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 50))
def test_tiles_cover_every_position_once(rows, columns, size):
    seen = torch.zeros(rows, columns, dtype=torch.int64)
    for tile in tiles(rows, columns, size):
        assert 0 < tile.bottom - tile.top <= size
        assert 0 < tile.right - tile.left <= size
        seen[tile.slices] += 1
    assert (seen == 1).all()


CASES = {  # transform, channels in, and whether it makes its input larger: by the factor
    "analysis": (transforms.analysis(3, 4), 3, 16, False),
    "hyper_analysis": (transforms.hyper_analysis(3, 4), 4, 4, False),
    "synthesis": (transforms.synthesis(3, 4), 4, 16, True),
    "hyper_synthesis": (transforms.hyper_synthesis(3, 4), 3, 4, True),
}


def in_tiles(name: str, x: torch.Tensor, rows: int, columns: int, margin: int) -> torch.Tensor:
    transform, _, factor, up = CASES[name]

    def of(outer: Region) -> torch.Tensor:
        return transform(x[..., *(outer if up else outer.times(factor)).slices])

    scale = factor if up else 1
    result = torch.full(
        (1, transform[-1].weight.shape[1 if name == "synthesis" else 0], rows * scale, columns * scale), torch.nan
    )
    for tile in tiles(rows, columns, 4):
        result[..., *tile.times(scale).slices] = with_surroundings(of, tile, rows, columns, margin, scale)
    return result


@pytest.mark.parametrize("name", CASES)
def test_tiles_with_their_margin_are_the_whole(name):
    transform, channels, factor, up = CASES[name]
    rows, columns = 13, 10
    size = (rows, columns) if up else (rows * factor, columns * factor - (0 if factor == 16 else 3))
    x = torch.randn(1, channels, *size)
    with torch.no_grad():
        whole = transform(x)
        torch.testing.assert_close(in_tiles(name, x, rows, columns, codec_module._MARGIN), whole)
        # One position less is not enough: the margin is what the transforms need.
        assert not torch.allclose(in_tiles(name, x, rows, columns, codec_module._MARGIN - 1), whole, atol=1e-6)
