import pytest
import torch
from torch import nn

from hyperprior.models import transforms
from hyperprior.models.gdn import GDN


def test_the_parameters_are_those_of_figure_4():
    """Counted by hand from the figure: weights and biases of each convolution, beta and gamma of each GDN."""
    N, M = 128, 192

    def conv(inputs, outputs, kernel):
        return inputs * outputs * kernel**2 + outputs

    gdn = N + N * N
    figure = {
        transforms.analysis: conv(3, N, 5) + 2 * conv(N, N, 5) + conv(N, M, 5) + 3 * gdn,
        transforms.synthesis: conv(M, N, 5) + 2 * conv(N, N, 5) + conv(N, 3, 5) + 3 * gdn,
        transforms.hyper_analysis: conv(M, N, 3) + 2 * conv(N, N, 5),
        transforms.hyper_synthesis: 2 * conv(N, N, 5) + conv(N, M, 3),
    }
    for make, expected in figure.items():
        assert sum(p.numel() for p in make(N, M).parameters()) == expected, make.__name__


def test_the_layers_are_those_of_figure_4():
    """Kernel, stride and direction of each convolution, and what stands between them. h_s's last rectifier is the
    bound of sigma at its smallest value."""

    def described(transform):
        names = {nn.Conv2d: "conv", nn.ConvTranspose2d: "up", GDN: "GDN", nn.ReLU: "ReLU"}
        result = []
        for layer in transform:
            (name,) = (name for kind, name in names.items() if isinstance(layer, kind))
            if name in ("conv", "up"):
                name += f" {layer.kernel_size[0]}x{layer.kernel_size[1]}/{layer.stride[0]}"
            result.append("IGDN" if getattr(layer, "inverse", False) else name)
        return " ".join(result)

    assert described(transforms.analysis(4, 6)) == "conv 5x5/2 GDN conv 5x5/2 GDN conv 5x5/2 GDN conv 5x5/2"
    assert described(transforms.synthesis(4, 6)) == "up 5x5/2 IGDN up 5x5/2 IGDN up 5x5/2 IGDN up 5x5/2"
    assert described(transforms.hyper_analysis(4, 6)) == "conv 3x3/1 ReLU conv 5x5/2 ReLU conv 5x5/2"
    assert described(transforms.hyper_synthesis(4, 6)) == "up 5x5/2 ReLU up 5x5/2 ReLU conv 3x3/1"


def test_g_s_inverts_the_division_of_g_a():
    assert [layer.inverse for layer in transforms.analysis(4, 6) if isinstance(layer, GDN)] == [False] * 3
    assert [layer.inverse for layer in transforms.synthesis(4, 6) if isinstance(layer, GDN)] == [True] * 3


@pytest.mark.parametrize("size", [(1, 1), (16, 16), (17, 31), (64, 48)])
def test_strides_are_16_and_4(size):
    height, width = size
    y = transforms.analysis(4, 6)(torch.rand(1, 3, height, width))
    assert y.shape == (1, 6, -(-height // 16), -(-width // 16))
    z = transforms.hyper_analysis(4, 6)(y)
    assert z.shape == (1, 4, -(-y.shape[2] // 4), -(-y.shape[3] // 4))
    assert transforms.hyper_synthesis(4, 6)(z).shape == (1, 6, 4 * z.shape[2], 4 * z.shape[3])
    assert transforms.synthesis(4, 6)(y).shape == (1, 3, 16 * y.shape[2], 16 * y.shape[3])


@pytest.mark.parametrize("kind", [nn.ConvTranspose2d, transforms.OutputConvTranspose2d])
def test_upsampling_is_the_transposed_jacobian_of_downsampling(kind):
    down, up = transforms._down(2, 3), transforms._up(3, 2, kind)
    with torch.no_grad():
        up.weight.copy_(down.weight)
        up.bias.zero_()
        down.bias.zero_()
    x = torch.randn(1, 2, 8, 6)
    jacobian = torch.autograd.functional.jacobian(lambda image: down(image).flatten(), x).reshape(-1, x.numel())
    v = torch.randn(1, 3, 4, 3)
    torch.testing.assert_close(up(v).flatten(), jacobian.T @ v.flatten(), rtol=1e-4, atol=1e-5)


def test_output_layers_stay_in_float32_under_autocast():
    x = torch.rand(1, 3, 32, 32)
    with torch.autocast("cpu", torch.bfloat16):
        assert transforms.analysis(4, 6)[0](x).dtype == torch.bfloat16
        assert transforms.analysis(4, 6)(x).dtype == torch.float32
        assert transforms.synthesis(4, 6)(torch.rand(1, 6, 2, 2)).dtype == torch.float32
        assert transforms.hyper_synthesis(4, 6)(torch.rand(1, 4, 2, 2)).dtype == torch.float32


def test_the_last_layer_of_g_s_is_the_transposed_convolution_of_its_weights():
    layer = transforms._up(5, 3, transforms.OutputConvTranspose2d).double()
    x = torch.randn(2, 5, 4, 7, dtype=torch.float64, requires_grad=True)
    direct = nn.functional.conv_transpose2d(x, layer.weight, layer.bias, stride=2, padding=2, output_padding=1)
    torch.testing.assert_close(layer(x), direct)
    weights = torch.randn_like(direct)
    (expected,) = torch.autograd.grad((direct * weights).sum(), layer.weight)
    (found,) = torch.autograd.grad((layer(x) * weights).sum(), layer.weight)
    torch.testing.assert_close(found, expected)
