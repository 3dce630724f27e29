"""Chunk widths measured once for a program's structure and remembered beside the compiled programs.

Throughput against width has cliffs that no rule foresees, so a long sweep first times a few widths.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from grpo_jax.config import Config
from grpo_jax.runtime import cache_folder
from grpo_jax.sweeps.axes import Axis
from grpo_jax.sweeps.layout import Estimate, Shape, default_width, odd_width
from grpo_jax.sweeps.program import Program, Request

LONG = 2e10
"""Optimizer steps times parameters of a sweep that is worth tuning: about a minute on two cores."""
FACTORS = (0.5, 1, 2)
"""Widths tried, over ``default_width``."""
PROBE = 16
"""Iterations timed for each."""
ROUNDS = 10
"""Times that each width is run."""
TELLING = 0.5
"""Seconds from which on a sweep's pace is remembered."""
GAIN = 0.9
"""A width replaces the default where it needs less than this share of its time."""


def worth_tuning(config: Config, wanted: Estimate) -> bool:
    """Whether the sweep is long enough to repay the trial compilations."""
    return _work(config, wanted) >= LONG


def _work(config: Config, wanted: Estimate) -> int:
    """Optimizer steps times parameters."""
    start = jax.eval_shape(config.policy.init, jax.random.key(0))
    return wanted.updates * sum(leaf.size for leaf in jax.tree.leaves(start))


def foreseen(config: Config, wanted: Estimate, devices: int) -> float | None:
    """Seconds of running, going by the pace of the last sweep on this machine; None before the first."""
    pace = _read(_memory()).get(_pace(devices))
    return None if pace is None else pace[0] * _work(config, wanted)


def remember(config: Config, wanted: Estimate, devices: int, seconds: float) -> None:
    """Keep the pace of a sweep that ran long enough to tell."""
    if seconds >= TELLING:
        path = _memory()
        _write(path, _read(path) | {_pace(devices): [seconds / _work(config, wanted)]})


def _pace(devices: int) -> str:
    return f"pace: {' '.join(map(str, _machine(devices)))}"


class Tuned(NamedTuple):
    """What was measured of a program's structure on this machine."""

    width: int
    """Runs in a chunk, all devices together: the fastest of a few."""
    seconds: float
    """Of one iteration of one run at that width, the whole machine at work."""


def tuned(config: Config, axes: Sequence[Axis], request: Request, *, runs: int, devices: int) -> Tuned:
    """The fastest of a few widths for this structure on this machine; remembered, or measured now."""
    path, key = _memory(), _key(config, request, devices)
    held = _read(path)
    if key not in held:
        base = default_width(config, runs, devices)
        each = {devices * odd_width(base * f / devices) for f in FACTORS}
        widths = sorted(width for width in each if width <= runs) or [base]
        seconds = _seconds_a_run(config, axes, request, widths, devices)
        best = min(seconds, key=seconds.__getitem__)
        if base in seconds and seconds[best] >= GAIN * seconds[base]:
            best = base
        held[key] = [best, seconds[best] / PROBE]
        _write(path, held)
    found = Tuned(*held[key])
    fits = found.width <= runs
    return found if fits else found._replace(width=default_width(config, runs, devices))


def _seconds_a_run(
    config: Config, axes: Sequence[Axis], request: Request, widths: Sequence[int], devices: int
) -> dict[int, float]:
    """Width -> least seconds a run over interleaved rounds, so that a busy moment hits every width."""
    probe = dataclasses.replace(request, iterations=PROBE, record_every=PROBE)
    programs = [Program(config, axes, probe, Shape(width=w, chunks=4, devices=devices)) for w in widths]
    took: dict[int, float] = {}
    for program in programs:
        program.compile({})
    for _ in range(ROUNDS):
        for width, program in zip(widths, programs, strict=True):
            index = np.zeros((len(axes), program.shape.runs), np.int32)
            start = time.perf_counter()
            program(index, np.arange(program.shape.runs, dtype=np.uint32))
            seconds = (time.perf_counter() - start) / program.shape.runs
            took[width] = min(took.get(width, seconds), seconds)
    return took


def _key(config: Config, request: Request, devices: int) -> str:
    shapes = [np.shape(leaf) for leaf in jax.tree.leaves(config)]
    parts = (str(jax.tree.structure(config)), shapes, request.record, _machine(devices))
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:24]


def _machine(devices: int) -> tuple:
    kind = jax.local_devices()[0].device_kind
    return jax.__version__, kind, os.cpu_count(), devices, str(jax.dtypes.canonicalize_dtype(float))


def _memory() -> Path | None:
    folder = cache_folder()
    return None if folder is None else folder.parent / "tuning.json"


def _read(path: Path | None) -> dict[str, list]:
    try:
        return json.loads(path.read_text()) if path is not None else {}
    except (OSError, ValueError):
        return {}


def _write(path: Path | None, held: dict[str, list]) -> None:
    if path is None:
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_name(f".{path.name}.{os.getpid()}")
        aside.write_text(json.dumps(held, indent=1))
        aside.replace(path)
    except OSError:
        return
