"""Symbols to bytes and back, by constriction's range coder with frequency tables.

Symbols are coded table by table, each table's in the order of the array: the coder then runs over long runs that share
one model. A symbol outside its table's range is coded as the table's escape; the values behind the escapes follow
after all tables, in the same order.
"""

import constriction
import numpy as np
from jaxtyping import Int32, Integer
from numpy.typing import NDArray

from hyperprior.coding.tables import FrequencyTables

# Escaped values are coded as the length of their distance in bits (at most 33, as both ends are 32-bit), the bits
# below the leading one in pieces of 16, and the side of the range.
_LENGTHS = constriction.stream.model.Uniform(34)
_PIECE_BITS = 16


def encode(symbols: Int32[np.ndarray, "n"], indexes: Integer[np.ndarray, "n"], tables: FrequencyTables) -> bytes:
    """Codes each symbol (any 32-bit integer) with the table that `indexes` names (0 to len(tables) - 1).

    The length is a multiple of four bytes; no symbols give no bytes.
    """
    order, counts = _by_table(indexes, tables)
    grouped = symbols[order]
    entries = grouped - np.repeat(tables.minimums, counts).astype(np.int64)
    escapes = np.repeat(np.diff(tables.starts) - 1, counts)
    outside = (entries < 0) | (entries >= escapes)
    # Distance from the range: 0, 1, ... above it, -1, -2, ... below it.
    distances = np.where(entries < 0, entries, entries - escapes)[outside]
    coded = np.where(outside, escapes, entries).astype(np.int32)
    encoder = constriction.stream.queue.RangeEncoder()
    start = 0
    for model, count in zip(tables.models, counts, strict=True):
        if count:
            encoder.encode(coded[start : start + count], model)
        start += count
    for distance in distances.tolist():
        _encode_distance(encoder, distance)
    return encoder.get_compressed().astype("<u4").tobytes()


def decode(data: bytes, indexes: Integer[np.ndarray, "n"], tables: FrequencyTables) -> Int32[np.ndarray, "n"]:
    """The symbols that `encode` was given, from the same indexes and tables.

    Raises ValueError if the bytes cannot come from `encode` with these indexes and tables. Not every damage shows
    here: a file's checksum finds the rest.
    """
    if len(data) % 4:
        raise ValueError(f"coded symbols come in words of four bytes, not {len(data)} bytes")
    order, counts = _by_table(indexes, tables)
    decoder = constriction.stream.queue.RangeDecoder(np.frombuffer(data, dtype="<u4").astype(np.uint32))
    try:
        coded = np.concatenate(
            [np.empty(0, np.int32)]
            + [decoder.decode(model, int(count)) for model, count in zip(tables.models, counts, strict=True) if count]
        )
        escapes = np.repeat(np.diff(tables.starts) - 1, counts)
        outside = coded == escapes
        distances = np.array([_decode_distance(decoder) for _ in range(int(outside.sum()))], dtype=np.int64)
    except (AssertionError, RuntimeError) as error:
        raise ValueError("the coded symbols are damaged") from error
    entries = coded.astype(np.int64)
    entries[outside] = np.where(distances < 0, distances, distances + escapes[outside])
    grouped = entries + np.repeat(tables.minimums, counts)
    if ((grouped < np.iinfo(np.int32).min) | (grouped > np.iinfo(np.int32).max)).any():
        raise ValueError("the coded symbols are damaged: a value is beyond 32 bits")
    symbols = np.empty(len(indexes), dtype=np.int32)
    symbols[order] = grouped
    return symbols


def _by_table(indexes: Integer[np.ndarray, "n"], tables: FrequencyTables) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """The order that sorts positions by table and keeps it within one, and the number of each table's symbols."""
    # A stable sort of 16-bit keys is a radix sort in NumPy: linear time.
    return np.argsort(indexes.astype(np.uint16), kind="stable"), np.bincount(indexes, minlength=len(tables))


def _encode_distance(encoder: constriction.stream.queue.RangeEncoder, distance: int) -> None:
    magnitude = distance + 1 if distance >= 0 else -distance  # >= 1
    bits = magnitude.bit_length()
    encoder.encode(bits, _LENGTHS)
    encoder.encode(int(distance < 0), constriction.stream.model.Uniform(2))
    rest = magnitude - (1 << (bits - 1))
    for shift in range(0, bits - 1, _PIECE_BITS):
        size = min(_PIECE_BITS, bits - 1 - shift)
        encoder.encode((rest >> shift) & ((1 << size) - 1), constriction.stream.model.Uniform(1 << size))


def _decode_distance(decoder: constriction.stream.queue.RangeDecoder) -> int:
    bits = int(decoder.decode(_LENGTHS))
    if bits == 0:
        raise ValueError("the coded symbols are damaged: an escape without a value")
    negative = bool(decoder.decode(constriction.stream.model.Uniform(2)))
    magnitude = 1 << (bits - 1)
    for shift in range(0, bits - 1, _PIECE_BITS):
        size = min(_PIECE_BITS, bits - 1 - shift)
        magnitude += int(decoder.decode(constriction.stream.model.Uniform(1 << size))) << shift
    return -magnitude if negative else magnitude - 1
