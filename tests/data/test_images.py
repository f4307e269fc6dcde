from io import BytesIO

import numpy as np
import pytest
from PIL import Image, ImageCms

from hyperprior.data.images import DAMAGE, read_rgb
from tests.conftest import leaves


def stored(image: Image.Image, suffix: str = "PNG", **options) -> BytesIO:
    buffer = BytesIO()
    image.save(buffer, format=suffix, **options)
    buffer.seek(0)
    return buffer


def test_exif_orientation_is_applied():
    pixels = leaves(20, 30)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    turned = read_rgb(stored(Image.fromarray(pixels), exif=exif))
    np.testing.assert_array_equal(turned, np.rot90(pixels, -1))


def test_transparency_is_blended_onto_white():
    pixels = np.zeros((1, 3, 4), np.uint8)
    pixels[0, :, 0] = 200
    pixels[0, :, 3] = (0, 51, 255)  # invisible, a fifth, opaque
    found = read_rgb(stored(Image.fromarray(pixels, "RGBA")))
    np.testing.assert_array_equal(found[0], [[255, 255, 255], [244, 204, 204], [200, 0, 0]])


@pytest.mark.parametrize("mode", ["LA", "PA", "P"])
def test_every_kind_of_transparency_is(mode):
    image = Image.new("RGBA", (4, 4), (0, 0, 0, 0))
    options = {}
    if mode == "P":
        image, options = Image.new("P", (4, 4), 0), {"transparency": 0}
    elif mode == "PA":
        image = image.convert("RGBA")
    else:
        image = image.convert("LA")
    assert (read_rgb(stored(image, **options)) == 255).all()


def test_sixteen_bit_grey_is_scaled():
    levels = np.array([[0, 128, 129, 32896, 65535]], dtype=np.uint16)
    found = read_rgb(stored(Image.fromarray(levels)))
    assert found[0, :, 0].tolist() == [0, 0, 1, 128, 255]
    assert (found == found[..., :1]).all()


def test_sixteen_bit_grey_with_a_gamma_profile_does_not_fail():
    levels = np.full((3, 3), 65535, dtype=np.uint16)
    assert (read_rgb(stored(Image.fromarray(levels), icc_profile=b"no profile at all")) == 255).all()


def test_colours_are_converted_from_their_profile_to_srgb():
    """The profile of a display on which red and green are exchanged: sRGB's with the two primaries' tags renamed."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    exchanged = profile.replace(b"rXYZ", b"????").replace(b"gXYZ", b"rXYZ").replace(b"????", b"gXYZ")
    exchanged = exchanged.replace("sRGB".encode("utf-16-be"), "RG-x".encode("utf-16-be"))
    pixels = leaves(8, 8)
    expected = pixels[..., [1, 0, 2]].astype(int)
    for options in ({"format": "PNG"}, {"format": "TIFF"}):
        buffer = BytesIO()
        Image.fromarray(pixels).save(buffer, **options, icc_profile=exchanged)
        buffer.seek(0)
        assert np.abs(read_rgb(buffer) - expected).max() <= 2


def test_a_linear_profile_is_converted_whatever_its_name():
    """sRGB's primaries with a straight curve, called sRGB: 55 / 255 of the light is sRGB's level 128."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    for number in range(int.from_bytes(profile[128:132], "big")):
        entry = 132 + 12 * number
        if profile[entry : entry + 4] in (b"rTRC", b"gTRC", b"bTRC"):
            at = int.from_bytes(profile[entry + 4 : entry + 8], "big")
            profile[at : at + 12] = b"curv" + bytes(8)  # a curve of no points: the identity
            profile[entry + 8 : entry + 12] = (12).to_bytes(4, "big")
    found = read_rgb(stored(Image.new("RGB", (2, 2), (55, 55, 55)), icc_profile=bytes(profile)))
    assert np.abs(found.astype(int) - 128).max() <= 1


def test_an_srgb_profile_changes_nothing():
    pixels = leaves(8, 8)
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    np.testing.assert_array_equal(read_rgb(stored(Image.fromarray(pixels), icc_profile=profile)), pixels)


def test_palettes_and_cmyk_are_read_as_pillow_reads_them():
    pixels = Image.fromarray(leaves(8, 8))
    palette = pixels.quantize(16)
    np.testing.assert_array_equal(read_rgb(stored(palette)), np.asarray(palette.convert("RGB")))
    cmyk = pixels.convert("CMYK")
    np.testing.assert_array_equal(read_rgb(stored(cmyk, "TIFF")), np.asarray(cmyk.convert("RGB")))


def test_sixteen_bit_transparency_is_blended_too():
    levels = np.array([[0, 40_000]], dtype=np.uint16)
    found = read_rgb(stored(Image.fromarray(levels), transparency=40_000))
    assert found[0, :, 0].tolist() == [0, 255]


def test_integers_beyond_sixteen_bits_are_refused():
    with pytest.raises(ValueError, match="integer pixels outside 0 to 65535"):
        read_rgb(stored(Image.fromarray(np.array([[1, 100_000]], dtype=np.int32)), "TIFF"))


def test_a_huge_image_is_refused_by_its_header():
    buffer = stored(Image.new("1", (20_000, 14_000)))
    with pytest.raises(ValueError, match="20000x14000 pixels is above the limit of 268435456"):
        read_rgb(buffer)


def test_what_one_of_pillows_plugins_alone_raises_is_damage_like_any_other():
    damaged = stored(Image.fromarray(leaves(40, 40)), "AVIF").getvalue()
    for end in range(len(damaged) // 2, len(damaged) - 1, 7):
        with pytest.raises(DAMAGE):
            read_rgb(BytesIO(damaged[:end]))
