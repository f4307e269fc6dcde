"""Symbols to bytes and back: two pure functions over one of two coders.

Symbols come in chunks. Within a chunk, each becomes an entry of its table: its place there, or the escape, the last
one, if it lies outside. The coder writes the entries; the values behind the escapes follow them, in the order of the
array.
"""

from collections.abc import Iterable, Iterator
from types import ModuleType
from typing import Literal

import constriction
import numpy as np
from jaxtyping import Int32, UInt16

from hyperprior.coding import binary_coding, range_coding
from hyperprior.coding.tables import FrequencyTables

Coder = Literal["range", "binary"]
CODERS: dict[Coder, ModuleType] = {"range": range_coding, "binary": binary_coding}

# An escaped value is its distance from the table, m >= 1, and the side: six bits for the length of m in bits (at most
# 33, as both ends are 32-bit), one for the side, then m without its leading one, in pieces of at most 16 bits from the
# lowest.
_LENGTH_BITS = 6
_PIECE_BITS = 16


def encode(
    chunks: Iterable[tuple[Int32[np.ndarray, "_"], UInt16[np.ndarray, "_"]]], tables: FrequencyTables, coder: Coder
) -> bytes:
    """Codes chunks of symbols (any 32-bit integers), each symbol with the table that the index beside it names.

    The length is a multiple of four bytes; no symbols give no bytes.
    """
    encoder = constriction.stream.queue.RangeEncoder()
    for symbols, indexes in chunks:
        entries = symbols.astype(np.int64) - tables.minimums[indexes]
        escapes = tables.escapes[indexes]
        outside = (entries < 0) | (entries >= escapes)
        CODERS[coder].write_entries(encoder, np.where(outside, escapes, entries).astype(np.int32), indexes, tables)
        # 0, 1, ... above the table, -1, -2, ... below it.
        distances = np.where(entries < 0, entries, entries - escapes)[outside]
        for distance in distances.tolist():
            _write_distance(encoder, distance)
    return encoder.get_compressed().astype("<u4").tobytes()


def decode(
    data: bytes, index_chunks: Iterable[UInt16[np.ndarray, "_"]], tables: FrequencyTables, coder: Coder
) -> Iterator[Int32[np.ndarray, "_"]]:
    """The chunks of symbols that `encode` was given, one by one, from the same indexes, tables and coder.

    Raises ValueError if the bytes cannot come from `encode` with these. Not every damage shows here: a file's checksum
    finds the rest.
    """
    if len(data) % 4:
        raise ValueError(f"coded symbols come in words of four bytes, not {len(data)} bytes")
    decoder = constriction.stream.queue.RangeDecoder(np.frombuffer(data, dtype="<u4").astype(np.uint32))
    for indexes in index_chunks:
        escapes = tables.escapes[indexes]
        try:
            entries = CODERS[coder].read_entries(decoder, indexes, tables).astype(np.int64)
            outside = entries == escapes
            distances = np.array([_read_distance(decoder) for _ in range(int(outside.sum()))], dtype=np.int64)
        except (AssertionError, RuntimeError) as error:
            raise ValueError("the coded symbols are damaged") from error
        entries[outside] = np.where(distances < 0, distances, distances + escapes[outside])
        symbols = entries + tables.minimums[indexes]
        if ((symbols < np.iinfo(np.int32).min) | (symbols > np.iinfo(np.int32).max)).any():
            raise ValueError("the coded symbols are damaged: a value is beyond 32 bits")
        yield symbols.astype(np.int32)


def _write_distance(encoder: constriction.stream.queue.RangeEncoder, distance: int) -> None:
    magnitude = distance + 1 if distance >= 0 else -distance
    length = magnitude.bit_length()
    encoder.encode(length, _uniform(_LENGTH_BITS))
    encoder.encode(int(distance < 0), _uniform(1))
    for shift in range(0, length - 1, _PIECE_BITS):
        size = min(_PIECE_BITS, length - 1 - shift)
        encoder.encode((magnitude >> shift) & ((1 << size) - 1), _uniform(size))


def _read_distance(decoder: constriction.stream.queue.RangeDecoder) -> int:
    length = int(decoder.decode(_uniform(_LENGTH_BITS)))
    negative = bool(decoder.decode(_uniform(1)))
    if not 1 <= length <= 33:
        raise ValueError("the coded symbols are damaged: an escape without a value")
    magnitude = 1 << (length - 1)
    for shift in range(0, length - 1, _PIECE_BITS):
        size = min(_PIECE_BITS, length - 1 - shift)
        magnitude += int(decoder.decode(_uniform(size))) << shift
    return -magnitude if negative else magnitude - 1


def _uniform(bits: int) -> constriction.stream.model.Uniform:
    return constriction.stream.model.Uniform(1 << bits)
