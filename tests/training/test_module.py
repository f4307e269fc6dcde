import copy
from functools import partial

import pytest
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

from hyperprior.data.datamodule import SeededImages
from hyperprior.data.dead_leaves import DeadLeaves
from hyperprior.models.compression import build_model
from hyperprior.training.losses import rate_distortion
from hyperprior.training.module import CompressionModule, NonFiniteError
from hyperprior.training.schedules import cosine
from tests.evaluation.test_metrics import ms_ssim_by_the_paper

BATCHES = DataLoader(SeededImages(DeadLeaves(32, seed=0), seed=0), batch_size=2, sampler=range(12))


def adam(groups):
    return torch.optim.Adam(groups)


def fit(module: CompressionModule, steps: int, precision: str = "32-true") -> None:
    trainer = pl.Trainer(
        max_steps=steps, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, precision=precision,
    )  # fmt: skip
    trainer.fit(module, BATCHES)


@pytest.mark.parametrize(("name", "clip_norm"), [("factorized", 0.5), ("hyperprior", 0.5), ("hyperprior", 0.0)])
def test_one_optimizer_with_two_groups_equals_two_optimizers_step_for_step(name, clip_norm):
    model = build_model(name, 6, 8)
    reference = copy.deepcopy(model)
    module = CompressionModule(
        model, "mse", 0.01, optimizer=adam, lr=1e-3, quantile_lr=2e-2, clip_norm=clip_norm, channels_last=False
    )

    quantiles = [reference.density.quantiles]
    rest = [p for p in reference.parameters() if p is not reference.density.quantiles]
    main, auxiliary = torch.optim.Adam(rest, lr=1e-3), torch.optim.Adam(quantiles, lr=2e-2)
    for steps, (levels, seeds) in enumerate(BATCHES, start=1):
        x = levels.float() / 255
        main.zero_grad()
        auxiliary.zero_grad()
        out = reference(x, reference.draw_noise(seeds, 32, 32, x.device))
        rate_distortion(out, x, "mse", 0.01).loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(rest, clip_norm or float("inf"))
        auxiliary.zero_grad()
        reference.density.quantile_loss().backward()
        main.step()
        auxiliary.step()
        if steps in (1, 6):
            ours = copy.deepcopy(module)
            fit(ours, steps)
            assert norm > 0.5  # clipping took part
            for (key, expected), actual in zip(reference.named_parameters(), ours.model.parameters(), strict=True):
                torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-7, msg=key)


def test_the_schedule_scales_the_main_groups_rate_alone():
    rates = []

    class Watched(CompressionModule):
        def training_step(self, batch, batch_idx):
            rates.append([group["lr"] for group in self.optimizers().param_groups])
            return super().training_step(batch, batch_idx)

    model = build_model("factorized", 6, 8)
    schedule = partial(cosine, warmup_steps=1, final=0.1)
    fit(Watched(model, "mse", 0.01, optimizer=adam, lr=1e-3, quantile_lr=5e-3, schedule=schedule), 4)
    assert [main for main, _ in rates] == pytest.approx([1e-3 * cosine(step, 4, 1, 0.1) for step in range(4)])
    assert len({main for main, _ in rates}) > 2
    assert [auxiliary for _, auxiliary in rates] == [5e-3] * 4


def test_steps_are_counted_once():
    module = CompressionModule(build_model("hyperprior", 6, 8), "mse", 0.01, optimizer=adam)
    fit(module, 3)
    assert module.trainer.global_step == 3


@pytest.mark.parametrize("loss", ["mse", "ms_ssim"])
def test_the_loss_is_rate_plus_lambda_times_distortion(loss):
    model = build_model("hyperprior", 6, 8)
    x = torch.rand(2, 3, 176, 176)
    with torch.no_grad():
        out = model(x)
    parts = rate_distortion(out, x, loss, 2.0)
    bpp = (out.bits_y + out.bits_z).sum().item() / (2 * 176 * 176)
    if loss == "mse":
        distortion = 65025 * sum(((out.x_hat[i] - x[i]) ** 2).mean().item() for i in range(2)) / 2
        assert parts.distortion.item() == pytest.approx(distortion, rel=1e-4)
    else:
        levels = [(values.clamp(0, 1) * 255).numpy() for values in (x, 0.9 * x + 0.1 * x.flip(-1))]
        near = rate_distortion(out._replace(x_hat=torch.tensor(levels[1]) / 255), x, loss, 2.0)
        expected = [ms_ssim_by_the_paper(*(side[i].transpose(1, 2, 0) for side in levels)) for i in range(2)]
        assert near.distortion.item() == pytest.approx(1 - sum(expected) / 2, abs=1e-5)
    assert parts.loss.item() == pytest.approx(bpp + 2 * parts.distortion.item(), rel=1e-4)
    assert (parts.bpp_y + parts.bpp_z).item() == pytest.approx(bpp, rel=1e-5)


def test_training_lowers_the_loss():
    model = build_model("hyperprior", 8, 12)
    levels, seeds = next(iter(BATCHES))
    x = levels.float() / 255

    def loss() -> float:
        with torch.no_grad():
            noise = model.draw_noise(seeds, 32, 32, x.device)
            return rate_distortion(model(x, noise), x, "mse", 0.01).loss.item()

    before = loss()
    fit(CompressionModule(model, "mse", 0.01, optimizer=adam, lr=3e-3), 6)
    first = loss()
    assert first < 0.9 * before


@pytest.mark.parametrize("what", ["loss", "gradient norm"])
def test_what_is_not_finite_stops_before_the_step_that_would_spoil_the_weights(what):
    class Broken(CompressionModule):
        def training_step(self, batch, batch_idx):
            if self.global_step == 2:
                if what == "loss":
                    with torch.no_grad():
                        self.model.synthesis[-1].bias.fill_(float("inf"))
                else:
                    return super().training_step(batch, batch_idx) * float("nan")
            return super().training_step(batch, batch_idx)

    module = Broken(build_model("factorized", 6, 8), "mse", 0.01, optimizer=adam)
    with pytest.raises(NonFiniteError, match=f"step 2: not finite: .*{what}"):
        fit(module, 5)
    assert module.trainer.global_step == 2
    assert torch.isfinite(module.model.analysis[0].weight).all()


@pytest.mark.parametrize("name", ["factorized", "hyperprior"])
def test_bfloat16_training_keeps_float32_weights_and_takes_about_the_same_steps(name):
    model = build_model(name, 8, 12)
    modules = {}
    for precision in ("32-true", "bf16-mixed"):
        modules[precision] = CompressionModule(copy.deepcopy(model), "mse", 0.01, optimizer=adam, lr=1e-3)
        fit(modules[precision], 4, precision)
    x = torch.rand(1, 3, 64, 64)
    exact, rounded = (module.model.eval()(x) for module in modules.values())
    assert all(p.dtype == torch.float32 for p in modules["bf16-mixed"].parameters())
    assert (rounded.x_hat - exact.x_hat).abs().mean() < 0.02
    assert any(not torch.equal(a, b) for a, b in zip(*(m.parameters() for m in modules.values()), strict=True))
