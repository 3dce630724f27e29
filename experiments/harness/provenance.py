"""What made a result: the code, its commit, and the versions of the packages; nothing here imports JAX."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
PACKAGES = (
    "grpo_jax", "jax", "jaxlib", "optax", "flax", "numpy", "scipy", "xarray", "h5netcdf", "matplotlib",
)  # fmt: skip


def source(root: Path = ROOT) -> str:
    """A hash of everything that a result depends on: the code of library and experiments, and versions."""
    digest = hashlib.sha256(json.dumps(versions(), sort_keys=True).encode())
    for path in sorted([*(root / "grpo_jax").rglob("*.py"), *(root / "experiments").rglob("*.py")]):
        digest.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def versions() -> dict[str, str]:
    """Versions of Python and of every package whose numbers these are."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def commit(root: Path = ROOT) -> str | None:
    """The commit of a checkout, ending in `-dirty` where files differ from it; `None` outside a checkout."""
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"]
    environment = os.environ | {"GIT_OPTIONAL_LOCKS": "0"}
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
        return done.stdout.strip() or None
    except (OSError, subprocess.CalledProcessError):
        return None
