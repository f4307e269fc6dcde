"""The file format: what stands around the coded latents. docs/file-format.md specifies it.

    3 bytes   "HYP"
    1 byte    version (high four bits) and coder (low four)
    4 bytes   fingerprint of the codec
    4 bytes   CRC-32 of all other bytes of the file
    2 bytes   low half of the CRC-32 of the symbols of z, then of y
    varints   width and height of the image, and the number of four-byte words that code z
    ...       z, then y

The checksum of the file is verified before anything is decoded or allocated: it finds damage. The fingerprint finds
another codec. The checksum of the symbols finds a decoder that goes wrong in spite of both.
"""

import struct
import zlib
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int32

from hyperprior.coding.entropy_coding import Coder
from hyperprior.models.compression import STRIDE_Y

MAGIC = b"HYP"
VERSION = 1
FINGERPRINT_BYTES = 4
_FIXED = struct.Struct(f"<3sB{FINGERPRINT_BYTES}sIH")
_CRC_AT = 8
_CODERS: dict[int, Coder] = {0: "range", 1: "binary"}
WORD_BYTES = 4
# Of y; one stands for 16 x 16 pixels. 2^20 of them are 268 megapixels: more than any camera's.
MAXIMUM_POSITIONS = 1 << 20
# On a side: as JPEG has it. A line of a million blocks would be cut into as many tiles as a far larger square.
MAXIMUM_SIDE = (1 << 16) - 1


class FormatError(ValueError):
    """The bytes are not a compressed image that this codec can decode."""


class NotCompressedImageError(FormatError):
    """The bytes are no hyperprior file."""


class LaterVersionError(FormatError):
    """The file was written by a later version of this program."""


class DamagedFileError(FormatError):
    """The file was truncated, extended or altered."""


class WrongCodecError(FormatError):
    """The file was made with another codec."""


class ImageSizeError(FormatError):
    """The image has no pixels, or more than the format allows."""


@dataclass(frozen=True)
class Container:
    """One compressed image, taken apart."""

    width: int
    height: int
    coder: Coder
    fingerprint: bytes
    symbols_checksum: int
    z: bytes
    y: bytes

    def to_bytes(self) -> bytes:
        """The file's content. Raises ImageSizeError as `check_size` does."""
        check_size(self.width, self.height)
        (coder_number,) = (number for number, name in _CODERS.items() if name == self.coder)
        fixed = _FIXED.pack(MAGIC, VERSION << 4 | coder_number, self.fingerprint, 0, self.symbols_checksum)
        data = bytearray(fixed + b"".join(map(_varint, (self.width, self.height, len(self.z) // WORD_BYTES))))
        data += self.z + self.y
        data[_CRC_AT : _CRC_AT + 4] = file_checksum(data).to_bytes(4, "little")
        return bytes(data)

    @classmethod
    def from_bytes(cls, data: bytes) -> "Container":
        """Takes a file's content apart. Raises the FormatError that says what is wrong with it."""
        if data[:3] != MAGIC:
            raise NotCompressedImageError("not a hyperprior file: it does not begin with HYP")
        if len(data) < _FIXED.size:
            raise DamagedFileError("the file is damaged: it ends within its header")
        _, kind, fingerprint, crc, symbols_checksum = _FIXED.unpack_from(data)
        version, coder_number = kind >> 4, kind & 15
        if version != VERSION:
            raise LaterVersionError(f"the file has version {version}; this program reads version {VERSION}")
        if file_checksum(data) != crc:
            raise DamagedFileError("the file is damaged: it was cut, extended or altered (its checksum does not agree)")
        if coder_number not in _CODERS:
            raise LaterVersionError(f"the file needs coder {coder_number}, which this program does not know")
        width, at = _read_varint(data, _FIXED.size)
        height, at = _read_varint(data, at)
        words, at = _read_varint(data, at)
        check_size(width, height)
        end = at + words * WORD_BYTES
        if end > len(data) or (len(data) - end) % WORD_BYTES:
            raise DamagedFileError("the file is damaged: its parts do not add up to its length")
        coder = _CODERS[coder_number]
        return cls(width, height, coder, fingerprint, symbols_checksum, data[at:end], data[end:])

    @property
    def header_bytes(self) -> int:
        """Bytes of the file that code neither z nor y."""
        return _FIXED.size + sum(len(_varint(n)) for n in (self.width, self.height, len(self.z) // WORD_BYTES))


def file_checksum(data: bytes | bytearray) -> int:
    """CRC-32 of a file's content without the four bytes that hold it."""
    return zlib.crc32(data[_CRC_AT + 4 :], zlib.crc32(data[:_CRC_AT]))


def symbols_checksum(z: Int32[np.ndarray, "*shape_z"], y: Int32[np.ndarray, "*shape_y"]) -> int:
    """The low 16 bits of the CRC-32 of the symbols, as 32-bit little-endian integers."""
    return zlib.crc32(_little_endian(y), zlib.crc32(_little_endian(z))) & 0xFFFF


def check_size(width: int, height: int) -> None:
    """Raises ImageSizeError for an image of no pixels, a side above 65535, or more than 2^20 blocks of 16 x 16."""
    if width < 1 or height < 1:
        raise ImageSizeError(f"an image of {width}x{height} pixels is empty")
    if max(width, height) > MAXIMUM_SIDE:
        raise ImageSizeError(f"an image of {width}x{height} pixels has a side above the limit of {MAXIMUM_SIDE}")
    if -(-width // STRIDE_Y) * -(-height // STRIDE_Y) > MAXIMUM_POSITIONS:
        limit = MAXIMUM_POSITIONS * STRIDE_Y * STRIDE_Y
        raise ImageSizeError(
            f"an image of {width}x{height} pixels is above the limit of {limit} (in whole 16x16 blocks)"
        )


def _little_endian(symbols: Int32[np.ndarray, "*shape"]) -> memoryview:
    return np.ascontiguousarray(symbols, dtype="<i4").reshape(-1).view(np.uint8).data


def _varint(number: int) -> bytes:
    """Seven bits a byte, the lowest first; the highest bit of a byte says that another follows."""
    data = bytearray()
    while number >= 0x80:
        data.append(number & 0x7F | 0x80)
        number >>= 7
    data.append(number)
    return bytes(data)


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    """The number that begins at a byte, below 2^35, and where the next one begins."""
    number = 0
    for shift in range(0, 35, 7):
        if at >= len(data):
            break
        byte = data[at]
        at += 1
        if byte == 0 and shift:
            break  # longer than it need be
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, at
    raise DamagedFileError("the file is damaged: a number in its header is not one")
