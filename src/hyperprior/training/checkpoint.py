"""Checkpoints read back: enough by themselves to evaluate or encode."""

import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hyperprior.models.compression import CompressionModel, build_model


class CheckpointError(ValueError):
    """A checkpoint is missing, damaged or of another model."""


@dataclass(frozen=True)
class Checkpoint:
    """A trained model as it is stored, and how it came about."""

    model: CompressionModel
    config: dict[str, Any]
    step: int


def load_checkpoint(path: Path) -> Checkpoint:
    """Reads the model of a checkpoint (tensors, numbers and strings only). Raises CheckpointError."""
    if not path.is_file():
        raise CheckpointError(f"{path} is a folder" if path.is_dir() else f"no checkpoint at {path}")
    try:
        stored = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, ValueError, KeyError, EOFError, pickle.UnpicklingError) as error:
        # torch's own text on a file that is no checkpoint advises to load it without safety.
        raise CheckpointError(f"{path} is not a checkpoint of hyperprior, or is damaged") from error
    if not isinstance(stored, dict) or "hyperprior" not in stored:
        raise CheckpointError(f"{path} is not a checkpoint of hyperprior")
    try:
        ours = stored["hyperprior"]
        model = build_model(**ours["architecture"])
        prefix = "model."
        weights = {k.removeprefix(prefix): v for k, v in stored["state_dict"].items() if k.startswith(prefix)}
        model.load_state_dict(weights)
        return Checkpoint(model, ours["config"], stored["global_step"])
    except (AttributeError, KeyError, TypeError, RuntimeError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise CheckpointError(f"{path} is not a checkpoint of hyperprior: {reason}") from error
