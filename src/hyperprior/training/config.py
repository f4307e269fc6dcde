"""What a run is: every setting with its meaning, its limits and its check.

Hydra composes the values from `conf/`; this is what they must satisfy before any work begins.
"""

import hashlib
import json
import math
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from hyperprior.data.test_sets import SMALLEST_SIDE
from hyperprior.training.losses import LossName


class ConfigError(ValueError):
    """A setting is unknown, out of range or does not fit another."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True, allow_inf_nan=False)


class ModelConfig(_Section):
    """The paper's architecture and its capacity."""

    name: Literal["factorized", "hyperprior"]
    N: int | None = Field(ge=1, description="filters inside the transforms; null: see RunConfig.capacity")
    M: int | None = Field(ge=1, description="channels of y; null: see RunConfig.capacity")
    K: int = Field(ge=1, description="layers of the non-parametric density")
    r: int | list[int] = Field(description="its inner widths: one for all layers, or K - 1 of them")


class LossConfig(_Section):
    """The distortion and its eight lambdas."""

    name: LossName
    ladder: list[float] = Field(min_length=8, max_length=8, description="lambda for quality 1 to 8")


class DataConfig(_Section):
    """Training crops."""

    name: Literal["dead_leaves", "folder"]
    train: Path | None = Field(description="folder of training images, for data=folder")
    patch_size: int = Field(ge=1, description="side of the training crops, pixels")
    batch_size: int = Field(ge=1, description="crops a step, over all ranks together")
    workers: int = Field(ge=0, description="processes that load images, for each rank")
    cache_mib: int = Field(ge=0, description="decoded images that each such process keeps, MiB")


class TestSetConfig(_Section):
    """Images that results are reported on."""

    name: Literal["samples", "kodak", "folder"]
    root: Path | None = Field(description="folder of the test images")
    url: str | None = Field(description="where Kodak images are downloaded from if the folder lacks them")


class OptimizerConfig(_Section):
    """One optimizer over two groups of parameters."""

    algorithm: dict[str, Any] = Field(description="a partial of a torch optimizer, for hydra.utils.instantiate")
    lr: float = Field(gt=0, description="learning rate of everything but the quantiles")
    quantile_lr: float = Field(gt=0, description="learning rate of the quantiles; no schedule")
    clip_norm: float = Field(ge=0, description="largest gradient norm, quantiles apart; 0: no clipping")


class TrainerConfig(_Section):
    """How long, on what and how exactly a run computes."""

    max_steps: int = Field(ge=1)
    accelerator: Literal["auto", "cpu", "gpu", "cuda"] = Field(description="auto: a CUDA GPU if there is one")
    devices: int | Literal["auto"] = Field(description="ranks on this machine")
    num_nodes: int = Field(ge=1)
    precision: Literal["32-true", "bf16-mixed"] = Field(description="of the transforms; all else is float32")
    channels_last: bool
    compile: bool
    log_every_n_steps: int = Field(ge=1)
    checkpoint_every_n_steps: int = Field(ge=1)

    @field_validator("precision", mode="before")
    @classmethod
    def _lightnings_short_names(cls, value: object) -> object:
        return {"32": "32-true", "bf16": "bf16-mixed"}.get(str(value), value)


class EvaluationConfig(_Section):
    """Coding with real files."""

    every_n_steps: int = Field(ge=0, description="evaluate with real files this often; 0: only at the end")
    codec_weights: Literal["float32", "bfloat16"] = Field(description="precision of the stored transforms")


class LoggerConfig(_Section):
    """Where the curves of a run go."""

    name: Literal["csv", "wandb", "tensorboard"]
    project: str | None = None
    group: str | None = None


class RunConfig(_Section):
    """One cell: a model, its loss and lambda, its data and training, and the images it is tested on."""

    task: Literal["train", "evaluate"]
    model: ModelConfig
    loss: LossConfig
    quality: int = Field(ge=1, le=8, description="rung of the loss's ladder that gives lambda")
    lmbda: float = Field(alias="lambda", gt=0, description="weight of the distortion; null: from quality")
    data: DataConfig
    test_set: TestSetConfig
    optimizer: OptimizerConfig
    schedule: dict[str, Any] = Field(description="a partial of step, max_steps -> factor on the learning rate")
    trainer: TrainerConfig
    evaluation: EvaluationConfig
    logger: LoggerConfig
    seed: int = Field(ge=0)
    init_from: Path | None = Field(description="checkpoint whose weights training starts from")
    checkpoint: Path | None = Field(description="checkpoint to evaluate, for task=evaluate")
    runs_dir: Path = Field(description="folder of all runs")
    force: bool = Field(description="run again although it is done")

    @model_validator(mode="before")
    @classmethod
    def _lambda_from_quality(cls, values: dict[str, Any]) -> dict[str, Any]:
        ladder, quality = values.get("loss", {}).get("ladder"), values.get("quality")
        if values.get("lambda") is None and isinstance(quality, int) and ladder and 1 <= quality <= len(ladder):
            values = {**values, "lambda": ladder[quality - 1]}
        elif values.get("lambda") is None:
            values = {**values, "lambda": 1.0}  # the quality is wrong, and is what will be reported
        return values

    @model_validator(mode="after")
    def _fits_together(self) -> "RunConfig":
        if self.task == "evaluate" and self.checkpoint is None:
            raise ValueError("task=evaluate needs checkpoint=PATH")
        if self.task == "train" and self.checkpoint is not None:
            raise ValueError("checkpoint=PATH goes with task=evaluate; to start from its weights say init_from=PATH")
        if self.loss.name == "ms_ssim" and self.data.patch_size < SMALLEST_SIDE:
            raise ValueError(
                f"data.patch_size={self.data.patch_size} is below {SMALLEST_SIDE}, the smallest image that "
                "loss=ms_ssim is defined for"
            )
        widths = self.model.r if isinstance(self.model.r, list) else [self.model.r] * (self.model.K - 1)
        if len(widths) != self.model.K - 1 or any(width < 1 for width in widths):
            raise ValueError(
                f"model.r={self.model.r} must be a positive width or model.K - 1 = {self.model.K - 1} of them"
            )
        if self.data.name != "folder" and self.data.train is not None:
            raise ValueError("data.train=DIR goes with data=folder")
        if self.test_set.name == "samples" and self.test_set.root is not None:
            raise ValueError("test_set.root=DIR goes with test_set=kodak or test_set=folder")
        if self.data.name == "folder" and self.data.train is None:
            raise ValueError("data=folder needs data.train=DIR")
        if self.test_set.name == "folder" and self.test_set.root is None:
            raise ValueError("test_set=folder needs test_set.root=DIR")
        if isinstance(self.trainer.devices, int):
            ranks = self.trainer.devices * self.trainer.num_nodes
            if ranks < 1 or self.data.batch_size % ranks:
                raise ValueError(
                    f"data.batch_size={self.data.batch_size} cannot be shared equally among "
                    f"trainer.devices x trainer.num_nodes = {ranks}"
                )
        return self

    @property
    def capacity(self) -> tuple[int, int]:
        """N and M: as given, or else the paper's: 128 and 192 for the five lower lambdas of the ladder, 192 and 320
        for the three higher; between rungs, those of the nearer one (in log). On the embedded data, which is for
        trying out, 32 and 48."""
        if self.data.name == "dead_leaves":
            return self.model.N or 32, self.model.M or 48
        high = self.lmbda > math.sqrt(self.loss.ladder[4] * self.loss.ladder[5])
        N, M = (192, 320) if high else (128, 192)
        return self.model.N or N, self.model.M or M

    @property
    def decisive(self) -> dict[str, Any]:
        """The settings that decide a run's numbers. Where it runs, where it writes and what it logs do not."""
        values = self.model_dump(mode="json", by_alias=True)
        for key in ("task", "runs_dir", "logger", "checkpoint", "force", "quality"):
            del values[key]
        for key in ("accelerator", "devices", "num_nodes", "log_every_n_steps", "checkpoint_every_n_steps"):
            del values["trainer"][key]
        del values["data"]["workers"], values["data"]["cache_mib"], values["test_set"]["url"], values["loss"]["ladder"]
        del values["evaluation"]["every_n_steps"]
        values["model"]["N"], values["model"]["M"] = self.capacity
        # What a path leads to decides, and not how it is typed; Kodak is what it is wherever it lies.
        values["data"]["train"] = self.data.train and str(self.data.train.resolve())
        root = None if self.test_set.name == "kodak" else self.test_set.root
        values["test_set"]["root"] = root and str(root.resolve())
        if self.init_from is not None and self.init_from.is_file():
            values["init_from"] = content_digest(self.init_from)
        return values

    @property
    def hash(self) -> str:
        """Twelve hexadecimal digits that name the decisive settings."""
        canonical = json.dumps(self.decisive, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()[:12]

    @property
    def cell_name(self) -> str:
        """Name of the run's folder: what it is, readable, and the hash."""
        return f"{self.model.name}-{self.loss.name}-lambda-{self.lmbda:g}-{self.hash}"


def portable(values: dict[str, Any]) -> dict[str, Any]:
    """A run's settings for a codec file that travels: what was trained and how, without the places on one machine."""
    sections = ("model", "loss", "lambda", "data", "optimizer", "schedule", "trainer", "evaluation", "seed")
    kept = {key: values[key] for key in sections}
    return {**kept, "data": {**kept["data"], "train": None}}


def content_digest(path: Path) -> str:
    """Twelve hexadecimal digits that name the content of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:12]


def parse(values: dict[str, Any]) -> RunConfig:
    """Checks composed values. Raises ConfigError with a line for each thing that is wrong."""
    try:
        return RunConfig.model_validate(values)
    except ValidationError as error:
        lines = []
        for problem in error.errors():
            key = ".".join(str(part) for part in problem["loc"])
            if problem["type"] == "extra_forbidden":
                lines.append(f"unknown key {key!r}")
            elif key:
                lines.append(f"{key}={problem['input']}: {problem['msg']}")
            else:
                lines.append(problem["msg"].removeprefix("Value error, "))
        raise ConfigError("\n".join(lines)) from error
