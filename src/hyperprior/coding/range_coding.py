"""The default coder: whole table entries, with constriction's range coder.

Entries are coded table by table, each table's in the order of the array: the coder then runs over long runs that share
one model.
"""

import constriction
import numpy as np
from jaxtyping import Int32, UInt16
from numpy.typing import NDArray

from hyperprior.coding.tables import FrequencyTables


def write_entries(
    encoder: constriction.stream.queue.RangeEncoder,
    entries: Int32[np.ndarray, "n"],
    indexes: UInt16[np.ndarray, "n"],
    tables: FrequencyTables,
) -> None:
    """Codes each entry with the table that `indexes` names."""
    order, counts = _by_table(indexes, tables)
    grouped = entries[order]
    start = 0
    for model, count in zip(tables.models, counts, strict=True):
        if count:
            encoder.encode(grouped[start : start + count], model)
        start += count


def read_entries(
    decoder: constriction.stream.queue.RangeDecoder, indexes: UInt16[np.ndarray, "n"], tables: FrequencyTables
) -> Int32[np.ndarray, "n"]:
    """The entries that `write_entries` coded with the same indexes."""
    order, counts = _by_table(indexes, tables)
    entries = np.empty(len(indexes), dtype=np.int32)
    start = 0
    for model, count in zip(tables.models, counts, strict=True):
        if count:
            entries[order[start : start + count]] = decoder.decode(model, int(count))
        start += count
    return entries


def _by_table(indexes: UInt16[np.ndarray, "n"], tables: FrequencyTables) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """The order that sorts positions by table and keeps it within one, and the number of each table's entries."""
    # A stable sort of 16-bit keys is a radix sort in NumPy: linear time.
    return np.argsort(indexes, kind="stable"), np.bincount(indexes, minlength=len(tables))
