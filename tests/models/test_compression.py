import math

import pytest
import torch

from hyperprior.models.compression import Noise, build_model, quantize
from tests.conftest import lively_model


@pytest.mark.parametrize("size", [(1, 1), (1, 17), (16, 16), (31, 65), (70, 40)])
def test_any_image_size_works(small_model, size):
    x = torch.rand(2, 3, *size)
    noise = small_model.draw_noise(torch.tensor([1, 2]), *size, x.device)
    for out in (small_model(x), small_model(x, noise)):
        assert out.x_hat.shape == x.shape
        for bits in (out.bits_y, out.bits_z):
            assert bits.shape == (2,)
            assert torch.isfinite(bits).all()


def test_the_border_is_extended_by_repeating_it(small_model):
    x = torch.rand(1, 3, 20, 33)
    rows = torch.arange(32).clamp(max=19)
    columns = torch.arange(48).clamp(max=32)
    extended = x[:, :, rows][:, :, :, columns]
    torch.testing.assert_close(small_model.analyze(x), small_model.analysis(extended))


def test_noise_depends_on_the_images_own_seed_alone(small_model):
    device = torch.device("cpu")
    together = small_model.draw_noise(torch.tensor([5, 6, 7]), 40, 56, device)
    torch.rand(3)
    alone = small_model.draw_noise(torch.tensor([6]), 40, 56, device)
    for batch, single in zip(together, alone, strict=True):
        assert torch.equal(batch[1:2], single)
        assert batch.min() >= -0.5
        assert batch.max() < 0.5
        assert abs(batch.mean().item()) < 0.1
        assert not torch.equal(batch[0], batch[1])


def test_bits_of_an_image_do_not_depend_on_its_batch(small_model):
    x = torch.rand(3, 3, 48, 32)
    together, alone = small_model(x), small_model(x[1:2])
    torch.testing.assert_close(together.bits_y[1:2], alone.bits_y)
    torch.testing.assert_close(together.bits_z[1:2], alone.bits_z)
    torch.testing.assert_close(together.x_hat[1:2], alone.x_hat, rtol=1e-4, atol=1e-5)


def test_quantization_rounds_around_the_median():
    values = torch.tensor([[[[0.4, 0.6, -1.1]]]])
    assert quantize(values, None, torch.tensor([0.3])).flatten().tolist() == pytest.approx([0.3, 0.3, -0.7])
    assert quantize(values, None).flatten().tolist() == [0, 1, -1]
    noise = torch.full_like(values, 0.25)
    assert quantize(values, noise, torch.tensor([0.3])).flatten().tolist() == pytest.approx([0.65, 0.85, -0.85])


def test_the_hyperprior_sees_magnitudes_only():
    model = lively_model("hyperprior")
    y = torch.randn(1, model.M, 8, 8)
    assert torch.equal(model.hyper_analyze(y), model.hyper_analyze(-y))


def test_noisy_bits_are_near_rounded_bits_on_average(small_model):
    """The uniform-noise relaxation approximates the discrete entropy (section 2)."""
    x = torch.rand(4, 3, 128, 128)
    noise = small_model.draw_noise(torch.arange(4), 128, 128, x.device)
    noisy, rounded = small_model(x, noise), small_model(x)
    total = [(out.bits_y + out.bits_z).sum().item() for out in (noisy, rounded)]
    assert total[0] == pytest.approx(total[1], rel=0.1)


def test_the_rate_distortion_gradient_reaches_everything_but_the_quantiles(small_model):
    x = torch.rand(1, 3, 64, 64)
    out = small_model(x, small_model.draw_noise(torch.tensor([1]), 64, 64, x.device))
    ((out.bits_y + out.bits_z).sum() + out.x_hat.square().sum()).backward()
    for name, parameter in small_model.named_parameters():
        if name.endswith("quantiles"):
            assert parameter.grad is None
        else:
            assert parameter.grad is not None, name
            assert parameter.grad.any(), name


@pytest.mark.parametrize("name", ["factorized", "hyperprior"])
def test_bits_are_float32_when_the_transforms_are_bfloat16(name):
    model = lively_model(name)
    x = torch.rand(1, 3, 64, 64)
    exact = model(x)
    with torch.autocast("cpu", torch.bfloat16):
        out = model(x)
    assert all(value.dtype == torch.float32 for value in out)
    assert (out.bits_y + out.bits_z).item() == pytest.approx((exact.bits_y + exact.bits_z).item(), rel=0.05)


def test_architecture_makes_the_same_model_again(small_model):
    again = build_model(**small_model.architecture)
    again.load_state_dict(small_model.state_dict())
    x = torch.rand(1, 3, 32, 32)
    assert torch.equal(again.eval()(x).x_hat, small_model(x).x_hat)


def test_impossible_models_are_refused():
    with pytest.raises(ValueError, match="unknown model 'joint'; choose from factorized, hyperprior"):
        build_model("joint", 8, 8)
    with pytest.raises(ValueError, match="N and M must be positive"):
        build_model("factorized", 0, 8)


def test_noise_is_a_named_pair():
    noise = lively_model("hyperprior").draw_noise(torch.tensor([0]), 65, 64, torch.device("cpu"))
    assert isinstance(noise, Noise)
    assert noise.y.shape == (1, 12, math.ceil(65 / 16), 4)
    assert noise.z.shape == (1, 8, 2, 1)
