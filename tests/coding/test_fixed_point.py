import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hyperprior.coding.fixed_point import EXACT, LARGEST_VALUE, FixedPointError, FixedPointHyperSynthesis
from hyperprior.models import transforms
from hyperprior.models.gaussian import scale_thresholds

N, M = 5, 7


def layers(gain: float = 1.0) -> torch.nn.Sequential:
    torch.manual_seed(0)
    made = transforms.hyper_synthesis(N, M)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.mul_(gain)
        made[-1].bias.uniform_(0.1, 6)
    return made


def frozen(gain: float = 1.0) -> FixedPointHyperSynthesis:
    return FixedPointHyperSynthesis.from_model(layers(gain), torch.linspace(-1, 1, N), scale_thresholds())


def in_python_integers(exact: FixedPointHyperSynthesis, z: np.ndarray) -> np.ndarray:
    """a_3 by the formulas of the module's text, element by element, in integers without limit."""
    integers = {name: tensor.numpy().astype(object) for name, tensor in exact.integers().items()}
    bits = [int(b) for b in integers["weight_bits"]]

    def clamp(v: int) -> int:
        return max(-LARGEST_VALUE, min(LARGEST_VALUE, v))

    value = {
        (c, i, j): clamp(int(z[c, i, j]) * 2**12 + int(integers["medians"][c]))
        for c in range(z.shape[0]) for i in range(z.shape[1]) for j in range(z.shape[2])
    }  # fmt: skip
    rows, columns = z.shape[1:]
    for layer in range(2):
        weight, bias = integers[f"weight_{layer}"], integers[f"bias_{layer}"]
        sums = {(d, i, j): int(bias[d]) for d in range(N) for i in range(2 * rows) for j in range(2 * columns)}
        for (c, i, j), v in value.items():
            for d in range(N):
                for ky in range(5):
                    for kx in range(5):
                        at = (d, 2 * i - 2 + ky, 2 * j - 2 + kx)
                        if at in sums:
                            sums[at] += int(weight[c, d, ky, kx]) * v
        value = {at: clamp((max(a, 0) + 2 ** bits[layer] // 2) // 2 ** bits[layer]) for at, a in sums.items()}
        rows, columns = 2 * rows, 2 * columns
    result = np.zeros((M, rows, columns), dtype=object)
    for m in range(M):
        for i in range(rows):
            for j in range(columns):
                result[m, i, j] = int(integers["bias_2"][m]) + sum(
                    int(integers["weight_2"][m, d, ky, kx]) * value[d, i + ky - 1, j + kx - 1]
                    for d in range(N) for ky in range(3) for kx in range(3)
                    if (d, i + ky - 1, j + kx - 1) in value
                )  # fmt: skip
    return result


@pytest.mark.parametrize(("gain", "largest"), [(1.0, 9), (1.0, 2**31 - 1), (30.0, 200), (150_000.0, 5)])
def test_every_sum_is_what_integers_without_limit_give(gain, largest):
    exact = frozen(gain)
    z = np.random.default_rng(0).integers(-largest, largest, (N, 2, 3)).astype(np.int32)
    found = exact.accumulate(torch.from_numpy(z))
    np.testing.assert_array_equal(found.numpy(), in_python_integers(exact, z).astype(np.float64))
    thresholds = exact.integers()["thresholds"].numpy()
    below = (thresholds[:, None, None, None] < found.numpy()).sum(axis=0)
    np.testing.assert_array_equal(exact(torch.from_numpy(z)).numpy(), below)


def test_sigma_is_the_floating_point_one_to_the_grid():
    exact, plain = frozen(), layers().double()
    z = torch.randint(-20, 21, (N, 6, 5), dtype=torch.int32)
    medians = torch.linspace(-1, 1, N, dtype=torch.float64)
    with torch.no_grad():
        expected = plain((z + medians[:, None, None])[None])[0]
    torch.testing.assert_close(exact.sigma(z), expected, atol=2e-3, rtol=1e-4)
    # Given the rounded weights, what remains is the rounding of activations.
    exact.write_to(plain)
    with torch.no_grad():
        expected = plain((z + exact.medians_of_z[:, None, None])[None])[0]
    torch.testing.assert_close(exact.sigma(z), expected, atol=1e-3, rtol=0)


@given(st.permutations(range(N)), st.sampled_from([1, 2]), st.booleans(), st.integers(0, 9))
@settings(deadline=None, max_examples=25)
def test_no_order_of_summation_changes_anything(order, threads, channels_last, seed):
    exact = frozen()
    z = torch.tensor(np.random.default_rng(seed).integers(-50, 50, (N, 3, 4)), dtype=torch.int32)
    expected = exact.accumulate(z)
    # The same network with its inner channels in another order: every sum is taken in another order.
    stored, index = exact.integers(), torch.tensor(order)
    stored["weight_0"] = stored["weight_0"][index][:, index]
    stored["bias_0"] = stored["bias_0"][index]
    stored["medians"] = stored["medians"][index]
    stored["weight_1"] = stored["weight_1"][index][:, index]
    stored["bias_1"] = stored["bias_1"][index]
    stored["weight_2"] = stored["weight_2"][:, index]
    shuffled = z[index]
    if channels_last:
        shuffled = shuffled[None].to(memory_format=torch.channels_last)[0]
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert torch.equal(FixedPointHyperSynthesis.from_integers(stored).accumulate(shuffled), expected)
    finally:
        torch.set_num_threads(before)


def test_it_comes_back_from_its_integers():
    exact = frozen()
    again = FixedPointHyperSynthesis.from_integers(exact.integers())
    for name, tensor in exact.integers().items():
        assert torch.equal(again.integers()[name], tensor), name
    z = torch.randint(-9, 9, (N, 2, 2), dtype=torch.int32)
    assert torch.equal(again(z), exact(z))


def test_the_bound_is_where_sums_reach_two_to_the_53():
    """A layer whose largest possible sum is just below 2^53 is taken, and its sum is exact; one more is refused."""
    stored = frozen().integers()
    for name in ("weight_0", "weight_1", "weight_2", "bias_0", "bias_1", "bias_2"):
        stored[name] = torch.zeros_like(stored[name])
    stored["weight_bits"] = torch.tensor([0, 0, 0], dtype=torch.int32)
    stored["weight_2"][0, 0, 1, 1] = 1
    room = EXACT - LARGEST_VALUE - 1  # what layer 3 may have as its bias; 1 is the rounding's 2^0
    stored["bias_1"][0] = LARGEST_VALUE
    stored["bias_2"][0] = room - 1
    exact = FixedPointHyperSynthesis.from_integers(stored)
    sums = exact.accumulate(torch.zeros((N, 1, 1), dtype=torch.int32))
    assert int(sums[0, 0, 0]) == EXACT - 2
    stored["bias_2"][0] = room
    with pytest.raises(FixedPointError, match=r"layer 3 could exceed 2\^53"):
        FixedPointHyperSynthesis.from_integers(stored)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.__setitem__("medians", t["medians"] + 0.4), "32-bit integers"),
        (lambda t: t.__setitem__("medians", t["medians"][None]), "one row"),
        (lambda t: t.__setitem__("thresholds", t["thresholds"] + 0.5), "64-bit"),
        (lambda t: t.__setitem__("weight_bits", t["weight_bits"] + 0.5), "32-bit integers"),
        (lambda t: t["medians"].__setitem__(0, -(2**31)), "beyond 4096"),
        (lambda t: t["bias_0"].__setitem__(0, -(2**63)), "could exceed"),
        (lambda t: t["thresholds"].__setitem__(1, int(t["thresholds"][0])), "must ascend"),
        (lambda t: t["medians"].__setitem__(0, 2**24), "median of z is beyond 4096"),
        (lambda t: t["weight_bits"].__setitem__(0, 25), "fraction bits"),
        (lambda t: t["weight_bits"].__setitem__(0, -1), "fraction bits"),
        (lambda t: t.__setitem__("weight_0", t["weight_0"].int()), "16 bits"),
        (lambda t: t.__setitem__("weight_0", t["weight_0"][:, :, :3]), "do not fit"),
        (lambda t: t.__setitem__("bias_2", t["bias_2"][:-1]), "do not fit"),
    ],
)
def test_stored_integers_that_are_no_hyper_synthesis_are_refused(change, message):
    stored = frozen().integers()
    change(stored)
    with pytest.raises(FixedPointError, match=message):
        FixedPointHyperSynthesis.from_integers(stored)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 2.0**15])
def test_weights_beyond_the_grid_are_refused(bad):
    made = layers()
    with torch.no_grad():
        made[0].weight[0, 0, 0, 0] = bad
    with pytest.raises(FixedPointError, match="weights must be below"):
        FixedPointHyperSynthesis.from_model(made, torch.zeros(N), scale_thresholds())
    with pytest.raises(FixedPointError, match="a median of z"):
        FixedPointHyperSynthesis.from_model(layers(), torch.full((N,), float("nan")), scale_thresholds())
