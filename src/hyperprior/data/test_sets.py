"""Test images: where they are, that they are the right ones, and what they are called."""

import hashlib
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import numpy as np
import pooch
from jaxtyping import UInt8

from hyperprior.data.images import DAMAGE, NoImagesError, SkippedImage, find_images, read_rgb

# Five-scale MS-SSIM with its 11 x 11 window is defined from 161 pixels on.
SMALLEST_SIDE = 161
KODAK_URL = "http://r0k.us/graphics/kodak/kodak/"
# Colour photographs in scikit-image's wheel.
SAMPLES = ("astronaut.png", "chelsea.png", "coffee.png", "motorcycle_left.png", "rocket.jpg")


@dataclass(frozen=True)
class TestImage:
    """An image of a test set: a name that is unique in the set, without suffix, and its file."""

    __test__ = False  # not a test case

    name: str
    path: Path

    def read(self) -> UInt8[np.ndarray, "H W 3"]:
        """The image as 8-bit RGB."""
        return read_rgb(self.path)


def samples(root: Path | None = None, url: str | None = None) -> list[TestImage]:
    """Five photographs that ship inside scikit-image."""
    folder = resources.files("skimage") / "data"
    return [TestImage(Path(name).stem, Path(str(folder / name))) for name in SAMPLES]


def kodak(root: Path | None = None, url: str | None = None) -> list[TestImage]:
    """The 24 Kodak images, each checked by SHA-256.

    Found under `root` (default: the user's cache), or else downloaded there from `url`. Raises NoImagesError if an
    image is not the published one or cannot be had.
    """
    folder = root or Path(pooch.os_cache("hyperprior")) / "kodak"
    images = []
    for name, expected in kodak_sums().items():
        path = folder / name
        if path.is_file():
            found = hashlib.sha256(path.read_bytes()).hexdigest()
            if found != expected:
                raise NoImagesError(f"{path} is not the published Kodak image: SHA-256 {found}, expected {expected}")
        else:
            source = (url or KODAK_URL).rstrip("/") + "/" + name
            try:  # pooch downloads aside, checks and renames
                pooch.retrieve(source, known_hash=f"sha256:{expected}", fname=name, path=folder)
            except (OSError, ValueError) as error:
                raise NoImagesError(
                    f"{name} is not in {folder} and could not be had from {source} "
                    f"({error}); put the Kodak images in a folder and name it with test_set.root=DIR"
                ) from error
        images.append(TestImage(path.stem, path))
    return images


def kodak_sums() -> dict[str, str]:
    """SHA-256 of each Kodak image by file name."""
    lines = (resources.files("hyperprior.data") / "kodak.sha256").read_text().splitlines()
    return {name: digest for digest, name in (line.split() for line in lines)}


def folder(root: Path | None = None, url: str | None = None) -> list[TestImage]:
    """All images below `root` of 161 pixels or more on a side, as `images_below` finds them.

    Raises NoImagesError if `root` is not given or has none.
    """
    if root is None:
        raise NoImagesError("test_set=folder needs test_set.root=DIR")
    return images_below(root, SMALLEST_SIDE)


def images_below(root: Path, smallest_side: int) -> list[TestImage]:
    """All images below `root`, named by their path in it; smaller and broken ones are skipped with a warning.

    Raises NoImagesError if none is left.
    """
    images = []
    taken: set[str] = set()
    for path in find_images(root, smallest_side):
        try:  # a whole header does not make a whole image, and training is long
            read_rgb(path)
        except DAMAGE as error:
            warnings.warn(f"skipped {path}: damaged ({error})", SkippedImage, stacklevel=2)
            continue
        relative = path.relative_to(root)
        name = "__".join(relative.with_suffix("").parts)
        if name in taken:  # the same name with another suffix
            name = "__".join(relative.parts)
        taken.add(name)
        images.append(TestImage(name, path))
    if not images:
        raise NoImagesError(f"every image below {root} is damaged")
    return images


TEST_SETS: dict[str, Callable[[Path | None, str | None], list[TestImage]]] = {
    "samples": samples,
    "kodak": kodak,
    "folder": folder,
}
