"""Runs of one cell as `python run.py` does them, in this process."""

import json
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from hyperprior.training.run import run
from tests.conftest import ROOT

TINY = (
    "model.N=8", "model.M=12", "data.patch_size=64", "data.batch_size=4", "data.workers=0", "test_set=folder",
    "trainer.accelerator=cpu", "trainer.log_every_n_steps=1", "optimizer.lr=1e-3",
)  # fmt: skip


def composed(*overrides: str) -> DictConfig:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return compose("config", list(overrides))


def run_tiny(runs_dir: Path, images: Path, *overrides: str) -> Path:
    """Trains a tiny cell and returns its folder."""
    before = set(runs_dir.glob("*"))
    run(composed(*TINY, f"runs_dir={runs_dir}", f"test_set.root={images}", *overrides))
    (folder,) = (set(runs_dir.glob("*")) - before) or before
    return folder


def record_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "record.json").read_text())


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
