"""What the benchmarks share: one measurement in a process of its own, which prints JSON as its last line."""

import json
import subprocess
from typing import Any


def last_json_line(command: list[str]) -> dict[str, Any]:
    """Runs a command and reads the last line that it prints. Raises CalledProcessError if it fails."""
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True).stdout
    result: dict[str, Any] = json.loads(output.strip().splitlines()[-1])
    return result
