import subprocess
import sys
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hyperprior.coding.codec import Codec, to_image, to_tensor
from hyperprior.coding.container import HEADER_BYTES, Container, FormatError
from tests.conftest import leaves, lively_model

CODECS = {name: Codec.from_model(lively_model(name)) for name in ("factorized", "hyperprior")}


@pytest.fixture(params=sorted(CODECS))
def codec(request) -> Codec:
    return CODECS[request.param]


def rounded_latent(codec: Codec, image: np.ndarray) -> torch.Tensor:
    """y-hat without any coding, by the model alone."""
    with torch.inference_mode():
        y = codec.model.analyze(to_tensor(image))
        if codec.model.name == "hyperprior":
            return y.round()
        medians = codec.model.density.medians[:, None, None]
        return (y - medians).round() + medians


@given(st.sampled_from(sorted(CODECS)), st.integers(1, 70), st.integers(1, 70), st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=60)
def test_decoded_latents_equal_encoded_ones_for_any_size_and_content(name, height, width, seed):
    image = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    symbols = CODECS[name].decode(CODECS[name].compress(image))
    assert (symbols.height, symbols.width) == (height, width)
    assert torch.equal(CODECS[name].y_hat(symbols), rounded_latent(CODECS[name], image))


@given(st.floats(1, 1e6), st.sampled_from(sorted(CODECS)))
@settings(deadline=None, max_examples=20)
def test_latents_far_outside_the_tables_come_back(gain, name):
    model = lively_model(name)
    with torch.no_grad():
        model.analysis[-1].weight.mul_(gain)
    codec = Codec.from_model(model)
    image = leaves(40, 24)
    symbols = codec.decode(codec.compress(image))
    assert torch.equal(codec.y_hat(symbols), rounded_latent(codec, image))


def test_the_decoded_image_is_the_models_reconstruction(codec):
    image = leaves(100, 75)
    with torch.inference_mode():
        expected = to_image(codec.model(to_tensor(image)).x_hat)
    decoded = codec.decompress(codec.compress(image))
    assert decoded.shape == image.shape
    assert decoded.dtype == np.uint8
    np.testing.assert_array_equal(decoded, expected)


def test_the_file_holds_the_models_information_and_little_more(codec):
    image = leaves(320, 256)
    coded = codec.compress(image)
    with torch.inference_mode():
        out = codec.model(to_tensor(image))
    information = (out.bits_y + out.bits_z).item()
    payload = 8 * (len(coded) - HEADER_BYTES)
    # Two streams end in whole words of 32 bits. The information is of the exact scales, and a single image of an
    # untrained model, whose scales do not fit it, may happen to be cheaper with the nearest ones.
    assert abs(payload - information) < 2e-3 * information + 2 * 64


def test_freezing_leaves_the_model_and_its_training_alone(small_model):
    small_model.train()
    before = {name: tensor.clone() for name, tensor in small_model.state_dict().items()}
    Codec.from_model(small_model, torch.bfloat16).compress(leaves(32, 32))
    assert small_model.training
    assert all(parameter.requires_grad for parameter in small_model.parameters())
    assert all(torch.equal(before[name], tensor) for name, tensor in small_model.state_dict().items())


@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16])
def test_a_codec_decodes_in_another_process_from_its_file(tmp_path, small_model, weights):
    codec = Codec.from_model(small_model, weights)
    codec.save(tmp_path / "codec.safetensors", weights)
    image = leaves(90, 120)
    coded = codec.compress(image)
    (tmp_path / "image.hyp").write_bytes(coded)
    script = (
        "import sys, numpy as np\n"
        "from hyperprior.coding.codec import Codec\n"
        "codec = Codec.load(sys.argv[1])\n"
        "np.save(sys.argv[3], codec.decompress(open(sys.argv[2], 'rb').read()))\n"
        "assert not {'pytorch_lightning', 'hydra', 'wandb'} & set(sys.modules)\n"
    )
    arguments = [str(tmp_path / name) for name in ("codec.safetensors", "image.hyp", "decoded.npy")]
    subprocess.run([sys.executable, "-c", script, *arguments], check=True)
    np.testing.assert_array_equal(np.load(tmp_path / "decoded.npy"), codec.decompress(coded))
    assert Codec.load(tmp_path / "codec.safetensors").compress(image) == coded


def test_bfloat16_weights_take_half_the_space(tmp_path):
    model = lively_model("hyperprior", N=48, M=64)
    sizes = []
    for weights in (torch.float32, torch.bfloat16):
        path = tmp_path / f"{weights}.safetensors"
        Codec.from_model(model, weights).save(path, weights)
        sizes.append(path.stat().st_size)
    transforms = sum(p.numel() for name, p in model.named_parameters() if "density" not in name)
    assert sizes[0] - sizes[1] == pytest.approx(2 * transforms, rel=1e-3)


def test_saving_in_less_precision_than_frozen_is_refused(tmp_path, small_model):
    with pytest.raises(ValueError, match=r"is not exact in torch\.bfloat16"):
        Codec.from_model(small_model).save(tmp_path / "codec.safetensors", torch.bfloat16)
    assert list(tmp_path.iterdir()) == []


def test_damage_is_found_and_named(codec):
    coded = codec.compress(leaves(64, 48))
    with pytest.raises(FormatError, match="does not begin with HYPR"):
        codec.decompress(b"PNG" + coded)
    with pytest.raises(FormatError, match="does not begin with HYPR"):
        codec.decompress(coded[:10])
    with pytest.raises(FormatError, match="version 9"):
        codec.decompress(coded[:4] + b"\x09" + coded[5:])
    for position in range(len(coded)):  # header and body alike
        damaged = bytearray(coded)
        damaged[position] ^= 1 << position % 8
        with pytest.raises(FormatError):
            codec.decompress(bytes(damaged))
    for damaged in (coded[:-1], coded[: len(coded) // 2], coded + b"\0", coded + coded):
        with pytest.raises(FormatError, match="checksum does not agree"):
            codec.decompress(damaged)


def test_a_huge_image_in_the_header_is_refused_before_anything_is_allocated(codec):
    with pytest.raises(FormatError, match="outside 1 to 268435456 pixels"):
        Container(2**16, 2**16, 0, b"", b"").to_bytes()
    forged = bytearray(Container(4, 4, 0, b"", b"").to_bytes())
    forged[5:13] = b"\xff" * 8
    forged[21:25] = zlib.crc32(forged[:21]).to_bytes(4, "little")  # damage on purpose, with a checksum that agrees
    with pytest.raises(FormatError, match="outside 1 to 268435456 pixels"):
        codec.decompress(bytes(forged))


def test_a_file_of_another_codec_is_refused():
    first = CODECS["hyperprior"]
    other = Codec.from_model(lively_model("hyperprior", seed=1))
    with pytest.raises(FormatError):
        other.decompress(first.compress(leaves(64, 64)))


@pytest.mark.parametrize(
    "image", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 4), np.uint8), np.zeros((0, 4, 3), np.uint8)]
)
def test_arrays_that_are_no_images_are_refused(image):
    with pytest.raises((ValueError, TypeError), match=r"H x W x 3|0 pixels|outside 1 to|parameters of"):
        CODECS["factorized"].compress(image)


def test_a_model_that_diverged_does_not_write_a_file():
    model = lively_model("hyperprior")
    with torch.no_grad():
        model.analysis[-1].bias.fill_(float("nan"))
    with pytest.raises(ValueError, match="not finite"):
        Codec.from_model(model).compress(leaves(32, 32))


def test_files_that_are_no_codecs_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no codec file"):
        Codec.load(tmp_path / "missing.safetensors")
    path = tmp_path / "garbage.safetensors"
    path.write_bytes(b"garbage")
    with pytest.raises(ValueError, match="is not a codec"):
        Codec.load(path)


def test_the_container_takes_apart_what_it_put_together():
    container = Container(640, 480, 123, b"zzzz", b"yyyyyyyy")
    assert Container.from_bytes(container.to_bytes()) == container
    assert len(container.to_bytes()) == HEADER_BYTES + 12
