"""Run one claim in this process and write its data, figure and record into a folder.

A script gives `simulate(key, size)`, `check(data)` and `draw(figure, data)`. The check and the drawing see
the data as read back from disk, so that a verdict can always be recomputed from the file published with it.
"""

import importlib.metadata
import importlib.util
import json
import math
import os
import platform
import subprocess
import sys
import time
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import xarray as xr
from matplotlib.figure import Figure

from experiments.verdict import Number, Verdict
from grpo_jax import runtime

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = (
    "grpo_jax",
    "jax",
    "jaxlib",
    "optax",
    "flax",
    "numpy",
    "scipy",
    "xarray",
    "h5netcdf",
    "matplotlib",
)


def run_claim(job: dict[str, Any]) -> None:
    """Simulate, check and draw one claim.

    Args:
      job: `script`, `claim`, `title`, `paper`, `precision`, `size`, `seed`, and `folder`, where `data.nc`,
        `figure.png` and `record.json` are written.
    """
    start = time.perf_counter()
    jax.config.update("jax_enable_x64", job["precision"] == "float64")
    runtime.keep_compilations()
    script, folder = load_script(Path(job["script"])), Path(job["folder"])
    data = script.simulate(jax.random.key(job["seed"]), job["size"])
    data = data.assign_attrs(claim=job["claim"], size=job["size"], seed=job["seed"])
    data.to_netcdf(folder / "data.nc", engine="h5netcdf")
    data = xr.load_dataset(folder / "data.nc", engine="h5netcdf")
    verdict = script.check(data)
    if not isinstance(verdict, Verdict):
        raise TypeError(f"check must return a Verdict; got {type(verdict).__name__}")
    figure = Figure(figsize=(7.0, 4.3), dpi=200, layout="constrained")
    script.draw(figure, data)
    figure.savefig(folder / "figure.png")
    record = {key: job[key] for key in ("claim", "title", "paper", "size", "seed")}
    record |= {"verdict": verdict.verdict, "because": verdict.because}
    record |= {"numbers": {name: number_record(number) for name, number in verdict.numbers.items()}}
    record |= {"seconds": round(time.perf_counter() - start, 3), "device": device()}
    record |= {"versions": versions(), "commit": commit()}
    text = json.dumps(record, indent=2, ensure_ascii=False, allow_nan=False)
    (folder / "record.json").write_text(text + "\n", encoding="utf-8")


def load_script(path: Path) -> ModuleType:
    """Import a script from its file; it need not lie on the path."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is not a Python script")
    module = sys.modules[path.stem] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def number_record(number: Number) -> dict[str, Any]:
    """A number for JSON: what it does not have is left out, and what is not finite is null.

    >>> number_record(Number(float("nan"), expected=1.0))
    {'value': None, 'expected': 1.0, 'holds': False}
    """
    ends = {name: float(end) for name, end in asdict(number).items() if isinstance(end, (int, float))}
    record: dict[str, Any] = {name: end if math.isfinite(end) else None for name, end in ends.items()}
    if number.expected is not None:
        record |= {"relation": number.relation} if number.relation != "equals" else {}
        record |= {"holds": number.holds}
    return record


def device() -> str:
    """The devices that ran, such as `1 x cpu (x86_64, 2 cores)`."""
    counts = Counter(device.device_kind for device in jax.devices())
    host = f"({platform.machine()}, {os.cpu_count()} cores)"
    return ", ".join(f"{count} x {kind}" for kind, count in counts.items()) + f" {host}"


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
