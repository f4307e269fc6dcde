from itertools import pairwise

import pytest

from hyperprior.training.schedules import constant, cosine


def test_constant_is_one_after_its_warm_up():
    assert [constant(step, 10) for step in range(10)] == [1] * 10
    assert [constant(step, 10, warmup_steps=3) for step in range(5)] == pytest.approx([0.25, 0.5, 0.75, 1, 1])


def test_cosine_falls_from_one_to_its_end_at_the_last_step():
    factors = [cosine(step, 101, warmup_steps=10, final=0.02) for step in range(101)]
    assert max(factors) == factors[10] == 1
    assert factors[55] == pytest.approx(0.51)  # halfway down
    assert factors[100] == pytest.approx(0.02)
    assert all(later < earlier for earlier, later in pairwise(factors[10:]))
    assert factors[:11] == sorted(factors[:11])
    assert cosine(500, 101) == pytest.approx(0.01)  # a run that goes on stays there
