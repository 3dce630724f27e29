"""Chunk sizes measured once for a program's structure and remembered beside the compiled programs.

Throughput against chunk size has cliffs that no rule foresees, so a long sweep first times a few. What
running and compiling took is remembered, too, so that the next sweep can say how long it will take.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from grpo_jax.config import Config
from grpo_jax.runtime import cache_folder
from grpo_jax.sweeps.axes import Axis
from grpo_jax.sweeps.layout import TOGETHER, Estimate, Layout, default_chunk, odd_multiple, parameters
from grpo_jax.sweeps.program import Program, Request, arguments

LONG, LONG_NETWORK = 2e10, 1.5e11
"""Optimizer steps times parameters of a sweep that is worth tuning, about a minute on two cores; of a network
times tokens, too, about five, for its trial programs take half a minute to compile."""
FACTORS = (0.5, 1, 2)
"""Chunk sizes tried, over ``default_chunk``."""
PROBE = 16
"""Iterations timed for each."""
ROUNDS = 10
"""Times that each chunk size is run, at most."""
BUDGET = 10.0
"""Seconds after which no further round is begun: a network's round takes as long as all of a table's."""
TELLING = 0.5
"""Seconds from which on a sweep's pace is remembered."""
GAIN = 0.9
"""A chunk size replaces the default where it needs less than this share of its time."""


def worth_tuning(config: Config, wanted: Estimate) -> bool:
    """Whether the sweep is long enough to repay the trial compilations."""
    return _work(config, wanted) >= (LONG if config.policy.trailing else LONG_NETWORK)


def _work(config: Config, wanted: Estimate) -> int:
    """Optimizer steps times parameters; of a network, times the tokens that go through them."""
    tokens = 1 if config.policy.trailing else config.loop.group_size * config.policy.horizon
    return wanted.updates * parameters(config) * tokens


def foreseen(config: Config, wanted: Estimate, shape: Layout) -> float | None:
    """Seconds of running, going by the pace of the last sweep on this machine; None before the first."""
    pace = _read(_memory()).get(_pace(config, shape))
    return None if pace is None else pace[0] * _work(config, wanted)


def remember(config: Config, wanted: Estimate, shape: Layout, seconds: float) -> None:
    """Keep the pace of a sweep that ran long enough to tell."""
    if seconds >= TELLING:
        path = _memory()
        _write(path, _read(path) | {_pace(config, shape): [seconds / _work(config, wanted)]})


PACE = "pace of "


def _pace(config: Config, shape: Layout) -> str:
    """A table's second and a network's do not do the same work (``_work``): each goes by its own kind."""
    kind = "tables" if config.policy.trailing else type(config.policy).__name__
    return f"{PACE}{kind}: {' '.join(map(str, _machine(shape)))}"


COMPILED = "compiled: "
COMPILATIONS = 512
"""Programs whose compilation is remembered at most."""


def foreseen_compiling(hashes: Sequence[str]) -> float | None:
    """Seconds that compiling these programs will take; None where nothing was ever compiled here.

    A program that was compiled on this machine is in the cache, and takes what it took there the last time;
    any other takes the median of what programs took when they were new.
    """
    if not hashes:
        return 0.0
    held = {k.removeprefix(COMPILED): v for k, v in _read(_memory()).items() if k.startswith(COMPILED)}
    new = [v[0] for v in held.values()]
    if not new:
        return None
    return float(sum(held[h[:16]][1] if h[:16] in held else np.median(new) for h in hashes))


def remember_compiling(program: str, seconds: float) -> None:
    """Keep what compiling a program took: the first time, and the last."""
    path = _memory()
    held, key = _read(path), f"{COMPILED}{program[:16]}"
    first = held.get(key, [seconds])[0]
    known = [k for k in held if k.startswith(COMPILED)]
    for old in known[: max(0, len(known) - COMPILATIONS)]:
        del held[old]
    _write(path, held | {key: [first, seconds if key in held else min(seconds, CACHED)]})


CACHED = 0.3
"""Seconds that a program takes to come from the cache, until one has been timed."""


class Tuned(NamedTuple):
    """What was measured of a program's structure on this machine."""

    chunk_size: int
    """Runs in a chunk, all devices together: the fastest of a few."""
    seconds: float
    """Of one iteration of one run at that chunk size, the whole machine at work."""


def tuned(config: Config, axes: Sequence[Axis], request: Request, *, runs: int, shape: Layout) -> Tuned:
    """The fastest of a few chunk sizes for this structure on this machine; remembered, or measured now."""
    path, key = _memory(), _key(config, request, shape)
    held, devices = _read(path), shape.devices
    if key not in held:
        base = default_chunk(config, runs, devices)
        each = {devices * odd_multiple(base * f / devices) for f in FACTORS}
        if not config.policy.trailing:
            each = {base, devices, TOGETHER * devices}
        sizes = sorted(size for size in each if size <= runs) or [base]
        seconds = _seconds_a_run(config, axes, request, sizes, shape)
        best = min(seconds, key=seconds.__getitem__)
        if base in seconds and seconds[best] >= GAIN * seconds[base]:
            best = base
        held[key] = [best, seconds[best] / PROBE]
        _write(path, held)
    found = Tuned(*held[key])
    fits = found.chunk_size <= runs
    return found if fits else found._replace(chunk_size=default_chunk(config, runs, devices))


def _seconds_a_run(
    config: Config, axes: Sequence[Axis], request: Request, sizes: Sequence[int], shape: Layout
) -> dict[int, float]:
    """Chunk size -> least seconds a run over interleaved rounds, so that a busy moment hits every size.

    All threads run a part each, as in a sweep. A network's parts are one chunk, and what is measured of it is
    left out: to ask it all held-out questions may take longer than to train it.
    """
    plan = dataclasses.replace(request.recording, every=PROBE, average_from=None, start=False)
    if not config.policy.trailing:
        plan = dataclasses.replace(plan, measures=tuple(m for m in plan.measures if m[0] == "finite"))
    probe = Request(PROBE, plan)
    chunks = 4 if config.policy.trailing else 1
    layouts = [dataclasses.replace(shape, chunk_size=size, chunks=chunks) for size in sizes]
    programs = [Program(config, axes, probe, layout) for layout in layouts]
    took: dict[int, float] = {}
    given = arguments(config, axes, 0)
    with ThreadPoolExecutor(shape.threads) as pool:
        list(pool.map(Program.compile, programs))
        until = time.perf_counter() + BUDGET
        for _ in range(ROUNDS):
            for size, program in zip(sizes, programs, strict=True):
                index = np.zeros((len(axes), program.shape.runs), np.int32)
                part = (given, index, np.arange(program.shape.runs, dtype=np.uint32))
                start = time.perf_counter()
                list(pool.map(lambda _, p=program, at=part: p(*at), range(shape.threads)))
                seconds = (time.perf_counter() - start) / (program.shape.runs * shape.threads)
                took[size] = min(took.get(size, seconds), seconds)
            if time.perf_counter() > until:
                break
    return took


def _key(config: Config, request: Request, shape: Layout) -> str:
    shapes = [np.shape(leaf) for leaf in jax.tree.leaves(config)]
    names = [name for name, _ in request.recording.measures]
    parts = (str(jax.tree.structure(config)), shapes, names, _machine(shape))
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:24]


def _machine(shape: Layout) -> tuple:
    kind = jax.local_devices()[0].device_kind
    precision = str(jax.dtypes.canonicalize_dtype(float))
    return jax.__version__, kind, os.cpu_count(), shape.devices, shape.threads, precision


def _memory() -> Path | None:
    folder = cache_folder()
    return None if folder is None else folder.parent / "tuning.json"


def _read(path: Path | None) -> dict[str, list]:
    """Name -> the numbers measured; without what nothing here has written."""
    try:
        held = json.loads(path.read_text()) if path is not None else {}
    except (OSError, ValueError, RecursionError):
        return {}
    return {k: v for k, v in held.items() if _measured(k, v)} if isinstance(held, dict) else {}


def _measured(name: str, found: Any) -> bool:
    """A pace is one number, a compilation two, a chunk's size a whole one and another."""
    if not isinstance(found, list) or not all(type(v) in (int, float) and 0 <= v < 1e18 for v in found):
        return False
    if name.startswith(PACE):
        return len(found) == 1
    return len(found) == 2 and (name.startswith(COMPILED) or (type(found[0]) is int and found[0] > 0))


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
