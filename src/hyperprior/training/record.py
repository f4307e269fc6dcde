"""record.json: what a run was, how it ended and what it measured."""

import json
import math
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

from hyperprior.files import write_aside

_PACKAGES = ("hyperprior", "torch", "pytorch-lightning", "numpy", "constriction", "pytorch-msssim", "scikit-image")


def provenance() -> dict[str, Any]:
    """Versions of what computes the numbers, and the commit of the code where it is a git checkout."""
    return {
        "versions": {"python": platform.python_version(), **{name: version(name) for name in _PACKAGES}},
        "git_commit": _git_commit(),
        "machine": f"{platform.machine()} {platform.system()}",
    }


def _git_commit() -> str | None:
    """The commit of the checkout this package is in, with "-dirty" behind it if files differ from it."""
    here = Path(__file__).parent
    try:
        described = subprocess.run(
            ["git", "-C", str(here), "describe", "--always", "--abbrev=40", "--dirty", "--match=", "--exclude=*"],
            capture_output=True, text=True, check=True, timeout=30,
        )  # fmt: skip
        tracked = subprocess.run(
            ["git", "-C", str(here), "ls-files", "--error-unmatch", __file__], capture_output=True, timeout=30
        )
    except (OSError, subprocess.SubprocessError):
        return None
    # A package installed into some other project's checkout is not part of it.
    return described.stdout.strip() if tracked.returncode == 0 else None


def write_record(path: Path, record: dict[str, Any]) -> None:
    """Writes a record, whole or not at all. Infinite and undefined numbers become null: JSON has none."""
    with write_aside(path) as aside:
        aside.write_text(json.dumps(_plain(record), indent=2, allow_nan=False) + "\n")


def read_record(path: Path) -> dict[str, Any] | None:
    """A record, or None where there is none."""
    if not path.is_file():
        return None
    record: dict[str, Any] = json.loads(path.read_text())
    return record


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
