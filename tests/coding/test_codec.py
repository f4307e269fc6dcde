import dataclasses
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from hyperprior.coding import codec as codec_module
from hyperprior.coding import frozen
from hyperprior.coding.codec import Codec, to_image, to_tensor
from hyperprior.coding.container import Container, DamagedFileError, ImageSizeError, WrongCodecError
from hyperprior.coding.tiling import Region
from hyperprior.models.gaussian import scale_index, scale_thresholds
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
    payload = 8 * (len(coded) - Container.from_bytes(coded).header_bytes)
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
    # All transforms but h_s, whose integers have 16 bits either way.
    transforms = sum(p.numel() for name, p in model.named_parameters() if not name.startswith(("density", "hyper_syn")))
    assert sizes[0] - sizes[1] == pytest.approx(2 * transforms, rel=1e-3)


def test_saving_in_less_precision_than_frozen_is_refused(tmp_path, small_model):
    with pytest.raises(ValueError, match=r"is not exact in torch\.bfloat16"):
        Codec.from_model(small_model).save(tmp_path / "codec.safetensors", torch.bfloat16)
    assert list(tmp_path.iterdir()) == []


def test_a_file_of_another_codec_is_refused():
    first = CODECS["hyperprior"]
    coded = first.compress(leaves(64, 64))
    for other in (Codec.from_model(lively_model("hyperprior", seed=1)), CODECS["factorized"]):
        with pytest.raises(WrongCodecError, match=f"made with the codec {first.fingerprint.hex()}"):
            other.decompress(coded)


def test_symbols_that_disagree_with_their_checksum_are_refused(codec):
    coded = codec.compress(leaves(64, 64))
    container = Container.from_bytes(coded)
    forged = dataclasses.replace(container, symbols_checksum=container.symbols_checksum ^ 1)
    with pytest.raises(DamagedFileError, match="do not agree with their checksum"):
        codec.decompress(forged.to_bytes())


def test_files_tell_their_coder_and_both_hold_the_same_symbols(codec):
    image = leaves(96, 80)
    files = {coder: codec.compress(image, coder) for coder in ("range", "binary")}
    symbols = [codec.decode(coded) for coded in files.values()]
    np.testing.assert_array_equal(symbols[0].z, symbols[1].z)
    np.testing.assert_array_equal(symbols[0].y, symbols[1].y)
    assert [Container.from_bytes(coded).coder for coded in files.values()] == ["range", "binary"]
    assert len(files["binary"]) == pytest.approx(len(files["range"]), rel=2e-3, abs=8)


def test_tables_depend_on_nothing_but_what_the_fingerprint_is_of():
    """Another g_s reads the file; another threshold, weight or table does not."""
    codec = Codec.from_model(lively_model("hyperprior"))
    coded = codec.compress(leaves(48, 48))
    model = lively_model("hyperprior")
    with torch.no_grad():
        model.synthesis[-1].bias.add_(0.1)
    assert np.abs(Codec.from_model(model).decompress(coded).astype(int) - codec.decompress(coded)).max() > 10
    for part in ("density_z.b.0", "hyper_synthesis.2.weight", "hyper_synthesis.4.bias", "density_z.quantiles"):
        model = lively_model("hyperprior")
        with torch.no_grad():
            model.get_parameter(part).view(-1)[1].add_(0.01)
        with pytest.raises(WrongCodecError):
            Codec.from_model(model).decompress(coded)


def test_exact_scales_choose_the_tables_that_floating_point_scales_choose():
    """But for elements whose sigma lies between two tables, to the rounding of weights."""
    model = lively_model("hyperprior", N=16, M=24)
    codec = Codec.from_model(model)
    symbols = codec.decode(codec.compress(leaves(200, 300)))
    _, h, w = symbols.y.shape
    found = codec.indexes_of(symbols.z, symbols.y.shape, Region(0, h, 0, w)).astype(int)
    with torch.no_grad():
        z_hat = torch.tensor(symbols.z).double()[None] + model.density.medians.double()[:, None, None]
        sigma = model.double().scales(z_hat, h, w)
    expected = scale_index(sigma, scale_thresholds()).reshape(-1).numpy()
    assert np.abs(found - expected).max() <= 1
    assert (found != expected).mean() < 0.02
    np.testing.assert_allclose(codec.sigma(symbols.z, symbols.y.shape, Region(0, h, 0, w)), sigma[0], rtol=5e-3)


@pytest.mark.parametrize("size", [(300, 420), (520, 90)])
def test_in_tiles_a_file_decodes_alike_and_looks_alike(monkeypatch, codec, size):
    image = leaves(*size)
    whole_y, whole_z = codec.latents(image)
    whole = codec.decompress(codec.compress(image))
    monkeypatch.setattr(codec_module, "WHOLE", 16)
    monkeypatch.setattr(codec_module, "TRANSFORMED_TILE", 8)
    monkeypatch.setattr(codec_module, "CODED_TILE", 16)
    y, z = codec.latents(image)
    torch.testing.assert_close(y, whole_y, rtol=1e-4, atol=1e-3)
    if z is not None:
        torch.testing.assert_close(z, whole_z, rtol=1e-4, atol=1e-3)
    coded = codec.compress(image)
    symbols = codec.decode(coded)
    np.testing.assert_array_equal(symbols.y, codec.decode(codec.compress(image, "binary")).y)
    in_tiles = codec.reconstruct(symbols)
    monkeypatch.undo()
    assert np.abs(codec.reconstruct(symbols).astype(int) - in_tiles).max() <= 1
    # Rounding moves a symbol of y here and there.
    assert (whole != in_tiles).mean() < 0.01


def test_bfloat16_transforms_change_rounding_and_not_the_format(codec):
    image = leaves(160, 160)
    try:
        coded = codec.to(transforms=torch.bfloat16).compress(image)
        reduced = codec.decompress(coded).astype(int)
    finally:
        codec.to(transforms=torch.float32)
    assert np.abs(codec.decompress(coded) - reduced).mean() < 2
    assert np.abs(codec.decompress(codec.compress(image)) - reduced).mean() < 3
    with pytest.raises(ValueError, match=r"run in torch\.float32 or torch\.bfloat16"):
        codec.to(transforms=torch.float16)


@pytest.mark.parametrize(
    "image", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 4), np.uint8), np.zeros((0, 4, 3), np.uint8)]
)
def test_arrays_that_are_no_images_are_refused(image):
    with pytest.raises((ValueError, TypeError), match=r"H x W x 3|is empty|parameters of"):
        CODECS["factorized"].compress(image)


def test_images_above_the_limit_are_refused_before_any_work(codec):
    endless = np.broadcast_to(np.zeros(3, np.uint8), (2**15, 2**15, 3))
    with pytest.raises(ImageSizeError, match="32768x32768 pixels is above the limit"):
        codec.compress(endless)


def test_a_response_beyond_the_integers_does_not_write_a_file():
    model = lively_model("hyperprior")
    with torch.no_grad():
        model.analysis[-1].bias.fill_(1e30)
    with pytest.raises(ValueError, match="not finite or beyond"):
        Codec.from_model(model).compress(leaves(32, 32))


def test_a_damaged_codec_is_refused(tmp_path, small_model):
    """One bit of a weight, in a file that is whole otherwise: it would make wrong images."""
    path = tmp_path / "codec.safetensors"
    Codec.from_model(small_model).save(path)
    data = bytearray(path.read_bytes())
    for position in range(len(data) - 1, len(data) // 2, -9973):
        data[position] ^= 4
        path.write_bytes(data)
        with pytest.raises(ValueError, match="digest does not agree"):
            Codec.load(path)
        data[position] ^= 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda t, m: m.update(architecture=json.dumps({**json.loads(m["architecture"]), "N": 20_000})),
            "size mismatch",
        ),
        (lambda t, m: m.update(architecture=json.dumps({**json.loads(m["architecture"]), "K": 10**7})), "4 layers"),
        (lambda t, m: m.update(architecture="5"), "is not a codec"),
        (lambda t, m: m.update(config="5"), "not a mapping"),
        (
            lambda t, m: t.update({"tables.latent.starts": t["tables.latent.starts"].double()}),
            "not frequency|Type-check",
        ),
        (lambda t, m: t.update({"tables.latent.minimums": t["tables.latent.minimums"] - 2**30}), "not frequency"),
        (lambda t, m: t.update({"exact.medians": t["exact.medians"] + 0.4}), "32-bit integers"),
        (lambda t, m: t.pop("exact.bias_1"), "bias_1"),
        (lambda t, m: t.pop("analysis.0.weight"), "Missing|Error"),
    ],
)
def test_a_hostile_codec_is_refused_in_a_line_before_it_takes_memory(tmp_path, change, message):
    """With a digest that agrees."""
    path = tmp_path / "codec.safetensors"
    Codec.from_model(lively_model("hyperprior")).save(path)
    tensors = load_file(path)
    with safe_open(path, "pt") as file:
        metadata = dict(file.metadata())
    change(tensors, metadata)
    metadata["digest"] = frozen._digest(tensors, metadata["architecture"])
    save_file(tensors, path, metadata)
    with pytest.raises(ValueError, match=message) as raised:
        Codec.load(path)
    assert "\n" not in str(raised.value)


def test_a_model_that_is_not_finite_is_not_frozen():
    model = lively_model("hyperprior")
    with torch.no_grad():
        model.synthesis[2].weight[0, 0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"synthesis\.2\.weight is not finite"):
        Codec.from_model(model)


def test_files_that_are_no_codecs_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no codec file"):
        Codec.load(tmp_path / "missing.safetensors")
    path = tmp_path / "garbage.safetensors"
    path.write_bytes(b"garbage")
    with pytest.raises(ValueError, match="is not a codec"):
        Codec.load(path)


def test_the_densities_see_the_z_hat_that_the_scales_see():
    model = lively_model("hyperprior")
    with torch.no_grad():
        model.density.quantiles[:, 1] = torch.linspace(-3, 3, 8) + 1e-5
    codec = Codec.from_model(model)
    assert torch.equal(codec.model.density.medians.double(), codec.exact.medians_of_z)
    assert torch.equal(codec.exact.medians_of_z * 2**12 % 1, torch.zeros(8, dtype=torch.float64))
