"""`hyperprior`: the command line for people who have images, or a trained model to hand on.

Every command checks all that it was given before it does or overwrites anything. Results go to standard output, errors
to standard error, one line each. Exit status: 0 if all is done, 1 if some files could not be processed (the others are
done), 2 if the command could not begin.

torch is imported by the functions that need it, so that `--help` and mistakes answer at once.
"""

import sys
import tempfile
import warnings
from enum import StrEnum
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hyperprior.batch import Job, missing, plan, process, refuse, unwritable
from hyperprior.codec_files import Precision, check_new, describe, load, open_codec, save_codec
from hyperprior.files import COMPRESSED_SUFFIX

if TYPE_CHECKING:
    pass


app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


class CoderName(StrEnum):
    """Entropy coders."""

    RANGE = "range"
    BINARY = "binary"


class ImageFormat(StrEnum):
    """What a decoded image is written as: formats that lose nothing."""

    PNG = "png"
    TIFF = "tiff"
    BMP = "bmp"
    PPM = "ppm"


CodecOption = Annotated[
    Path, typer.Option("--codec", envvar="HYPERPRIOR_CODEC", help="The codec file (.safetensors).", show_default=False)
]
Output = Annotated[
    Path | None,
    typer.Option("--output", "-o", help="Folder for the results; default: beside each input.", readable=False),
]
OutputFile = Annotated[Path, typer.Option("--output", "-o", help="The codec file to write.", show_default=False)]
EntropyCoder = Annotated[CoderName, typer.Option(help="Entropy coder; binary is the paper's, bit by bit.")]
Force = Annotated[bool, typer.Option("--force", help="Overwrite files that are there.")]
Device = Annotated[str, typer.Option(help="Where the transforms run: cpu, cuda, cuda:1, ...")]
Transforms = Annotated[
    Precision, typer.Option(help="Precision of the transforms; bfloat16 is faster where the processor has it.")
]
Threads = Annotated[int, typer.Option(min=0, help="CPU threads; 0: all cores.")]
Weights = Annotated[Precision, typer.Option(help="Precision of the stored weights; bfloat16 halves the file.")]


def _version(wanted: bool) -> bool:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"hyperprior {version('hyperprior')}")
        raise typer.Exit()
    return wanted


ShowVersion = Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Show it and exit.")]


@app.callback()
def options(
    version: ShowVersion = False,
) -> None:
    """Compress images with learned models, and hand such models on."""


@app.command()
def compress(
    images: Annotated[list[str], typer.Argument(help="Images in any format that Pillow reads; - is standard input.")],
    codec: CodecOption,
    output: Output = None,
    coder: EntropyCoder = CoderName.RANGE,
    force: Force = False,
    device: Device = "cpu",
    transforms: Transforms = Precision.FLOAT32,
    threads: Threads = 0,
) -> None:
    """Compress images: photo.jpg becomes photo.hyp.

    Images are turned as their EXIF orientation says and converted from their ICC profile to sRGB; transparency is
    blended onto white, 16 bits become 8. A decoded image is plain 8-bit sRGB.
    """
    jobs = plan(images, output, COMPRESSED_SUFFIX, force)
    opened = open_codec(codec, device, transforms, threads)
    from hyperprior.data.images import read_rgb

    def work(job: Job) -> str:
        pixels = read_rgb(BytesIO(job.read()))
        height, width = pixels.shape[:2]
        data = opened.compress(pixels, coder.value)
        job.write(data)
        return f"{width}x{height}  {len(data)} bytes  {8 * len(data) / (width * height):.3f} bpp"

    process(jobs, "compressing", work)


@app.command()
def decompress(
    files: Annotated[list[str], typer.Argument(help="Compressed files; - is standard input.")],
    codec: CodecOption,
    output: Output = None,
    image_format: Annotated[ImageFormat, typer.Option("--format", help="Format of the images.")] = ImageFormat.PNG,
    force: Force = False,
    device: Device = "cpu",
    transforms: Transforms = Precision.FLOAT32,
    threads: Threads = 0,
) -> None:
    """Decompress files: photo.hyp becomes photo.png."""
    jobs = plan(files, output, f".{image_format.value}", force)
    opened = open_codec(codec, device, transforms, threads)
    from PIL import Image

    def work(job: Job) -> str:
        pixels = opened.decompress(job.read())
        buffer = BytesIO()
        Image.fromarray(pixels).save(buffer, format=image_format.value)
        job.write(buffer.getvalue())
        return f"{pixels.shape[1]}x{pixels.shape[0]}"

    process(jobs, "decompressing", work)


@app.command()
def inspect(
    file: Annotated[Path, typer.Argument(help="A compressed file, or a codec.", show_default=False)],
    codec: Annotated[
        Path | None, typer.Option(envvar="HYPERPRIOR_CODEC", help="A codec: can it decode the file, and is it intact?")
    ] = None,
) -> None:
    """Show what is in a file or in a codec.

    Of a compressed file: sizes, where its bits are, and which codec it was made with.
    """
    job = Job(None if str(file) == "-" else file, None)
    if job.source is not None and (problem := missing(file)):
        refuse(problem)
    from hyperprior.coding.container import Container, FormatError

    data = job.read()
    if file.suffix == ".safetensors" or data[8:9] == b"{":  # where the header of such a file begins
        rows = describe(load(file), file)
    else:
        try:
            container = Container.from_bytes(data)
        except FormatError as error:
            typer.echo(f"error: {file}: {error}", err=True)
            raise typer.Exit(1) from None
        pixels = container.width * container.height
        parts = {"header": container.header_bytes, "z": len(container.z), "y": len(container.y)}
        rows = {
            "image": f"{container.width}x{container.height} pixels",
            "file": f"{len(data)} bytes, {8 * len(data) / pixels:.4f} bpp",
            **{part: f"{8 * size} bits, {100 * size / len(data):.2f} %" for part, size in parts.items()},
            "coder": container.coder,
            "codec": container.fingerprint.hex(),
        }
        if codec is not None:
            try:
                load(codec).decode(data)
                rows["content"] = f"intact, decodes with {codec}"
            except FormatError as error:
                rows["content"] = str(error)
    typer.echo(str(file))
    for name, value in rows.items():
        typer.echo(f"  {name:9}{value}")
    if rows.get("content", "intact").partition(",")[0] != "intact":
        raise typer.Exit(1)


@app.command()
def evaluate(
    folder: Annotated[Path, typer.Argument(help="A folder of images, searched at any depth.", show_default=False)],
    codec: CodecOption,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Folder to keep results.csv, the files and the decoded images in."),
    ] = None,
    force: Force = False,
    device: Device = "cpu",
    transforms: Transforms = Precision.FLOAT32,
    threads: Threads = 0,
) -> None:
    """Measure a codec on a folder of images.

    Every image (PNG, JPEG, WebP, BMP, TIFF, PPM) is coded into a file and decoded from it: bpp, PSNR, MS-SSIM, times.
    """
    if output is not None:
        if problem := unwritable(output / "results.csv"):
            refuse(problem)
        there = [output / name for name in ("results.csv", "bitstreams", "reconstructions")]
        if (present := [path for path in there if path.exists()]) and not force:
            refuse(*(f"{path} exists; --force overwrites it" for path in present))
        if output.resolve().is_relative_to(folder.resolve()):
            refuse(f"{output} lies inside {folder}: next time its decoded images would be measured too")
    opened = open_codec(codec, device, transforms, threads)
    from rich.console import Console

    from hyperprior.data.images import NoImagesError
    from hyperprior.data.test_sets import images_below
    from hyperprior.evaluation.evaluate import write_csv
    from hyperprior.evaluation.progress import evaluate_with_progress
    from hyperprior.evaluation.summary import results_table

    with warnings.catch_warnings(record=True) as skipped:
        warnings.simplefilter("always")
        try:
            images = images_below(folder, smallest_side=1)
        except NoImagesError as error:
            refuse(f"{folder} is a file and not a folder" if folder.is_file() else str(error))
    for warning in skipped:
        typer.echo(f"error: {warning.message}", err=True)
    with tempfile.TemporaryDirectory() as temporary:
        try:
            records = evaluate_with_progress(opened, images, output or Path(temporary), show=sys.stderr.isatty())
        except (OSError, RuntimeError, ValueError) as error:
            typer.echo(f"error: {str(error).partition(chr(10))[0]}", err=True)
            raise typer.Exit(1) from None
    if output is not None:
        write_csv(records, output / "results.csv")
    Console().print(results_table(records, f"{codec.name} on {folder}"))
    if output is not None:
        typer.echo(f"results in {output}")
    if skipped:
        raise typer.Exit(1)


@app.command()
def export(
    checkpoint: Annotated[Path, typer.Argument(help="A run's checkpoints/last.ckpt.", show_default=False)],
    output: OutputFile,
    weights: Weights = Precision.FLOAT32,
    force: Force = False,
) -> None:
    """Freeze a training checkpoint into a codec file."""
    check_new(output, checkpoint, force)
    from hyperprior.training.checkpoint import CheckpointError, load_checkpoint
    from hyperprior.training.config import portable

    try:
        loaded = load_checkpoint(checkpoint)
    except CheckpointError as error:
        refuse(str(error))
    save_codec(loaded.model, output, weights, {**portable(loaded.config), "step": loaded.step})


@app.command()
def import_compressai(
    state_dict: Annotated[Path, typer.Argument(help="What torch.save wrote of its state dict.", show_default=False)],
    output: OutputFile,
    weights: Weights = Precision.FLOAT32,
    force: Force = False,
) -> None:
    """Make a codec of CompressAI's weights.

    Of its models bmshj2018-factorized and bmshj2018-hyperprior.
    """
    check_new(output, state_dict, force)
    if problem := missing(state_dict):
        refuse(problem)
    import pickle

    import torch

    from hyperprior.models.compressai import ForeignWeightsError, from_compressai

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's, on files that are not its own
            stored = torch.load(state_dict, map_location="cpu", weights_only=True)
        if not isinstance(stored, dict):
            raise ForeignWeightsError(f"it holds a {type(stored).__name__} and no state dict")
        model = from_compressai(stored)
    except ForeignWeightsError as error:
        refuse(f"{state_dict}: {error}")
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError):
        refuse(f"{state_dict} is not a file of tensors that torch.save wrote")
    save_codec(model, output, weights, {"source": "CompressAI"})


def main() -> None:
    """The console script."""
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(130)
    except OSError as error:  # of standard output: full, or closed
        print(f"error: {error.strerror}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
