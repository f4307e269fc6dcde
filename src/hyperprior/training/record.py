"""record.json: what a run was, how it ended and what it measured."""

import json
import math
import platform
import subprocess
import time
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from hyperprior.evaluation.evaluate import ImageRecord, means
from hyperprior.files import write_aside

_PACKAGES = ("hyperprior", "torch", "pytorch-lightning", "numpy", "constriction", "pytorch-msssim", "scikit-image")


@dataclass(frozen=True)
class Session:
    """record.json while one process, with the ranks it spawned, works on a cell."""

    path: Path
    facts: dict[str, Any]
    seconds_before: float  # what earlier sessions took
    started_at: float = field(default_factory=time.time)

    def write(self, status: str, **more: Any) -> None:
        """Writes the record with a status and what goes with it."""
        seconds = self.seconds_before + time.time() - self.started_at
        write_record(self.path, {"status": status, **more, "seconds": seconds, **self.facts})

    def done(self, test_set: str, records: list[ImageRecord], steps: int) -> None:
        """Training has ended and its results are measured."""
        self.write("done", steps=steps, test_set=test_set, images=len(records), means=means(records))

    def failed(self, error: BaseException, steps: int) -> None:
        """Training has stopped after `steps` steps, by an error or an interrupt."""
        status = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
        self.write(status, steps=steps, error=f"{type(error).__name__}: {error}")


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
