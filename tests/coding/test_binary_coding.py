from fractions import Fraction

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from hyperprior.coding.binary_coding import zero_shares
from hyperprior.coding.tables import TOTAL, quantize_masses


@given(st.lists(st.integers(0, 1000), min_size=2, max_size=70).filter(any))
def test_the_bits_of_an_entry_have_together_its_probability(weights):
    """The chain rule, in exact fractions: the product along an entry's path is its frequency, but for the rounding of
    each node to one share."""
    frequencies = quantize_masses(np.array(weights, dtype=float))
    shares = zero_shares(frequencies)
    bits = (len(frequencies) - 1).bit_length()
    assert len(shares) == 1 << bits
    for entry, frequency in enumerate(frequencies.tolist()):
        probability, node = Fraction(1), 1
        for plane in range(bits - 1, -1, -1):
            bit = entry >> plane & 1
            share = int(shares[node])
            probability *= Fraction(TOTAL - share if bit else share, TOTAL)
            node = 2 * node + bit
        assert abs(probability - Fraction(frequency, TOTAL)) <= Fraction(2 * bits, TOTAL)


def test_the_first_bit_is_the_most_significant():
    shares = zero_shares(np.array([TOTAL // 2, TOTAL // 4, TOTAL // 8, TOTAL // 8], dtype=np.int32))
    # Node 1: entries 0 and 1 against 2 and 3. Node 2: 0 against 1. Node 3: 2 against 3.
    assert shares[1:].tolist() == [TOTAL * 3 // 4, TOTAL * 2 // 3, TOTAL // 2]
