"""Codecs for the command line: opened, written and described, or the command ends with a line that says why not."""

import os
import re
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from hyperprior.batch import refuse, unwritable

if TYPE_CHECKING:
    from hyperprior.coding.codec import Codec


class Precision(StrEnum):
    """Precision of transforms, or of their stored weights."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"


def open_codec(path: Path, device: str, transforms: Precision, threads: int) -> "Codec":
    """A codec ready to work, on the device, in the precision and with the threads (0: all cores) asked for."""
    if not re.fullmatch(r"cpu|mps|cuda(:\d+)?", device):
        refuse(f"--device {device}: it is cpu, cuda, cuda:1, ... or mps")
    import torch

    from hyperprior.allocator import keep_freed_memory

    keep_freed_memory()
    if threads:
        torch.set_num_threads(min(threads, os.cpu_count() or 1))
    codec = load(path)
    if device.startswith("cuda") and not torch.cuda.is_available():
        refuse("there is no CUDA device here; --device cpu works everywhere")
    try:
        return codec.to(device, dtype(transforms))
    except (RuntimeError, AssertionError) as error:
        refuse(f"--device {device}: {str(error).partition(chr(10))[0]}")


def load(path: Path) -> "Codec":
    """A codec as it is stored."""
    from hyperprior.coding.codec import Codec

    try:
        return Codec.load(path)
    except (OSError, ValueError) as error:
        refuse(str(error))


def dtype(precision: Precision) -> "torch.dtype":
    """torch's name of a precision."""
    import torch

    return {Precision.FLOAT32: torch.float32, Precision.BFLOAT16: torch.bfloat16}[precision]


def check_new(target: Path, source: Path, force: bool) -> None:
    """Ends the command if a codec cannot be written to `target`, or would replace what it is made of."""
    if problem := unwritable(target):
        refuse(problem)
    if target.exists() and source.exists() and target.samefile(source):
        refuse(f"{source} would be overwritten by its own result")
    if target.exists() and not force:
        refuse(f"{target} exists; --force overwrites it")


def save_codec(model: "CompressionModel", output: Path, weights: Precision, config: dict[str, Any]) -> None:
    """Freezes a model into a codec file and says what it is."""
    from hyperprior.coding.codec import Codec

    try:
        codec = Codec.from_model(model, dtype(weights), config)
    except ValueError as error:  # weights that cannot be frozen
        refuse(str(error))
    try:
        codec.save(output, dtype(weights))
    except OSError as error:
        refuse(f"{output} cannot be written: {error.strerror}")
    typer.echo(f"{output}  {output.stat().st_size} bytes  codec {codec.fingerprint.hex()}")


def describe(codec: "Codec", path: Path) -> dict[str, str]:
    """A codec in a few words, by row."""
    model, config = codec.model, codec.config
    rows = {
        "codec": codec.fingerprint.hex(),
        "model": f"{model.name}, N={model.N}, M={model.M}",
        "file": f"{path.stat().st_size} bytes",
    }
    if "loss" in config:
        rows["trained"] = f"loss {config['loss']['name']}, lambda {config['lambda']:g}, seed {config['seed']}"
    elif "source" in config:
        rows["source"] = config["source"]
    return rows
