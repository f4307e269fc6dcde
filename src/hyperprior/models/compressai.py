"""CompressAI's weights of the same two models: its bmshj2018-factorized and bmshj2018-hyperprior.

Both libraries compute the same functions with the same parametrization of GDN and of the density (which has K = 5
layers there); only names differ. Two things outside the transforms do differ: that library's users pad images with
zeros to multiples of 64, and its likelihoods are bounded below at 1e-9.
"""

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from hyperprior.models.compression import CompressionModel, build_model

_TRANSFORMS = {"g_a": "analysis", "g_s": "synthesis", "h_a": "hyper_analysis", "h_s": "hyper_synthesis"}
_LEAVES = {"weight": "weight", "bias": "bias", "beta": "raw_beta", "gamma": "raw_gamma"}
_DENSITY = {"matri": "raw_H", "bias": "b", "factor": "raw_a"}
# Its names of a density's parameters: matrices.0 now, _matrix0 and _matrices.0 in earlier versions.
_DENSITY_NAME = re.compile(r"entropy_bottleneck\._?(matri|bias|factor)(?:ces|x|es|s)?\.?(\d+)$")
# Tables, bounds and constants that are made anew.
_DERIVED = re.compile(
    r"(entropy_bottleneck|gaussian_conditional)\.(_offset|_quantized_cdf|_cdf_length|target|scale_table|scale_bound|"
    r"likelihood_lower_bound\.bound|lower_bound_scale\.bound)$|.*_reparam\.(pedestal|lower_bound\.bound)$"
)


class ForeignWeightsError(ValueError):
    """The tensors are not those of a model this package has."""


def from_compressai(stored: Mapping[str, Any]) -> CompressionModel:
    """The model in a state dict of CompressAI, or in a checkpoint that holds one under "state_dict" or
    "model_state_dict". Raises ForeignWeightsError if it is of another model."""
    for key in ("state_dict", "model_state_dict"):
        if isinstance(stored.get(key), Mapping):
            stored = stored[key]
    state = {str(name).removeprefix("module."): tensor for name, tensor in stored.items()}
    if not state or not all(isinstance(tensor, Tensor) for tensor in state.values()):
        raise ForeignWeightsError("it holds no state dict of tensors")
    name = "hyperprior" if any(key.startswith("h_a.") for key in state) else "factorized"
    density = "density_z" if name == "hyperprior" else "density_y"
    ours: dict[str, Tensor] = {}
    for key, tensor in state.items():
        transform, _, rest = key.partition(".")
        layer, _, leaf = rest.partition(".")
        if key == "entropy_bottleneck.quantiles":
            ours[f"{density}.quantiles"] = tensor[:, 0] if tensor.ndim == 3 else tensor
        elif match := _DENSITY_NAME.match(key):
            ours[f"{density}.{_DENSITY[match[1]]}.{match[2]}"] = tensor
        elif transform in _TRANSFORMS and leaf in _LEAVES:
            ours[f"{_TRANSFORMS[transform]}.{layer}.{_LEAVES[leaf]}"] = tensor
        elif not _DERIVED.match(key):
            raise ForeignWeightsError(
                f"not CompressAI's bmshj2018-factorized or bmshj2018-hyperprior: unexpected {key}"
            )
    try:
        layers = sum(key.startswith(f"{density}.raw_H.") for key in ours)
        inner = [ours[f"{density}.raw_H.{layer}"].shape[1] for layer in range(layers - 1)]
        if "analysis.6.weight" not in ours:
            raise KeyError("g_a.6.weight")
        M, N = ours["analysis.6.weight"].shape[:2]
        model = build_model(name, N, M, K=layers, r=inner)
        model.load_state_dict(ours)
    except (KeyError, IndexError, ValueError, RuntimeError) as error:
        reason = f"it lacks {error}" if isinstance(error, KeyError) else str(error).replace("\n\t", " ")
        raise ForeignWeightsError(f"not CompressAI's bmshj2018-factorized or bmshj2018-hyperprior: {reason}") from error
    return model
