"""`python run.py` as a user types it, in a process of its own."""

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from hyperprior.coding.codec import Codec
from hyperprior.data.images import read_rgb
from tests.conftest import ROOT, photographs
from tests.training.cells import record_of, run_tiny, weights_of

TINY = ["model.N=8", "model.M=12", "data.patch_size=64", "data.workers=0", "trainer.max_steps=2"]


def run_py(*arguments: str, cwd: Path = ROOT, launcher: list[str] | None = None) -> subprocess.CompletedProcess[str]:
    command = [*(launcher or [sys.executable]), str(ROOT / "run.py"), *arguments]
    environment = {**os.environ, "COLUMNS": "100"}
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment)


def test_a_run_ends_with_a_table_and_the_path_of_its_results(tmp_path):
    done = run_py(*TINY, "runs_dir=results", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    folder = Path(lines[-1].removeprefix("results in "))
    assert folder.parent == tmp_path / "results"
    assert record_of(folder)["status"] == "done"
    (mean,) = (line for line in lines if line.strip().startswith("mean"))
    assert f"{record_of(folder)['means']['psnr_db']:.2f}" in mean
    assert [path.name for path in tmp_path.iterdir()] == ["results"]  # nothing is left elsewhere


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["modle.N=8"], "error: unknown key 'modle.N'; did you mean 'model.N'?"),
        (["lambda=0"], "error: lambda=0: Input should be greater than 0"),
        (["loss=ms_ssim", "data.patch_size=64"], "error: data.patch_size=64 is below 161"),
        (["data=folder", "data.train=nowhere"], "error: no folder at nowhere"),
        (["task=evaluate", "checkpoint=nowhere.ckpt"], "error: no checkpoint at nowhere.ckpt"),
    ],
)
def test_what_a_user_can_put_right_is_said_in_a_line_before_any_work(tmp_path, arguments, message):
    failed = run_py(*arguments, cwd=tmp_path)
    assert failed.returncode == 2
    assert message in failed.stderr.splitlines()[-1]
    assert len(failed.stderr.splitlines()) <= 2
    assert "Traceback" not in failed.stderr
    assert list(tmp_path.iterdir()) == []


def test_an_interrupt_is_recorded_and_the_same_command_goes_on(tmp_path, test_images_folder):
    arguments = [
        "model.N=8", "model.M=12", "data.patch_size=64", "data.workers=0", "trainer.max_steps=60", "test_set=folder",
        f"test_set.root={test_images_folder}", "trainer.checkpoint_every_n_steps=1", f"runs_dir={tmp_path}",
    ]  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "run.py"), *arguments], cwd=ROOT, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("*/checkpoints/last.ckpt")) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130
    assert errors.splitlines()[-1] == "error: interrupted; the same command goes on from the last checkpoint"
    (folder,) = tmp_path.iterdir()
    assert record_of(folder)["status"] == "interrupted"
    assert 0 < record_of(folder)["steps"] < 60
    assert not list(folder.rglob("*.tmp"))
    done = run_py(*arguments)
    assert done.returncode == 0, done.stderr
    assert "resuming at step" in done.stdout
    assert record_of(folder)["status"] == "done"


@pytest.mark.slow
def test_a_sweep_makes_a_folder_for_each_cell(tmp_path):
    done = run_py("-m", "model=hyperprior,factorized", "quality=2,5", *TINY, f"runs_dir={tmp_path}")
    assert done.returncode == 0, done.stderr
    records = [record_of(path.parent) for path in tmp_path.glob("*/record.json")]
    assert {(r["config"]["model"]["name"], r["config"]["lambda"]) for r in records} == {
        (model, lmbda) for model in ("hyperprior", "factorized") for lmbda in (0.0035, 0.025)
    }


@pytest.mark.slow
def test_ranks_from_torchrun_train_together(tmp_path, test_images_folder):
    overrides = [
        "model.N=8", "model.M=12", "data.patch_size=64", "data.batch_size=4", "data.workers=0", "trainer.max_steps=2",
        "test_set=folder", f"test_set.root={test_images_folder}", "trainer.accelerator=cpu", "trainer.devices=2",
    ]  # fmt: skip
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = run_py(*overrides, f"runs_dir={tmp_path}", launcher=torchrun)
    assert done.returncode == 0, done.stderr
    (folder,) = tmp_path.iterdir()
    assert record_of(folder)["status"] == "done"
    with (folder / "folder.csv").open() as file:
        assert [row["image"] for row in csv.DictReader(file)] == ["image0", "image1", "image2"]


@pytest.mark.slow
def test_a_compiled_model_trains_like_an_eager_one(tmp_path, test_images_folder):
    overrides = ["model.N=6", "model.M=8", "data.patch_size=64", "data.batch_size=2", "data.workers=0"]
    overrides += ["trainer.max_steps=2", "test_set=folder", f"test_set.root={test_images_folder}", "optimizer.lr=1e-3"]
    counted = (
        "import atexit, runpy, sys; from torch._dynamo.utils import counters\n"
        "atexit.register(lambda: print('compiled frames:', counters['frames']['ok']))\n"
        "sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    weights = []
    for compiled in ("false", "true"):
        arguments = [*overrides, f"trainer.compile={compiled}", f"runs_dir={tmp_path / compiled}"]
        done = run_py(*arguments, launcher=[sys.executable, "-c", counted])
        assert done.returncode == 0, done.stderr
        assert ("compiled frames: 0" in done.stdout) == (compiled == "false")
        (folder,) = (tmp_path / compiled).iterdir()
        weights.append(weights_of(folder))
    for key, expected in weights[0].items():
        torch.testing.assert_close(weights[1][key], expected, rtol=1e-3, atol=2e-5, msg=key)


@pytest.mark.slow
def test_photographs_in_kodak_out(tmp_path):
    """Training on a folder of photographs with MS-SSIM, tested on Kodak: 24 rows, each the size of a user's file."""
    train, kodak = photographs("train"), photographs("kodak")
    folder = run_tiny(
        tmp_path, kodak, "model=factorized", "loss=ms_ssim", "quality=2", "data=folder", f"data.train={train}",
        "data.patch_size=192", "data.batch_size=2", "trainer.max_steps=3", "test_set=kodak",
    )  # fmt: skip
    with (folder / "kodak.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 24
    codec = Codec.load(folder / "codec.safetensors")
    for row in rows[::6]:
        assert int(row["bytes"]) == len(codec.compress(read_rgb(kodak / f"{row['image']}.png")))
        assert int(row["bytes"]) == (folder / "bitstreams" / f"{row['image']}.hyp").stat().st_size
