"""One cell from its config to its record: train, evaluate with real files, say what came out."""

import logging
import math
import os
import shutil
import signal
import threading
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
import yaml
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from torch.multiprocessing.spawn import ProcessRaisedException

from hyperprior.coding.codec import Codec
from hyperprior.data.datamodule import EndlessImages, TrainingData
from hyperprior.data.dead_leaves import DeadLeaves
from hyperprior.data.folders import FolderImages
from hyperprior.data.images import NoImagesError
from hyperprior.data.test_sets import TEST_SETS, TestImage
from hyperprior.evaluation.evaluate import ImageRecord, means, read_csv, write_csv
from hyperprior.evaluation.progress import evaluate_with_progress
from hyperprior.evaluation.summary import results_table
from hyperprior.files import write_aside
from hyperprior.models.compression import CompressionModel, build_model
from hyperprior.training.callbacks import BitstreamEvaluation, FailureRecord, LastCheckpoint, TrainingProgress
from hyperprior.training.checkpoint import CheckpointError, load_checkpoint
from hyperprior.training.config import ConfigError, RunConfig, content_digest, parse, portable
from hyperprior.training.module import CompressionModule, NonFiniteError, OptimizerFactory
from hyperprior.training.record import Session, provenance, read_record
from hyperprior.training.trainer import build_logger, build_trainer, on_cuda

# What a user can put right. Their messages say how, so that a traceback would only hide it.
USER_ERRORS = (ConfigError, CheckpointError, NoImagesError, NonFiniteError)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def run(cfg: DictConfig) -> float:
    """Does what a composed config says and returns the test set's rate-distortion cost: what a sweep that searches
    would minimize.

    Raises ConfigError, CheckpointError or NoImagesError before any work if something it needs is wrong or missing,
    NonFiniteError if training diverges, and KeyboardInterrupt if it is interrupted.
    """
    values = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(values, dict)
    config = parse({str(key): value for key, value in values.items()})
    console = Console(quiet=not _first_rank())
    # Lightning's notices on every start say nothing about this run; its warnings stay.
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    if config.task == "evaluate" and not _first_rank():
        return math.nan  # one process codes the images; the times it takes are then its own
    outcome = _train(config, console) if config.task == "train" else _evaluate_checkpoint(config)
    console.print(results_table(outcome.records, f"{config.test_set.name}: {len(outcome.records)} images"))
    # Not wrapped at the console's width: a path that is broken over two lines cannot be copied.
    console.print(f"results in {outcome.folder.resolve()}", soft_wrap=True, highlight=False)
    return outcome.cost


@dataclass(frozen=True)
class _Outcome:
    """Where the results of a run are, the results, and the objective they were trained for."""

    folder: Path
    records: list[ImageRecord]
    loss: str
    lmbda: float

    @property
    def cost(self) -> float:
        """Mean bpp + lambda * mean distortion over the test set."""
        if self.loss == "mse":
            distortion = math.fsum(255**2 * 10 ** (-record.psnr_db / 10) for record in self.records) / len(self.records)
        else:
            distortion = 1 - means(self.records)["ms_ssim"]
        return means(self.records)["bpp"] + self.lmbda * distortion


def _first_rank() -> bool:
    """False in the other processes that torchrun or a cluster started; spawned ranks never come here."""
    return int(os.environ.get("RANK", os.environ.get("SLURM_PROCID", 0))) == 0


def _test_images(config: RunConfig) -> list[TestImage]:
    return TEST_SETS[config.test_set.name](config.test_set.root, config.test_set.url)


def _training_images(config: RunConfig) -> EndlessImages:
    if config.data.name == "dead_leaves":
        return DeadLeaves(config.data.patch_size, config.seed)
    assert config.data.train is not None
    return FolderImages(config.data.train, config.data.patch_size, config.seed, config.data.cache_mib)


def _new_model(config: RunConfig) -> CompressionModel:
    """The model at the start: weights from `init_from`, or drawn from the seed."""
    N, M = config.capacity
    torch.manual_seed(config.seed)
    model = build_model(config.model.name, N, M, config.model.K, config.model.r)
    if config.init_from is not None:
        source = load_checkpoint(config.init_from).model
        if source.architecture != model.architecture:
            raise ConfigError(
                f"init_from={config.init_from} holds {source.architecture}, not this run's {model.architecture}"
            )
        model.load_state_dict(source.state_dict())
    return model


def _optimizer(config: RunConfig) -> OptimizerFactory:
    """The configured optimizer, waiting for its parameters."""
    return _instantiate("optimizer.algorithm", config.optimizer.algorithm)


def _schedule(config: RunConfig) -> Callable[[int, int], float]:
    """The configured schedule, tried out at the ends and in the middle of the run."""
    max_steps = config.trainer.max_steps
    schedule: Callable[[int, int], float] = _instantiate("schedule", config.schedule)
    try:
        factors = [schedule(step, max_steps) for step in (0, max_steps // 2, max_steps - 1)]
    except Exception as error:  # it may be anybody's
        raise ConfigError(f"schedule={config.schedule}: {error}") from error
    if not all(math.isfinite(factor) and factor >= 0 for factor in factors):
        raise ConfigError(f"schedule={config.schedule} gives {factors}; factors on the learning rate are 0 or more")
    return schedule


def _instantiate(key: str, section: dict[str, Any]) -> Any:
    try:
        return instantiate(section)
    except InstantiationException as error:
        reason = str(error).partition(", set env var")[0].partition("\n")[0]
        raise ConfigError(f"{key}: {reason}") from error


def _make_runs_dir(config: RunConfig) -> None:
    try:
        config.runs_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"runs_dir={config.runs_dir} cannot be made: {error.strerror}") from error


def _train(config: RunConfig, console: Console) -> _Outcome:
    """Trains a cell, or what is left of it, and evaluates it."""
    folder = config.runs_dir / config.cell_name
    results, checkpoint = folder / f"{config.test_set.name}.csv", folder / "checkpoints" / "last.ckpt"
    record_path = folder / "record.json"
    before = {} if config.force else read_record(record_path) or {}
    if before.get("status") == "done" and results.is_file():
        console.print(f"{config.cell_name} is done; force=true runs it again", soft_wrap=True, highlight=False)
        return _Outcome(folder, read_csv(results), config.loss.name, config.lmbda)

    # All that can be wrong is found here, before the first file is written.
    optimizer, schedule = _optimizer(config), _schedule(config)
    images, model, data = _test_images(config), _new_model(config), _training_images(config)
    _make_runs_dir(config)
    if config.force and folder.exists() and _first_rank():
        shutil.rmtree(folder)
    # Not by the file alone: under torchrun another rank may not have removed it yet.
    start = load_checkpoint(checkpoint).step if checkpoint.is_file() and not config.force else 0

    N, M = config.capacity
    described = config.model_dump(mode="json", by_alias=True)
    described["model"] |= {"N": N, "M": M}
    module = CompressionModule(
        model,
        config.loss.name,
        config.lmbda,
        optimizer=optimizer,
        lr=config.optimizer.lr,
        quantile_lr=config.optimizer.quantile_lr,
        clip_norm=config.optimizer.clip_norm,
        schedule=schedule,
        channels_last=config.trainer.channels_last,
        compile_model=config.trainer.compile,
        config=described,
    )
    session = Session(
        record_path,
        facts={
            "cell": config.cell_name,
            "config_hash": config.hash,
            "config": described,
            "resumed_from_step": start or None,
            **provenance(),
        },
        seconds_before=before.get("seconds") or 0.0,
    )
    callbacks: list[pl.Callback] = [
        LastCheckpoint(checkpoint, config.trainer.checkpoint_every_n_steps),
        TrainingProgress(config.trainer.log_every_n_steps),
        FailureRecord(session.failed),
        BitstreamEvaluation(
            images,
            config.test_set.name,
            folder,
            every_n_steps=config.evaluation.every_n_steps,
            weights=DTYPES[config.evaluation.codec_weights],
            config=portable(described),
            on_end=partial(session.done, config.test_set.name),
        ),
    ]
    trainer = build_trainer(config, folder, build_logger(config, folder, start), callbacks)
    if _first_rank():
        with write_aside(folder / "config.yaml") as aside:
            aside.write_text(yaml.safe_dump(described, sort_keys=False))
        checkpoint.parent.mkdir(exist_ok=True)
        session.write("running", steps=start)
    verb = f"resuming at step {start}" if start else "training"
    console.print(f"{config.cell_name}: {verb}, N={N} M={M}, to step {config.trainer.max_steps}", soft_wrap=True)
    interrupt_handler = signal.getsignal(signal.SIGINT)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*treespec.*", category=FutureWarning)
            # The sampler starts at the step that was reached, which Lightning cannot see.
            warnings.filterwarnings("ignore", message=".*your dataloader is not resumable.*")
            warnings.filterwarnings("ignore", message=".*does not have many workers.*")
            trainer.fit(
                module,
                datamodule=TrainingData(data, config.data.batch_size, config.data.workers, config.seed),
                ckpt_path=checkpoint if start else None,
                weights_only=True,
            )
    except BaseException as error:
        cause = _cause(error, trainer)
        if _first_rank():
            if (read_record(record_path) or {}).get("status") == "running":  # it ended before FailureRecord could write
                session.failed(cause, load_checkpoint(checkpoint).step if checkpoint.is_file() else 0)
            if checkpoint.is_file():
                console.print(f"the last good checkpoint is {checkpoint}", soft_wrap=True, highlight=False)
        if cause is error:
            raise
        raise cause from None
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, interrupt_handler)  # Lightning ignores it from the first one on
        if config.logger.name == "wandb":
            import wandb

            wandb.finish()  # else the next cell of a sweep would be logged into this one's run
    return _Outcome(folder, read_csv(results), config.loss.name, config.lmbda)


def _cause(error: BaseException, trainer: pl.Trainer) -> BaseException:
    """The error behind what Lightning makes of it: it exits on an interrupt, and a spawned rank's error is a text."""
    if isinstance(error, SystemExit) and trainer.interrupted:
        return KeyboardInterrupt()
    if isinstance(error, ProcessRaisedException):
        last_line = str(error).strip().splitlines()[-1]
        for kind in USER_ERRORS:
            name = f"{kind.__module__}.{kind.__qualname__}: "
            if last_line.startswith(name):
                return kind(last_line.removeprefix(name))
    return error


def _evaluate_checkpoint(config: RunConfig) -> _Outcome:
    """Evaluates a checkpoint file, which is all it needs: the model is in it."""
    assert config.checkpoint is not None
    loaded = load_checkpoint(config.checkpoint)
    images = _test_images(config)
    trained, digest = loaded.config, content_digest(config.checkpoint)
    name = f"{trained['model']['name']}-{trained['loss']['name']}-lambda-{trained['lambda']:g}-step-{loaded.step}"
    weights = DTYPES[config.evaluation.codec_weights]
    measured = f"{config.test_set.name}-{config.evaluation.codec_weights}"
    folder = config.runs_dir / "evaluations" / f"{name}-{digest}" / measured
    _make_runs_dir(config)
    facts = {
        "checkpoint": str(config.checkpoint.resolve()),
        "config_hash": digest,
        "config": trained,
        "test_set_root": config.test_set.root and str(config.test_set.root.resolve()),
        "codec_weights": config.evaluation.codec_weights,
        **provenance(),
    }
    session = Session(folder / "record.json", facts, seconds_before=0.0)
    session.write("running", steps=loaded.step)
    codec = Codec.from_model(loaded.model, weights, portable(trained))
    codec.save(folder / "codec.safetensors", weights)
    codec.to("cuda" if on_cuda(config) else "cpu")
    records = evaluate_with_progress(codec, images, folder, show=True)
    write_csv(records, folder / f"{config.test_set.name}.csv")
    session.done(config.test_set.name, records, loaded.step)
    return _Outcome(folder, records, trained["loss"]["name"], trained["lambda"])
