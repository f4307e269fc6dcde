"""Milliseconds to compress and decompress one image, in turn with a peer's on the same machine.

    python benchmarks/coding.py IMAGE                                        # this project alone, an untrained model
    python benchmarks/coding.py IMAGE --compressai WEIGHTS --peer "COMMAND"  # the peer's model, A B A B ... with it
    python benchmarks/coding.py IMAGE --codec FILE                           # a trained codec, and where its time goes

COMMAND prints, as its last line, JSON with "compress_s" and "decompress_s": medians over repetitions for the same image
and sizes, tables ready. Times on a shared machine vary from minute to minute; the ratio of medians taken in turn is
what to compare.
"""

import argparse
import json
import shlex
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from in_turn import last_json_line

from hyperprior.allocator import keep_freed_memory
from hyperprior.coding.codec import Codec, Symbols
from hyperprior.data.images import read_rgb
from hyperprior.models.compressai import from_compressai
from hyperprior.models.compression import build_model

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def median_seconds(action: Callable[[], object], repeat: int) -> float:
    """After two runs to warm up."""
    times = []
    for _ in range(repeat + 2):
        start = time.perf_counter()
        action()
        times.append(time.perf_counter() - start)
    return statistics.median(times[2:])


def open_codec(args: argparse.Namespace) -> Codec:
    """A trained codec, the peer's model, or an untrained one."""
    if args.codec:
        return Codec.load(args.codec)
    if args.compressai:
        return Codec.from_model(from_compressai(torch.load(args.compressai, weights_only=True)))
    torch.manual_seed(0)
    return Codec.from_model(build_model("hyperprior", args.n, args.m))


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Both directions, and their parts, in one precision."""
    if not args.default_allocator:
        keep_freed_memory()
    codec = open_codec(args).to(transforms=PRECISIONS[args.precision])
    image = read_rgb(Path(args.image))
    coded = codec.compress(image)
    symbols: Symbols = codec.decode(coded)
    parts: dict[str, Callable[[], object]] = {
        "compress_s": lambda: codec.compress(image),
        "decompress_s": lambda: codec.decompress(coded),
        "analysis_s": lambda: codec.latents(image),
        "encode_s": lambda: codec.encode(symbols),
        "encode_binary_s": lambda: codec.encode(symbols, "binary"),
        "decode_s": lambda: codec.decode(coded),
        "synthesis_s": lambda: codec.reconstruct(symbols),
    }
    if codec.exact is not None:
        exact, z = codec.exact, torch.from_numpy(symbols.z)
        parts["scales_s"] = lambda: exact(z)
    error = np.square(image.astype(float) - codec.reconstruct(symbols)).mean()
    with torch.inference_mode():
        seconds = {name: median_seconds(action, args.repeat) for name, action in parts.items()}
    return {"bytes": len(coded), "psnr_db": float(10 * np.log10(255**2 / error)), **seconds}


def main() -> None:
    """Measures once (--precision), or in turn and compares."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("image")
    parser.add_argument("--codec", help="a trained codec")
    parser.add_argument("--compressai", help="a state dict of the peer's scale hyperprior")
    parser.add_argument("--n", type=int, default=128)
    parser.add_argument("--m", type=int, default=192)
    parser.add_argument("--repeat", type=int, default=7)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peer", help="command that measures the peer")
    parser.add_argument("--precision", choices=PRECISIONS, help="one measurement in this process")
    parser.add_argument("--default-allocator", action="store_true", help="let freed memory go back to the system")
    args = parser.parse_args()
    if args.precision:
        print(json.dumps(measure(args)))
        return

    commands = {name: [sys.executable, __file__, *sys.argv[1:], "--precision", name] for name in PRECISIONS}
    if args.peer:
        commands["peer"] = shlex.split(args.peer)
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in commands}
    for round_number in range(args.rounds):
        for name, command in commands.items():  # in turn, so that a slow minute hits all of them
            results[name].append(last_json_line(command))
            both = (f"{1e3 * results[name][-1][key]:7.1f} ms" for key in ("compress_s", "decompress_s"))
            print(f"round {round_number + 1}  {name:9} compress {next(both)}  decompress {next(both)}", flush=True)
    medians = {
        name: {key: statistics.median(result[key] for result in of) for key in of[0]} for name, of in results.items()
    }
    for name, values in medians.items():
        print(f"\nmedians, {name}: " + (f"{values['bytes']:.0f} bytes" if "bytes" in values else ""))
        for key, value in values.items():
            if key.endswith("_s"):
                other = medians.get("peer", {}).get(key)
                ratio = f"  the peer takes {other / value:.2f} times as long" if other and name != "peer" else ""
                print(f"  {key.removesuffix('_s'):14} {1e3 * value:7.1f} ms{ratio}")
        if "psnr_db" in values:
            print(f"  PSNR           {values['psnr_db']:7.3f} dB")


if __name__ == "__main__":
    main()
