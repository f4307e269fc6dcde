"""The file format: what stands around the coded latents.

    4 bytes   "HYPR"
    1 byte    version, 1
    4 bytes   width of the image in pixels
    4 bytes   height of the image in pixels
    4 bytes   number of bytes that code z (0 for the factorized-prior model)
    4 bytes   CRC-32 of the symbols of z, then of y, as 32-bit little-endian integers
    ...       z, then y

All numbers are unsigned and little-endian.
"""

import struct
import zlib
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int32

MAGIC = b"HYPR"
VERSION = 1
_HEADER = struct.Struct("<4sB4I")
HEADER_BYTES = _HEADER.size
# 2^28 pixels are more than any camera's; a damaged header cannot ask for more memory than they take.
MAXIMUM_PIXELS = 1 << 28


class FormatError(ValueError):
    """The bytes are not a compressed image that this codec can decode."""


@dataclass(frozen=True)
class Container:
    """One compressed image, taken apart."""

    width: int
    height: int
    checksum: int
    z: bytes
    y: bytes

    def to_bytes(self) -> bytes:
        """The file's content. Raises ValueError for an image of no pixels or of more than 2^28."""
        _check_size(self.width, self.height)
        header = _HEADER.pack(MAGIC, VERSION, self.width, self.height, len(self.z), self.checksum)
        return header + self.z + self.y

    @classmethod
    def from_bytes(cls, data: bytes) -> "Container":
        """Takes a file's content apart. Raises FormatError if it is not one."""
        if len(data) < HEADER_BYTES or data[:4] != MAGIC:
            raise FormatError("not a hyperprior file: it does not begin with HYPR and a whole header")
        _, version, width, height, z_length, checksum = _HEADER.unpack_from(data)
        if version != VERSION:
            raise FormatError(f"the file has version {version}; this program reads version {VERSION}")
        _check_size(width, height)
        if HEADER_BYTES + z_length > len(data):
            raise FormatError("the file is cut short")
        body = data[HEADER_BYTES:]
        return cls(width, height, checksum, body[:z_length], body[z_length:])


def checksum_of(z: Int32[np.ndarray, "*shape_z"], y: Int32[np.ndarray, "*shape_y"]) -> int:
    """CRC-32 of the symbols."""
    return zlib.crc32(y.astype("<i4").tobytes(), zlib.crc32(z.astype("<i4").tobytes()))


def _check_size(width: int, height: int) -> None:
    if not 0 < width * height <= MAXIMUM_PIXELS:
        raise FormatError(f"an image of {width}x{height} pixels is outside 1 to {MAXIMUM_PIXELS} pixels")
