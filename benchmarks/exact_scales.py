"""What exact integer scales cost in rate against scales in double precision from the unrounded model.

    python benchmarks/exact_scales.py --images DIR CHECKPOINT...

Both choose among the same tables for the same symbols; the cost of a symbol is what its table's frequency says.
"""

import argparse
import copy
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Integer

from hyperprior.coding.codec import Codec, Symbols
from hyperprior.coding.tables import PRECISION_BITS, FrequencyTables
from hyperprior.coding.tiling import Region
from hyperprior.data.images import find_images, read_rgb
from hyperprior.models.compression import ScaleHyperprior
from hyperprior.models.gaussian import scale_index, scale_thresholds
from hyperprior.training.checkpoint import load_checkpoint


def table_bits(symbols: Integer[np.ndarray, "n"], indexes: Integer[np.ndarray, "n"], tables: FrequencyTables) -> float:
    """Bits of symbols under the tables chosen for them; a symbol outside costs its escape."""
    entries = symbols - tables.minimums[indexes]
    escapes = tables.escapes[indexes]
    entries = np.where((entries < 0) | (entries >= escapes), escapes, entries)
    return float((PRECISION_BITS - np.log2(tables.frequencies[tables.starts[indexes] + entries])).sum())


@torch.inference_mode()
def double_precision_indexes(model: ScaleHyperprior, symbols: Symbols) -> Integer[np.ndarray, "n"]:
    """The tables that the unrounded model chooses in double precision."""
    exact = copy.deepcopy(model).double()
    z_hat = torch.tensor(symbols.z).double()[None] + exact.density.medians[:, None, None]
    sigma = exact.scales(z_hat, *symbols.y.shape[1:])
    return scale_index(sigma, scale_thresholds()).reshape(-1).numpy()


def compare(model: ScaleHyperprior, images: list[Path]) -> tuple[float, float, float]:
    """Bits with exact scales, bits with double precision's, and the share of elements with another table."""
    codec = Codec.from_model(model)
    assert codec.frozen.scale_tables is not None
    bits, differ, total = [0.0, 0.0], 0, 0
    for path in images:
        symbols = codec.decode(codec.compress(read_rgb(path)))
        _, rows, columns = symbols.y.shape
        y = symbols.y.reshape(-1)
        exact = codec.indexes_of(symbols.z, symbols.y.shape, Region(0, rows, 0, columns)).astype(np.int64)
        double = double_precision_indexes(model, symbols)
        for which, indexes in enumerate((exact, double)):
            bits[which] += table_bits(y, indexes, codec.frozen.scale_tables)
        differ, total = differ + int((exact != double).sum()), total + len(y)
    return bits[0], bits[1], differ / total


def main() -> None:
    """Prints a line for each checkpoint."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoints", nargs="+", type=Path)
    parser.add_argument("--images", type=Path, required=True)
    args = parser.parse_args()
    for path in args.checkpoints:
        model = load_checkpoint(path).model
        assert isinstance(model, ScaleHyperprior)
        exact, double, differ = compare(model, find_images(args.images, 1))
        print(
            f"{path}: exact {exact:.0f} bits, double precision {double:.0f} bits: {100 * (exact / double - 1):+.4f} %; "
            f"{100 * differ:.2f} % of the elements have a neighbouring table"
        )


if __name__ == "__main__":
    main()
