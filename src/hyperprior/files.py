"""Files that are either whole or not there."""

import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path

COMPRESSED_SUFFIX = ".hyp"


def put_in_place(aside: Path, target: Path) -> None:
    """Renames a written file to its place, once its content is on the disk and would survive a loss of power."""
    with aside.open("rb") as written:
        os.fsync(written.fileno())
    os.replace(aside, target)


@contextmanager
def write_aside(path: str | PathLike[str]) -> Iterator[Path]:
    """Gives a temporary path beside `path` to write to, and renames it to `path` when the block ends without error.

    The rename is atomic: another process sees the old file or the new one. After an error, or a crash, `path` is as it
    was. Folders above it are made.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    # Short, as the longest name that the file system takes may be the target's own.
    aside = target.with_name(f".{os.getpid()}-{zlib.crc32(os.fsencode(target.name)):08x}.tmp")
    try:
        yield aside
        put_in_place(aside, target)
    finally:
        aside.unlink(missing_ok=True)
