"""Seconds of a training step, in turn with a peer's on the same machine.

    python benchmarks/training_step.py                       # this project alone
    python benchmarks/training_step.py --peer "COMMAND"      # A B A B ... with a peer

COMMAND prints, as its last line, JSON with "train_step_s": the median time of a full step (forward, backward, clipping,
optimizer) of the scale hyperprior with the same N, M, batch and patch. Times on a shared machine vary from minute to
minute; the ratio of medians taken in turn is what to compare.

A step here is what `python run.py` does between two batches: Lightning's loop, the noise, both losses, clipping and the
optimizer, on a batch that is already in memory.
"""

import argparse
import json
import shlex
import statistics
import sys
import time
from functools import partial
from typing import Any

import pytorch_lightning as pl
import torch
from in_turn import last_json_line
from torch.utils.data import DataLoader

import hyperprior.training.module as module_file
from hyperprior.models.compression import build_model
from hyperprior.training.module import CompressionModule

PRECISIONS = ("32-true", "bf16-mixed")


class _StepTimes(pl.Callback):
    """The moments at which steps ended."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_train_batch_end(self, *_: Any) -> None:
        self.ends.append(time.perf_counter())


def measure(precision: str, args: argparse.Namespace) -> dict[str, Any]:
    """Median seconds of a step, the first two left out."""
    torch.manual_seed(0)
    batch = (
        torch.randint(0, 256, (args.batch, 3, args.patch, args.patch), dtype=torch.uint8),
        torch.arange(args.batch),
    )
    optimizer = partial(torch.optim.Adam, fused=True)
    module = CompressionModule(build_model("hyperprior", args.n, args.m), "mse", 0.013, optimizer=optimizer)
    times = _StepTimes()
    trainer = pl.Trainer(
        max_steps=args.steps + 2, accelerator="cpu", precision=precision, logger=False, callbacks=[times],  # type: ignore[arg-type]
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, DataLoader([batch] * (args.steps + 2), batch_size=None))  # type: ignore[arg-type]
    steps = [after - before for before, after in zip(times.ends[1:], times.ends[2:], strict=False)]
    return {"train_step_s": statistics.median(steps), "threads": torch.get_num_threads()}


def main() -> None:
    """Measures once (--precision), or in turn and compares."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=128)
    parser.add_argument("--m", type=int, default=192)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--patch", type=int, default=256)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peer", help="command that measures the peer")
    parser.add_argument("--precision", choices=PRECISIONS, help="one measurement in this process")
    parser.add_argument("--default-allocator", action="store_true", help="let freed memory go back to the system")
    args = parser.parse_args()
    if args.default_allocator:
        module_file.keep_freed_memory = lambda: False  # type: ignore[attr-defined]
    if args.precision:
        print(json.dumps(measure(args.precision, args)))
        return

    sizes = ["--n", args.n, "--m", args.m, "--batch", args.batch, "--patch", args.patch, "--steps", args.steps]
    ours = [sys.executable, __file__, *map(str, sizes), *["--default-allocator"] * args.default_allocator]
    commands = {precision: [*ours, "--precision", precision] for precision in PRECISIONS}
    if args.peer:
        commands["peer"] = shlex.split(args.peer)
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    for round_number in range(args.rounds):
        for name, command in commands.items():  # in turn, so that a slow minute hits all of them
            seconds[name].append(last_json_line(command)["train_step_s"])
            print(f"round {round_number + 1}  {name:10}  {seconds[name][-1]:.3f} s", flush=True)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    for name, median in medians.items():
        ratio = f"  {median / medians['peer']:.2f} of the peer" if args.peer else ""
        print(f"median   {name:10}  {median:.3f} s{ratio}")


if __name__ == "__main__":
    main()
