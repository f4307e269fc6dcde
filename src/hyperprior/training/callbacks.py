"""Real files during and after training, and what the terminal shows meanwhile."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
import torch.distributed
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from torch.multiprocessing.spawn import ProcessRaisedException

from hyperprior.coding.codec import Codec
from hyperprior.evaluation.evaluate import ImageRecord, NamedImage, means, write_csv
from hyperprior.evaluation.progress import evaluate_with_progress
from hyperprior.files import put_in_place
from hyperprior.training.module import CompressionModule


class BitstreamEvaluation(pl.Callback):
    """Freezes the model into a codec and codes the test set with it: every `every_n_steps` steps (0: never) and at the
    end, also where training had ended and only this was left to do.

    Under several ranks each image is coded once, by one of them. Rank 0 gathers the records, writes
    `folder`/codec.safetensors and `folder`/<test set>.csv, logs the means as test/..., and at the end hands the
    records to `on_end` with the number of steps. `config` is kept in the codec.
    """

    def __init__(
        self,
        images: Sequence[NamedImage],
        test_set: str,
        folder: Path,
        *,
        every_n_steps: int = 0,
        weights: torch.dtype = torch.float32,
        config: dict[str, Any] | None = None,
        on_end: Callable[[list[ImageRecord], int], None] | None = None,
    ) -> None:
        self.images, self.test_set, self.folder = images, test_set, folder
        self.every_n_steps, self.weights, self.config, self.on_end = every_n_steps, weights, config, on_end

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        if self.every_n_steps and step % self.every_n_steps == 0 and step < trainer.max_steps:
            self._evaluate(trainer, pl_module)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        records = self._evaluate(trainer, pl_module)
        if trainer.is_global_zero and self.on_end is not None:
            self.on_end(records, trainer.global_step)

    def _evaluate(self, trainer: pl.Trainer, module: pl.LightningModule) -> list[ImageRecord]:
        assert isinstance(module, CompressionModule)
        codec = Codec.from_model(module.model, self.weights, self.config)
        if trainer.is_global_zero:
            codec.save(self.folder / "codec.safetensors", self.weights)
        mine = self.images[trainer.global_rank :: trainer.world_size]
        codec.to(module.device)
        records = gather(evaluate_with_progress(codec, mine, self.folder, show=trainer.is_global_zero))
        order = {image.name: position for position, image in enumerate(self.images)}
        records.sort(key=lambda record: order[record.image])
        if trainer.is_global_zero:
            write_csv(records, self.folder / f"{self.test_set}.csv")
            summary = {f"test/{key}": value for key, value in means(records).items() if math.isfinite(value)}
            for logger in trainer.loggers:
                logger.log_metrics(summary, step=trainer.global_step)
        trainer.strategy.barrier()  # no rank goes on to read what rank 0 is still writing
        return records


def gather(records: list[ImageRecord]) -> list[ImageRecord]:
    """The records of all ranks; without several ranks, those given."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return list(records)
    shares: list[list[ImageRecord]] = [[] for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather_object(shares, records)
    return [record for share in shares for record in share]


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


class FailureRecord(pl.Callback):
    """Tells `on_failure` of an exception that ends training, with the number of steps done; on rank 0, where a spawned
    process knows them and the one that spawned it does not."""

    def __init__(self, on_failure: Callable[[BaseException, int], None]) -> None:
        self.on_failure = on_failure

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        # What the process that spawned the ranks sees is their error as a text, and no steps: it is for the caller.
        if trainer.is_global_zero and not isinstance(exception, ProcessRaisedException):
            self.on_failure(exception, trainer.global_step)


class TrainingProgress(pl.Callback):
    """A bar over the steps of a run with bpp, PSNR and steps per second, on rank 0."""

    def __init__(self, every_n_steps: int) -> None:
        self.every_n_steps = every_n_steps
        self._progress: Progress | None = None
        self._task: TaskID | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.is_global_zero:
            self._progress = Progress(
                TextColumn("training"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"),
                TimeElapsedColumn(),
            )  # fmt: skip
            self._progress.start()
            self._task = self._progress.add_task("", total=trainer.max_steps, completed=trainer.global_step)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        if self._progress is None or self._task is None or (step % self.every_n_steps and step != trainer.max_steps):
            return
        logged = trainer.callback_metrics
        speed = self._progress.tasks[0].speed
        text = f"bpp {logged['train/bpp']:.3f}  PSNR {logged['train/psnr_db']:.2f} dB"
        text += f"  {speed:.2f} steps/s" if speed else ""
        self._progress.update(self._task, completed=step, description=text)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._stop()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._stop()

    def _stop(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None
