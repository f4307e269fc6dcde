import csv
import math

import pytest
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from hyperprior.coding.codec import Codec
from hyperprior.data.images import NoImagesError, read_rgb
from hyperprior.training.callbacks import BitstreamEvaluation
from hyperprior.training.checkpoint import CheckpointError, load_checkpoint
from hyperprior.training.config import ConfigError
from hyperprior.training.module import CompressionModule, NonFiniteError
from hyperprior.training.run import run
from tests.training.cells import TINY, composed, record_of, run_tiny, weights_of


@pytest.fixture(scope="module")
def trained(tmp_path_factory, test_images_folder):
    """A finished cell of four steps."""
    return run_tiny(
        tmp_path_factory.mktemp("runs"), test_images_folder, "trainer.max_steps=4", "evaluation.every_n_steps=2"
    )


def test_a_run_leaves_the_folder_that_is_promised(trained, test_images_folder):
    names = {path.name for path in trained.iterdir()}
    assert names >= {"config.yaml", "checkpoints", "codec.safetensors", "folder.csv", "record.json", "reconstructions"}
    assert (trained / "checkpoints" / "last.ckpt").is_file()
    with (trained / "folder.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["image"] for row in rows] == ["image0", "image1", "image2"]
    assert list(rows[0]) == [
        "image",
        "width",
        "height",
        "bytes",
        "header_bytes",
        "y_bytes",
        "z_bytes",
        "bpp",
        "information_y_bits",
        "information_z_bits",
        "psnr_db",
        "ms_ssim",
        "ms_ssim_db",
        "encode_ms",
        "decode_ms",
    ]
    codec = Codec.load(trained / "codec.safetensors")
    for row in rows:
        assert int(row["bytes"]) == len(codec.compress(read_rgb(test_images_folder / f"{row['image']}.png")))
    assert not list(trained.rglob("*.tmp"))


def test_the_record_says_what_was_run_and_what_came_out(trained):
    record = record_of(trained)
    assert record["status"] == "done"
    assert record["steps"] == 4
    assert record["images"] == 3
    assert trained.name.endswith(record["config_hash"])
    assert record["config"]["model"]["N"] == 8
    assert record["config"]["lambda"] == 0.013
    assert set(record["versions"]) >= {"python", "torch", "pytorch-lightning", "constriction", "hyperprior"}
    with (trained / "folder.csv").open() as file:
        bpp = [float(row["bpp"]) for row in csv.DictReader(file)]
    assert record["means"]["bpp"] == pytest.approx(sum(bpp) / 3)
    assert yaml.safe_load((trained / "config.yaml").read_text())["trainer"]["max_steps"] == 4


def test_what_is_promised_to_be_logged_is_logged(trained):
    (path,) = trained.glob("logs/*/metrics.csv")
    with path.open() as file:
        rows = list(csv.DictReader(file))
    training = [row for row in rows if row["train/bpp_y"]]
    assert len(training) == 4
    assert [float(row["train/lr"]) for row in training] == pytest.approx([1e-3] * 4)
    for key in ("bpp", "bpp_y", "bpp_z", "distortion", "loss", "tail_mass", "gradient_norm", "quantile_loss", "lr"):
        assert all(math.isfinite(float(row[f"train/{key}"])) for row in training), key
    assert [row["step"] for row in rows if row["test/bpp"]] == ["2", "4"]


def test_the_same_command_again_runs_nothing(trained, test_images_folder):
    before = (trained / "record.json").stat().st_mtime_ns
    overrides = ("trainer.max_steps=4", "evaluation.every_n_steps=2", f"runs_dir={trained.parent}")
    run(composed(*TINY, *overrides, f"test_set.root={test_images_folder}"))
    assert (trained / "record.json").stat().st_mtime_ns == before


def test_a_resumed_run_has_the_numbers_of_an_unbroken_one(tmp_path, test_images_folder, monkeypatch):
    """Stopped in the sixth of seven steps, so that the fifth is lost and done again; with a schedule and shuffling."""
    overrides = (
        "trainer.max_steps=7", "trainer.checkpoint_every_n_steps=2", "schedule=cosine", "schedule.warmup_steps=2",
        "data=folder", f"data.train={test_images_folder}", "data.workers=1", "data.patch_size=64", "data.batch_size=4",
    )  # fmt: skip
    unbroken = run_tiny(tmp_path / "unbroken", test_images_folder, *overrides)

    class KilledError(Exception):
        pass

    def dies(self, batch, batch_idx, original=CompressionModule.training_step):
        if self.global_step == 5:
            raise KilledError
        return original(self, batch, batch_idx)

    with monkeypatch.context() as patch:
        patch.setattr(CompressionModule, "training_step", dies)
        with pytest.raises(KilledError):
            run_tiny(tmp_path / "broken", test_images_folder, *overrides)
    (broken,) = (tmp_path / "broken").iterdir()
    assert record_of(broken)["status"] == "failed"
    assert load_checkpoint(broken / "checkpoints" / "last.ckpt").step == 4
    resumed = run_tiny(tmp_path / "broken", test_images_folder, *overrides)
    assert resumed == broken
    assert record_of(resumed)["resumed_from_step"] == 4
    expected, actual = weights_of(unbroken), weights_of(resumed)
    assert all(torch.equal(expected[key], actual[key]) for key in expected)
    times = ("encode_ms", "decode_ms")
    tables = []
    for folder in (unbroken, resumed):
        with (folder / "folder.csv").open() as file:
            tables.append([{k: v for k, v in row.items() if k not in times} for row in csv.DictReader(file)])
    assert tables[0] == tables[1]


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["mse", "ms_ssim"])
def test_two_ranks_take_the_steps_of_one_and_code_every_image_once(tmp_path, test_images_folder, loss):
    patch_size = 176 if loss == "ms_ssim" else 64
    # Adam divides a gradient by its size: with the usual eps, one that is rounding noise decides the sign of a step.
    overrides = (f"loss={loss}", f"data.patch_size={patch_size}", "trainer.max_steps=3", "optimizer.algorithm.eps=1e-4")
    alone = run_tiny(tmp_path / "one", test_images_folder, *overrides)
    shared = run_tiny(tmp_path / "two", test_images_folder, *overrides, "trainer.devices=2")
    assert shared.name == alone.name  # the number of ranks does not decide the result
    assert record_of(shared)["steps"] == 3
    expected, actual = weights_of(alone), weights_of(shared)
    for key, weight in expected.items():
        torch.testing.assert_close(actual[key], weight, rtol=1e-4, atol=1e-6, msg=key)
    with (shared / "folder.csv").open() as file:
        assert [row["image"] for row in csv.DictReader(file)] == ["image0", "image1", "image2"]


def test_a_run_that_ended_in_its_last_evaluation_is_completed_by_the_same_command(
    tmp_path, test_images_folder, monkeypatch
):
    class DiskFullError(OSError):
        pass

    def fails(self, trainer, module):
        raise DiskFullError

    with monkeypatch.context() as patch:
        patch.setattr(BitstreamEvaluation, "_evaluate", fails)
        with pytest.raises(DiskFullError):
            run_tiny(tmp_path, test_images_folder, "trainer.max_steps=2")
    (folder,) = tmp_path.iterdir()
    assert record_of(folder)["status"] == "failed"
    assert record_of(folder)["steps"] == 2
    before = weights_of(folder)
    assert run_tiny(tmp_path, test_images_folder, "trainer.max_steps=2") == folder
    assert record_of(folder)["status"] == "done"
    assert record_of(folder)["steps"] == 2
    assert all(torch.equal(weight, before[key]) for key, weight in weights_of(folder).items())
    assert Codec.load(folder / "codec.safetensors").config["lambda"] == 0.013


@pytest.mark.slow
def test_a_spawned_rank_that_diverges_says_so_in_a_line(tmp_path, test_images_folder):
    with pytest.raises(NonFiniteError, match=r"^step \d: not finite") as caught:
        run_tiny(tmp_path, test_images_folder, "trainer.max_steps=6", "trainer.devices=2", "optimizer.lr=1e30")
    assert "Traceback" not in str(caught.value)
    (folder,) = tmp_path.iterdir()
    assert record_of(folder)["status"] == "failed"
    assert record_of(folder)["error"].startswith("NonFiniteError: step")
    assert 0 <= record_of(folder)["steps"] < 6


def test_training_starts_from_another_runs_weights(tmp_path, trained, test_images_folder):
    checkpoint = trained / "checkpoints" / "last.ckpt"
    folder = run_tiny(
        tmp_path, test_images_folder, f"init_from={checkpoint}", "trainer.max_steps=1", "optimizer.lr=1e-30",
        "optimizer.quantile_lr=1e-30",
    )  # fmt: skip
    source, result = weights_of(trained), weights_of(folder)
    for key in source:
        torch.testing.assert_close(result[key], source[key], msg=key)


def test_another_architecture_is_no_start(tmp_path, trained, test_images_folder):
    checkpoint = trained / "checkpoints" / "last.ckpt"
    with pytest.raises(ConfigError, match="init_from="):
        run_tiny(tmp_path, test_images_folder, f"init_from={checkpoint}", "model.N=9")
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_is_enough_to_evaluate(tmp_path, trained):
    lonely = tmp_path / "lonely" / "model.ckpt"
    lonely.parent.mkdir()
    lonely.write_bytes((trained / "checkpoints" / "last.ckpt").read_bytes())
    run(composed("task=evaluate", f"checkpoint={lonely}", "test_set=samples", f"runs_dir={tmp_path / 'runs'}"))
    (table,) = (tmp_path / "runs").rglob("samples.csv")
    with table.open() as file:
        assert len(list(csv.DictReader(file))) == 5
    record = record_of(table.parent)
    assert record["status"] == "done"
    assert record["config"]["model"]["N"] == 8
    assert Codec.load(table.parent / "codec.safetensors").config["lambda"] == 0.013
    first = Codec.load(trained / "codec.safetensors")
    again = Codec.load(table.parent / "codec.safetensors")
    image = read_rgb(next(table.parent.joinpath("reconstructions").glob("*.png")))
    assert first.compress(image) == again.compress(image)


def test_a_loss_that_is_not_finite_names_its_step_and_keeps_the_last_good_checkpoint(
    tmp_path, test_images_folder, monkeypatch
):
    def explodes(self, batch, batch_idx, original=CompressionModule.training_step):
        if self.global_step == 3:
            with torch.no_grad():
                self.model.synthesis[-1].bias.fill_(float("nan"))
        return original(self, batch, batch_idx)

    monkeypatch.setattr(CompressionModule, "training_step", explodes)
    with pytest.raises(NonFiniteError, match="step 3: not finite: loss"):
        run_tiny(tmp_path, test_images_folder, "trainer.max_steps=5", "trainer.checkpoint_every_n_steps=1")
    (folder,) = tmp_path.iterdir()
    assert "step 3" in record_of(folder)["error"]
    kept = load_checkpoint(folder / "checkpoints" / "last.ckpt")
    assert kept.step == 3
    assert all(torch.isfinite(p).all() for p in kept.model.parameters())


@pytest.mark.parametrize("kind", ["missing", "garbage"])
def test_what_is_no_checkpoint_is_refused(tmp_path, kind):
    path = tmp_path / "some.ckpt"
    if kind == "garbage":
        path.write_bytes(b"garbage" * 100)
    with pytest.raises(CheckpointError, match=r"no checkpoint at|is not a checkpoint of hyperprior"):
        load_checkpoint(path)


@pytest.mark.parametrize(
    "override",
    [
        "schedule.warmup_steps=abc",
        "schedule.warmup_steps=-3",
        "runs_dir=/proc/none",
        "optimizer.algorithm._target_=torch.optim.Nope",
    ],
)
def test_what_cannot_work_is_found_before_anything_is_written(tmp_path, test_images_folder, override):
    with pytest.raises(ConfigError, match=r"^(schedule=|runs_dir=|optimizer\.algorithm: Error loc)"):
        run(composed(*TINY, f"runs_dir={tmp_path / 'runs'}", f"test_set.root={test_images_folder}", override))
    assert not (tmp_path / "runs").exists()


def test_a_codec_file_names_no_place_on_this_machine(trained, test_images_folder):
    content = (trained / "codec.safetensors").read_bytes()
    assert str(trained.parent).encode() not in content
    assert str(test_images_folder).encode() not in content


def test_an_empty_training_folder_is_found_before_anything_is_written(tmp_path, test_images_folder):
    (tmp_path / "empty").mkdir()
    runs = tmp_path / "runs"
    with pytest.raises(NoImagesError, match="no image of 64 pixels"):
        run_tiny(runs, test_images_folder, "data=folder", f"data.train={tmp_path / 'empty'}", "data.patch_size=64")
    assert not runs.exists()


def test_tensorboard_has_the_curves(tmp_path, test_images_folder):
    folder = run_tiny(tmp_path, test_images_folder, "logger=tensorboard", "trainer.max_steps=2")
    events = EventAccumulator(str(folder / "logs")).Reload()
    assert [event.step for event in events.Scalars("train/bpp_y")] == [0, 1]
    assert events.Scalars("test/psnr_db")[-1].value == pytest.approx(record_of(folder)["means"]["psnr_db"], rel=1e-4)


def test_cells_that_follow_each_other_are_wandb_runs_of_their_own(tmp_path, test_images_folder, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    for seed in (0, 1):
        with pytest.warns(UserWarning, match="wandb logs offline"):
            run_tiny(tmp_path, test_images_folder, "logger=wandb", "trainer.max_steps=1", f"seed={seed}")
    for folder in tmp_path.iterdir():
        (file,) = (path for path in folder.rglob("run-*.wandb") if not path.is_symlink())
        assert file.stem == f"run-{record_of(folder)['config_hash']}"
        assert file.stat().st_size > 0
