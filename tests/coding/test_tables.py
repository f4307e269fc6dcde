import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from hyperprior.coding.tables import TOTAL, FrequencyTables, density_tables, gaussian_tables, quantize_masses
from hyperprior.models.factorized_density import FactorizedDensity
from hyperprior.models.gaussian import scale_table


@given(st.lists(st.floats(0, 1), min_size=2, max_size=300).filter(lambda masses: sum(masses) > 1e-3))
def test_frequencies_are_positive_sum_to_the_total_and_follow_the_masses(masses):
    array = np.array(masses)
    frequencies = quantize_masses(array)
    assert frequencies.min() >= 1
    assert frequencies.sum() == TOTAL
    # Each entry gets one share first, and the rest in proportion, to the nearest whole share.
    expected = 1 + array / array.sum() * (TOTAL - len(array))
    assert np.abs(frequencies - expected).max() <= 1


def test_gaussian_frequencies_are_scipys_masses():
    tables = gaussian_tables(scale_table())
    for index, scale in enumerate(scale_table().tolist()):
        frequencies = tables.frequencies_of(index)[:-1]
        symbols = tables.minimums[index] + np.arange(len(frequencies))
        np.testing.assert_array_equal(symbols, -symbols[::-1])
        expected = stats.norm.cdf((symbols + 0.5) / scale) - stats.norm.cdf((symbols - 0.5) / scale)
        # One share for being there, and one of rounding.
        np.testing.assert_allclose(
            frequencies / TOTAL, expected, atol=2.5 / TOTAL, rtol=len(frequencies) / TOTAL + 2e-6
        )


def test_density_frequencies_are_the_densitys_masses_around_the_median():
    density = FactorizedDensity(5)
    with torch.no_grad():
        density.quantiles[:, 1] = torch.tensor([0.0, 0.3, -2.4, 7.9, 1.5])
        for parameter in density.b:
            parameter.add_(torch.randn_like(parameter))
    tables = density_tables(density)
    for channel in range(5):
        frequencies = tables.frequencies_of(channel)
        symbols = torch.arange(len(frequencies) - 1, dtype=torch.float64) + int(tables.minimums[channel])
        values = (symbols + density.medians[channel].double()).expand(5, -1)
        masses = torch.exp2(-density.double().bits(values))[channel].detach().numpy()
        density.float()
        np.testing.assert_allclose(frequencies[:-1] / TOTAL, masses, atol=3 / TOTAL, rtol=1e-3)
        assert masses.sum() == pytest.approx(1, abs=1e-5)


def test_the_scale_between_two_tables_costs_what_the_divergence_of_two_gaussians_says():
    """The worst scales lie halfway (in log) between two tables. A Gaussian coded with one whose logarithm of the scale
    is off by d costs d^2 nats more, to second order; whole frequencies and the escape may add next to nothing."""
    tables = gaussian_tables(scale_table())
    table = scale_table().numpy()
    d = np.log(table[1] / table[0]) / 2
    for scale in np.sqrt(table[1:] * table[:-1]):
        index = int(np.searchsorted(table, scale))
        frequencies = tables.frequencies_of(index)[:-1]
        symbols = tables.minimums[index] + np.arange(len(frequencies))
        true = stats.norm.cdf((symbols + 0.5) / scale) - stats.norm.cdf((symbols - 0.5) / scale)
        entropy = -(true * np.log2(np.maximum(true, 1e-300))).sum()
        coded = (true * (math.log2(TOTAL) - np.log2(frequencies))).sum()
        assert coded - entropy < 1.05 * d**2 / math.log(2)
    assert coded - entropy > 0.9 * d**2 / math.log(2)  # where the scale is wide, it is all there is


def test_a_very_wide_density_keeps_a_bounded_table():
    density = FactorizedDensity(1, K=1)
    with torch.no_grad():
        density.raw_H[0].fill_(-20.0)  # a logistic about 10^9 wide
        density.b[0].zero_()
    tables = density_tables(density)
    assert len(tables.frequencies) <= 1 << 14
    assert tables.frequencies[-1] > 0.99 * TOTAL  # nearly everything escapes


@pytest.mark.parametrize(
    ("frequencies", "starts", "minimums"),
    [
        ([TOTAL - 1, 2], [0, 2], [0]),  # wrong sum
        ([TOTAL, 0], [0, 2], [0]),  # a symbol without a share
        ([TOTAL], [0, 1], [0]),  # no room for the escape
        ([TOTAL - 1, 1], [0, 2], [0, 0]),  # a minimum too many
    ],
)
def test_arrays_that_are_no_tables_are_refused(frequencies, starts, minimums):
    with pytest.raises(ValueError, match="not frequency tables"):
        FrequencyTables(*(np.array(values, dtype=np.int32) for values in (frequencies, starts, minimums)))
