"""`hyperprior`: the command line for people who have images, or a trained model to hand on.

Every command checks all that it was given before it does or overwrites anything. Results go to standard output, errors
to standard error, one line each. Exit status: 0 if all is done, 1 if some files could not be processed (the others are
done), 2 if the command could not begin.

torch is imported by the functions that need it, so that `--help` and mistakes answer at once.
"""

import sys
import tempfile
from collections.abc import Callable
from enum import StrEnum
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, NoReturn

import typer

from hyperprior.files import COMPRESSED_SUFFIX, write_aside

if TYPE_CHECKING:
    from hyperprior.coding.codec import Codec

SHOWN_PROBLEMS = 10

app = typer.Typer(
    help="Compress images with learned models, and hand such models on.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


class CoderName(StrEnum):
    """Entropy coders."""

    RANGE = "range"
    BINARY = "binary"


class Precision(StrEnum):
    """Precision of transforms, or of their stored weights."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"


class ImageFormat(StrEnum):
    """What a decoded image is written as: formats that lose nothing."""

    PNG = "png"
    TIFF = "tiff"
    BMP = "bmp"
    PPM = "ppm"


class Job(NamedTuple):
    """One file in, one file out; None is standard input and standard output."""

    source: Path | None
    target: Path | None

    @property
    def name(self) -> str:
        """What to call it in a message."""
        return "-" if self.source is None else str(self.source)

    def read(self) -> bytes:
        """The content of the source."""
        return sys.stdin.buffer.read() if self.source is None else self.source.read_bytes()

    def write(self, data: bytes) -> None:
        """Puts the result in place, whole or not at all."""
        if self.target is None:
            sys.stdout.buffer.write(data)
            sys.stdout.buffer.flush()
            return
        with write_aside(self.target) as aside:
            aside.write_bytes(data)


CodecOption = Annotated[
    Path, typer.Option("--codec", envvar="HYPERPRIOR_CODEC", help="The codec file (.safetensors).", show_default=False)
]
Output = Annotated[
    Path | None, typer.Option("--output", "-o", help="Folder for the results; default: beside each input.")
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
    jobs = _plan(images, output, COMPRESSED_SUFFIX, force)
    opened = _open_codec(codec, device, transforms, threads)
    from PIL import Image

    from hyperprior.coding.container import MAXIMUM_POSITIONS
    from hyperprior.data.images import read_rgb
    from hyperprior.models.compression import STRIDE_Y

    # Pillow's own limit, against images that are made to exhaust memory, is below ours.
    Image.MAX_IMAGE_PIXELS = MAXIMUM_POSITIONS * STRIDE_Y**2

    def work(job: Job) -> str:
        pixels = read_rgb(BytesIO(job.read()))
        height, width = pixels.shape[:2]
        data = opened.compress(pixels, coder.value)
        job.write(data)
        return f"{width}x{height}  {len(data)} bytes  {8 * len(data) / (width * height):.3f} bpp"

    _process(jobs, "compressing", work)


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
    jobs = _plan(files, output, f".{image_format.value}", force)
    opened = _open_codec(codec, device, transforms, threads)
    from PIL import Image

    def work(job: Job) -> str:
        pixels = opened.decompress(job.read())
        buffer = BytesIO()
        Image.fromarray(pixels).save(buffer, format=image_format.value)
        job.write(buffer.getvalue())
        return f"{pixels.shape[1]}x{pixels.shape[0]}"

    _process(jobs, "decompressing", work)


@app.command()
def inspect(
    file: Annotated[Path, typer.Argument(help="A compressed file, or a codec.", show_default=False)],
    codec: Annotated[
        Path | None, typer.Option(envvar="HYPERPRIOR_CODEC", help="A codec: can it decode the file, and is it intact?")
    ] = None,
) -> None:
    """Show what is in a compressed file, or in a codec: sizes, where the bits are, which codec."""
    if not file.is_file():
        _refuse(f"no file at {file}")
    from hyperprior.coding.codec import Codec
    from hyperprior.coding.container import Container, FormatError

    if file.suffix == ".safetensors":
        rows = _describe_codec(_load(Codec.load, file), file)
    else:
        data = file.read_bytes()
        try:
            container = Container.from_bytes(data)
        except FormatError as error:
            _refuse(f"{file}: {error}")
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
                _load(Codec.load, codec).decode(data)
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
    """Measure a codec on a folder of images with real files: bpp, PSNR, MS-SSIM and times of each."""
    if output is not None and (output / "results.csv").exists() and not force:
        _refuse(f"{output / 'results.csv'} exists; --force overwrites it")
    opened = _open_codec(codec, device, transforms, threads)
    from rich.console import Console

    from hyperprior.data.images import NoImagesError
    from hyperprior.data.test_sets import images_below
    from hyperprior.evaluation.evaluate import write_csv
    from hyperprior.evaluation.progress import evaluate_with_progress
    from hyperprior.evaluation.summary import results_table

    try:
        images = images_below(folder, smallest_side=1)
    except NoImagesError as error:
        _refuse(str(error))
    with tempfile.TemporaryDirectory() as temporary:
        records = evaluate_with_progress(opened, images, output or Path(temporary), show=sys.stderr.isatty())
    if output is not None:
        write_csv(records, output / "results.csv")
    Console().print(results_table(records, f"{codec.name} on {folder}"))
    if output is not None:
        typer.echo(f"results in {output}")


@app.command()
def export(
    checkpoint: Annotated[Path, typer.Argument(help="A run's checkpoints/last.ckpt.", show_default=False)],
    output: OutputFile,
    weights: Weights = Precision.FLOAT32,
    force: Force = False,
) -> None:
    """Freeze a training checkpoint into a codec file."""
    _check_new(output, force)
    from hyperprior.training.checkpoint import CheckpointError, load_checkpoint
    from hyperprior.training.config import portable

    try:
        loaded = load_checkpoint(checkpoint)
    except CheckpointError as error:
        _refuse(str(error))
    _save_codec(loaded.model, output, weights, {**portable(loaded.config), "step": loaded.step})


@app.command()
def import_compressai(
    state_dict: Annotated[Path, typer.Argument(help="What torch.save wrote of its state dict.", show_default=False)],
    output: OutputFile,
    weights: Weights = Precision.FLOAT32,
    force: Force = False,
) -> None:
    """Make a codec of CompressAI's weights: bmshj2018-factorized or bmshj2018-hyperprior."""
    _check_new(output, force)
    if not state_dict.is_file():
        _refuse(f"no file at {state_dict}")
    import pickle

    import torch

    from hyperprior.models.compressai import ForeignWeightsError, from_compressai

    try:
        stored = torch.load(state_dict, map_location="cpu", weights_only=True)
        if not isinstance(stored, dict):
            raise ForeignWeightsError(f"it holds a {type(stored).__name__} and no state dict")
        model = from_compressai(stored)
    except ForeignWeightsError as error:
        _refuse(f"{state_dict}: {error}")
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError):
        _refuse(f"{state_dict} is not a file of tensors that torch.save wrote")
    _save_codec(model, output, weights, {"source": "CompressAI"})


def _refuse(*problems: str) -> NoReturn:
    """Ends the command before its work, with a line for each problem."""
    for problem in problems[:SHOWN_PROBLEMS]:
        typer.echo(f"error: {problem}", err=True)
    if len(problems) > SHOWN_PROBLEMS:
        typer.echo(f"error: and {len(problems) - SHOWN_PROBLEMS} more like these", err=True)
    raise typer.Exit(2)


def _plan(sources: list[str], output: Path | None, suffix: str, force: bool) -> list[Job]:
    """What becomes what; ends the command if anything stands against it."""
    if "-" in sources:
        if len(sources) > 1 or output is not None:
            _refuse("- (standard input) goes to standard output: it takes no other file and no --output")
        if sys.stdout.isatty():
            _refuse("the result is no text: send it to a file, as in `hyperprior ... - < in > out`")
        return [Job(None, None)]
    problems = []
    if output is not None and output.exists() and not output.is_dir():
        problems.append(f"{output} is a file and not a folder")
    jobs: dict[Path, Job] = {}
    for source in map(Path, sources):
        target = (output or source.parent) / (source.stem + suffix)
        if source.is_dir():
            problems.append(f"{source} is a folder: name the files in it, as in {source}/*")
        elif not source.is_file():
            problems.append(f"no file at {source}")
        elif target in jobs:
            problems.append(f"{jobs[target].source} and {source} would both become {target}")
        elif target.exists() and target.samefile(source):
            problems.append(f"{source} would be overwritten by its own result")
        elif target.exists() and not force:
            problems.append(f"{target} exists; --force overwrites it")
        jobs.setdefault(target, Job(source, target))
    if problems:
        _refuse(*problems)
    return list(jobs.values())


def _process(jobs: list[Job], what: str, work: Callable[[Job], str]) -> None:
    """Does each job and prints a line on it; a file that cannot be processed costs a line and the exit status."""
    from PIL import UnidentifiedImageError
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from hyperprior.data.images import DAMAGE

    console = Console(stderr=True)
    failed = 0
    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=len(jobs) == 1 or not console.is_terminal) as bar:
        for job in bar.track(jobs):
            try:
                line = work(job)
                if job.target is not None:
                    typer.echo(f"{job.name} -> {job.target}  {line}")
            except BrokenPipeError:
                raise typer.Exit(1) from None
            except UnidentifiedImageError:
                failed += 1
                typer.echo(f"error: {job.name}: not an image in a format that Pillow reads", err=True)
            except (*DAMAGE, MemoryError) as error:
                failed += 1
                reason = str(error).partition("\n")[0] or type(error).__name__
                typer.echo(f"error: {job.name}: {reason}", err=True)
    if failed:
        if len(jobs) > 1:
            typer.echo(f"error: {failed} of {len(jobs)} files could not be processed", err=True)
        raise typer.Exit(1)


def _open_codec(path: Path, device: str, transforms: Precision, threads: int) -> "Codec":
    import torch

    from hyperprior.allocator import keep_freed_memory
    from hyperprior.coding.codec import Codec

    keep_freed_memory()
    if threads:
        torch.set_num_threads(threads)
    codec = _load(Codec.load, path)
    if device.startswith("cuda") and not torch.cuda.is_available():
        _refuse("there is no CUDA device here; --device cpu works everywhere")
    try:
        return codec.to(device, _dtype(transforms))
    except (RuntimeError, AssertionError) as error:
        _refuse(f"--device {device}: {str(error).partition(chr(10))[0]}")


def _load(load: "Callable[[Path], Codec]", path: Path) -> "Codec":
    try:
        return load(path)
    except (OSError, ValueError) as error:
        _refuse(str(error))


def _dtype(precision: Precision) -> Any:
    import torch

    return {Precision.FLOAT32: torch.float32, Precision.BFLOAT16: torch.bfloat16}[precision]


def _check_new(target: Path, force: bool) -> None:
    if target.is_dir():
        _refuse(f"{target} is a folder; name the file to write")
    if target.exists() and not force:
        _refuse(f"{target} exists; --force overwrites it")


def _save_codec(model: Any, output: Path, weights: Precision, config: dict[str, Any]) -> None:
    from hyperprior.coding.codec import Codec
    from hyperprior.coding.fixed_point import FixedPointError

    try:
        codec = Codec.from_model(model, _dtype(weights), config)
    except FixedPointError as error:
        _refuse(str(error))
    codec.save(output, _dtype(weights))
    typer.echo(f"{output}  {output.stat().st_size} bytes  codec {codec.fingerprint.hex()}")


def _describe_codec(codec: "Codec", path: Path) -> dict[str, str]:
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


def main() -> None:
    """The console script."""
    app()


if __name__ == "__main__":
    main()
