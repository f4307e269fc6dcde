"""Large images in tiles: memory then depends on the tile and not on the image."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

from jaxtyping import Shaped
from torch import Tensor


class Region(NamedTuple):
    """Rows top to bottom (exclusive), columns left to right (exclusive)."""

    top: int
    bottom: int
    left: int
    right: int

    @property
    def slices(self) -> tuple[slice, slice]:
        """As indexes of rows and columns; a region may end beyond an array."""
        return slice(self.top, self.bottom), slice(self.left, self.right)

    def times(self, factor: int) -> "Region":
        """The same region where every position has become factor x factor."""
        return Region(*(factor * edge for edge in self))

    def over(self, factor: int) -> "Region":
        """The same region, rounded up to whole blocks, where factor x factor positions have become one."""
        return Region(self.top // factor, -(-self.bottom // factor), self.left // factor, -(-self.right // factor))


def tiles(rows: int, columns: int, size: int) -> Iterator[Region]:
    """Cuts rows x columns positions into tiles of at most size x size, row by row."""
    for top in range(0, rows, size):
        for left in range(0, columns, size):
            yield Region(top, min(top + size, rows), left, min(left + size, columns))


def with_surroundings(
    transform: Callable[[Region], Tensor], region: Region, rows: int, columns: int, margin: int, factor: int = 1
) -> Shaped[Tensor, "*channels height width"]:
    """What `transform` makes of a region that has all it depends on around it.

    `transform` is given the region with `margin` positions more on each side, as far as rows x columns go, and returns
    factor x factor results for each position; those of the margin are cut off. At the border of the image it gets
    nothing beyond, so that every layer pads there as it does for a whole image.
    """
    top, left = max(region.top - margin, 0), max(region.left - margin, 0)
    outer = Region(top, min(region.bottom + margin, rows), left, min(region.right + margin, columns))
    inner = Region(region.top - top, region.bottom - top, region.left - left, region.right - left)
    return transform(outer)[..., *inner.times(factor).slices]
