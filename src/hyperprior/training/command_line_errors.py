"""Hydra's and OmegaConf's complaints about a command line, in a line each."""

import difflib
import re
from pathlib import Path

import yaml

_UNKNOWN_KEY = re.compile(r"Could not override '([^']+)'")
_NOT_IN_STRUCT = re.compile(r"Key '([^']+)' is not in struct")
_UNKNOWN_CHOICE = re.compile(r"Could not find '([^']+)/([^'/]+)'")
_CHOICES = re.compile(r"^\t(\S+)$", re.MULTILINE)


def explain(error: Exception, conf: Path | None = None) -> str:
    """What is wrong with the command line and what to write instead.

    `conf` is the folder of configs whose keys are offered for a misspelt one; by default the checkout's.
    """
    text = "\n".join(filter(None, (str(error), str(error.__cause__ or ""))))
    if choice := _UNKNOWN_CHOICE.search(text):
        group, name = choice.groups()
        return f"{group}={name} is not there; choose from {', '.join(_CHOICES.findall(text))}"
    if unknown := _UNKNOWN_KEY.search(text):
        key = unknown.group(1)
        known = {name.lower(): name for name in known_keys(conf or _checkout_conf())}
        near = difflib.get_close_matches(key.lower(), known, n=1, cutoff=0.5)
        hint = f"; did you mean {known[near[0]]!r}?" if near else "; `python run.py --cfg job` lists the keys"
        return f"unknown key {key!r}{hint}"
    if missing := _NOT_IN_STRUCT.search(text):
        return f"unknown key {missing.group(1)!r}"
    # Hydra puts the place first and the reason next; what follows is for its developers.
    return "\n".join(line.strip() for line in text.splitlines()[:2] if line.strip())


def known_keys(conf: Path) -> list[str]:
    """All keys that the configs below a folder define, written as on the command line."""
    keys: set[str] = set()
    for path in conf.rglob("*.yaml"):
        group = ".".join(path.relative_to(conf).parent.parts)
        if group == "experiment":
            continue
        if group:
            keys.add(group)
        _collect(yaml.safe_load(path.read_text()), group, keys)
    return sorted(keys)


def _collect(node: object, prefix: str, keys: set[str]) -> None:
    if isinstance(node, dict):
        for key, value in node.items():
            if key not in ("defaults", "hydra", "_target_", "_partial_"):
                name = f"{prefix}.{key}" if prefix else str(key)
                keys.add(name)
                _collect(value, name, keys)


def _checkout_conf() -> Path:
    return Path(__file__).resolve().parents[3] / "conf"
