import functools
import shutil
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from PIL import Image

from hyperprior.data import test_sets
from hyperprior.data.images import NoImagesError, SkippedImage
from tests.conftest import leaves, photographs


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        """Requests are not printed."""


@pytest.fixture
def server(tmp_path) -> Iterator[tuple[str, Path]]:
    """A real HTTP server over a folder: its address and the folder."""
    folder = tmp_path / "served"
    folder.mkdir()
    httpd = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(QuietHandler, directory=str(folder)))
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{httpd.server_port}/", folder
    httpd.shutdown()
    httpd.server_close()


def test_samples_are_photographs_large_enough_to_measure():
    images = test_sets.samples()
    assert [image.name for image in images] == ["astronaut", "chelsea", "coffee", "motorcycle_left", "rocket"]
    for image in images:
        pixels = image.read()
        assert min(pixels.shape[:2]) >= test_sets.SMALLEST_SIDE
        assert pixels.std(axis=2).mean() > 1  # in colour


def test_kodak_is_found_where_it_is():
    images = test_sets.kodak(photographs("kodak"))
    assert [image.name for image in images] == [f"kodim{number:02}" for number in range(1, 25)]
    assert {image.read().shape for image in images} == {(512, 768, 3), (768, 512, 3)}


def test_kodak_is_downloaded_and_checked(tmp_path, server):
    address, served = server
    for path in photographs("kodak").glob("*.png"):
        shutil.copy(path, served)
    root = tmp_path / "cache"
    images = test_sets.kodak(root, address)
    assert len(images) == 24
    assert all(image.path.parent == root for image in images)
    shutil.rmtree(served)  # the second time they are there
    assert len(test_sets.kodak(root, address)) == 24


def test_a_download_that_is_another_image_is_refused_and_not_kept(tmp_path, server):
    address, served = server
    Image.fromarray(leaves(200, 200)).save(served / "kodim01.png")
    with pytest.raises(NoImagesError, match=r"kodim01.png .* could not be had from"):
        test_sets.kodak(tmp_path / "cache", address)
    assert not (tmp_path / "cache" / "kodim01.png").exists()


def test_a_server_without_the_image_is_named(tmp_path, server):
    with pytest.raises(NoImagesError, match="put the Kodak images in a folder"):
        test_sets.kodak(tmp_path / "cache", server[0])


def test_a_changed_image_on_disk_is_refused(tmp_path):
    Image.fromarray(leaves(200, 200)).save(tmp_path / "kodim01.png")
    with pytest.raises(NoImagesError, match="is not the published Kodak image"):
        test_sets.kodak(tmp_path)


def test_a_folder_is_named_by_paths_and_skips_what_cannot_be_measured(tmp_path):
    for name in ("a/one.png", "b/one.png", "b/one.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(leaves(170, 180)).save(tmp_path / name)
    Image.fromarray(leaves(160, 180)).save(tmp_path / "small.png")
    (tmp_path / "half.png").write_bytes((tmp_path / "a/one.png").read_bytes()[:9000])
    with pytest.warns(SkippedImage) as caught:
        names = [image.name for image in test_sets.folder(tmp_path)]
    said = " ".join(str(warning.message) for warning in caught)
    assert "small.png: 180x160 is below 161" in said
    assert "half.png: damaged" in said
    assert names == ["a__one", "b__one", "b__one.png"]
    with pytest.raises(NoImagesError, match=r"needs test_set\.root"):
        test_sets.folder(None)
