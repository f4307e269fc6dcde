"""The README's picture: a photograph through a pretrained codec, and measured points beside published curves.

    python docs/make_figures.py --codec CODEC --record RECORD.json [RECORD.json ...] --published CSV -o PNG

Each record is that of a run tested on Kodak; the CSV has the columns method, bpp and psnr.
"""

import argparse
import csv
import json
from collections import defaultdict
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from hyperprior.coding.codec import Codec
from hyperprior.data.test_sets import samples
from hyperprior.evaluation.metrics import bits_per_pixel, psnr_db

# Okabe and Ito's colours, told apart by the colour-blind; markers tell them apart in print.
PUBLISHED = {
    "hyperprior (authors, MSE)": ("#0072B2", "s"),
    "CompressAI bmshj2018-hyperprior (MSE)": ("#56B4E9", "^"),
    "JPEG 4:2:0": ("#999999", None),
    "JPEG 2000 (OpenJPEG)": ("#CC79A7", None),
}


def main() -> None:
    """Draws the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--codec", type=Path, required=True)
    parser.add_argument("--record", type=Path, nargs="+", required=True)
    parser.add_argument("--published", type=Path, required=True)
    parser.add_argument("-o", "--output", type=Path, required=True)
    args = parser.parse_args()

    curves: dict[str, list[tuple[float, float]]] = defaultdict(list)
    with args.published.open(newline="") as file:
        for row in csv.DictReader(file):
            if row["psnr"]:
                curves[row["method"]].append((float(row["bpp"]), float(row["psnr"])))

    figure = plt.figure(figsize=(9.6, 4.9), layout="constrained")
    axes = figure.subplot_mosaic("AC;BC", width_ratios=[1, 1.45])
    image = next(image for image in samples() if image.name == "coffee").read()
    height, width = image.shape[:2]
    codec = Codec.load(args.codec)
    coded = codec.compress(image)
    decoded = codec.decompress(coded)
    axes["A"].imshow(image)
    axes["A"].set_title(f"original, {width}x{height}", fontsize=10)
    axes["B"].imshow(decoded)
    title = f"{len(coded)} bytes, {bits_per_pixel(len(coded), width, height):.2f} bpp, {psnr_db(image, decoded):.1f} dB"
    axes["B"].set_title(title, fontsize=10)
    for key in "AB":
        axes[key].axis("off")

    plot = axes["C"]
    for method, (colour, marker) in PUBLISHED.items():
        points = sorted(curves[method])
        plot.plot(*zip(*points, strict=True), color=colour, marker=marker, ms=5, lw=1.3, label=method)
    for path in args.record:
        record = json.loads(path.read_text())
        means, config = record["means"], record["config"]
        label = f"this project: lambda={config['lambda']:g}, N={config['model']['N']}, trained on a CPU"
        plot.plot(means["bpp"], means["psnr_db"], "*", color="#D55E00", ms=15, label=label)
    plot.set(xlim=(0, 1.2), ylim=(24, 38), xlabel="bits per pixel", ylabel="PSNR (dB), mean over Kodak")
    plot.grid(alpha=0.3)
    plot.legend(fontsize=7.5, loc="lower right")
    figure.savefig(args.output, dpi=90)


if __name__ == "__main__":
    main()
