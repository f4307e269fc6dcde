"""Weights of CompressAI, against what CompressAI 1.2.8 itself computed with them (make_compressai_golden.py)."""

import re
from pathlib import Path

import pytest
import torch

from hyperprior.models.compressai import ForeignWeightsError, from_compressai
from hyperprior.models.gaussian import bound_scale, gaussian_bits

GOLDEN = torch.load(Path(__file__).with_name("compressai_golden.pt"), weights_only=True)


@pytest.mark.parametrize("name", sorted(GOLDEN))
def test_transforms_and_likelihoods_are_the_peers(name):
    theirs = GOLDEN[name]
    model = from_compressai(theirs["state_dict"]).eval()
    assert model.name == name
    assert (model.N, model.M, model.K) == (4, 6, 5)
    with torch.no_grad():
        y = model.analyze(theirs["x"])
        torch.testing.assert_close(y, theirs["y"])
        out = model(theirs["x"])
        torch.testing.assert_close(out.x_hat, theirs["x_hat"], rtol=1e-4, atol=1e-5)
        # Their likelihoods are differences of sigmoids, and bounded below at 1e-9.
        tolerance = {"rtol": 1e-4, "atol": 1e-7}
        if name == "factorized":
            medians = model.density.medians[:, None, None]
            bits = model.density((y - medians).round() + medians)
            torch.testing.assert_close(torch.exp2(-bits).clamp(min=1e-9), theirs["likelihoods_y"], **tolerance)
            return
        z = model.hyper_analyze(y)
        torch.testing.assert_close(z, theirs["z"])
        medians = model.density.medians[:, None, None]
        z_hat = (z - medians).round() + medians
        sigma = model.hyper_synthesis(z_hat)
        torch.testing.assert_close(sigma.relu(), theirs["sigma"])
        likelihoods_z = torch.exp2(-model.density(z_hat)).clamp(min=1e-9)
        torch.testing.assert_close(likelihoods_z, theirs["likelihoods_z"], **tolerance)
        likelihoods_y = torch.exp2(-gaussian_bits(y.round(), bound_scale(sigma))).clamp(min=1e-9)
        torch.testing.assert_close(likelihoods_y, theirs["likelihoods_y"], **tolerance)
        assert theirs["likelihoods_y"].min() < 0.01  # the comparison spans more than one symbol


@pytest.mark.parametrize("name", sorted(GOLDEN))
def test_names_of_earlier_versions_and_wrappings_are_understood(name):
    state = GOLDEN[name]["state_dict"]
    expected = from_compressai(state).state_dict()
    singular = {"matrices": "matrix", "biases": "bias", "factors": "factor"}

    def flat(key: str) -> str:
        return re.sub(r"bottleneck\.(matrices|biases|factors)\.", lambda m: f"bottleneck._{singular[m[1]]}", key)

    def listed(key: str) -> str:
        return re.sub(r"bottleneck\.(matrices|biases|factors)\.", r"bottleneck._\1.", key)

    for stored in (
        {flat(key): tensor for key, tensor in state.items()},
        {listed(key): tensor for key, tensor in state.items()},
        {"epoch": 3, "state_dict": {f"module.{key}": tensor for key, tensor in state.items()}},
    ):
        found = from_compressai(stored).state_dict()
        assert all(torch.equal(found[key], tensor) for key, tensor in expected.items())


def test_other_models_are_refused():
    state = GOLDEN["hyperprior"]["state_dict"]
    with pytest.raises(ForeignWeightsError, match=r"unexpected context_prediction\.weight"):
        from_compressai({**state, "context_prediction.weight": torch.zeros(1)})
    with pytest.raises(ForeignWeightsError, match="size mismatch"):  # such as mean and scale
        from_compressai({**state, "h_s.4.weight": torch.zeros(12, 4, 3, 3)})
    with pytest.raises(ForeignWeightsError, match="Missing"):
        from_compressai({key: tensor for key, tensor in state.items() if not key.startswith("g_s.1.")})
    with pytest.raises(ForeignWeightsError, match="no state dict of tensors"):
        from_compressai({})
