"""The file format: what stands around the coded latents.

    4 bytes   "HYPR"
    1 byte    version, 1
    4 bytes   width of the image in pixels
    4 bytes   height of the image in pixels
    4 bytes   number of bytes that code z (0 for the factorized-prior model)
    4 bytes   CRC-32 of the symbols of z, then of y, as 32-bit little-endian integers
    4 bytes   CRC-32 of all other bytes of the file
    ...       z, then y

All numbers are unsigned and little-endian. The last checksum is checked first, before anything is decoded or allocated:
it finds damage. The one of the symbols finds another codec, or a machine on which this one decodes otherwise.
"""

import struct
import zlib
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int32

MAGIC = b"HYPR"
VERSION = 1
_HEADER = struct.Struct("<4sB4I")
_FILE_CHECKSUM = struct.Struct("<I")
HEADER_BYTES = _HEADER.size + _FILE_CHECKSUM.size
# More than any camera's.
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
        """The file's content. Raises FormatError for an image of no pixels or of more than 2^28."""
        check_size(self.width, self.height)
        header = _HEADER.pack(MAGIC, VERSION, self.width, self.height, len(self.z), self.checksum)
        body = self.z + self.y
        return header + _FILE_CHECKSUM.pack(zlib.crc32(body, zlib.crc32(header))) + body

    @classmethod
    def from_bytes(cls, data: bytes) -> "Container":
        """Takes a file's content apart. Raises FormatError if it is not one."""
        if len(data) < HEADER_BYTES or data[:4] != MAGIC:
            raise FormatError("not a hyperprior file: it does not begin with HYPR and a whole header")
        _, version, width, height, z_length, checksum = _HEADER.unpack_from(data)
        if version != VERSION:
            raise FormatError(f"the file has version {version}; this program reads version {VERSION}")
        (file_checksum,) = _FILE_CHECKSUM.unpack_from(data, _HEADER.size)
        body = data[HEADER_BYTES:]
        if zlib.crc32(body, zlib.crc32(data[: _HEADER.size])) != file_checksum:
            raise FormatError("the file is damaged: its checksum does not agree")
        check_size(width, height)
        if z_length > len(body):
            raise FormatError("the file is damaged: z is longer than the file")
        return cls(width, height, checksum, body[:z_length], body[z_length:])


def checksum_of(z: Int32[np.ndarray, "*shape_z"], y: Int32[np.ndarray, "*shape_y"]) -> int:
    """CRC-32 of the symbols."""
    return zlib.crc32(y.astype("<i4").tobytes(), zlib.crc32(z.astype("<i4").tobytes()))


def check_size(width: int, height: int) -> None:
    """Raises FormatError for an image of no pixels or of more than 2^28."""
    if not 0 < width * height <= MAXIMUM_PIXELS:
        raise FormatError(f"an image of {width}x{height} pixels is outside 1 to {MAXIMUM_PIXELS} pixels")
