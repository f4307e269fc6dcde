"""The paper's coder: elements as binary integers, from the most to the least significant bit (section 3).

An entry of a table of L entries is a number of B = ceil(log2 L) bits. Its bits are coded by a non-adaptive binary
arithmetic coder whose probabilities follow from the table: given the bits before it, a bit is 0 with the share that the
lower half of the entries with these leading bits has in all of them. By the chain rule the bits of an entry cost
together what the entry costs; so files are as long as the range coder's but for the rounding of each share to 2^-24.

All entries of an array go together, one bit plane after the other from the most significant one: plane b holds bit b of
every entry whose table has more than b bits.
"""

from functools import lru_cache
from typing import NamedTuple

import constriction
import numpy as np
from jaxtyping import Bool, Float64, Int32, Int64, UInt16

from hyperprior.coding.tables import PRECISION_BITS, TOTAL, FrequencyTables

_BERNOULLI = constriction.stream.model.Bernoulli(perfect=False)


class BitTrees(NamedTuple):
    """The probability of a 1 at every node of every table's tree: `ones[first[t] + n]` at node n of table t.

    Node 1 is the most significant bit; node n is followed by node 2 n after a 0, by node 2 n + 1 after a 1.
    """

    ones: Float64[np.ndarray, "nodes"]
    first: Int64[np.ndarray, "T"]
    bits: Int64[np.ndarray, "T"]


def zero_shares(frequencies: Int32[np.ndarray, "L"]) -> Int64[np.ndarray, "nodes"]:
    """Shares of 2^24 that a 0 has at each node (the first, which is none, gets 2^23): floor(2^24 l / (l + u)) for l and
    u, the frequencies below both halves, kept within 1 and 2^24 - 1."""
    bits = (len(frequencies) - 1).bit_length()
    sums = np.zeros(2 << bits, dtype=np.int64)
    sums[1 << bits : (1 << bits) + len(frequencies)] = frequencies
    for plane in range(bits - 1, -1, -1):
        level = slice(2 << plane, 4 << plane)
        sums[1 << plane : 2 << plane] = sums[level].reshape(-1, 2).sum(axis=1)
    lower, both = sums[0::2].copy(), sums[: 1 << bits].copy()
    lower[0], both[0] = 1, 2
    both[both == 0] = 1  # beyond the last entry; never coded
    return np.clip((lower << PRECISION_BITS) // both, 1, TOTAL - 1)


@lru_cache(maxsize=8)
def bit_trees(tables: FrequencyTables) -> BitTrees:
    """The trees of all tables, as probabilities that constriction turns into exactly `zero_shares`.

    It gives the symbol 0 of a Bernoulli model floor((2^24 - 2) (1 - p)) + 1 shares. With
    1 - p = min((share - 1/2) / (2^24 - 2), 1) that is `share`, half a share away from any rounding.
    """
    shares = [zero_shares(tables.frequencies_of(table)) for table in range(len(tables))]
    lengths = np.array([len(table) for table in shares])
    ones = 1 - np.minimum((np.concatenate(shares) - 0.5) / (TOTAL - 2), 1)
    first = np.concatenate([[0], np.cumsum(lengths)[:-1]])
    return BitTrees(ones, first.astype(np.int64), np.log2(lengths).astype(np.int64))


def write_entries(
    encoder: constriction.stream.queue.RangeEncoder,
    entries: Int32[np.ndarray, "n"],
    indexes: UInt16[np.ndarray, "n"],
    tables: FrequencyTables,
) -> None:
    """Codes each entry with the table that `indexes` names, bit plane by bit plane."""
    trees = bit_trees(tables)
    bits, first = trees.bits[indexes], trees.first[indexes]
    for plane in range(_planes(bits) - 1, -1, -1):
        longer = _longer(bits, plane)
        values = entries[longer]
        nodes = (values >> (plane + 1)) + (1 << (bits[longer] - plane - 1))
        encoder.encode((values >> plane) & 1, _BERNOULLI, trees.ones[first[longer] + nodes])


def read_entries(
    decoder: constriction.stream.queue.RangeDecoder, indexes: UInt16[np.ndarray, "n"], tables: FrequencyTables
) -> Int32[np.ndarray, "n"]:
    """The entries that `write_entries` coded with the same indexes. Raises ValueError for one that no table has."""
    trees = bit_trees(tables)
    bits, first = trees.bits[indexes], trees.first[indexes]
    nodes = np.ones(len(indexes), dtype=np.int64)
    for plane in range(_planes(bits) - 1, -1, -1):
        longer = _longer(bits, plane)
        at = nodes[longer]
        nodes[longer] = 2 * at + decoder.decode(_BERNOULLI, trees.ones[first[longer] + at])
    entries = nodes - (1 << bits)
    if (entries >= np.diff(tables.starts)[indexes]).any():
        raise ValueError("the coded symbols are damaged: an entry beyond the end of its table")
    return entries.astype(np.int32)


def _planes(bits: Int64[np.ndarray, "n"]) -> int:
    return int(bits.max(initial=0))


def _longer(bits: Int64[np.ndarray, "n"], plane: int) -> Bool[np.ndarray, "n"] | slice:
    """The entries that have this bit; a slice where all do, which spares a copy."""
    mask = bits > plane
    return slice(None) if mask.all() else mask
