import re
import subprocess
import sys
import tomllib

import pytest
import yaml

from tests.conftest import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def named(requirements: list[str]) -> dict[str, str]:
    """Name to bound of requirements such as "torch>=2.9"."""
    return {re.split(r"[<>=!~\[]", line)[0].lower(): line.lower() for line in requirements}


def test_conda_and_pip_users_get_the_same_dependencies():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    (pip,) = (entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict))
    conda = [entry for entry in environment["dependencies"] if isinstance(entry, str)]
    declared = PROJECT["project"]["dependencies"] + PROJECT["dependency-groups"]["dev"]
    found = named(pip + [entry for entry in conda if not entry.startswith(("python", "pip"))])
    found.pop("-e .", None)
    expected = named(declared)
    expected["pytorch"] = expected.pop("torch").replace("torch", "pytorch")  # conda-forge's name
    assert found == expected
    assert f"python{PROJECT['project']['requires-python']}" in conda


def test_the_lock_pins_every_dependency_within_its_bounds():
    lines = [line.split("#")[0].strip() for line in (ROOT / "requirements.lock").read_text().splitlines()]
    pins = dict(line.lower().replace("_", "-").split("==") for line in lines if line)
    assert pins["torch"] == "2.13.0"
    for requirement in PROJECT["project"]["dependencies"] + PROJECT["dependency-groups"]["dev"]:
        name, bounds = re.match(r"([A-Za-z0-9-]+)(.*)", requirement).groups()
        assert name.lower() in pins, name
        lower = re.search(r">=([\d.]+)", bounds).group(1)
        assert [int(n) for n in re.findall(r"\d+", pins[name.lower()])][:3] >= [int(n) for n in lower.split(".")], name


PACKAGES = ["models.compressai", "coding.codec", "data.folders", "evaluation.progress", "training.checkpoint", "cli"]


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_point_one_way(package):
    """Only training and the data module know Lightning; only training knows Hydra. Models know nothing of ours."""
    script = f"import sys, hyperprior.{package}; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    assert not {"pytorch_lightning", "hydra", "omegaconf", "wandb"} & set(loaded)
    above = {"models": "coding data evaluation training", "coding": "data evaluation training"}
    above |= {"data": "models coding evaluation training", "evaluation": "training", "training": "", "cli": "training"}
    room = package.split(".")[0]
    assert not [m for m in loaded if m.startswith(tuple(f"hyperprior.{other}" for other in above[room].split()))]
