"""A bar on the terminal while images are coded."""

from collections.abc import Sequence
from pathlib import Path

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from hyperprior.coding.codec import Codec
from hyperprior.evaluation.evaluate import ImageRecord, NamedImage, evaluate, means


def _evaluation_progress(show: bool) -> Progress:
    return Progress(
        TextColumn("evaluating"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"),
        TimeElapsedColumn(), transient=True, disable=not show,
    )  # fmt: skip


def evaluate_with_progress(codec: Codec, images: Sequence[NamedImage], folder: Path, show: bool) -> list[ImageRecord]:
    """`evaluate`, with a progress bar if `show`."""
    done: list[ImageRecord] = []
    with _evaluation_progress(show) as progress:
        task = progress.add_task("", total=len(images))

        def on_image(record: ImageRecord) -> None:
            done.append(record)
            summary = means(done)
            text = f"bpp {summary['bpp']:.3f}  PSNR {summary['psnr_db']:.2f} dB"
            progress.update(task, advance=1, description=text)

        return evaluate(codec, images, folder, on_image)
