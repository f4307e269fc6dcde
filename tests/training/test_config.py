import pytest
from omegaconf import OmegaConf

from hyperprior.training.command_line_errors import explain, known_keys
from hyperprior.training.config import ConfigError, RunConfig, parse
from tests.conftest import ROOT
from tests.training.cells import composed

MSE = [0.0018, 0.0035, 0.0067, 0.0130, 0.0250, 0.0483, 0.0932, 0.1800]
MS_SSIM = [2.40, 4.58, 8.73, 16.64, 31.73, 60.50, 115.37, 220.00]


def parsed(*overrides: str) -> RunConfig:
    return parse(OmegaConf.to_container(composed(*overrides), resolve=True))


@pytest.mark.parametrize(("loss", "ladder"), [("mse", MSE), ("ms_ssim", MS_SSIM)])
@pytest.mark.parametrize("quality", range(1, 9))
def test_quality_picks_lambda_and_lambda_picks_capacity(loss, ladder, quality):
    config = parsed(f"loss={loss}", f"quality={quality}", "data=folder", "data.train=photographs")
    assert config.lmbda == ladder[quality - 1]
    assert config.capacity == ((128, 192) if quality <= 5 else (192, 320))
    assert parsed(f"quality={quality}", "model.N=7", "model.M=9").capacity == (7, 9)


def test_a_cells_name_follows_what_a_path_leads_to(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a").mkdir()

    def name(path) -> str:
        return parsed("data=folder", f"data.train={path}", "test_set=kodak", "test_set.root=anywhere").cell_name

    assert name("a") == name(tmp_path / "a") == name("a/../a")
    assert name("a") != name("b")
    (tmp_path / "first.ckpt").write_bytes(b"1")
    first = parsed("init_from=first.ckpt").hash
    (tmp_path / "first.ckpt").write_bytes(b"2")
    assert parsed("init_from=first.ckpt").hash != first != parsed().hash


def test_lambda_goes_before_quality():
    assert parsed("lambda=0.05", "quality=2").lmbda == 0.05
    assert parsed("lambda=0.013").hash == parsed("quality=4").hash


def test_defaults_are_the_ones_documented():
    config = parsed()
    assert (config.model.name, config.loss.name, config.quality, config.data.batch_size) == ("hyperprior", "mse", 4, 4)
    assert (config.optimizer.lr, config.optimizer.quantile_lr) == (1e-4, 1e-3)
    assert (config.model.K, config.model.r) == (4, 3)
    assert config.capacity == (32, 48)
    assert parsed("model.K=3", "model.r=[2,5]").model.r == [2, 5]


def test_the_papers_experiment_is_the_papers():
    config = parsed("experiment=paper", "data.train=photographs", "quality=6")
    assert config.capacity == (192, 320)
    assert (config.data.patch_size, config.data.batch_size, config.optimizer.lr) == (256, 8, 1e-4)
    assert config.test_set.name == "kodak"


def test_the_name_of_a_cell_changes_with_what_decides_its_result_and_with_nothing_else():
    name = parsed().cell_name
    assert "=" not in name
    for same in ("runs_dir=elsewhere", "logger=wandb", "trainer.devices=2", "data.workers=3", "force=true"):
        assert parsed(same).cell_name == name, same
    for other in (
        "seed=1",
        "lambda=0.02",
        "model.N=33",
        "trainer.max_steps=1201",
        "data.patch_size=200",
        "loss=ms_ssim",
    ):
        assert parsed(other).cell_name != name, other


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["lambda=-1"], "lambda=-1: Input should be greater than 0"),
        (["lambda=nan"], "lambda=nan: Input should be a finite number"),
        (["quality=9"], "quality=9: Input should be less than or equal to 8"),
        (["loss=ms_ssim", "data.patch_size=160"], "data.patch_size=160 is below 161"),
        (["data=folder"], "data=folder needs data.train=DIR"),
        (["data.train=photographs"], "data.train=DIR goes with data=folder"),
        (["test_set.root=images"], "test_set.root=DIR goes with test_set=kodak or test_set=folder"),
        (["test_set=folder"], r"test_set=folder needs test_set\.root=DIR"),
        (["data.batch_size=3", "trainer.devices=2"], "data.batch_size=3 cannot be shared equally"),
        (["trainer.precision=16-mixed"], "trainer.precision=16-mixed: Input should be '32-true' or 'bf16-mixed'"),
        (["trainer.max_steps=0"], "trainer.max_steps=0: Input should be greater than or equal to 1"),
        (["model.r=[3,3]"], r"model.r=\[3, 3\] must be a positive width or model.K - 1 = 3 of them"),
        (["task=evaluate"], "task=evaluate needs checkpoint=PATH"),
        (["checkpoint=some.ckpt"], "checkpoint=PATH goes with task=evaluate"),
        (["+extra=1"], "unknown key 'extra'"),
    ],
)
def test_what_is_wrong_is_said_in_a_line(overrides, message):
    with pytest.raises(ConfigError, match=message) as caught:
        parsed(*overrides)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("modle.N=8", "unknown key 'modle.N'; did you mean 'model.N'?"),
        ("model.n=8", "unknown key 'model.n'; did you mean 'model.N'?"),
        ("trainer.max_step=8", "unknown key 'trainer.max_step'; did you mean 'trainer.max_steps'?"),
        ("lamda=0.1", "unknown key 'lamda'; did you mean 'lambda'?"),
        ("model=joint", "model=joint is not there; choose from factorized, hyperprior"),
        ("test_set=kodac", "test_set=kodac is not there; choose from folder, kodak, samples"),
    ],
)
def test_a_misspelt_key_or_choice_is_said_in_a_line(override, message):
    with pytest.raises(Exception) as caught:  # noqa: PT011 (Hydra's, of several kinds)
        composed(override)
    assert explain(caught.value) == message


def test_keys_that_tools_outside_use_are_there():
    keys = known_keys(ROOT / "conf")
    wanted = (
        "model model.N model.M loss quality lambda data data.train data.patch_size data.batch_size data.workers "
        "test_set test_set.root trainer.max_steps trainer.accelerator trainer.devices trainer.precision "
        "evaluation.every_n_steps optimizer schedule logger runs_dir seed init_from task checkpoint"
    )
    assert set(wanted.split()) <= set(keys)
