"""A trained model frozen for use: image -> bytes -> image."""

import copy
import json
from os import PathLike
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int32, UInt8
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from hyperprior.coding import range_coding
from hyperprior.coding.container import Container, FormatError, checksum_of
from hyperprior.coding.tables import FrequencyTables, density_tables, gaussian_tables
from hyperprior.files import write_aside
from hyperprior.models.compression import CompressionModel, FactorizedPrior, ScaleHyperprior, build_model
from hyperprior.models.gaussian import scale_index, scale_table

CODEC_FORMAT = "hyperprior-codec-1"


class Codec:
    """Frozen transforms with the frequency tables that belong to them.

    Made by `Codec.from_model` or `Codec.load`, never without its tables. `compress` and `decompress` run in float32 on
    the device that `to` chose (the CPU at first); from the integers of z to the scales of y both use one function, in
    float64 on the CPU.
    """

    def __init__(
        self, model: CompressionModel, latent_tables: FrequencyTables, gaussian: FrequencyTables | None
    ) -> None:
        if isinstance(model, ScaleHyperprior) != (gaussian is not None):
            raise ValueError("a codec needs Gaussian tables if, and only if, its model has a hyperprior")
        if len(latent_tables) != model.density.channels:
            raise ValueError(f"{len(latent_tables)} tables for a density of {model.density.channels} channels")
        self.model = model.eval().requires_grad_(False)
        self._latent_tables = latent_tables
        self._gaussian_tables = gaussian
        self._exact_hyper_synthesis = (
            copy.deepcopy(model.hyper_synthesis).cpu().double() if isinstance(model, ScaleHyperprior) else None
        )

    @classmethod
    def from_model(cls, model: CompressionModel, weights: torch.dtype = torch.float32) -> "Codec":
        """Freezes a copy of a model, on the CPU. The model stays as it is and may train on.

        `weights` is the precision in which the weights of the transforms will be stored: they are rounded to it here,
        so that what is measured is what is kept. bfloat16 halves the file.
        """
        frozen = copy.deepcopy(model).cpu().float().to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        for name, parameter in frozen.named_parameters():
            if _in_transform(name):
                parameter.data = parameter.data.to(weights).float()
        gaussian = gaussian_tables(scale_table()) if isinstance(frozen, ScaleHyperprior) else None
        return cls(frozen, density_tables(frozen.density), gaussian)

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

        Raises ValueError if the array is something else or the model's response to it is not finite.
        """
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or 0 in image.shape:
            raise ValueError(f"an image is an 8-bit array of H x W x 3, not {image.dtype} of {image.shape}")
        height, width = image.shape[:2]
        y = self.model.analyze(to_tensor(image).to(self.device))
        if isinstance(self.model, FactorizedPrior):
            symbols_z = np.empty(0, np.int32)
            symbols_y = _round_to_symbols(y, self.model.density_y.medians)
            z_bytes, indexes_y = b"", self._channel_indexes(symbols_y.shape)
            tables_y = self._latent_tables
        else:
            assert isinstance(self.model, ScaleHyperprior)
            assert self._gaussian_tables is not None
            symbols_z = _round_to_symbols(self.model.hyper_analyze(y), self.model.density_z.medians)
            symbols_y = _round_to_symbols(y, None)
            z_bytes = range_coding.encode(
                symbols_z.reshape(-1), self._channel_indexes(symbols_z.shape), self._latent_tables
            )
            indexes_y = self.scale_indexes(symbols_z, symbols_y.shape[1], symbols_y.shape[2])
            tables_y = self._gaussian_tables
        y_bytes = range_coding.encode(symbols_y.reshape(-1), indexes_y, tables_y)
        return Container(width, height, checksum_of(symbols_z, symbols_y), z_bytes, y_bytes).to_bytes()

    @torch.inference_mode()
    def decompress(self, data: bytes) -> UInt8[np.ndarray, "H W 3"]:
        """The 8-bit RGB image in a file's content.

        Raises FormatError if the content is damaged or was not made with this codec.
        """
        y_hat, height, width = self.decode_latent(data)
        return to_image(self.model.synthesize(y_hat, height, width))

    def decode_latent(self, data: bytes) -> tuple[Tensor, int, int]:
        """y-hat (1 x M x h x w, on the codec's device) of a file's content, with the image's height and width.

        Raises FormatError as `decompress` does.
        """
        container = Container.from_bytes(data)
        shape_y, shape_z = self.model.latent_shapes(container.height, container.width)
        medians = self.model.density.medians
        try:
            if isinstance(self.model, FactorizedPrior):
                symbols_z = np.empty(0, np.int32)
                symbols_y = range_coding.decode(container.y, self._channel_indexes(shape_y), self._latent_tables)
                y_hat = _to_values(symbols_y.reshape(shape_y), medians)
            else:
                assert self._gaussian_tables is not None
                symbols_z = range_coding.decode(container.z, self._channel_indexes(shape_z), self._latent_tables)
                indexes_y = self.scale_indexes(symbols_z.reshape(shape_z), shape_y[1], shape_y[2])
                symbols_y = range_coding.decode(container.y, indexes_y, self._gaussian_tables)
                y_hat = _to_values(symbols_y.reshape(shape_y), None)
        except FormatError:
            raise
        except ValueError as error:
            raise FormatError(str(error)) from error
        if checksum_of(symbols_z, symbols_y) != container.checksum:
            raise FormatError("the checksum does not agree: the file is damaged or was made with another codec")
        return y_hat.to(self.device), container.height, container.width

    def scale_indexes(
        self, symbols_z: Int32[np.ndarray, "N k l"], rows: int, columns: int
    ) -> Int32[np.ndarray, "positions"]:
        """The table of each element of y, from the integers of z alone: sigma = h_s(z-hat), then the nearest scale.

        In float64, where another order of summation moves sigma by some 10^-15 of its size.
        """
        assert self._exact_hyper_synthesis is not None
        with torch.inference_mode():
            z_hat = _to_values(symbols_z, self.model.density.medians.cpu()).double()
            raw = self._exact_hyper_synthesis(z_hat)[..., :rows, :columns]
            return scale_index(raw).reshape(-1).to(torch.int32).numpy()

    def _channel_indexes(self, shape: tuple[int, ...]) -> Int32[np.ndarray, "positions"]:
        channels, rows, columns = shape
        return np.repeat(np.arange(channels, dtype=np.int32), rows * columns)

    def save(self, path: str | PathLike[str], weights: torch.dtype = torch.float32) -> None:
        """Writes the codec to one safetensors file, its architecture inside, aside first and then renamed.

        `weights=torch.bfloat16` stores the transforms in half the space; it must be what `from_model` was given.
        Raises ValueError if the transforms are not exact in that precision.
        """
        tensors = {}
        for name, tensor in self.model.state_dict().items():
            stored = tensor.cpu().to(weights if _in_transform(name) else torch.float32).contiguous()
            if not torch.equal(stored.float(), tensor.cpu()):
                raise ValueError(f"{name} is not exact in {weights}: freeze with Codec.from_model(model, {weights})")
            tensors[name] = stored
        for prefix, tables in (("tables.latent", self._latent_tables), ("tables.gaussian", self._gaussian_tables)):
            if tables is not None:
                for field in ("frequencies", "starts", "minimums"):
                    tensors[f"{prefix}.{field}"] = torch.from_numpy(getattr(tables, field))
        metadata = {"format": CODEC_FORMAT, "architecture": json.dumps(self.model.architecture)}
        with write_aside(path) as aside:
            save_file(tensors, aside, metadata)

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
            tables = {}
            for kind in ("latent", "gaussian"):
                if f"tables.{kind}.starts" in tensors:
                    fields = {f: tensors.pop(f"tables.{kind}.{f}") for f in ("frequencies", "starts", "minimums")}
                    tables[kind] = FrequencyTables(**{f: tensor.numpy() for f, tensor in fields.items()})
            model.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
            return cls(model, tables["latent"], tables.get("gaussian"))
        except (SafetensorError, ValueError, KeyError, RuntimeError) as error:
            raise ValueError(f"{path} is not a codec: {error}") from error


def to_tensor(image: UInt8[np.ndarray, "H W 3"]) -> Tensor:
    """8-bit H x W x 3 to float32 1 x 3 x H x W in [0, 1]."""
    return torch.tensor(image).permute(2, 0, 1)[None].float() / 255


def to_image(x: Tensor) -> UInt8[np.ndarray, "H W 3"]:
    """Float 1 x 3 x H x W to 8-bit H x W x 3, clamped to [0, 1] first."""
    levels = (x[0].clamp(0, 1) * 255).round().to(torch.uint8)
    return levels.permute(1, 2, 0).contiguous().cpu().numpy()


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
