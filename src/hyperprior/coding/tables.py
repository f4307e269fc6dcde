"""Densities frozen into integer frequency tables.

A table gives every symbol of a range of integers a whole number of shares of 2^24, and one more entry to the escape,
which announces a value outside the range. Tables are made once, when a model is frozen, and are stored: floating-point
libraries differ, so a table that is computed again on another machine may not be the same table.
"""

import copy
import math
from dataclasses import dataclass
from functools import cached_property

import constriction
import numpy as np
import torch
from jaxtyping import Float64, Int32
from numpy.typing import NDArray
from torch import Tensor

from hyperprior.models.factorized_density import FactorizedDensity

PRECISION_BITS = 24
TOTAL = 1 << PRECISION_BITS
# Probability left to the escape: 16 of 2^24 shares. A wider range would hold symbols of less than one share.
ESCAPE_MASS = 2.0**-20
# The longest table, escape included. A density that is wider has its middle in the table and escapes for the rest.
MAXIMUM_LENGTH = 1 << 14
LARGEST_MINIMUM = 1 << 30


@dataclass(frozen=True, eq=False)
class FrequencyTables:
    """T frequency tables of different lengths, one after the other.

    Table t covers the symbols minimums[t], minimums[t] + 1, ...; its frequencies are
    frequencies[starts[t]:starts[t + 1]], each at least 1, together 2^24. The last one is the escape's.

    Raises ValueError if the arrays do not describe such tables.
    """

    frequencies: Int32[np.ndarray, "total"]
    starts: Int32[np.ndarray, "edges"]
    minimums: Int32[np.ndarray, "T"]

    def __post_init__(self) -> None:
        parts = (self.frequencies, self.starts, self.minimums)
        lengths = np.diff(self.starts.astype(np.int64))
        if (
            any(part.ndim != 1 or part.dtype != np.int32 for part in parts)
            or not len(self.minimums)
            or np.abs(self.minimums.astype(np.int64)).max() > LARGEST_MINIMUM
            or len(self.starts) != len(self.minimums) + 1
            or self.starts[0] != 0
            or self.starts[-1] != len(self.frequencies)
            or (lengths < 2).any()
            or (self.frequencies < 1).any()
            or (np.add.reduceat(self.frequencies.astype(np.int64), self.starts[:-1]) != TOTAL).any()
        ):
            raise ValueError(f"not frequency tables: each needs two or more positive entries that sum to {TOTAL}")

    def __len__(self) -> int:
        return len(self.minimums)

    def frequencies_of(self, table: int) -> Int32[np.ndarray, "length"]:
        """The frequencies of one table, the escape's last."""
        return self.frequencies[self.starts[table] : self.starts[table + 1]]

    @cached_property
    def escapes(self) -> Int32[np.ndarray, "T"]:
        """The entry of each table's escape: its last."""
        return np.diff(self.starts) - np.int32(1)

    @cached_property
    def models(self) -> list[constriction.stream.model.Categorical]:
        """The tables as models of the range coder.

        constriction turns weights w_0, w_1, ... of n symbols into cumulatives floor(scale * (w_0 + ... + w_{i-1})) + i
        with scale = (2^24 - n) / sum(w). For w_i = f_i - 1 the scale is exactly 1 and each sum an exact integer, so
        that symbol i gets exactly f_i shares.
        """
        return [
            constriction.stream.model.Categorical((self.frequencies_of(table) - 1).astype(np.float64), perfect=False)
            for table in range(len(self))
        ]


def quantize_masses(masses: Float64[np.ndarray, "symbols"]) -> Int32[np.ndarray, "symbols"]:
    """Whole frequencies >= 1 that sum to 2^24, in proportion to `masses` (>= 0, some positive)."""
    scaled = masses * ((TOTAL - len(masses)) / masses.sum())
    frequencies = 1 + np.floor(scaled).astype(np.int64)
    # Flooring leaves fewer than n shares over: they go to the largest remainders.
    left_over = TOTAL - int(frequencies.sum())
    frequencies[np.argsort(np.floor(scaled) - scaled, kind="stable")[:left_over]] += 1
    return frequencies.astype(np.int32)


def _join(masses: list[NDArray[np.float64]], minimums: list[int]) -> FrequencyTables:
    """Tables from the masses of each one's symbols; what they leave of the probability is the escape's."""
    tables = [quantize_masses(np.append(mass, max(1 - mass.sum(), ESCAPE_MASS))) for mass in masses]
    return FrequencyTables(
        frequencies=np.concatenate(tables),
        starts=np.cumsum([0, *map(len, tables)]).astype(np.int32),
        minimums=np.array(minimums, dtype=np.int32),
    )


def gaussian_tables(scales: Float64[Tensor, "T"]) -> FrequencyTables:
    """A table for each standard deviation: zero-mean Gaussian masses of the integers (eq. 11)."""
    reach = -torch.special.ndtri(torch.tensor(ESCAPE_MASS / 2, dtype=torch.float64)).item()
    masses, minimums = [], []
    for scale in scales.tolist():
        last = min(math.ceil(reach * scale), MAXIMUM_LENGTH // 2 - 1)
        distance = torch.arange(-last, last + 1, dtype=torch.float64).abs()
        upper, lower = torch.special.ndtr((0.5 - distance) / scale), torch.special.ndtr((-0.5 - distance) / scale)
        masses.append((upper - lower).numpy())
        minimums.append(-last)
    return _join(masses, minimums)


@torch.no_grad()
def density_tables(density: FactorizedDensity) -> FrequencyTables:
    """A table for each channel: masses of symbol k, which stands for the value k + median (eq. 30)."""
    exact = copy.deepcopy(density).cpu().double()
    medians = exact.medians[:, None]
    edges = (exact.solve_quantiles(ESCAPE_MASS) - medians).numpy()
    half = MAXIMUM_LENGTH // 2 - 1
    first = np.clip(np.floor(edges[:, 0]), -half, 0).astype(int)
    last = np.clip(np.ceil(edges[:, 1]), 0, half).astype(int)
    symbols = torch.arange(int(first.min()), int(last.max()) + 1, dtype=torch.float64)
    all_masses = torch.exp2(-exact.bits(symbols + medians)).numpy()
    masses = [
        all_masses[channel, low - first.min() : high - first.min() + 1]
        for channel, (low, high) in enumerate(zip(first, last, strict=True))
    ]
    return _join(masses, first.tolist())
