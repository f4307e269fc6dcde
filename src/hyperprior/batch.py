"""Many files through one command: all is checked before anything is done, and then each file is on its own."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, NoReturn

import typer

from hyperprior.files import COMPRESSED_SUFFIX, write_aside

SHOWN_PROBLEMS = 10


class UnwritableError(Exception):
    """A result could not be put in place."""


class Job(NamedTuple):
    """One file in, one file out; None is standard input and standard output."""

    source: Path | None
    target: Path | None
    force: bool = False

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
        try:
            if self.target.exists() and not self.force:  # since the command began
                raise UnwritableError(f"{self.target} exists; --force overwrites it")
            with write_aside(self.target) as aside:
                aside.write_bytes(data)
        except OSError as error:
            raise UnwritableError(f"{self.target} cannot be written: {error.strerror}") from error


def refuse(*problems: str) -> NoReturn:
    """Ends the command before its work, with a line for each problem."""
    for problem in problems[:SHOWN_PROBLEMS]:
        typer.echo(f"error: {problem}", err=True)
    if len(problems) > SHOWN_PROBLEMS:
        typer.echo(f"error: and {len(problems) - SHOWN_PROBLEMS} more like these", err=True)
    raise typer.Exit(2)


def missing(path: Path) -> str | None:
    """What is wrong with a file to read, if anything."""
    try:
        if path.is_dir():
            return f"{path} is a folder"
        return None if path.exists() else f"no file at {path}"
    except OSError as error:
        return f"{path}: {error.strerror}"


def unwritable(target: Path) -> str | None:
    """What is wrong with a place to write to, if anything."""
    try:
        if target.is_dir():
            return f"{target} is a folder"
        above = next(folder for folder in target.parents if folder.exists())
    except OSError as error:
        return f"{target}: {error.strerror}"
    if not above.is_dir():
        return f"{above} is a file and not a folder"
    return None if os.access(above, os.W_OK | os.X_OK) else f"nothing can be written to {above}"


def plan(sources: list[str], output: Path | None, suffix: str, force: bool) -> list[Job]:
    """What becomes what; ends the command if anything stands against it."""
    if "-" in sources:
        if len(sources) > 1 or output is not None:
            refuse("- (standard input) goes to standard output: it takes no other file and no --output")
        if sys.stdin is None or sys.stdout is None:
            refuse("standard input or standard output is closed")
        if sys.stdout.isatty():
            refuse("the result is no text: send it to a file, as in `hyperprior ... - < in > out`")
        return [Job(None, None)]
    problems = []
    jobs: dict[Path, Job] = {}
    for source in map(Path, sources):
        target = (output or source.parent) / (source.stem + suffix)
        place = target.parent.resolve() / target.name
        if os.path.isdir(source):  # Path's own raises where a folder may not be searched
            problems.append(f"{source} is a folder: name the files in it, as in {source}/*")
        elif problem := missing(source):
            problems.append(problem)
        elif suffix == COMPRESSED_SUFFIX and source.suffix == COMPRESSED_SUFFIX:
            problems.append(f"{source} is compressed already")
        elif place in jobs:
            problems.append(f"{jobs[place].source} and {source} would both become {target}")
        elif problem := unwritable(target):
            problems.append(problem)
        elif target.exists() and target.samefile(source):
            problems.append(f"{source} would be overwritten by its own result")
        elif target.exists() and not force:
            problems.append(f"{target} exists; --force overwrites it")
        else:
            jobs[place] = Job(source, target, force)
    if problems:
        refuse(*dict.fromkeys(problems))
    return list(jobs.values())


def process(jobs: list[Job], what: str, work: Callable[[Job], str]) -> None:
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
            except UnwritableError as error:
                reason = str(error)
            except UnidentifiedImageError:
                reason = f"{job.name}: not an image in a format that Pillow reads"
            except (*DAMAGE, MemoryError, RuntimeError) as error:  # RuntimeError: torch's, out of memory for one
                reason = f"{job.name}: {str(error).partition(chr(10))[0] or type(error).__name__}"
            else:
                if job.target is not None:
                    _tell(f"{job.name} -> {job.target}  {line}")
                continue
            failed += 1
            typer.echo(f"error: {reason}", err=True)
    if failed:
        if len(jobs) > 1:
            typer.echo(f"error: {failed} of {len(jobs)} files could not be processed", err=True)
        raise typer.Exit(1)


def _tell(line: str) -> None:
    """A line to standard output; that nobody reads it is no reason to stop."""
    try:
        typer.echo(line)
    except OSError:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (for the rest of the process)
