"""A trained model frozen for use: image -> bytes -> image."""

import copy
import json
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float64, Int32, UInt8
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialize
from torch import Tensor

from hyperprior.coding import range_coding
from hyperprior.coding.container import Container, FormatError, check_size, checksum_of
from hyperprior.coding.tables import FrequencyTables, density_tables, gaussian_tables
from hyperprior.files import write_aside
from hyperprior.models.compression import CompressionModel, ScaleHyperprior, build_model
from hyperprior.models.gaussian import gaussian_bits, scale_index, scale_table, scale_thresholds

CODEC_FORMAT = "hyperprior-codec-1"
_TABLE_FIELDS = ("frequencies", "starts", "minimums")


@dataclass(frozen=True, eq=False)
class ScaleTables:
    """The Gaussian tables, and the standard deviations at which one gives way to the next (ascending).

    Raises ValueError if there is not one threshold between each two tables.
    """

    tables: FrequencyTables
    thresholds: Float64[Tensor, "thresholds"]

    def __post_init__(self) -> None:
        if len(self.thresholds) != len(self.tables) - 1 or not (self.thresholds.diff() > 0).all():
            raise ValueError(
                f"{len(self.tables)} tables need one ascending threshold fewer, not {len(self.thresholds)}"
            )


class Symbols(NamedTuple):
    """The integers in a file, and the size of its image. The factorized-prior model has no z: 0 x 0 x 0."""

    z: Int32[np.ndarray, "N k l"]
    y: Int32[np.ndarray, "M h w"]
    height: int
    width: int


class Codec:
    """Frozen transforms with the frequency tables that belong to them.

    Made by `Codec.from_model` or `Codec.load`, never without its tables. `compress` and `decompress` run in float32 on
    the device that `to` chose (the CPU at first); from the integers of z to the scales of y both use one function, in
    float64 on the CPU. `config` says how the model was trained, where that is known.
    """

    def __init__(
        self,
        model: CompressionModel,
        latent_tables: FrequencyTables,
        scale_tables: ScaleTables | None,
        config: dict[str, Any] | None = None,
    ) -> None:
        if isinstance(model, ScaleHyperprior) != (scale_tables is not None):
            raise ValueError("a codec needs Gaussian tables if, and only if, its model has a hyperprior")
        if len(latent_tables) != model.density.channels:
            raise ValueError(f"{len(latent_tables)} tables for a density of {model.density.channels} channels")
        self.model = model.eval().requires_grad_(False)
        self.config = config or {}
        self._latent_tables = latent_tables
        self._scale_tables = scale_tables
        self._exact_hyper_synthesis = (
            copy.deepcopy(model.hyper_synthesis).cpu().double() if isinstance(model, ScaleHyperprior) else None
        )

    @classmethod
    def from_model(
        cls, model: CompressionModel, weights: torch.dtype = torch.float32, config: dict[str, Any] | None = None
    ) -> "Codec":
        """Freezes a copy of a model, on the CPU. The model stays as it is and may train on.

        `weights` is the precision in which the weights of the transforms will be stored: they are rounded to it here,
        so that what is measured is what is kept. bfloat16 halves the file.
        """
        frozen = copy.deepcopy(model).cpu().float().to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        for name, parameter in frozen.named_parameters():
            if _in_transform(name):
                parameter.data = parameter.data.to(weights).float()
        scales = None
        if isinstance(frozen, ScaleHyperprior):
            scales = ScaleTables(gaussian_tables(scale_table()), scale_thresholds())
        return cls(frozen, density_tables(frozen.density), scales, config)

    def to(self, device: torch.device | str) -> "Codec":
        """Moves the transforms to a device and returns the codec."""
        self.model.to(device)
        return self

    @property
    def device(self) -> torch.device:
        """Where the transforms run."""
        return self.model.density.medians.device

    @torch.inference_mode()
    def compress(self, image: UInt8[np.ndarray, "H W 3"]) -> bytes:
        """The content of a file that holds an 8-bit RGB image.

        Raises ValueError if the array is something else or too large, or the model's response to it is not finite.
        """
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
            raise ValueError(f"an image is an 8-bit array of H x W x 3, not {image.dtype} of {image.shape}")
        height, width = image.shape[:2]
        check_size(width, height)
        with _float32_convolutions():
            y = self.model.analyze(to_tensor(image).to(self.device))
            z = self.model.hyper_analyze(y) if isinstance(self.model, ScaleHyperprior) else None
        medians = self.model.density.medians
        if z is None:
            symbols_z, z_bytes = np.empty((0, 0, 0), np.int32), b""
            symbols_y = _round_to_symbols(y, medians)
        else:
            symbols_z, symbols_y = _round_to_symbols(z, medians), _round_to_symbols(y, None)
            z_bytes = range_coding.encode(symbols_z.reshape(-1), _channels(symbols_z.shape), self._latent_tables)
        indexes, tables = self._tables_of_y(symbols_z, symbols_y.shape)
        y_bytes = range_coding.encode(symbols_y.reshape(-1), indexes, tables)
        return Container(width, height, checksum_of(symbols_z, symbols_y), z_bytes, y_bytes).to_bytes()

    def decompress(self, data: bytes) -> UInt8[np.ndarray, "H W 3"]:
        """The 8-bit RGB image in a file's content.

        Raises FormatError if the content is damaged or was not made with this codec.
        """
        return self.reconstruct(self.decode(data))

    def decode(self, data: bytes) -> Symbols:
        """The integers in a file's content. Raises FormatError as `decompress` does."""
        container = Container.from_bytes(data)
        shape_y, shape_z = self.model.latent_shapes(container.height, container.width)
        try:
            if self._scale_tables is None:
                symbols_z = np.empty((0, 0, 0), np.int32)
            else:
                symbols_z = range_coding.decode(container.z, _channels(shape_z), self._latent_tables).reshape(shape_z)
            indexes, tables = self._tables_of_y(symbols_z, shape_y)
            symbols_y = range_coding.decode(container.y, indexes, tables).reshape(shape_y)
        except ValueError as error:
            raise FormatError(f"{error}, or they were made with another codec") from error
        if checksum_of(symbols_z, symbols_y) != container.checksum:
            raise FormatError("the symbols' checksum does not agree: the file was made with another codec")
        return Symbols(symbols_z, symbols_y, container.height, container.width)

    @torch.inference_mode()
    def reconstruct(self, symbols: Symbols) -> UInt8[np.ndarray, "H W 3"]:
        """The 8-bit RGB image that decoded integers stand for."""
        with _float32_convolutions():
            return to_image(self.model.synthesize(self.y_hat(symbols), symbols.height, symbols.width))

    def y_hat(self, symbols: Symbols) -> Tensor:
        """The values that g_s is given: 1 x M x h x w, on the codec's device."""
        offsets = None if isinstance(self.model, ScaleHyperprior) else self.model.density.medians
        return _to_values(symbols.y, offsets).to(self.device)

    @torch.inference_mode()
    def information(self, symbols: Symbols) -> tuple[float, float]:
        """Bits of y and of z under the model's densities (eq. 10), with sigma as it is and not the nearest table's.

        The file may hold a little less: an escape is cheaper than the far tail of a Gaussian.
        """
        y_hat = self.y_hat(symbols)
        if not isinstance(self.model, ScaleHyperprior):
            return float(self.model.density(y_hat).sum()), 0.0
        z_hat = _to_values(symbols.z, self.model.density.medians).to(self.device)
        sigma = self.model.scales(z_hat, *symbols.y.shape[1:])
        return float(gaussian_bits(y_hat, sigma).sum()), float(self.model.density(z_hat).sum())

    def scale_indexes(
        self, symbols_z: Int32[np.ndarray, "N k l"], rows: int, columns: int
    ) -> Int32[np.ndarray, "positions"]:
        """The table of each element of y, from the integers of z alone: sigma = h_s(z-hat), then the nearest scale.

        In float64, where another order of summation moves sigma by some 10^-15 of its size.
        """
        assert self._exact_hyper_synthesis is not None
        assert self._scale_tables is not None
        with torch.inference_mode():
            z_hat = _to_values(symbols_z, self.model.density.medians).double()
            sigma = self._exact_hyper_synthesis(z_hat)[..., :rows, :columns]
            return scale_index(sigma, self._scale_tables.thresholds).reshape(-1).to(torch.int32).numpy()

    def _tables_of_y(
        self, symbols_z: Int32[np.ndarray, "N k l"], shape_y: tuple[int, ...]
    ) -> tuple[Int32[np.ndarray, "positions"], FrequencyTables]:
        """Which table each element of y has, and the tables: by its channel, or by its scale given z."""
        if self._scale_tables is None:
            return _channels(shape_y), self._latent_tables
        return self.scale_indexes(symbols_z, *shape_y[1:]), self._scale_tables.tables

    def save(self, path: str | PathLike[str], weights: torch.dtype = torch.float32) -> None:
        """Writes the codec to one safetensors file, architecture and config inside, aside first and then renamed.

        `weights=torch.bfloat16` stores the transforms in half the space; it must be what `from_model` was given.
        Raises ValueError if the transforms are not exact in that precision.
        """
        tensors = {}
        for name, tensor in self.model.state_dict().items():
            stored = tensor.cpu().to(weights if _in_transform(name) else torch.float32).contiguous()
            if not torch.equal(stored.float(), tensor.cpu()):
                raise ValueError(f"{name} is not exact in {weights}: freeze with Codec.from_model(model, {weights})")
            tensors[name] = stored
        stored_tables = {"latent": self._latent_tables}
        if self._scale_tables is not None:
            stored_tables["gaussian"] = self._scale_tables.tables
            tensors["thresholds"] = self._scale_tables.thresholds
        for kind, tables in stored_tables.items():
            for field in _TABLE_FIELDS:
                tensors[f"tables.{kind}.{field}"] = torch.from_numpy(getattr(tables, field))
        metadata = {"architecture": self.model.architecture, "config": self.config}
        with write_aside(path) as aside:
            texts = {name: json.dumps(value) for name, value in metadata.items()}
            aside.write_bytes(serialize(tensors, {"format": CODEC_FORMAT, **texts}))

    @classmethod
    def load(cls, path: str | PathLike[str]) -> "Codec":
        """Reads a codec that `save` wrote. Raises FileNotFoundError, or ValueError if it is not one."""
        if not Path(path).is_file():
            raise FileNotFoundError(f"no codec file at {path}")
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
            if metadata.get("format") != CODEC_FORMAT:
                raise ValueError(f"its format is {metadata.get('format')!r}, not {CODEC_FORMAT!r}")
            model = build_model(**json.loads(metadata["architecture"]))
            scales = None
            if isinstance(model, ScaleHyperprior):
                scales = ScaleTables(_take_tables(tensors, "gaussian"), tensors.pop("thresholds"))
            latent = _take_tables(tensors, "latent")
            model.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
            return cls(model, latent, scales, json.loads(metadata["config"]))
        except (SafetensorError, ValueError, KeyError, TypeError, RuntimeError) as error:
            raise ValueError(f"{path} is not a codec: {error}") from error


def to_tensor(image: UInt8[np.ndarray, "H W 3"]) -> Tensor:
    """8-bit H x W x 3 to float32 1 x 3 x H x W in [0, 1]."""
    return torch.tensor(np.ascontiguousarray(image)).permute(2, 0, 1)[None].float() / 255


def to_image(x: Tensor) -> UInt8[np.ndarray, "H W 3"]:
    """Float 1 x 3 x H x W to 8-bit H x W x 3, clamped to [0, 1] first."""
    levels = (x[0].clamp(0, 1) * 255).round().to(torch.uint8)
    return levels.permute(1, 2, 0).contiguous().cpu().numpy()


def _float32_convolutions() -> Any:
    """On CUDA, convolutions in float32 and not in TF32, whose ten bits would show in the pixels."""
    return torch.backends.cudnn.flags(enabled=True, allow_tf32=False)


def _take_tables(tensors: dict[str, Tensor], kind: str) -> FrequencyTables:
    return FrequencyTables(**{field: tensors.pop(f"tables.{kind}.{field}").numpy() for field in _TABLE_FIELDS})


def _channels(shape: tuple[int, ...]) -> Int32[np.ndarray, "positions"]:
    """The channel of each element of a C x h x w array."""
    channels, rows, columns = shape
    return np.repeat(np.arange(channels, dtype=np.int32), rows * columns)


def _in_transform(name: str) -> bool:
    return "analysis." in name or "synthesis." in name


def _round_to_symbols(values: Tensor, medians: Tensor | None) -> Int32[np.ndarray, "C h w"]:
    offsets = 0 if medians is None else medians[:, None, None]
    rounded = (values[0] - offsets).round()
    # Inside int32 with room for an offset; a finite image cannot come near it through a trained model.
    if not (rounded.abs() < 2**30).all():
        raise ValueError("the model's response to this image is not finite or beyond 2^30: is the model trained?")
    return rounded.to(torch.int32).cpu().numpy()


def _to_values(symbols: Int32[np.ndarray, "C h w"], medians: Tensor | None) -> Tensor:
    values = torch.tensor(symbols).float()[None]
    return values if medians is None else values + medians.cpu()[:, None, None]
