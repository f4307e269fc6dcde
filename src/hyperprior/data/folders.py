"""Training crops from a folder of photographs, with the paper's randomized downsampling (section 4.1)."""

import math
import warnings
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from PIL import Image
from torch import Tensor

from hyperprior.data.images import DAMAGE, NoImagesError, SkippedImage, find_images, to_rgb

SHORTER_SIDE = (640, 1200)  # pixels, after downsampling


class FolderImages:
    """Random crops of `patch_size` x `patch_size` pixels from the images below a folder, without end.

    Each epoch goes through all images once, in an order of its own. An image is first made smaller, so that its
    shorter side is drawn uniformly from 640 to 1200 pixels; never larger: one whose shorter side is at 640 or below
    keeps its size. Crop i is a pure function of (seed, i) and of the files.

    Decoding takes longer than cropping, so up to `cache_mib` MiB of decoded images are kept by each process that
    asks for crops: of those with a shorter side of 1200 pixels or less, which are always decoded whole.

    Images that cannot be read or are smaller than the crop are skipped with a warning; raises NoImagesError if none is
    left.
    """

    def __init__(self, root: Path, patch_size: int, seed: int, cache_mib: int = 0) -> None:
        self.paths = find_images(root, patch_size)
        self.patch_size = patch_size
        self.seed = seed
        self._free_bytes = cache_mib << 20
        self._decoded: dict[Path, Image.Image] = {}
        self._epoch, self._order = -1, np.arange(0)

    def _order_of(self, epoch: int) -> Int64[np.ndarray, "images"]:
        if epoch != self._epoch:
            order = np.random.default_rng([self.seed, 0, epoch]).permutation(len(self.paths))
            self._epoch, self._order = epoch, order
        return self._order

    def _crop(self, path: Path, rng: np.random.Generator) -> UInt8[Tensor, "3 P P"]:
        if path in self._decoded:
            return random_crop(self._decoded[path], self.patch_size, rng)
        with Image.open(path) as image:
            width, height = image.size
            size = 4 * width * height  # Pillow keeps RGB in four bytes a pixel
            # No eviction: crops come in random order, so that any image is as likely to be asked for as another.
            if min(width, height) <= SHORTER_SIDE[1] and size <= self._free_bytes:
                self._decoded[path] = to_rgb(image)
                self._free_bytes -= size
                return random_crop(self._decoded[path], self.patch_size, rng)
            return random_crop(image, self.patch_size, rng)

    def __getitem__(self, index: int) -> UInt8[Tensor, "3 P P"]:
        epoch, position = divmod(index, len(self.paths))
        order = self._order_of(epoch)
        # A file can have a whole header and a damaged body: the next one in the order takes its place.
        for attempt in range(len(order)):
            path = self.paths[order[(position + attempt) % len(order)]]
            try:
                return self._crop(path, np.random.default_rng([self.seed, 1, index]))
            except DAMAGE as error:
                warnings.warn(f"skipped {path}: damaged ({error})", SkippedImage, stacklevel=2)
        raise NoImagesError("every image of the training set is damaged")


def shorter_side_after(side: int, patch_size: int, rng: np.random.Generator) -> float:
    """The shorter side, in pixels, that an image is downsampled to: U(640, 1200), at least the crop's, at most `side`.

    An image at or below the lower limit keeps its size.
    """
    low = max(SHORTER_SIDE[0], patch_size)
    if side <= low:
        return float(side)
    return float(rng.uniform(low, max(low, min(SHORTER_SIDE[1], side))))


def random_crop(image: Image.Image, patch_size: int, rng: np.random.Generator) -> UInt8[Tensor, "3 P P"]:
    """One downsampled crop of an image, decoded or just opened. Raises one of DAMAGE if its file is damaged."""
    width, height = image.size
    target = shorter_side_after(min(width, height), patch_size, rng)
    scale = target / min(width, height)
    # A JPEG can be decoded at 1/2, 1/4 or 1/8 of its size, in less time; never below the wanted one.
    image.draft("RGB", (math.ceil(width * scale), math.ceil(height * scale)))
    width, height = image.size
    source = patch_size * min(width, height) / target  # side of the crop in the decoded image
    left, top = rng.uniform(0, width - source), rng.uniform(0, height - source)
    rgb = to_rgb(image)
    if source == patch_size:  # no change of scale: whole pixels, no resampling
        box = (round(left), round(top), round(left) + patch_size, round(top) + patch_size)
        crop = rgb.crop(box)
    else:
        size = (patch_size, patch_size)
        crop = rgb.resize(size, Image.Resampling.LANCZOS, box=(left, top, left + source, top + source))
    return torch.tensor(np.asarray(crop)).permute(2, 0, 1)
