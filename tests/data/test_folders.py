import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats

from hyperprior.data.folders import FolderImages, random_crop, shorter_side_after
from hyperprior.data.images import NoImagesError, SkippedImage, find_images, read_rgb
from tests.conftest import leaves


@pytest.fixture
def folder(tmp_path):
    for index, (height, width) in enumerate([(80, 100), (90, 64), (120, 70)]):
        path = tmp_path / f"set{index % 2}" / f"image{index}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(leaves(height, width, seed=index)).save(path)
    return tmp_path


def test_every_epoch_shows_each_image_once_in_an_order_of_its_own(folder):
    images = FolderImages(folder, 64, seed=0)
    orders = {tuple(images._order_of(epoch)) for epoch in range(12)}
    assert len(orders) > 3
    assert all(sorted(order) == [0, 1, 2] for order in orders)


def test_a_crop_is_a_pure_function_of_seed_and_index_with_and_without_the_cache(folder):
    plain, cached, none_left = (FolderImages(folder, 64, seed=5, cache_mib=mib) for mib in (0, 1, 0))
    for index in (7, 0, 1, 2, 7, 30, 1):
        assert torch.equal(plain[index], cached[index])
        assert torch.equal(plain[index], none_left[index])
    assert len(cached._decoded) == 3
    assert not plain._decoded
    assert not torch.equal(plain[7], FolderImages(folder, 64, seed=6)[7])


def test_a_small_image_is_cropped_but_not_resampled(tmp_path):
    pixels = leaves(100, 90)
    path = tmp_path / "a.png"
    Image.fromarray(pixels).save(path)
    crop = FolderImages(tmp_path, 64, seed=0)[0].permute(1, 2, 0).numpy()
    places = [
        (top, left)
        for top in range(37)
        for left in range(27)
        if np.array_equal(pixels[top : top + 64, left : left + 64], crop)
    ]
    assert len(places) == 1


@pytest.mark.parametrize(
    ("side", "low", "high"), [(3000, 640, 1200), (800, 640, 800), (640, 640, 640), (300, 300, 300)]
)
def test_the_shorter_side_is_uniform_from_640_to_1200_and_never_grows(side, low, high):
    rng = np.random.default_rng(0)
    drawn = np.array([shorter_side_after(side, 256, rng) for _ in range(2000)])
    assert drawn.min() >= low
    assert drawn.max() <= high
    if high > low:
        assert stats.kstest(drawn, stats.uniform(low, high - low).cdf).pvalue > 1e-3
    else:
        assert (drawn == low).all()


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_a_downsampled_crop_is_part_of_the_downsampled_image(tmp_path, suffix):
    """Its pixels are those of the whole image resized and cropped; a JPEG's, decoded at a lower scale, nearly."""
    size = 2000
    ramp = np.linspace(20, 230, size)
    pixels = np.stack([np.broadcast_to(ramp[:, None], (size, size)), np.broadcast_to(ramp, (size, size))], axis=-1)
    pixels = np.concatenate([pixels, np.full((size, size, 1), 128.0)], axis=-1).round().astype(np.uint8)
    path = tmp_path / f"ramp.{suffix}"
    Image.fromarray(pixels).save(path, quality=95)
    rng = np.random.default_rng(4)
    target = shorter_side_after(size, 256, np.random.default_rng(4))
    with Image.open(path) as image:
        crop = random_crop(image, 256, rng).float()
    # Down the crop, the first channel climbs by the ramp's slope over `target` rows; the second does along its rows.
    slope = (230 - 20) / target
    assert (crop[0, -1].mean() - crop[0, 0].mean()).item() / 255 == pytest.approx(slope, rel=0.03)
    assert (crop[1, :, -1].mean() - crop[1, :, 0].mean()).item() / 255 == pytest.approx(slope, rel=0.03)
    assert crop[0].std(dim=1).max() < 1.5


def test_broken_and_tiny_images_are_skipped_and_named(folder):
    (folder / "broken.png").write_bytes(b"not an image")
    (folder / "broken.ppm").write_bytes(b"P6 12x 10 255 ")  # Pillow says ValueError, where others are OSErrors
    Image.fromarray(leaves(20, 20)).save(folder / "tiny.png")
    with pytest.warns(SkippedImage) as caught:
        paths = find_images(folder, 64)
    assert len(paths) == 3
    said = [str(warning.message) for warning in caught]
    assert any("broken.png: not a readable image" in line for line in said)
    assert any("tiny.png: 20x20 is below 64 pixels" in line for line in said)


@pytest.mark.parametrize("damage", ["cut short", "a broken chunk"])
def test_a_damaged_body_is_replaced_by_the_next_image(folder, damage):
    path = next(folder.rglob("image0.png"))
    content = path.read_bytes()
    chunk = content.index(b"IDAT")
    cut, broken = content[:2000], content[:chunk] + b"\0\1\2\3" + content[chunk + 4 :]
    path.write_bytes(cut if damage == "cut short" else broken)
    with pytest.warns(SkippedImage, match=r"image0\.png: (damaged|not a readable image)"):
        images = FolderImages(folder, 64, seed=0)
        crops = [images[index] for index in range(6)]
    assert all(crop.shape == (3, 64, 64) for crop in crops)


def test_an_empty_or_missing_folder_is_an_error(tmp_path):
    with pytest.raises(NoImagesError, match="no folder at"):
        FolderImages(tmp_path / "missing", 64, seed=0)
    with pytest.raises(NoImagesError, match="no image of 64 pixels"):
        FolderImages(tmp_path, 64, seed=0)


def test_grey_alpha_deep_and_turned_images_become_rgb(tmp_path):
    grey = Image.fromarray(leaves(20, 30)).convert("L")
    grey.save(tmp_path / "grey.png")
    assert read_rgb(tmp_path / "grey.png").shape == (20, 30, 3)
    Image.fromarray(leaves(20, 30)).convert("RGBA").save(tmp_path / "alpha.png")
    assert read_rgb(tmp_path / "alpha.png").shape == (20, 30, 3)
    ramp = np.linspace(0, 65535, 256).round().astype(np.uint16).reshape(16, 16)
    Image.fromarray(ramp).save(tmp_path / "deep.png")
    np.testing.assert_array_equal(read_rgb(tmp_path / "deep.png")[..., 1].ravel(), np.arange(256))
    Image.fromarray(ramp.astype(np.float32)).save(tmp_path / "float.tiff")
    with pytest.raises(ValueError, match="floating-point"):
        read_rgb(tmp_path / "float.tiff")
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    Image.fromarray(leaves(20, 30)).save(tmp_path / "turned.jpg", exif=exif)
    assert read_rgb(tmp_path / "turned.jpg").shape == (30, 20, 3)
