"""What of a trained model is kept: transforms, integer tables, exact scales; and the one file that holds it."""

import copy
import hashlib
import json
from dataclasses import dataclass, field
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialize
from torch import Tensor

from hyperprior.coding.container import FINGERPRINT_BYTES
from hyperprior.coding.fixed_point import FixedPointHyperSynthesis
from hyperprior.coding.tables import FrequencyTables, density_tables, gaussian_tables
from hyperprior.files import write_aside
from hyperprior.models.compression import CompressionModel, ScaleHyperprior, build_model
from hyperprior.models.gaussian import scale_table, scale_thresholds
from hyperprior.models.transforms import hyper_synthesis

CODEC_FORMAT = "hyperprior-codec-2"
_TABLE_FIELDS = ("frequencies", "starts", "minimums")


@dataclass(frozen=True, eq=False)
class FrozenModel:
    """A model in evaluation mode with the tables that belong to it.

    `latent_tables` are of z, or of y in the factorized-prior model; `scale_tables` are of y, and `exact` chooses among
    them. `config` says how the model was trained, where that is known.

    Raises ValueError if the parts do not belong together.
    """

    model: CompressionModel
    latent_tables: FrequencyTables
    scale_tables: FrequencyTables | None = None
    exact: FixedPointHyperSynthesis | None = None
    config: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        has_hyperprior = isinstance(self.model, ScaleHyperprior)
        if has_hyperprior != (self.scale_tables is not None) or has_hyperprior != (self.exact is not None):
            raise ValueError("a codec needs Gaussian tables and exact scales if, and only if, it has a hyperprior")
        channels = self.model.density.channels
        if len(self.latent_tables) != channels:
            raise ValueError(f"{len(self.latent_tables)} tables for a density of {channels} channels")
        if self.exact is not None and self.scale_tables is not None:
            if self.exact.scales != len(self.scale_tables):
                raise ValueError(f"thresholds between {self.exact.scales} scales, {len(self.scale_tables)} tables")
            if self.exact.channels != (self.model.N, self.model.M):
                raise ValueError(f"exact scales for N, M = {self.exact.channels} in a model of another size")
        self.model.eval().requires_grad_(False)

    @classmethod
    def of(
        cls, model: CompressionModel, weights: torch.dtype = torch.float32, config: dict[str, Any] | None = None
    ) -> "FrozenModel":
        """Freezes a copy of a model, as `Codec.from_model` says."""
        frozen = copy.deepcopy(model).cpu().float()
        for name, tensor in frozen.state_dict().items():
            if not torch.isfinite(tensor).all():
                raise ValueError(f"the model cannot be frozen: {name} is not finite")
        for name, parameter in frozen.named_parameters():
            if _in_transform(name):
                parameter.data = parameter.data.to(weights).float()
        if not isinstance(frozen, ScaleHyperprior):
            return cls(frozen, density_tables(frozen.density), config=config or {})
        exact = FixedPointHyperSynthesis.from_model(frozen.hyper_synthesis, frozen.density.medians, scale_thresholds())
        exact.write_to(frozen.hyper_synthesis)
        frozen.density.quantiles.data[:, 1] = exact.medians_of_z
        return cls(frozen, density_tables(frozen.density), gaussian_tables(scale_table()), exact, config or {})

    @cached_property
    def fingerprint(self) -> bytes:
        """Four bytes of the SHA-256 of all that must agree for a file to decode: the model's shape, tables, scales."""
        digest = hashlib.sha256(f"{self.model.name} {self.model.N} {self.model.M}\n".encode())
        for tables in (self.latent_tables, self.scale_tables):
            for name in _TABLE_FIELDS if tables is not None else ():
                digest.update(getattr(tables, name).astype("<i4").tobytes())
        for tensor in self.exact.integers().values() if self.exact is not None else ():
            digest.update(tensor.contiguous().numpy().astype("<i8").tobytes())
        return digest.digest()[:FINGERPRINT_BYTES]

    def save(self, path: str | PathLike[str], weights: torch.dtype = torch.float32) -> None:
        """Writes one safetensors file, as `Codec.save` says."""
        tensors = {}
        for name, tensor in self.model.state_dict().items():
            if name.startswith("hyper_synthesis."):
                continue  # in its exact form below
            stored = tensor.cpu().to(weights if _in_transform(name) else torch.float32).contiguous()
            if not torch.equal(stored.float(), tensor.cpu()):
                raise ValueError(f"{name} is not exact in {weights}: freeze with Codec.from_model(model, {weights})")
            tensors[name] = stored
        for kind, tables in (("latent", self.latent_tables), ("gaussian", self.scale_tables)):
            for name in _TABLE_FIELDS if tables is not None else ():
                tensors[f"tables.{kind}.{name}"] = torch.from_numpy(getattr(tables, name))
        if self.exact is not None:
            tensors |= {f"exact.{name}": tensor.contiguous() for name, tensor in self.exact.integers().items()}
        metadata = {"architecture": self.model.architecture, "config": self.config}
        texts = {name: json.dumps(value) for name, value in metadata.items()}
        texts |= {"format": CODEC_FORMAT, "digest": _digest(tensors, texts["architecture"])}
        with write_aside(path) as aside:
            aside.write_bytes(serialize(tensors, texts))

    @classmethod
    def load(cls, path: str | PathLike[str]) -> "FrozenModel":
        """Reads what `save` wrote. Raises FileNotFoundError, or ValueError if it is not one."""
        if not Path(path).is_file():
            raise FileNotFoundError(f"{path} is a folder" if Path(path).is_dir() else f"no codec file at {path}")
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
            if metadata.get("format") != CODEC_FORMAT:
                raise ValueError(f"its format is {metadata.get('format')!r}, not {CODEC_FORMAT!r}")
            if metadata["digest"] != _digest(tensors, metadata["architecture"]):
                raise ValueError("it is damaged or was altered: its digest does not agree")
            model = _empty_model(json.loads(metadata["architecture"]), tensors)
            latent, scales, exact = _take_tables(tensors, "latent"), None, None
            if isinstance(model, ScaleHyperprior):
                scales = _take_tables(tensors, "gaussian")
                integers = {name: tensors.pop(name) for name in list(tensors) if name.startswith("exact.")}
                exact = FixedPointHyperSynthesis.from_integers(
                    {name.removeprefix("exact."): tensor for name, tensor in integers.items()}
                )
                own = hyper_synthesis(*exact.channels)
                exact.write_to(own)
                tensors |= {f"hyper_synthesis.{name}": tensor for name, tensor in own.state_dict().items()}
            # Shapes are compared before anything of the model's size is allocated.
            model.load_state_dict({name: tensor.float() for name, tensor in tensors.items()}, assign=True)
            config = json.loads(metadata["config"])
            if not isinstance(config, dict):
                raise ValueError("its config is not a mapping")
            return cls(model, latent, scales, exact, config)
        except (SafetensorError, ValueError, KeyError, TypeError, RuntimeError, IndexError, AttributeError) as error:
            reason = " ".join(line.strip() for line in str(error).splitlines()[:2])
            raise ValueError(f"{path} is not a codec: {reason}") from error


def _empty_model(architecture: dict[str, Any], tensors: dict[str, Tensor]) -> CompressionModel:
    """A model without storage, for a codec file's architecture."""
    layers = sum(".raw_H." in name for name in tensors)
    if architecture["K"] != layers:  # so that a hostile K does not build layers without end
        raise ValueError(f"its density has {layers} layers and not {architecture['K']}")
    with torch.device("meta"):
        return build_model(**architecture)


def _take_tables(tensors: dict[str, Tensor], kind: str) -> FrequencyTables:
    return FrequencyTables(**{name: tensors.pop(f"tables.{kind}.{name}").numpy() for name in _TABLE_FIELDS})


def _in_transform(name: str) -> bool:
    return "analysis." in name or "synthesis." in name


def _digest(tensors: dict[str, Tensor], architecture: str) -> str:
    """SHA-256 of the tensors, by name, and of the architecture: a damaged codec would make wrong images."""
    digest = hashlib.sha256(architecture.encode())
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        digest.update(f"\n{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
