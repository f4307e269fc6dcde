"""Writes compressai_golden.pt with CompressAI itself: small models of both kinds and what they make of an image.

PEER_PYTHON tests/models/make_compressai_golden.py     (an environment with CompressAI 1.2.8)
"""

from pathlib import Path

import torch
from compressai.models.google import FactorizedPrior, ScaleHyperprior

golden = {}
for name, kind in (("factorized", FactorizedPrior), ("hyperprior", ScaleHyperprior)):
    torch.manual_seed(0)
    model = kind(4, 6).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
        model.g_a[6].weight.mul_(20)
        if name == "hyperprior":
            model.h_a[4].weight.mul_(20)
            model.h_s[4].bias.uniform_(0.5, 4)
        x = torch.rand(1, 3, 64, 64)
        out = model(x)
        y = model.g_a(x)
        results = {"y": y, "x_hat": out["x_hat"], "likelihoods_y": out["likelihoods"]["y"]}
        if name == "hyperprior":
            z = model.h_a(y.abs())
            z_hat, likelihoods_z = model.entropy_bottleneck(z)
            results |= {"z": z, "sigma": model.h_s(z_hat), "likelihoods_z": likelihoods_z}
    golden[name] = {"state_dict": model.state_dict(), "x": x, **results}
torch.save(golden, Path(__file__).with_name("compressai_golden.pt"))
