"""What the tests share: seeds, small models and images, and where the photographs are."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hyperprior.data.dead_leaves import render
from hyperprior.models.compression import CompressionModel, build_model

ROOT = Path(__file__).parents[1]
PHOTOGRAPHS = ROOT.parent / "shared" / "data"


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def photographs(name: str) -> Path:
    """A folder of photographs that lies beside the checkout; a test that needs it is skipped where it does not."""
    folder = PHOTOGRAPHS / name
    if not folder.is_dir():
        pytest.skip(f"no photographs at ../shared/data/{name}")
    return folder


def leaves(height: int, width: int, seed: int = 0) -> np.ndarray:
    """A synthetic photograph."""
    return render(np.random.default_rng(seed), max(height, width, 32))[:height, :width].copy()


@pytest.fixture(params=["factorized", "hyperprior"])
def small_model(request: pytest.FixtureRequest) -> CompressionModel:
    """An untrained model with latents of several bits an element."""
    return lively_model(request.param)


def lively_model(name: str, N: int = 8, M: int = 12, seed: int = 0) -> CompressionModel:
    """An untrained model whose last layers are scaled up, so that its latents spread over many integers."""
    torch.manual_seed(seed)
    model = build_model(name, N, M)
    with torch.no_grad():
        model.analysis[-1].weight.mul_(60)
        if name == "hyperprior":
            model.hyper_analysis[-1].weight.mul_(20)
            model.hyper_synthesis[-1].bias.uniform_(1.5, 6)
    return model.eval()


@pytest.fixture(scope="session")
def test_images_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of three images to test on."""
    folder = tmp_path_factory.mktemp("test_images")
    for index, size in enumerate([(170, 200), (180, 161), (192, 176)]):
        Image.fromarray(leaves(*size, seed=index)).save(folder / f"image{index}.png")
    return folder
