"""Lightning's trainer for a run: on what it computes, where its ranks come from, where its curves go."""

import os
import warnings
from pathlib import Path

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins.environments.slurm import SLURMEnvironment
from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger

from hyperprior.training.config import ConfigError, RunConfig


def build_logger(config: RunConfig, folder: Path, start: int) -> Logger:
    """The configured logger, below the run's folder, for a session that begins at step `start`."""
    kind = config.logger
    if kind.name == "csv":
        # A folder for each session: Lightning's logger deletes what an earlier one left in its own.
        sessions = len(list(folder.glob("logs/session_*")))
        return CSVLogger(folder, name="logs", version=f"session_{sessions}_from_step_{start}")
    if kind.name == "tensorboard":
        return TensorBoardLogger(folder, name="logs", version="")
    import wandb  # here: it starts slowly, and few runs need it

    offline = os.environ.get("WANDB_MODE") == "offline" or not wandb.login(prompt=False)
    if offline:
        warnings.warn("wandb logs offline (no key, or WANDB_MODE=offline); `wandb sync` uploads it", stacklevel=2)
    return WandbLogger(
        name=config.cell_name,
        id=config.hash,
        save_dir=folder,
        project=kind.project or "hyperprior",
        group=kind.group,
        offline=offline,
        resume="allow",
    )


def _strategy(config: RunConfig) -> str:
    """Ranks come from torchrun or the cluster where they started this process, else they are spawned by it.

    Never from a second start of the command line: that would repeat a whole multirun in every rank.
    """
    if TorchElasticEnvironment.detect() or SLURMEnvironment.detect():
        return "ddp"
    several = config.trainer.devices != 1 and not (
        config.trainer.devices == "auto" and (not on_cuda(config) or torch.cuda.device_count() < 2)
    )
    return "ddp_spawn" if several else "auto"


def on_cuda(config: RunConfig) -> bool:
    """Whether a run is to compute on CUDA GPUs."""
    wanted = config.trainer.accelerator
    return wanted in ("gpu", "cuda") or (wanted == "auto" and torch.cuda.is_available())


def build_trainer(config: RunConfig, folder: Path, logger: Logger, callbacks: list[pl.Callback]) -> pl.Trainer:
    """Raises ConfigError if the devices are not there."""
    try:
        return pl.Trainer(
            accelerator="cuda" if on_cuda(config) else "cpu",
            devices=config.trainer.devices,
            num_nodes=config.trainer.num_nodes,
            strategy=_strategy(config),
            precision=config.trainer.precision,
            max_steps=config.trainer.max_steps,
            max_epochs=-1,
            log_every_n_steps=config.trainer.log_every_n_steps,
            logger=logger,
            callbacks=callbacks,
            default_root_dir=folder,
            use_distributed_sampler=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
    except MisconfigurationException as error:
        raise ConfigError(f"trainer: {str(error).splitlines()[0]}") from error
