"""The hyper-synthesis h_s in exact integer arithmetic: the same scales on every machine.

Encoder and decoder must find the same table for every element of y, or all that follows decodes to garbage. Sums in
floating point depend on their order, so on the number of threads, the memory format, the library and the device. Here
every number on the way from the integers of z to the table's index is an integer. They are carried in float64, which
adds and multiplies integers exactly as long as nothing exceeds 2^53, in any order; that nothing does is proved from the
weights when a model is frozen, and again when a codec is loaded.

With f = 12 fraction bits for values and w_l for the weights of layer l:

    v_0 = clamp(2^f k + m)                 k: integers of z, m: medians in units of 2^-f
    a_l = W_l * v_{l-1} + b_l              W_l: 16-bit weights in units of 2^-w_l; a_l in units of 2^-(f + w_l)
    v_l = clamp(floor((max(a_l, 0) + 2^(w_l - 1)) / 2^w_l))         l = 1, 2: rectified, rounded to units of 2^-f
    index = number of thresholds T_i < a_3           sigma = 2^-(f + w_3) a_3, and T_i likewise

clamp keeps values within +-(2^24 - 1) units, that is within +-4096. The products are matrix products, never a library's
convolution, which may choose an algorithm (Winograd's, a Fourier transform) whose intermediate results are no integers.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float64, Int, Int32
from torch import Tensor, nn

FRACTION_BITS = 12
LARGEST_VALUE = 2**24 - 1
LARGEST_WEIGHT = 2**15 - 1
# More would let 2^(w_l - 1) and the biases outgrow their bounds for nothing: weights this small make no difference.
MOST_WEIGHT_BITS = 24
EXACT = 2**53


class FixedPointError(ValueError):
    """The weights do not allow exact arithmetic."""


class FixedPointHyperSynthesis(nn.Module):
    """h_s from integers of z to the index of each y's table.

    Made by `from_model`. What it holds, all of it integers: `weights` (three layers, int16, in the layout of torch's
    transposed convolutions for the first two and of its convolution for the last), `biases` (int64), `weight_bits`
    (w_1, w_2, w_3), `medians` (N, int32, in units of 2^-12), `thresholds` (int64, ascending, in units of
    2^-(12 + w_3)).

    Raises FixedPointError if they do not describe an h_s, or a sum could exceed 2^53.
    """

    def __init__(
        self,
        weights: list[Tensor],
        biases: list[Tensor],
        weight_bits: list[int],
        medians: Tensor,
        thresholds: Tensor,
    ) -> None:
        super().__init__()
        _check(weights, biases, weight_bits, medians, thresholds)
        self.weight_bits = weight_bits
        # float64 holds each of them exactly; buffers, so that they follow the module to a device.
        for layer, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
            self.register_buffer(f"weight_{layer}", weight.double())
            self.register_buffer(f"bias_{layer}", bias.double())
        self.register_buffer("medians", medians.double())
        self.register_buffer("thresholds", thresholds.double())

    @classmethod
    def from_model(
        cls, hyper_synthesis: nn.Sequential, medians: Tensor, thresholds: Float64[Tensor, "thresholds"]
    ) -> "FixedPointHyperSynthesis":
        """Rounds a trained h_s, the medians of z and the thresholds between tables to their grids.

        Raises FixedPointError if a weight is not finite or is 2^15 or more, a median is beyond 4096, or a sum could
        exceed 2^53.
        """
        weights, biases, weight_bits = [], [], []
        for layer_weight, layer_bias in _parameters(hyper_synthesis):
            weight, bias = layer_weight.detach().double().cpu(), layer_bias.detach().double().cpu()
            bits = _weight_bits(weight)
            weights.append(_integers(weight * 2**bits, torch.int16, "a weight of the hyper-synthesis"))
            biases.append(_integers(bias * 2 ** (bits + FRACTION_BITS), torch.int64, "a bias of the hyper-synthesis"))
            weight_bits.append(bits)
        rounded_medians = _integers(medians.detach().double().cpu() * 2**FRACTION_BITS, torch.int32, "a median of z")
        last = 2 ** (weight_bits[-1] + FRACTION_BITS)
        return cls(
            weights, biases, weight_bits, rounded_medians, _integers(thresholds * last, torch.int64, "a threshold")
        )

    def integers(self) -> dict[str, Tensor]:
        """All that decides a scale's index, by name: what is stored and what the fingerprint is of."""
        tensors = {"weight_bits": torch.tensor(self.weight_bits, dtype=torch.int32)}
        for layer in range(3):
            tensors[f"weight_{layer}"] = self.get_buffer(f"weight_{layer}").cpu().to(torch.int16)
            tensors[f"bias_{layer}"] = self.get_buffer(f"bias_{layer}").cpu().to(torch.int64)
        tensors["medians"] = self.get_buffer("medians").cpu().to(torch.int32)
        tensors["thresholds"] = self.get_buffer("thresholds").cpu().to(torch.int64)
        return tensors

    @classmethod
    def from_integers(cls, tensors: dict[str, Tensor]) -> "FixedPointHyperSynthesis":
        """The inverse of `integers`. Raises FixedPointError, or KeyError if a tensor is missing."""
        return cls(
            [tensors[f"weight_{layer}"] for layer in range(3)],
            [tensors[f"bias_{layer}"] for layer in range(3)],
            _whole(tensors["weight_bits"]),
            tensors["medians"],
            tensors["thresholds"],
        )

    def write_to(self, hyper_synthesis: nn.Sequential) -> None:
        """Gives a floating-point h_s the weights that this one has, to float32's rounding of the biases."""
        for layer, ((weight, bias), bits) in enumerate(
            zip(_parameters(hyper_synthesis), self.weight_bits, strict=True)
        ):
            weight.data.copy_(self.get_buffer(f"weight_{layer}") * 2.0**-bits)
            bias.data.copy_(self.get_buffer(f"bias_{layer}") * 2.0 ** -(bits + FRACTION_BITS))

    @property
    def scales(self) -> int:
        """The number of scales that the thresholds part."""
        return len(self.get_buffer("thresholds")) + 1

    @property
    def channels(self) -> tuple[int, int]:
        """N and M."""
        return len(self.get_buffer("medians")), len(self.get_buffer("bias_2"))

    @property
    def device(self) -> torch.device:
        """Where the integers are."""
        return self.get_buffer("medians").device

    @property
    def medians_of_z(self) -> Float64[Tensor, "N"]:
        """Offsets of rounding, exact multiples of 2^-12."""
        return self.get_buffer("medians") * 2.0**-FRACTION_BITS

    def accumulate(self, symbols_z: Int[Tensor, "N k l"]) -> Float64[Tensor, "M 4*k 4*l"]:
        """a_3: sigma before its bounds, an integer in units of 2^-(12 + w_3)."""
        grid = symbols_z.to(torch.float64) * 2**FRACTION_BITS + self.get_buffer("medians")[:, None, None]
        value = grid.clamp(-LARGEST_VALUE, LARGEST_VALUE)
        for layer in range(2):
            scale = 2.0 ** self.weight_bits[layer]
            sums = _transposed_convolution(value, self.get_buffer(f"weight_{layer}"), self.get_buffer(f"bias_{layer}"))
            value = ((sums.clamp(min=0) + scale / 2) / scale).floor().clamp(max=LARGEST_VALUE)
        return _convolution(value, self.get_buffer("weight_2"), self.get_buffer("bias_2"))

    def sigma(self, symbols_z: Int[Tensor, "N k l"]) -> Float64[Tensor, "M 4*k 4*l"]:
        """h_s(z-hat) before its bounds."""
        return self.accumulate(symbols_z) * 2.0 ** -(FRACTION_BITS + self.weight_bits[-1])

    def forward(self, symbols_z: Int[Tensor, "N k l"]) -> Int32[Tensor, "M 4*k 4*l"]:
        """The index of each element's table: the number of thresholds below it."""
        return torch.bucketize(self.accumulate(symbols_z).contiguous(), self.get_buffer("thresholds"), out_int32=True)


def _transposed_convolution(
    x: Float64[Tensor, "N k l"], weight: Float64[Tensor, "N D 5 5"], bias: Float64[Tensor, "D"]
) -> Float64[Tensor, "D 2*k 2*l"]:
    """5x5, stride 1/2, as in `models.transforms`: every input adds its multiple of the kernel to the output."""
    _, rows, columns = x.shape
    patches = weight.reshape(len(weight), -1).T @ x.reshape(len(x), -1)
    full = F.fold(patches[None], (2 * rows + 3, 2 * columns + 3), kernel_size=5, stride=2)
    return full[0, :, 2:-1, 2:-1] + bias[:, None, None]


def _convolution(
    x: Float64[Tensor, "D r c"], weight: Float64[Tensor, "M D 3 3"], bias: Float64[Tensor, "M"]
) -> Float64[Tensor, "M r c"]:
    """3x3, stride 1, zeros around."""
    patches = F.unfold(x[None], kernel_size=3, padding=1)[0]
    return (weight.reshape(len(weight), -1) @ patches + bias[:, None]).reshape(len(weight), *x.shape[1:])


def _parameters(hyper_synthesis: nn.Sequential) -> list[tuple[Tensor, Tensor]]:
    """Weights and biases of its convolutions, in order."""
    named = dict(hyper_synthesis.named_parameters())
    return [(named[name], named[name.replace("weight", "bias")]) for name in named if name.endswith("weight")]


def _weight_bits(weight: Tensor) -> int:
    """The most fraction bits with which the largest weight still has 16 bits."""
    largest = float(weight.abs().max())
    if not math.isfinite(largest) or largest > LARGEST_WEIGHT:
        raise FixedPointError(f"the hyper-synthesis has a weight of {largest}; its weights must be below 2^15")
    bits = MOST_WEIGHT_BITS
    while bits and largest * 2**bits > LARGEST_WEIGHT:
        bits -= 1
    return bits


def _integers(values: Tensor, dtype: torch.dtype, what: str) -> Tensor:
    rounded = values.round()
    if not (rounded.abs() < min(torch.iinfo(dtype).max + 1, EXACT)).all():
        raise FixedPointError(f"{what} is not finite or too large for its {torch.iinfo(dtype).bits} bits")
    return rounded.to(dtype)


def _whole(weight_bits: Tensor) -> list[int]:
    if weight_bits.dtype != torch.int32 or weight_bits.ndim != 1:
        raise FixedPointError("fraction bits of weights are a row of 32-bit integers")
    return [int(bits) for bits in weight_bits]


def _check(
    weights: list[Tensor], biases: list[Tensor], weight_bits: list[int], medians: Tensor, thresholds: Tensor
) -> None:
    """Raises FixedPointError unless these are the layers of h_s and no sum of theirs can reach 2^53."""
    if len(weights) != 3 or len(biases) != 3 or len(weight_bits) != 3 or any(w.ndim != 4 for w in weights):
        raise FixedPointError("an exact hyper-synthesis has three layers, each with weights, biases and fraction bits")
    if any(t.dtype != d or t.ndim != 1 for t, d in ((medians, torch.int32), (thresholds, torch.int64))):
        raise FixedPointError("medians are one row of 32-bit integers, thresholds one of 64-bit ones")
    N, M = len(medians), len(weights[2])
    shapes = [(N, N, 5, 5), (N, N, 5, 5), (M, N, 3, 3)]
    if [tuple(w.shape) for w in weights] != shapes or [len(b) for b in biases] != [N, N, M]:
        raise FixedPointError("the layers of the exact hyper-synthesis do not fit each other")
    if any(w.dtype != torch.int16 for w in weights) or any(b.dtype != torch.int64 for b in biases):
        raise FixedPointError("the exact hyper-synthesis has weights of 16 bits and biases of 64")
    if not all(0 <= bits <= MOST_WEIGHT_BITS for bits in weight_bits):
        raise FixedPointError(f"weights have 0 to {MOST_WEIGHT_BITS} fraction bits, not {weight_bits}")
    if not (medians.to(torch.int64).abs() <= LARGEST_VALUE).all():
        raise FixedPointError("a median of z is beyond 4096")
    if not (thresholds.diff() > 0).all() or not ((thresholds > -EXACT) & (thresholds < EXACT)).all():
        raise FixedPointError("thresholds between scales must ascend and lie below 2^53")
    for layer, (weight, bias, bits) in enumerate(zip(weights, biases, weight_bits, strict=True)):
        outputs = (0, 2, 3) if layer < 2 else (1, 2, 3)  # all axes but that of the output channels
        # No subset of the products, in any order, exceeds this; the last term is what rounding adds.
        magnitude = bias.abs().clamp(max=EXACT)
        largest = weight.to(torch.int64).abs().sum(dim=outputs) * LARGEST_VALUE + magnitude + 2**bits
        if not (largest < EXACT).all() or (bias.abs() < 0).any():  # the one integer without a positive counterpart
            raise FixedPointError(
                f"the sums of the hyper-synthesis's layer {layer + 1} could exceed 2^53 and would not be exact: "
                f"{int(largest.max())} at most"
            )
