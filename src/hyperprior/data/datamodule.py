"""The LightningDataModule: which training crops make up which step."""

from collections.abc import Iterator
from typing import Protocol, runtime_checkable

import numpy as np
import pytorch_lightning as pl
import torch
from jaxtyping import UInt8
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler


@runtime_checkable
class EndlessImages(Protocol):
    """Training crops without end, crop i being the same whenever it is asked for."""

    def __getitem__(self, index: int) -> UInt8[Tensor, "3 P P"]: ...


class StepSampler(Sampler[list[int]]):
    """The crops of each step, from step `start` on, for one of `ranks` ranks.

    Step s trains on the crops s * batch_size, ..., (s + 1) * batch_size - 1, whatever the number of ranks: rank k takes
    the k-th equal part of them.
    """

    def __init__(self, batch_size: int, start: int, rank: int, ranks: int) -> None:
        self.batch_size, self.start, self.rank, self.share = batch_size, start, rank, batch_size // ranks

    def __iter__(self) -> Iterator[list[int]]:
        step = self.start
        while True:
            first = step * self.batch_size + self.rank * self.share
            yield list(range(first, first + self.share))
            step += 1


class SeededImages(Dataset[tuple[Tensor, int]]):
    """Each crop with the seed of its quantization noise, a function of (seed, index) too."""

    def __init__(self, images: EndlessImages, seed: int) -> None:
        self.images, self.seed = images, seed

    def __getitem__(self, index: int) -> tuple[UInt8[Tensor, "3 P P"], int]:
        # 2 keeps this stream apart from those that draw the images.
        state = np.random.SeedSequence([self.seed, 2, index]).generate_state(1, np.uint64)
        return self.images[index], int(state[0] >> 1)


class TrainingData(pl.LightningDataModule):
    """Batches of (crops: uint8 B x 3 x P x P, seeds: int64 B), `batch_size` crops a step over all ranks together.

    A resumed run goes on with the crops and the noise that the unbroken run would have had. Raises ValueError if
    `batch_size` cannot be shared equally among the ranks.
    """

    def __init__(self, images: EndlessImages, batch_size: int, workers: int, seed: int) -> None:
        super().__init__()
        self.images, self.batch_size, self.workers, self.seed = images, batch_size, workers, seed

    def train_dataloader(self) -> DataLoader[tuple[Tensor, int]]:
        assert self.trainer is not None
        ranks = self.trainer.world_size
        if self.batch_size % ranks:
            raise ValueError(f"data.batch_size={self.batch_size} cannot be shared equally among {ranks} ranks")
        return DataLoader(
            SeededImages(self.images, self.seed),
            batch_sampler=StepSampler(self.batch_size, self.trainer.global_step, self.trainer.global_rank, ranks),
            num_workers=self.workers,
            pin_memory=torch.cuda.is_available(),
        )
