"""A codec measured on images with real files: one record an image."""

import csv
import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from hyperprior.coding.codec import Codec
from hyperprior.coding.container import Container
from hyperprior.evaluation.metrics import bits_per_pixel, decibels, ms_ssim, psnr_db
from hyperprior.files import COMPRESSED_SUFFIX, write_aside


@runtime_checkable
class NamedImage(Protocol):
    """What is evaluated: a name, unique in its set, and the pixels."""

    @property
    def name(self) -> str: ...

    def read(self) -> UInt8[np.ndarray, "H W 3"]:
        """The image as 8-bit RGB."""
        ...


@dataclass(frozen=True)
class ImageRecord:
    """One image, coded to a file and decoded from it; the row of a results table."""

    image: str
    width: int  # pixels
    height: int  # pixels
    bytes: int  # of the file
    header_bytes: int
    y_bytes: int
    z_bytes: int
    bpp: float  # bits of the file per pixel
    information_y_bits: float  # -log2 of the model's density at the coded y-hat
    information_z_bits: float  # likewise of z-hat; 0 for the factorized-prior model
    psnr_db: float
    ms_ssim: float  # NaN below 161 pixels
    ms_ssim_db: float
    encode_ms: float  # image in memory to bytes
    decode_ms: float  # bytes to image in memory


# Averaged over a test set for its summary; the paper's PSNR curves are such means for each lambda (section 6.4).
SUMMARIZED = (
    "bytes", "bpp", "information_y_bits", "information_z_bits", "psnr_db", "ms_ssim", "ms_ssim_db",
    "encode_ms", "decode_ms",
)  # fmt: skip


def evaluate_image(codec: Codec, image: NamedImage, folder: Path) -> ImageRecord:
    """Codes one image to `folder`/bitstreams, decodes that file to `folder`/reconstructions (PNG) and measures both."""
    original = image.read()
    height, width = original.shape[:2]
    file = folder / "bitstreams" / (image.name + COMPRESSED_SUFFIX)
    start = time.perf_counter()
    coded = codec.compress(original)
    encoded = time.perf_counter()
    with write_aside(file) as aside:
        aside.write_bytes(coded)
    stored = file.read_bytes()
    decoding = time.perf_counter()
    symbols = codec.decode(stored)  # the two halves of `decompress`
    decoded = codec.reconstruct(symbols)
    decode_ms = 1e3 * (time.perf_counter() - decoding)
    with write_aside(folder / "reconstructions" / f"{image.name}.png") as aside:
        Image.fromarray(decoded).save(aside, format="PNG", compress_level=1)
    information_y, information_z = codec.information(symbols)
    similarity = ms_ssim(original, decoded)
    container = Container.from_bytes(stored)
    size = file.stat().st_size
    return ImageRecord(
        image=image.name,
        width=width,
        height=height,
        bytes=size,
        header_bytes=container.header_bytes,
        y_bytes=len(container.y),
        z_bytes=len(container.z),
        bpp=bits_per_pixel(size, width, height),
        information_y_bits=information_y,
        information_z_bits=information_z,
        psnr_db=psnr_db(original, decoded),
        ms_ssim=similarity,
        ms_ssim_db=decibels(similarity),
        encode_ms=1e3 * (encoded - start),
        decode_ms=decode_ms,
    )


def evaluate(
    codec: Codec, images: Iterable[NamedImage], folder: Path, on_image: Callable[[ImageRecord], None] | None = None
) -> list[ImageRecord]:
    """One record an image, in the order given; `on_image` is told of each as it is done."""
    records = []
    for image in images:
        records.append(evaluate_image(codec, image, folder))
        if on_image is not None:
            on_image(records[-1])
    return records


def means(records: Sequence[ImageRecord]) -> dict[str, float]:
    """Arithmetic means over the images of the columns in SUMMARIZED; MS-SSIM over those that have one."""
    result = {}
    for column in SUMMARIZED:
        values = [value for record in records if not math.isnan(value := getattr(record, column))]
        result[column] = math.fsum(values) / len(values) if values else math.nan
    return result


def write_csv(records: Sequence[ImageRecord], path: Path) -> None:
    """The records as a table, one row an image."""
    with write_aside(path) as aside, aside.open("w", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(ImageRecord)])
        writer.writeheader()
        writer.writerows(asdict(record) for record in records)


def read_csv(path: Path) -> list[ImageRecord]:
    """The records of a table that `write_csv` wrote."""
    with path.open(newline="") as file:
        return [
            ImageRecord(**{field.name: field.type(row[field.name]) for field in fields(ImageRecord)})  # type: ignore[operator]
            for row in csv.DictReader(file)
        ]
