import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hyperprior.coding import entropy_coding
from hyperprior.coding.entropy_coding import CODERS
from hyperprior.coding.tables import TOTAL, FrequencyTables, gaussian_tables
from hyperprior.models.gaussian import gaussian_bits, scale_index, scale_table, scale_thresholds

TABLES = gaussian_tables(scale_table())
INT32 = st.integers(-(2**31), 2**31 - 1)
CHUNK = st.lists(st.tuples(st.one_of(st.integers(-6, 6), INT32), st.integers(0, len(TABLES) - 1)), max_size=100)


@pytest.fixture(params=sorted(CODERS))
def coder(request):
    return request.param


def encode(symbols, indexes, coder, tables=TABLES):
    return entropy_coding.encode([(symbols.astype(np.int32), indexes.astype(np.uint16))], tables, coder)


def decode(coded, indexes, coder, tables=TABLES):
    (symbols,) = entropy_coding.decode(coded, [indexes.astype(np.uint16)], tables, coder)
    return symbols


@given(st.lists(CHUNK, max_size=4), st.sampled_from(sorted(CODERS)))
@settings(deadline=None)
def test_any_symbols_come_back(chunks, coder):
    symbols = [np.array([symbol for symbol, _ in chunk], dtype=np.int32) for chunk in chunks]
    indexes = [np.array([index for _, index in chunk], dtype=np.uint16) for chunk in chunks]
    coded = entropy_coding.encode(zip(symbols, indexes, strict=True), TABLES, coder)
    decoded = list(entropy_coding.decode(coded, indexes, TABLES, coder))
    assert len(decoded) == len(symbols)
    for ours, theirs in zip(symbols, decoded, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_the_ends_of_a_table_and_of_32_bits_come_back(coder):
    symbols, indexes = [], []
    for index in range(len(TABLES)):
        first = int(TABLES.minimums[index])
        last = first + len(TABLES.frequencies_of(index)) - 2
        for symbol in (first - 1, first, last, last + 1, -(2**31), 2**31 - 1):
            symbols.append(symbol)
            indexes.append(index)
    array = np.array(symbols, dtype=np.int32)
    coded = encode(array, np.array(indexes), coder)
    np.testing.assert_array_equal(decode(coded, np.array(indexes), coder), array)


def test_a_symbol_costs_what_its_integer_frequency_says(coder):
    """constriction is given weights; that it makes of them exactly our frequencies is seen in the length."""
    rng = np.random.default_rng(0)
    frequencies = np.array([1, 5, 1000, TOTAL - 1000 - 1006, 1000], dtype=np.int32)
    tables = FrequencyTables(frequencies, np.array([0, 5], dtype=np.int32), np.array([0], dtype=np.int32))
    for symbol in range(4):
        count = int(rng.integers(20_000, 30_000))
        coded = encode(np.full(count, symbol), np.zeros(count), coder, tables)
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
        coded = encode(symbols.numpy(), scale_index(sigma, scale_thresholds()).numpy(), "range")
        information = gaussian_bits(symbols, sigma).sum().item()
        assert 8 * len(coded) > 0.999 * information
        excess += 8 * len(coded) - information
        total += information
    assert 0 < excess / total < 1e-3


def test_both_coders_files_are_as_long_to_a_fifth_of_a_percent():
    rng = np.random.default_rng(0)
    indexes = rng.integers(0, len(TABLES), 50_000)
    sigma = scale_table().numpy()[indexes]
    symbols = (rng.standard_normal(50_000) * sigma).round()
    by_range, by_bits = len(encode(symbols, indexes, "range")), len(encode(symbols, indexes, "binary"))
    assert by_bits == pytest.approx(by_range, rel=2e-3)


def test_no_symbols_take_no_bytes(coder):
    assert encode(np.empty(0), np.empty(0), coder) == b""
    assert len(decode(b"", np.empty(0), coder)) == 0


def test_words_that_are_not_whole_are_refused(coder):
    with pytest.raises(ValueError, match="words of four bytes"):
        decode(b"abc", np.zeros(1), coder)


def test_another_encoders_ending_is_understood(coder):
    """Any point of the last interval stands for the same symbols, with as many words behind it as it likes."""
    symbols, indexes = np.arange(-5, 6), np.full(11, 40)
    coded = encode(symbols, indexes, coder)
    last = int.from_bytes(coded[-4:], "little")
    for ending in ((last + 3) % 2**32).to_bytes(4, "little"), coded[-4:] + bytes(8):
        np.testing.assert_array_equal(decode(coded[:-4] + ending, indexes, coder), symbols)
