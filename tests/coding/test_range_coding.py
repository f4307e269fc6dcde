import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hyperprior.coding import range_coding
from hyperprior.coding.tables import TOTAL, FrequencyTables, gaussian_tables
from hyperprior.models.gaussian import gaussian_bits, scale_index, scale_table, scale_thresholds

TABLES = gaussian_tables(scale_table())
INT32 = st.integers(-(2**31), 2**31 - 1)


@given(st.lists(st.tuples(st.one_of(st.integers(-6, 6), INT32), st.integers(0, len(TABLES) - 1)), max_size=200))
@settings(deadline=None)
def test_any_symbols_come_back(pairs):
    symbols = np.array([symbol for symbol, _ in pairs], dtype=np.int32)
    indexes = np.array([index for _, index in pairs], dtype=np.int32)
    coded = range_coding.encode(symbols, indexes, TABLES)
    np.testing.assert_array_equal(range_coding.decode(coded, indexes, TABLES), symbols)


def test_the_ends_of_a_table_and_of_32_bits_come_back():
    symbols, indexes = [], []
    for index in range(len(TABLES)):
        first = int(TABLES.minimums[index])
        last = first + len(TABLES.frequencies_of(index)) - 2
        for symbol in (first - 1, first, last, last + 1, -(2**31), 2**31 - 1):
            symbols.append(symbol)
            indexes.append(index)
    array = np.array(symbols, dtype=np.int32)
    coded = range_coding.encode(array, np.array(indexes), TABLES)
    np.testing.assert_array_equal(range_coding.decode(coded, np.array(indexes), TABLES), array)


def test_a_symbol_costs_what_its_integer_frequency_says():
    """constriction is given weights; that it makes of them exactly our frequencies is seen in the length."""
    rng = np.random.default_rng(0)
    frequencies = np.array([1, 5, 1000, TOTAL - 1000 - 1006, 1000], dtype=np.int32)
    tables = FrequencyTables(frequencies, np.array([0, 5], dtype=np.int32), np.array([0], dtype=np.int32))
    for symbol in range(4):
        count = int(rng.integers(20_000, 30_000))
        coded = range_coding.encode(np.full(count, symbol, np.int32), np.zeros(count, np.int64), tables)
        ideal = count * np.log2(TOTAL / frequencies[symbol])
        assert ideal - 1 <= 8 * len(coded) <= ideal * (1 + 1e-6) + 80


def test_mean_coded_bits_exceed_information_content_by_less_than_a_tenth_of_a_percent():
    """A Kodak-sized latent: 192 channels of 32 x 48, scales mostly small as in a trained model, real rounding."""
    rng = np.random.default_rng(0)
    excess, total = 0.0, 0.0
    for _ in range(6):
        sigma = torch.tensor(np.exp(rng.normal(np.log(0.35), 1.1, 192 * 32 * 48)).clip(0.11, 256))
        y = torch.tensor(rng.standard_normal(sigma.shape)) * sigma
        symbols = y.round()
        coded = range_coding.encode(
            symbols.to(torch.int32).numpy(), scale_index(sigma, scale_thresholds()).numpy(), TABLES
        )
        information = gaussian_bits(symbols, sigma).sum().item()
        assert 8 * len(coded) > 0.999 * information
        excess += 8 * len(coded) - information
        total += information
    assert 0 < excess / total < 1e-3


def test_no_symbols_take_no_bytes():
    none = np.empty(0, np.int32)
    assert range_coding.encode(none, none, TABLES) == b""
    assert len(range_coding.decode(b"", none, TABLES)) == 0


def test_words_that_are_not_whole_are_refused():
    with pytest.raises(ValueError, match="words of four bytes"):
        range_coding.decode(b"abc", np.zeros(1, np.int32), TABLES)
