"""Interleaved rounds: every implementation once a round, so that a busy moment hits all of them."""

from __future__ import annotations

import dataclasses
import os
import platform
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import numpy as np

from benchmarks.case import Case, Shape, Unavailable

SPREAD = 1.3
"""A row whose greatest time exceeds its least by more than this factor is marked as unsteady."""

PAUSE = 0.05
"""Seconds before a row is timed: idle threads of the one before may still be spinning."""


@dataclasses.dataclass
class Row:
    """One implementation on one shape and width."""

    name: str
    shape: Shape
    runs: int
    iterations: int
    updates: int
    seconds: list[float] = dataclasses.field(default_factory=list)
    core_seconds: list[float] = dataclasses.field(default_factory=list)

    @property
    def rate(self) -> float:
        """Million updates a second: the median."""
        return self.updates / statistics.median(self.seconds) / 1e6

    @property
    def best(self) -> float:
        """Million updates a second in the fastest round."""
        return self.updates / min(self.seconds) / 1e6

    @property
    def per_core(self) -> float:
        """Million updates a core-second: what is left to compare by where the machine is busy."""
        return self.updates / max(min(self.core_seconds), 1e-9) / 1e6

    @property
    def spread(self) -> float:
        """Greatest time over least."""
        return max(self.seconds) / min(self.seconds)

    def record(self) -> dict[str, Any]:
        """For JSON."""
        shape = dataclasses.asdict(self.shape)
        derived = {
            "rate": self.rate,
            "best": self.best,
            "per core-second": self.per_core,
            "spread": self.spread,
            "steady": self.spread <= SPREAD,
        }
        return {**dataclasses.asdict(self), "shape": shape, **derived}


def iterations(shape: Shape, runs: int) -> int:
    """Enough for half a second at NumPy's pace, within [8, 400]: fixed costs fade, a round stays short."""
    numbers = shape.questions * (shape.actions * shape.inner + shape.group)
    return int(np.clip(8e7 / (numbers * max(runs, 64)), 8, 400))


def rounds(modules: Sequence[ModuleType], shape: Shape, runs: int, count: int) -> list[Row]:
    """Warm each up, then ``count`` rounds; implementations that cannot run are left out."""
    case = Case(shape, runs=runs, iterations=iterations(shape, runs))
    prepared = []
    for module in modules:
        try:
            prepared.append(
                (Row(module.NAME, shape, runs, case.iterations, case.updates), module.prepare(case, None))
            )
        except Unavailable:
            continue
    for _ in range(count):
        for row, run in prepared:
            time.sleep(PAUSE)
            start, busy = time.perf_counter(), time.process_time()
            run()
            row.seconds.append(time.perf_counter() - start)
            row.core_seconds.append(time.process_time() - busy)
    return [row for row, _ in prepared]


def machine() -> dict[str, Any]:
    """What a number is worth without."""
    from grpo_jax.runtime import compiler_options

    name = platform.processor()
    info = Path("/proc/cpuinfo")
    if info.exists():
        models = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        name = models[0].split(":", 1)[1].strip() if models else name
    return {
        "processor": name,
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        "backend": jax.default_backend(),
        "devices": [str(device.device_kind) for device in jax.local_devices()],
        "compiler options": compiler_options(),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in ("jax", "jaxlib", "numpy", "torch", "numba", "optax")},
    }


def _version(name: str) -> str | None:
    from importlib import metadata

    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
