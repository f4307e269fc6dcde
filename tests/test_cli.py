"""The `hyperprior` command as a user meets it: files, messages and exit statuses."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from hyperprior.cli import app
from hyperprior.coding.codec import Codec
from hyperprior.data.images import read_rgb
from hyperprior.evaluation.evaluate import read_csv
from tests.conftest import ROOT, leaves, lively_model
from tests.models.test_compressai import GOLDEN
from tests.training.cells import run_tiny


def run(*arguments: object) -> tuple[int, str, str]:
    """Exit status, standard output, standard error."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


@pytest.fixture(scope="module")
def codec_file(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("codec") / "codec.safetensors"
    Codec.from_model(lively_model("hyperprior")).save(path)
    return path


@pytest.fixture(autouse=True)
def codec_in_environment(monkeypatch, codec_file):
    monkeypatch.setenv("HYPERPRIOR_CODEC", str(codec_file))


@pytest.fixture
def photographs(tmp_path) -> list[Path]:
    paths = [tmp_path / "one.png", tmp_path / "two.tiff", tmp_path / "three.bmp"]
    for number, path in enumerate(paths):
        Image.fromarray(leaves(40 + number, 50, seed=number)).save(path)
    return paths


def test_images_become_files_and_files_images(tmp_path, codec_file, photographs):
    status, out, err = run("compress", *photographs)
    assert (status, err) == (0, "")
    files = [path.with_suffix(".hyp") for path in photographs]
    codec = Codec.load(codec_file)
    for path, file, line in zip(photographs, files, out.splitlines(), strict=True):
        pixels = read_rgb(path)
        data = file.read_bytes()
        assert data == codec.compress(pixels)
        height = pixels.shape[0]
        bpp = 8 * len(data) / (50 * height)
        assert line == f"{path} -> {file}  50x{height}  {len(data)} bytes  {bpp:.3f} bpp"
    status, out, err = run("decompress", *files, "-o", tmp_path / "decoded")
    assert (status, err) == (0, "")
    for file in files:
        decoded = np.asarray(Image.open(tmp_path / "decoded" / f"{file.stem}.png"))
        np.testing.assert_array_equal(decoded, codec.decompress(file.read_bytes()))
    for image_format in ("tiff", "bmp", "ppm"):
        assert run("decompress", files[0], "-o", tmp_path / "decoded", "--format", image_format)[0] == 0
        again = read_rgb(tmp_path / "decoded" / f"{files[0].stem}.{image_format}")
        np.testing.assert_array_equal(again, codec.decompress(files[0].read_bytes()))


def test_nothing_is_overwritten_without_force(photographs):
    file = photographs[0].with_suffix(".hyp")
    file.write_bytes(b"precious")
    status, out, err = run("compress", *photographs)
    assert (status, out, err) == (2, "", f"error: {file} exists; --force overwrites it\n")
    assert file.read_bytes() == b"precious"
    assert not photographs[1].with_suffix(".hyp").exists()  # nothing was begun
    assert run("compress", *photographs, "--force")[0] == 0
    assert file.read_bytes()[:3] == b"HYP"


def test_what_cannot_be_done_is_said_before_anything_is(tmp_path, photographs):
    one = photographs[0]
    twin = tmp_path / "sub" / "one.jpg"
    twin.parent.mkdir()
    Image.fromarray(leaves(32, 32)).save(twin)
    (tmp_path / "file").write_text("")
    (tmp_path / "old.hyp").write_text("")
    Image.fromarray(leaves(32, 32)).save(tmp_path / "one.bmp")
    cases = {
        ("compress", tmp_path / "no.png", one): f"error: no file at {tmp_path / 'no.png'}\n",
        ("compress", tmp_path): f"error: {tmp_path} is a folder: name the files in it, as in {tmp_path}/*\n",
        ("compress", one, twin, "-o", tmp_path / "o"): (
            f"error: {one} and {twin} would both become {tmp_path / 'o' / 'one.hyp'}\n"
        ),
        ("compress", one, tmp_path / "sub" / ".." / "one.bmp"): (
            f"error: {one} and {tmp_path}/sub/../one.bmp would both become {tmp_path}/sub/../one.hyp\n"
        ),
        ("compress", tmp_path / "old.hyp"): f"error: {tmp_path / 'old.hyp'} is compressed already\n",
        ("compress", one, "-o", tmp_path / "file" / "x"): f"error: {tmp_path / 'file'} is a file and not a folder\n",
        ("compress", one, "-o", tmp_path / "file"): f"error: {tmp_path / 'file'} is a file and not a folder\n",
        ("decompress", one, "--force"): f"error: {one} would be overwritten by its own result\n",
        ("compress", one, "--codec", tmp_path / "c"): f"error: no codec file at {tmp_path / 'c'}\n",
        ("compress", "-", one): "error: - (standard input) goes to standard output: "
        "it takes no other file and no --output\n",
        ("compress", one, "--device", "tpu9"): "error: --device tpu9: it is cpu, cuda, cuda:1, ... or mps\n",
        ("compress", one, "--codec", tmp_path): f"error: {tmp_path} is a folder\n",
        ("inspect", tmp_path): f"error: {tmp_path} is a folder\n",
        ("evaluate", one): f"error: {one} is a file and not a folder\n",
        ("evaluate", tmp_path, "-o", tmp_path / "file"): f"error: {tmp_path / 'file'} is a file and not a folder\n",
        ("evaluate", tmp_path, "-o", tmp_path / "r"): f"error: {tmp_path / 'r'} lies inside {tmp_path}: ",
        ("export", one, "-o", one, "--force"): f"error: {one} would be overwritten by its own result\n",
        ("import-compressai", one, "-o", one, "--force"): f"error: {one} would be overwritten by its own result\n",
        ("inspect", tmp_path / "no.hyp"): f"error: no file at {tmp_path / 'no.hyp'}\n",
        ("evaluate", tmp_path / "none"): f"error: no folder at {tmp_path / 'none'}\n",
        ("export", tmp_path / "no.ckpt", "-o", tmp_path / "c"): f"error: no checkpoint at {tmp_path / 'no.ckpt'}\n",
        ("export", one, "-o", tmp_path / "file"): f"error: {tmp_path / 'file'} exists; --force overwrites it\n",
        ("import-compressai", one, "-o", tmp_path / "c"): (
            f"error: {one} is not a file of tensors that torch.save wrote\n"
        ),
    }
    before = sorted(tmp_path.rglob("*"))
    for arguments, message in cases.items():
        status, out, err = run(*arguments)
        assert (status, out) == (2, ""), arguments
        assert err.startswith(message), (err, message)
        assert err.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_device_that_is_not_there_is_said(photographs):
    status, _, err = run("compress", photographs[0], "--device", "cuda")
    assert (status, err) == (2, "error: there is no CUDA device here; --device cpu works everywhere\n")


def test_a_codec_must_be_named(monkeypatch, photographs):
    monkeypatch.delenv("HYPERPRIOR_CODEC")
    status, _, err = run("compress", photographs[0])
    assert status == 2
    assert "Missing option '--codec' (env var: 'HYPERPRIOR_CODEC')" in err


def test_one_bad_file_does_not_stop_the_others(tmp_path, photographs):
    bad = tmp_path / "bad.png"
    bad.write_bytes(photographs[0].read_bytes()[:200])
    text = tmp_path / "text.jpg"
    text.write_text("no image")
    status, out, err = run("compress", photographs[0], bad, text, photographs[1])
    assert status == 1
    assert len(out.splitlines()) == 2
    lines = err.splitlines()
    assert lines[0].startswith(f"error: {bad}: ")
    assert lines[1] == f"error: {text}: not an image in a format that Pillow reads"
    assert lines[2] == "error: 2 of 4 files could not be processed"
    assert not bad.with_suffix(".hyp").exists()
    file = photographs[0].with_suffix(".hyp")
    file.write_bytes(file.read_bytes()[:-4])
    status, out, err = run("decompress", file, photographs[1].with_suffix(".hyp"), "-o", tmp_path / "decoded")
    assert status == 1
    assert err.splitlines()[0].startswith(f"error: {file}: the file is damaged: it was cut")
    assert [path.name for path in (tmp_path / "decoded").iterdir()] == ["two.png"]


def test_a_file_of_another_codec_is_said(tmp_path, photographs):
    other = tmp_path / "other.safetensors"
    Codec.from_model(lively_model("factorized")).save(other)
    run("compress", photographs[0])
    file = photographs[0].with_suffix(".hyp")
    status, _, err = run("decompress", file, "--codec", other, "--force")
    assert status == 1
    assert "the file was made with the codec" in err
    status, out, _ = run("inspect", file, "--codec", other)
    assert status == 1
    assert "the file was made with the codec" in out


def test_inspect_accounts_for_every_bit(photographs, codec_file):
    run("compress", photographs[0], "--coder", "binary")
    file = photographs[0].with_suffix(".hyp")
    status, out, _ = run("inspect", file)
    rows = dict(line.split(maxsplit=1) for line in out.splitlines()[1:])
    assert status == 0
    assert rows["image"] == "50x40 pixels"
    assert rows["coder"] == "binary"
    assert rows["codec"] == Codec.load(codec_file).fingerprint.hex()
    assert rows["content"] == f"intact, decodes with {codec_file}"
    bits = sum(int(rows[part].split()[0]) for part in ("header", "z", "y"))
    assert bits == 8 * file.stat().st_size
    assert rows["file"].startswith(f"{file.stat().st_size} bytes, {8 * file.stat().st_size / 2000:.4f} bpp")
    status, out, _ = run("inspect", codec_file)
    assert status == 0
    assert f"codec    {rows['codec']}" in out
    assert "hyperprior, N=8, M=12" in out


def test_pipes(tmp_path, photographs, codec_file):
    command = [sys.executable, "-m", "hyperprior.cli"]
    data = photographs[0].read_bytes()
    done = subprocess.run([*command, "compress", "-"], input=data, capture_output=True, check=True)
    assert done.stderr == b""
    codec = Codec.load(codec_file)
    assert done.stdout == codec.compress(read_rgb(photographs[0]))
    decompress = [*command, "decompress", "-", "--format", "ppm"]
    back = subprocess.run(decompress, input=done.stdout, capture_output=True, check=True)
    (tmp_path / "back.ppm").write_bytes(back.stdout)
    np.testing.assert_array_equal(read_rgb(tmp_path / "back.ppm"), codec.decompress(done.stdout))
    broken = subprocess.run([*command, "compress", "-"], input=b"no image", capture_output=True, check=False)
    assert (broken.returncode, broken.stdout) == (1, b"")
    assert broken.stderr == b"error: -: not an image in a format that Pillow reads\n"


def test_help_and_mistakes_do_not_wait_for_torch():
    script = (
        "import sys, typer.testing\n"
        "from hyperprior.cli import app\n"
        "run = typer.testing.CliRunner().invoke\n"
        "assert 'compress' in run(app, ['--help']).stdout\n"
        "assert run(app, ['compress', 'nothing.png', '--codec', 'x']).exit_code == 2\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, cwd=ROOT)


def test_evaluate_measures_a_folder(tmp_path, tmp_path_factory, photographs, codec_file):
    results = tmp_path_factory.mktemp("results") / "here"
    status, out, err = run("evaluate", tmp_path, "-o", results)
    assert (status, err) == (0, "")
    records = read_csv(results / "results.csv")
    assert [record.image for record in records] == ["one", "three", "two"]
    codec = Codec.load(codec_file)
    for record in records:
        (path,) = (path for path in photographs if path.stem == record.image)
        assert record.bytes == len(codec.compress(read_rgb(path)))
        assert (results / "bitstreams" / f"{record.image}.hyp").stat().st_size == record.bytes
    assert "mean" in out
    (results / "results.csv").unlink()
    status, _, err = run("evaluate", tmp_path, "-o", results)
    assert status == 2
    assert err.splitlines() == [
        f"error: {results / name} exists; --force overwrites it" for name in ("bitstreams", "reconstructions")
    ]
    (tmp_path / "broken.png").write_bytes(photographs[0].read_bytes()[:300])
    status, out, err = run("evaluate", tmp_path)  # nothing kept
    assert status == 1
    assert err.startswith(f"error: skipped {tmp_path / 'broken.png'}: damaged")
    assert err.count("\n") == 1
    assert "mean" in out
    assert not list(Path.cwd().glob("results.csv"))


def test_export_freezes_a_checkpoint(tmp_path, test_images_folder):
    folder = run_tiny(tmp_path / "runs", test_images_folder, "trainer.max_steps=3")
    exported = tmp_path / "codec.safetensors"
    status, out, _ = run("export", folder / "checkpoints" / "last.ckpt", "-o", exported)
    assert status == 0
    trained = Codec.load(folder / "codec.safetensors")
    assert Codec.load(exported).fingerprint == trained.fingerprint
    assert trained.fingerprint.hex() in out
    assert str(tmp_path).encode() not in exported.read_bytes()
    image = leaves(64, 64)
    assert Codec.load(exported).compress(image) == trained.compress(image)
    status, _, err = run("export", exported, "-o", tmp_path / "again.safetensors")
    assert status == 2
    assert "is not a checkpoint of hyperprior" in err


@pytest.mark.parametrize("name", sorted(GOLDEN))
def test_compressais_weights_become_a_codec(tmp_path, photographs, name):
    torch.save(GOLDEN[name]["state_dict"], tmp_path / "weights.pth")
    codec = tmp_path / "codec.safetensors"
    status, _, err = run("import-compressai", tmp_path / "weights.pth", "-o", codec, "--weights", "bfloat16")
    assert (status, err) == (0, "")
    assert run("compress", photographs[0], "--codec", codec)[0] == 0
    assert run("decompress", photographs[0].with_suffix(".hyp"), "--codec", codec, "-o", tmp_path / "out")[0] == 0
    torch.save({"h_a.0.weight": torch.zeros(1)}, tmp_path / "other.pth")
    status, _, err = run("import-compressai", tmp_path / "other.pth", "-o", tmp_path / "x.safetensors")
    assert status == 2
    assert "not CompressAI's bmshj2018-factorized or bmshj2018-hyperprior" in err
    assert err.count("\n") == 1
