"""Memory and time to compress and decompress one large image by the command line.

    python benchmarks/large_image.py                            # 100 megapixels, the paper's larger model, untrained
    python benchmarks/large_image.py --megapixels 50 --codec FILE

The image is a mosaic of one synthetic photograph; the largest resident size is what the operating system counted for
each process, the interpreter, torch and the image itself included.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from hyperprior.coding.codec import Codec
from hyperprior.data.dead_leaves import render
from hyperprior.models.compression import build_model


def mosaic(side: int) -> np.ndarray:
    """side x side pixels."""
    tile = render(np.random.default_rng(0), 1000)
    copies = -(-side // 1000)
    return np.tile(tile, (copies, copies, 1))[:side, :side]


def run(*arguments: str) -> tuple[float, float]:
    """Seconds, and the largest resident size in GiB, of a process of its own."""
    start = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "hyperprior.cli", *arguments])
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit("the command failed")
    return time.perf_counter() - start, usage.ru_maxrss / 2**20


def main() -> None:
    """Makes the image, codes it both ways, prints what that took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megapixels", type=float, default=100)
    parser.add_argument("--codec", help="default: an untrained hyperprior model with N=192, M=320")
    parser.add_argument("--transforms", choices=["float32", "bfloat16"], default="float32")
    args = parser.parse_args()
    side = round((1e6 * args.megapixels) ** 0.5)
    with tempfile.TemporaryDirectory() as folder:
        image, codec = Path(folder, "image.ppm"), Path(args.codec or Path(folder, "codec.safetensors"))
        if not args.codec:
            torch.manual_seed(0)
            Codec.from_model(build_model("hyperprior", 192, 320)).save(codec)
        Image.fromarray(mosaic(side)).save(image)
        options = ["--codec", str(codec), "--transforms", args.transforms]
        for what in (["compress", str(image)], ["decompress", str(image.with_suffix(".hyp")), "--format", "bmp"]):
            seconds, gibibytes = run(*what, *options)
            print(f"{what[0]:10} {side}x{side}, {args.transforms}: {seconds:.0f} s, {gibibytes:.2f} GiB", flush=True)


if __name__ == "__main__":
    main()
