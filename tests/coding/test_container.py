import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyperprior.coding.container import (
    Container,
    DamagedFileError,
    FormatError,
    ImageSizeError,
    LaterVersionError,
    NotCompressedImageError,
)

SMALL = Container(640, 480, "range", b"\x01\x02\x03\x04", 0xABCD, b"zzzz", b"yyyyyyyy")
WORDS = st.binary(max_size=40).map(lambda data: data[: len(data) // 4 * 4])


def resealed(data: bytes) -> bytes:
    """With a checksum that agrees: damage on purpose."""
    return data[:8] + zlib.crc32(data[:8] + data[12:]).to_bytes(4, "little") + data[12:]


@given(
    st.integers(1, 2**12), st.integers(1, 2**12), st.sampled_from(["range", "binary"]),
    st.binary(min_size=4, max_size=4), st.integers(0, 2**16 - 1), WORDS, WORDS,
)  # fmt: skip
def test_it_takes_apart_what_it_put_together(width, height, coder, fingerprint, checksum, z, y):
    container = Container(width, height, coder, fingerprint, checksum, z, y)
    data = container.to_bytes()
    assert Container.from_bytes(data) == container
    assert len(data) == container.header_bytes + len(z) + len(y)


def test_the_bytes_are_those_of_the_document():
    assert (
        SMALL.to_bytes().hex(" ")
        == (
            "48 59 50 10 01 02 03 04 "  # HYP, version 1 and coder 0, fingerprint
            + zlib.crc32(SMALL.to_bytes()[:8] + SMALL.to_bytes()[12:]).to_bytes(4, "little").hex(" ")
            + " cd ab 80 05 e0 03 01 "  # checksum of symbols; 640 = 5 * 128, 480 = 3 * 128 + 96; one word of z
            + (b"zzzz" + b"yyyyyyyy").hex(" ")
        )
    )


def test_a_kodak_image_has_at_most_twenty_bytes_of_header():
    for z_bytes in (4, 4 * 127, 4 * 128, 4 * 2000):
        assert Container(768, 512, "range", b"\0\0\0\0", 0, bytes(z_bytes), b"").header_bytes <= 20


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        (b"", NotCompressedImageError, "does not begin with HYP"),
        (b"\x89PNG" + SMALL.to_bytes(), NotCompressedImageError, "does not begin with HYP"),
        (SMALL.to_bytes()[:13], DamagedFileError, "ends within its header"),
        (SMALL.to_bytes()[:-1], DamagedFileError, "cut, extended or altered"),
        (SMALL.to_bytes() + b"\0", DamagedFileError, "cut, extended or altered"),
        (b"HYP\x20" + SMALL.to_bytes()[4:], LaterVersionError, "version 2; this program reads version 1"),
        (resealed(b"HYP\x17" + SMALL.to_bytes()[4:]), LaterVersionError, "coder 7"),
        (resealed(SMALL.to_bytes()[:14]), DamagedFileError, "is not one"),
        (resealed(SMALL.to_bytes()[:14] + b"\xff" * 9), DamagedFileError, "is not one"),
        (resealed(SMALL.to_bytes()[:14] + b"\x90\x00\x10\x00"), DamagedFileError, "is not one"),
        (resealed(SMALL.to_bytes()[:14] + b"\x10\x10\x05"), DamagedFileError, "do not add up"),
        (resealed(SMALL.to_bytes()[:14] + b"\x10\x10\x00abc"), DamagedFileError, "do not add up"),
        (resealed(SMALL.to_bytes()[:14] + b"\x00\x10\x00"), ImageSizeError, "is empty"),
        (resealed(SMALL.to_bytes()[:14] + b"\xff\xff\xff\xff\x7f" * 2 + b"\x00"), ImageSizeError, "above the limit"),
        (
            resealed(SMALL.to_bytes()[:14] + b"\xff\xff\x03\xff\xff\x03\x00"),
            ImageSizeError,
            "limit of 268435456",
        ),
    ],
)
def test_each_fault_has_its_error_and_its_line(data, error, message):
    with pytest.raises(error, match=message) as raised:
        Container.from_bytes(data)
    assert isinstance(raised.value, FormatError)
    assert "\n" not in str(raised.value)


def test_every_single_bit_is_guarded():
    data = SMALL.to_bytes()
    for bit in range(8 * len(data)):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(FormatError):
            Container.from_bytes(bytes(damaged))


def test_the_limit_is_in_blocks_of_sixteen():
    Container(16 * 1024, 16 * 1024, "range", b"\0\0\0\0", 0, b"", b"").to_bytes()
    for width, height in ((16 * 1024 + 1, 16 * 1024), (2**16, 1), (1, 2**16), (0, 5), (5, 0)):
        with pytest.raises(ImageSizeError):
            Container(width, height, "range", b"\0\0\0\0", 0, b"", b"").to_bytes()
