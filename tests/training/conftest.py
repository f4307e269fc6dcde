import pytest
from PIL import Image

from tests.conftest import leaves


@pytest.fixture(scope="session")
def test_images(tmp_path_factory):
    """A folder of three images to test on."""
    folder = tmp_path_factory.mktemp("test_images")
    for index, size in enumerate([(170, 200), (180, 161), (192, 176)]):
        Image.fromarray(leaves(*size, seed=index)).save(folder / f"image{index}.png")
    return folder
