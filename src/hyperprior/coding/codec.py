"""A trained model frozen for use: image -> bytes -> image."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from os import PathLike
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Int32, UInt8, UInt16
from numpy.typing import NDArray
from torch import Tensor

from hyperprior.coding import entropy_coding
from hyperprior.coding.container import (
    Container,
    DamagedFileError,
    WrongCodecError,
    check_size,
    symbols_checksum,
)
from hyperprior.coding.entropy_coding import CODERS, Coder
from hyperprior.coding.frozen import FrozenModel
from hyperprior.coding.tiling import Region, tiles, with_surroundings
from hyperprior.models.compression import STRIDE_Y, STRIDE_Z, CompressionModel, ScaleHyperprior
from hyperprior.models.gaussian import bound_scale, gaussian_bits

# Positions of y on the side of a tile. y is coded in tiles of CODED (part of the file format); the transforms take
# tiles of TRANSFORMED from images of more than WHOLE positions, 2.4 megapixels.
CODED_TILE = 64
TRANSFORMED_TILE = 32
WHOLE = 96 * 96
# What a result depends on beside its own position, rounded up to positions of the coarser side: g_a reaches 30 pixels
# (2 + 4 + 8 + 16 for its four layers), h_a 7 positions of y (1 + 2 + 4), g_s and h_s two positions of y and of z.
_MARGIN = 2


class Symbols(NamedTuple):
    """The integers in a file, and the size of its image. The factorized-prior model has no z: 0 x 0 x 0."""

    z: Int32[np.ndarray, "N k l"]
    y: Int32[np.ndarray, "M h w"]
    height: int
    width: int


class Codec:
    """Frozen transforms with the frequency tables that belong to them.

    Made by `Codec.from_model` or `Codec.load`, never without its tables. The transforms run where and in the precision
    that `to` chose (at first the CPU, float32). From the integers of z to the tables of y both sides use one function
    in exact integer arithmetic, so that a file decodes to the same symbols everywhere.
    """

    def __init__(self, frozen: FrozenModel) -> None:
        self.frozen = frozen
        self.model = frozen.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.exact = frozen.exact
        self._tables_of_y = frozen.latent_tables if frozen.scale_tables is None else frozen.scale_tables
        self._precision = torch.float32

    @classmethod
    def from_model(
        cls, model: CompressionModel, weights: torch.dtype = torch.float32, config: dict[str, Any] | None = None
    ) -> "Codec":
        """Freezes a copy of a model, on the CPU. The model stays as it is and may train on.

        `weights` is the precision in which the weights of the transforms will be stored: they are rounded to it here,
        so that what is measured is what is kept. bfloat16 halves the file. The hyper-synthesis is rounded to 16-bit
        integers either way. Raises ValueError if a weight is not finite, FixedPointError if scales cannot be
        computed exactly.
        """
        return cls(FrozenModel.of(model, weights, config))

    @classmethod
    def load(cls, path: str | PathLike[str]) -> "Codec":
        """Reads a codec that `save` wrote. Raises FileNotFoundError, or ValueError if it is not one."""
        return cls(FrozenModel.load(path))

    def save(self, path: str | PathLike[str], weights: torch.dtype = torch.float32) -> None:
        """Writes the codec to one safetensors file, architecture and config inside, aside first and then renamed.

        `weights=torch.bfloat16` stores the transforms in half the space; it must be what `from_model` was given.
        Raises ValueError if the transforms are not exact in that precision.
        """
        self.frozen.save(path, weights)

    @property
    def config(self) -> dict[str, Any]:
        """How the model was trained, where that is known."""
        return self.frozen.config

    @property
    def fingerprint(self) -> bytes:
        """Four bytes that tell codecs apart; a file holds those of the codec it was made with."""
        return self.frozen.fingerprint

    def to(self, device: torch.device | str | None = None, transforms: torch.dtype | None = None) -> "Codec":
        """Moves the codec to a device, sets the precision of its transforms, and returns it.

        With `transforms=torch.bfloat16` all layers but the last of g_a, h_a and g_s run in bfloat16. Neither changes
        what a file decodes to but for the rounding of pixels.
        """
        if device is not None:
            self.model.to(device)
            if self.exact is not None:
                # Where there is no float64 (Apple's GPUs), the exact part stays on the CPU.
                self.exact.to("cpu" if self.device.type == "mps" else self.device)
        if transforms is not None:
            if transforms not in (torch.float32, torch.bfloat16):
                raise ValueError(f"transforms run in torch.float32 or torch.bfloat16, not {transforms}")
            self._precision = transforms
        return self

    @property
    def device(self) -> torch.device:
        """Where the transforms run."""
        return self.model.density.medians.device

    @torch.inference_mode()
    def compress(self, image: UInt8[np.ndarray, "H W 3"], coder: Coder = "range") -> bytes:
        """The content of a file that holds an 8-bit RGB image.

        `coder="binary"` codes bit by bit, as the paper does; the file says so and is as long to 0.2 %.

        Raises ValueError if the array is something else or too large (ImageSizeError), or the model's response to it is
        not finite.
        """
        if not isinstance(image, np.ndarray):
            raise TypeError(f"an image is an 8-bit array of H x W x 3, not a {type(image).__name__}")
        if coder not in CODERS:
            raise ValueError(f"a coder is {' or '.join(CODERS)}, not {coder!r}")
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
            raise ValueError(f"an image is an 8-bit array of H x W x 3, not {image.dtype} of {image.shape}")
        height, width = image.shape[:2]
        check_size(width, height)
        y, z = self.latents(image)
        if z is None:
            symbols_z, symbols_y = np.empty((0, 0, 0), np.int32), _round_to_symbols(y, self.model.density.medians)
        else:
            symbols_z, symbols_y = _round_to_symbols(z, self.model.density.medians), _round_to_symbols(y, None)
        symbols = Symbols(symbols_z, symbols_y, height, width)
        return self.encode(symbols, coder)

    def encode(self, symbols: Symbols, coder: Coder = "range") -> bytes:
        """The content of a file that holds these integers: the second half of `compress`."""
        z_bytes = b""
        if self.exact is not None:
            z_chunk = (symbols.z.reshape(-1), _channels(symbols.z.shape))
            z_bytes = entropy_coding.encode([z_chunk], self.frozen.latent_tables, coder)
        shape_y = symbols.y.shape
        y_chunks = (
            (np.ascontiguousarray(symbols.y[:, *tile.slices]).reshape(-1), self.indexes_of(symbols.z, shape_y, tile))
            for tile in _coded_tiles(shape_y)
        )
        y_bytes = entropy_coding.encode(y_chunks, self._tables_of_y, coder)
        checksum = symbols_checksum(symbols.z, symbols.y)
        container = Container(symbols.width, symbols.height, coder, self.fingerprint, checksum, z_bytes, y_bytes)
        return container.to_bytes()

    def decompress(self, data: bytes) -> UInt8[np.ndarray, "H W 3"]:
        """The 8-bit RGB image in a file's content.

        Raises the FormatError that says what is wrong if the content is damaged or was not made with this codec.
        """
        return self.reconstruct(self.decode(data))

    def decode(self, data: bytes) -> Symbols:
        """The integers in a file's content: the first half of `decompress`. Raises FormatError as that does."""
        container = Container.from_bytes(data)
        if container.fingerprint != self.fingerprint:
            raise WrongCodecError(
                f"the file was made with the codec {container.fingerprint.hex()}, this one is {self.fingerprint.hex()}"
            )
        if self.exact is None and container.z:
            raise DamagedFileError("the file is damaged: it has a z, which its codec has not")
        shape_y, shape_z = self.model.latent_shapes(container.height, container.width)
        coder = container.coder
        try:
            symbols_z = np.empty((0, 0, 0), np.int32)
            if self.exact is not None:
                (flat_z,) = entropy_coding.decode(container.z, [_channels(shape_z)], self.frozen.latent_tables, coder)
                symbols_z = flat_z.reshape(shape_z)
            regions = _coded_tiles(shape_y)
            indexes = (self.indexes_of(symbols_z, shape_y, tile) for tile in regions)
            symbols_y = np.empty(shape_y, np.int32)
            chunks = entropy_coding.decode(container.y, indexes, self._tables_of_y, coder)
            for tile, chunk in zip(regions, chunks, strict=True):
                rows, columns = tile.slices
                symbols_y[:, rows, columns] = chunk.reshape(len(symbols_y), rows.stop - rows.start, -1)
        except ValueError as error:
            raise DamagedFileError(f"the file is damaged: {error}") from error
        if symbols_checksum(symbols_z, symbols_y) != container.symbols_checksum:
            raise DamagedFileError("the file is damaged: its symbols do not agree with their checksum")
        return Symbols(symbols_z, symbols_y, container.height, container.width)

    @torch.inference_mode()
    def reconstruct(self, symbols: Symbols) -> UInt8[np.ndarray, "H W 3"]:
        """The 8-bit RGB image that decoded integers stand for: the second half of `decompress`."""
        rows, columns = symbols.y.shape[1:]
        image = np.empty((symbols.height, symbols.width, 3), np.uint8)

        def synthesize(outer: Region) -> Tensor:
            y_hat = self._y_hat(symbols.y[:, *outer.slices]).contiguous(memory_format=torch.channels_last)
            _, _, h, w = y_hat.shape
            return self.model.synthesize(y_hat, STRIDE_Y * h, STRIDE_Y * w)

        with self._precise():
            for tile in _transform_tiles(rows, columns):
                x_hat = with_surroundings(synthesize, tile, rows, columns, _MARGIN, STRIDE_Y)
                target = image[tile.times(STRIDE_Y).slices]
                target[...] = to_image(x_hat[..., : target.shape[0], : target.shape[1]])
        return image

    def y_hat(self, symbols: Symbols) -> Tensor:
        """The values that g_s is given: 1 x M x h x w, on the codec's device."""
        return self._y_hat(symbols.y)

    def _y_hat(self, symbols_y: Int32[np.ndarray, "M h w"]) -> Tensor:
        values = torch.tensor(symbols_y).float()[None]
        if self.exact is None:
            values += self.model.density.medians.cpu()[:, None, None]
        return values.to(self.device)

    def sigma(self, symbols_z: Int32[np.ndarray, "N k l"], shape_y: tuple[int, ...], tile: Region) -> Tensor:
        """The standard deviations of a tile of y (M x rows x columns, float32), within the bounds of their table.

        What decides a table's index in exact arithmetic, as a number. Raises ValueError without a hyperprior.
        """
        if self.exact is None:
            raise ValueError("the factorized-prior model has no scales")
        return bound_scale(self._from_z(self.exact.sigma, symbols_z, shape_y, tile).float())

    def indexes_of(
        self, symbols_z: Int32[np.ndarray, "N k l"], shape_y: tuple[int, ...], tile: Region
    ) -> UInt16[np.ndarray, "positions"]:
        """Which table each element of a tile of y has: by its channel, or by its scale, given the integers of z."""
        if self.exact is None:
            rows, columns = tile.slices
            return _channels((shape_y[0], rows.stop - rows.start, columns.stop - columns.start))
        indexes = self._from_z(self.exact, symbols_z, shape_y, tile)
        return indexes.reshape(-1).cpu().numpy().astype(np.uint16)

    @torch.inference_mode()
    def _from_z(self, function: Any, symbols_z: NDArray[np.int32], shape_y: tuple[int, ...], tile: Region) -> Tensor:
        """A tile of what h_s makes of z. Tiles begin at whole positions of z and end there or at the border."""
        assert self.exact is not None
        z = torch.from_numpy(symbols_z).to(self.exact.device)
        _, rows, columns = z.shape
        full = with_surroundings(
            lambda outer: function(z[:, *outer.slices]), tile.over(STRIDE_Z), rows, columns, _MARGIN, STRIDE_Z
        )
        return full[:, : tile.bottom - tile.top, : tile.right - tile.left]

    @torch.inference_mode()
    def information(self, symbols: Symbols) -> tuple[float, float]:
        """Bits of y and of z under the model's densities (eq. 10), with sigma as it is and not the nearest table's.

        The file may hold a little less: an escape is cheaper than the far tail of a Gaussian.
        """
        density = self.model.density
        if self.exact is None:
            return float(density(self.y_hat(symbols)).sum(dtype=torch.float64)), 0.0
        bits_y = 0.0
        for tile in _coded_tiles(symbols.y.shape):
            y_hat = self._y_hat(symbols.y[:, *tile.slices])[0]
            sigma = self.sigma(symbols.z, symbols.y.shape, tile).to(self.device)
            bits_y += float(gaussian_bits(y_hat, sigma).sum(dtype=torch.float64))
        z_hat = torch.tensor(symbols.z).float().to(self.device) + density.medians[:, None, None]
        return bits_y, float(density(z_hat[None]).sum(dtype=torch.float64))

    @torch.inference_mode()
    def latents(self, image: UInt8[np.ndarray, "H W 3"]) -> tuple[Tensor, Tensor | None]:
        """y and z before rounding, M x h x w and N x k x l; z is None without a hyperprior."""
        model = self.model
        (M, h, w), (N, k, l) = model.latent_shapes(*image.shape[:2])  # noqa: E741

        def analyze(outer: Region) -> Tensor:
            x = to_tensor(image[outer.times(STRIDE_Y).slices]).to(self.device)
            return model.analyze(x.contiguous(memory_format=torch.channels_last))[0]

        y = torch.empty((M, h, w), device=self.device)
        with self._precise():
            for tile in _transform_tiles(h, w):
                y[:, *tile.slices] = with_surroundings(analyze, tile, h, w, _MARGIN)
            if not isinstance(model, ScaleHyperprior):
                return y, None
            hyper_analyze = model.hyper_analyze
            z = torch.empty((N, k, l), device=self.device)
            for tile in tiles(k, l, CODED_TILE // STRIDE_Z):
                z[:, *tile.slices] = with_surroundings(
                    lambda outer: hyper_analyze(y[None, :, *outer.times(STRIDE_Z).slices])[0], tile, k, l, _MARGIN
                )
        return y, z

    @contextmanager
    def _precise(self) -> Iterator[None]:
        """The transforms' precision; on CUDA, convolutions in float32 and not in TF32, whose ten bits would show."""
        reduced = self._precision != torch.float32
        with ExitStack() as stack:
            stack.enter_context(torch.autocast(self.device.type, torch.bfloat16, enabled=reduced))
            if self.device.type == "cuda":
                stack.enter_context(torch.backends.cudnn.flags(enabled=True, allow_tf32=False))
            yield


def to_tensor(image: UInt8[np.ndarray, "H W 3"]) -> Tensor:
    """8-bit H x W x 3 to float32 1 x 3 x H x W in [0, 1]."""
    return torch.tensor(np.ascontiguousarray(image)).permute(2, 0, 1)[None].float() / 255


def to_image(x: Tensor) -> UInt8[np.ndarray, "H W 3"]:
    """Float 1 x 3 x H x W to 8-bit H x W x 3, clamped to [0, 1] first."""
    levels = (x[0].clamp(0, 1) * 255).round().to(torch.uint8)
    return levels.permute(1, 2, 0).contiguous().cpu().numpy()


def _transform_tiles(rows: int, columns: int) -> Iterator[Region]:
    """How the transforms take the positions of y: all at once, or in tiles."""
    return tiles(rows, columns, TRANSFORMED_TILE if rows * columns > WHOLE else max(rows, columns))


def _coded_tiles(shape_y: tuple[int, ...]) -> list[Region]:
    """How y is cut for coding."""
    _, rows, columns = shape_y
    return list(tiles(rows, columns, CODED_TILE))


def _channels(shape: tuple[int, ...]) -> UInt16[np.ndarray, "positions"]:
    """The channel of each element of a C x h x w array."""
    channels, rows, columns = shape
    return np.repeat(np.arange(channels, dtype=np.uint16), rows * columns)


def _round_to_symbols(values: Tensor, medians: Tensor | None) -> Int32[np.ndarray, "C h w"]:
    """Rounds, in place: an image of a hundred megapixels has 75 million latents."""
    if medians is not None:
        values -= medians[:, None, None]
    low, high = torch.aminmax(values.round_())
    # Inside int32 with room for an offset; a finite image cannot come near it through a trained model.
    if not (low > -(2**30) and high < 2**30):
        raise ValueError("the model's response to this image is not finite or beyond 2^30: is the model trained?")
    return values.to(torch.int32).cpu().numpy()
