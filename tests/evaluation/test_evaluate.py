import math

import numpy as np
import pytest
from PIL import Image

from hyperprior.coding.codec import Codec
from hyperprior.data.test_sets import samples
from hyperprior.evaluation.evaluate import evaluate, means, read_csv, write_csv
from hyperprior.evaluation.metrics import psnr_db
from hyperprior.evaluation.summary import results_table
from tests.conftest import lively_model


@pytest.fixture(scope="module", params=["factorized", "hyperprior"])
def codec(request):
    return Codec.from_model(lively_model(request.param))


@pytest.fixture(scope="module")
def evaluated(codec, tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluated")
    return folder, evaluate(codec, samples()[:2], folder)


def test_every_number_is_that_of_a_file_on_disk(codec, evaluated):
    folder, records = evaluated
    for record, image in zip(records, samples()[:2], strict=True):
        original = image.read()
        stored = (folder / "bitstreams" / f"{record.image}.hyp").read_bytes()
        assert record.bytes == len(stored) == record.header_bytes + record.y_bytes + record.z_bytes
        assert stored == codec.compress(original)
        assert (record.height, record.width) == original.shape[:2]
        assert record.bpp == 8 * len(stored) / (record.height * record.width)
        with Image.open(folder / "reconstructions" / f"{record.image}.png") as picture:
            pixels = np.asarray(picture)
        np.testing.assert_array_equal(pixels, codec.decompress(stored))
        assert record.psnr_db == psnr_db(original, pixels)
        assert 8 * record.y_bytes == pytest.approx(record.information_y_bits, rel=1e-3, abs=64)
        assert 8 * record.z_bytes == pytest.approx(record.information_z_bits, rel=1e-3, abs=64)
        assert (record.z_bytes > 0) == (codec.model.name == "hyperprior")
        assert record.encode_ms > 0 < record.decode_ms


def test_the_table_comes_back_from_its_file(evaluated, tmp_path):
    _, records = evaluated
    write_csv(records, tmp_path / "table.csv")
    assert read_csv(tmp_path / "table.csv") == records


def test_means_leave_out_only_what_is_not_defined(evaluated):
    _, (first, second) = evaluated
    summary = means([first, second])
    assert summary["bpp"] == pytest.approx((first.bpp + second.bpp) / 2)
    assert summary["psnr_db"] == pytest.approx((first.psnr_db + second.psnr_db) / 2)
    undefined = type(first)(**{**vars(second), "ms_ssim": math.nan, "ms_ssim_db": math.nan})
    assert means([first, undefined])["ms_ssim"] == first.ms_ssim
    assert math.isnan(means([undefined])["ms_ssim"])


def test_the_terminal_table_has_a_row_an_image_and_the_means(evaluated):
    from rich.console import Console

    console = Console(width=80)
    with console.capture() as capture:
        console.print(results_table(evaluated[1], "samples"))
    shown = capture.get()
    assert "…" not in shown
    for record in evaluated[1]:
        assert f"{record.bpp:.3f}" in shown
        assert str(record.bytes) in shown
    assert f"{means(evaluated[1])['psnr_db']:.2f}" in shown
