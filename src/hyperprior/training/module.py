"""The LightningModule: how a model is stepped and logged. The mathematics is in `models` and `losses`."""

from collections.abc import Callable, Iterable
from typing import Any

import pytorch_lightning as pl
import torch
from jaxtyping import Float, Int64, UInt8
from pytorch_lightning.utilities.types import LRSchedulerConfigType, OptimizerLRScheduler, OptimizerLRSchedulerConfig
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from hyperprior.allocator import keep_freed_memory
from hyperprior.models.compression import CompressionModel
from hyperprior.training.losses import LossName, rate_distortion

# What the data loader collates to: crops, uint8 B x 3 x H x W, and the seeds of their noise, int64 B.
Batch = list[UInt8[Tensor, "B 3 H W"] | Int64[Tensor, "B"]]
# Takes the parameter groups, each with its own learning rate.
OptimizerFactory = Callable[[Iterable[dict[str, Any]]], Optimizer]


class NonFiniteError(RuntimeError):
    """Training has diverged: a loss or a gradient is not finite."""


class CompressionModule(pl.LightningModule):
    """A compression model with its rate-distortion objective and the auxiliary quantile loss.

    Both losses are summed and go through one backward pass and one optimizer with two groups: the quantile loss sees
    the densities' parameters as constants, and the objective never sees the quantiles, so that the sum's gradient on
    either group is its own loss's.

    `schedule(step, max_steps)` scales the main group's learning rate. The gradient of the main group alone is clipped,
    to the norm `clip_norm` (0: not at all). `config` is kept in checkpoints, as plain values.

    Raises NonFiniteError, before the optimizer's step, when the loss or a gradient is not finite on any rank.
    """

    def __init__(
        self,
        model: CompressionModel,
        loss: LossName,
        lmbda: float,
        *,
        optimizer: OptimizerFactory,
        lr: float = 1e-4,
        quantile_lr: float = 1e-3,
        clip_norm: float = 1.0,
        schedule: Callable[[int, int], float] = lambda step, max_steps: 1.0,
        channels_last: bool = True,
        compile_model: bool = False,
        config: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.loss, self.lmbda = loss, lmbda
        self._optimizer, self._schedule = optimizer, schedule
        self.lr, self.quantile_lr, self.clip_norm = lr, quantile_lr, clip_norm
        self._memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self._compile = compile_model
        self._config = config or {}

    def quantile_parameters(self) -> list[Tensor]:
        """What the quantile loss trains."""
        return [self.model.density.quantiles]

    def main_parameters(self) -> list[Tensor]:
        """What the rate-distortion objective trains: everything else."""
        return [p for p in self.model.parameters() if p is not self.model.density.quantiles]

    def configure_optimizers(self) -> OptimizerLRScheduler:
        groups = [
            {"params": self.main_parameters(), "lr": self.lr},
            {"params": self.quantile_parameters(), "lr": self.quantile_lr},
        ]
        optimizer = self._optimizer(groups)
        max_steps = self.trainer.max_steps
        factors = [lambda step: self._schedule(step, max_steps), lambda step: 1.0]
        return OptimizerLRSchedulerConfig(
            optimizer=optimizer,
            lr_scheduler=LRSchedulerConfigType(scheduler=LambdaLR(optimizer, factors), interval="step"),
        )

    def setup(self, stage: str) -> None:
        # Before the model is wrapped for several ranks, whose gradient buckets take the layout they find.
        self.model.to(memory_format=self._memory_format)  # type: ignore[call-overload]
        if self._compile:
            self.model.compile()

    def on_fit_start(self) -> None:
        if self.device.type == "cpu":
            keep_freed_memory()
            if self.trainer.world_size > 1:  # ranks share the cores
                torch.set_num_threads(max(1, torch.get_num_threads() // self.trainer.num_devices))

    def training_step(self, batch: Batch, batch_idx: int) -> Float[Tensor, ""]:
        levels, seeds = batch
        x = (levels.float() / 255).contiguous(memory_format=self._memory_format)
        noise = self.model.draw_noise(seeds, x.shape[-2], x.shape[-1], x.device)
        parts = rate_distortion(self.model(x, noise), x, self.loss, self.lmbda)
        with torch.autocast(x.device.type, enabled=False):
            quantile_loss = self.model.density.quantile_loss()
            tail_mass = self.model.density.tail_mass().max()
        self._loss_value = parts.loss.detach()
        self.log_dict(
            {
                "train/loss": parts.loss,
                "train/bpp": parts.bpp_y + parts.bpp_z,
                "train/bpp_y": parts.bpp_y,
                "train/bpp_z": parts.bpp_z,
                "train/distortion": parts.distortion,
                "train/psnr_db": -10 * torch.log10(parts.mse),
                "train/quantile_loss": quantile_loss,
                "train/tail_mass": tail_mass,
                "train/lr": self.optimizers().param_groups[0]["lr"],  # type: ignore[union-attr]
            }
        )
        return parts.loss + quantile_loss

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clips the main group to `clip_norm`. Lightning's own arguments, which know no groups, are not used."""
        main = optimizer.param_groups[0]["params"]
        norm = torch.nn.utils.get_total_norm([p.grad for p in main if p.grad is not None])
        self._require_finite({"loss": self._loss_value, "gradient norm": norm})
        if self.clip_norm > 0:
            torch.nn.utils.clip_grads_with_norm_(main, self.clip_norm, norm)
        self.log("train/gradient_norm", norm)

    def _require_finite(self, values: dict[str, Tensor]) -> None:
        finite = bool(torch.isfinite(torch.stack(list(values.values()))).all())  # one wait for the device a step
        if self.trainer.world_size > 1:  # all ranks stop together, or the others would wait for ever
            finite = self.trainer.strategy.reduce_boolean_decision(finite, all=True)
        if not finite:
            culprits = [f"{name} {value.item()}" for name, value in values.items() if not torch.isfinite(value)]
            raise NonFiniteError(
                f"step {self.global_step}: not finite: {', '.join(culprits) or 'a value on another rank'}; "
                "try a lower optimizer.lr"
            )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["hyperprior"] = {"architecture": self.model.architecture, "config": self._config}
