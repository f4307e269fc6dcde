"""Checkpoints: written whole or not at all, and enough by themselves to evaluate or encode."""

import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

from hyperprior.files import put_in_place
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
        raise CheckpointError(f"no checkpoint at {path}")
    try:
        stored = torch.load(path, map_location="cpu", weights_only=True)
        ours = stored["hyperprior"]
        model = build_model(**ours["architecture"])
        prefix = "model."
        weights = {k.removeprefix(prefix): v for k, v in stored["state_dict"].items() if k.startswith(prefix)}
        model.load_state_dict(weights)
        return Checkpoint(model, ours["config"], stored["global_step"])
    except (KeyError, TypeError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError) as error:
        # torch's own text on a file that is no checkpoint advises to load it without safety.
        reason = "" if isinstance(error, pickle.UnpicklingError) else ": " + str(error).partition("\n")[0]
        raise CheckpointError(f"{path} is not a checkpoint of hyperprior{reason}") from error


class LastCheckpoint(pl.Callback):
    """Keeps one checkpoint at `path`: the state after every `every_n_steps`-th step and after the last one.

    It is written beside `path` and renamed, so that at any moment `path` is a whole checkpoint.
    """

    def __init__(self, path: Path, every_n_steps: int) -> None:
        self.path = path
        self.every_n_steps = every_n_steps

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step % self.every_n_steps == 0 and trainer.global_step < trainer.max_steps:
            self._save(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._save(trainer)

    def _save(self, trainer: pl.Trainer) -> None:
        aside = self.path.with_name(f".{self.path.name}.tmp")
        # On every rank, since it gathers and waits; False: with the optimizer's state.
        trainer.save_checkpoint(aside, weights_only=False)
        if trainer.is_global_zero:
            put_in_place(aside, self.path)
