"""Do files decode to the same symbols everywhere? Every setting's files, decoded under every other setting.

    python benchmarks/portability.py --images DIR CODEC...

A setting is a number of threads, a precision and a memory format of the transforms, eager or compiled execution, and a
device. Under each, a process of its own compresses every image; then a process of its own for each decodes all files of
all of them. Counted are symbols that differ from the encoder's; beside it, how many scales differ between settings if
they are computed in floating point as usual, which shows what the exact ones spare.
"""

import argparse
import itertools
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from hyperprior.coding.codec import Codec
from hyperprior.data.images import find_images, read_rgb
from hyperprior.models.compression import ScaleHyperprior
from hyperprior.models.gaussian import scale_index, scale_thresholds


class Setting(NamedTuple):
    """One way to run the transforms and the scales."""

    threads: int
    precision: str
    execution: str
    layout: str
    device: str

    def __str__(self) -> str:
        return "-".join(map(str, self))


def settings() -> list[Setting]:
    """All that this machine can run."""
    devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    executions, layouts = ("eager", "compiled"), ("contiguous", "channels_last")
    combined = itertools.product((1, 2), ("float32", "bfloat16"), executions, layouts, devices)
    return [Setting(*choice) for choice in combined]


def prepare(path: str, setting: Setting) -> Codec:
    """A codec as the setting says."""
    torch.set_num_threads(setting.threads)
    codec = Codec.load(path).to(setting.device, getattr(torch, setting.precision))
    layout = torch.channels_last if setting.layout == "channels_last" else torch.contiguous_format
    model: Any = codec.model
    model.to(memory_format=layout)
    if setting.execution == "compiled":
        for module in (model.analysis, getattr(model, "hyper_analysis", None), codec.exact):
            if module is not None:
                module.compile()
        if isinstance(model, ScaleHyperprior):
            model.hyper_synthesis.compile()
    return codec


@torch.inference_mode()
def floating_point_indexes(codec: Codec, z: np.ndarray, setting: Setting) -> np.ndarray:
    """The tables that h_s in floating point would choose under the setting."""
    model = codec.model
    assert isinstance(model, ScaleHyperprior)
    z_hat = torch.from_numpy(z).to(codec.device).float()[None] + model.density.medians[:, None, None]
    if setting.layout == "channels_last":
        z_hat = z_hat.contiguous(memory_format=torch.channels_last)
    with torch.autocast(codec.device.type, torch.bfloat16, enabled=setting.precision == "bfloat16"):
        sigma = model.scales(z_hat, 4 * z.shape[1], 4 * z.shape[2])
    return scale_index(sigma, scale_thresholds()).cpu().numpy()


def encode(path: str, images: Path, folder: Path, setting: Setting) -> None:
    """Compresses every image under the setting; keeps the symbols it coded beside the file."""
    codec = prepare(path, setting)
    for image in find_images(images, 1):
        name = folder / f"{setting}--{image.stem}"
        y, z = codec.latents(read_rgb(image))
        data = codec.compress(read_rgb(image))
        # What was coded, taken before any coding: the rounded latents.
        medians = codec.model.density.medians[:, None, None]
        coded = (y - medians, y[:0]) if z is None else (y, z - medians)
        symbols_y, symbols_z = (latent.round().int().cpu().numpy() for latent in coded)
        np.savez(name.with_suffix(".npz"), y=symbols_y, z=symbols_z)
        name.with_suffix(".hyp").write_bytes(data)


def decode(path: str, folder: Path, setting: Setting) -> None:
    """Decodes every file in the folder under the setting and counts symbols that differ."""
    codec = prepare(path, setting)
    total = different = 0
    for file in sorted(folder.glob("*.hyp")):
        coded = np.load(file.with_suffix(".npz"))
        symbols = codec.decode(file.read_bytes())
        total += symbols.y.size + symbols.z.size
        different += int((symbols.y != coded["y"]).sum())
        if symbols.z.size:
            different += int((symbols.z != coded["z"]).sum())
    print(f"{total} {different}")


def floats(path: str, folder: Path, setting: Setting) -> None:
    """How many scales in floating point differ from those of the first setting, for the first setting's files."""
    codec, reference = prepare(path, setting), prepare(path, settings()[0])
    total = different = 0
    for file in sorted(folder.glob(f"{settings()[0]}--*.hyp")):
        z = reference.decode(file.read_bytes()).z
        torch.set_num_threads(1)
        expected = floating_point_indexes(reference, z, settings()[0])
        torch.set_num_threads(setting.threads)
        found = floating_point_indexes(codec, z, setting)
        total, different = total + found.size, different + int((found != expected).sum())
    print(f"{total} {different}")


def main() -> None:
    """Runs the workers, or is one (--worker)."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("codecs", nargs="+")
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--worker", nargs=3, metavar=("TASK", "SETTING", "FOLDER"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        task, setting, files = args.worker[0], settings()[int(args.worker[1])], Path(args.worker[2])
        if task == "encode":
            encode(args.codecs[0], args.images, files, setting)
        else:
            {"decode": decode, "floats": floats}[task](args.codecs[0], files, setting)
        return

    failed = False
    for path in args.codecs:
        with tempfile.TemporaryDirectory() as folder:

            def work(task: str, number: int, path: str = path, where: str = folder) -> list[int]:
                command = [sys.executable, __file__, path, "--images", str(args.images)]
                command += ["--worker", task, str(number), where]
                output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
                return [int(number) for number in output.split()]

            for number, _ in enumerate(settings()):
                work("encode", number)
            contents = [file.read_bytes() for file in Path(folder).glob("*.hyp")]
            distinct = len(set(contents))
            print(
                f"{path}: {len(contents)} files by {len(settings())} settings, {distinct} of them different", flush=True
            )
            has_hyperprior = Codec.load(path).exact is not None
            for number, setting in enumerate(settings()):
                total, different = work("decode", number)
                failed |= different > 0
                line = f"  {setting!s:46} {different} of {total} symbols differ"
                if has_hyperprior:
                    total, different = work("floats", number)
                    line += f"; floating-point scales: {different} of {total}"
                print(line, flush=True)
    sys.exit(failed)


if __name__ == "__main__":
    main()
