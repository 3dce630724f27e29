"""``sweep``: a configuration, the paths it varies, seeds -> one labelled ``xarray.Dataset``."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import xarray as xr
from tqdm.auto import tqdm

from grpo_jax import recording
from grpo_jax.collectors import choose, reason
from grpo_jax.config import Config, check_length, check_root, check_slots
from grpo_jax.diagnostics import QUANTILES
from grpo_jax.part import describe, put
from grpo_jax.recording import DIAGNOSTICS
from grpo_jax.sweeps.axes import Axis, parse_axes, parse_variants, settings, size, swept_numbers
from grpo_jax.sweeps.layout import Estimate, Shape, check_fits, estimate, free_memory, layout
from grpo_jax.sweeps.program import Program, Request
from grpo_jax.sweeps.request import (
    check_count,
    check_grid,
    check_names,
    checked_folder,
    checked_record,
    checked_seeds,
    optional_whole,
    seed_count,
    unlike,
)
from grpo_jax.sweeps.storage import Store, held_width
from grpo_jax.sweeps.tuning import foreseen, remember, tuned, worth_tuning

STREAM_BYTES = 2**28
"""Results beyond this size go to disk as they come, where ``out`` names a folder."""


def sweep(
    config: Config,
    axes: Mapping[Any, Any] | None = None,
    *,
    variants: Mapping[str, Any] | None = None,
    seeds: int | Sequence[int] = 1,
    iterations: int,
    record_every: int = 1,
    record: Iterable[str] | None = None,
    root: int = 0,
    out: str | os.PathLike[str] | None = None,
    width: int | None = None,
    devices: int | None = None,
    progress: bool = True,
) -> xr.Dataset:
    """Train every setting of a grid with every seed.

    A run's draws depend on (root, its seed, iteration) alone: settings share them (common random numbers),
    and a larger grid leaves the runs of a smaller one unchanged.

    Args:
      config: the base configuration.
      axes: traced numbers: {path: values}; {(path, path): [(value, value), ...]} zips. Values of a table's
        path are tables. A mapping {label: value} names its settings. Any unambiguous tail of a path will do.
      variants: structure, one program each: {"method": {"grpo": grpo, "mine": mine}, "group_size": [4, 8]}.
        The dimension of "method" is called ``algorithm`` (``method`` is an argument of ``Dataset.sel``).
      seeds: how many, or which.
      iterations: training iterations of each run.
      record_every: record every n-th iteration.
      record: diagnostic names; None is ``recording.DEFAULT``.
      root: the seed root.
      out: a folder for the parts; a sweep that was interrupted there goes on where it stopped. Results
        beyond 256 MiB are streamed there, and the dataset returned reads them when they are used.
      width: runs in a chunk; must divide by the number of devices. None chooses.
      devices: how many local devices share the runs; None is all.
      progress: show a progress bar and a summary.

    Returns:
      A dataset with dimensions (variants..., axes..., seed, iteration, ...), every diagnostic a variable,
      and the whole configuration in its attributes.
    """
    check_slots(config)
    check_length(iterations, record_every)
    root, out, count = check_root(root), checked_folder(out), seed_count(seeds)
    width, devices = optional_whole("width", width), optional_whole("devices", devices)
    variant_axes = parse_variants(config, variants or {})
    varied = settings(config, variant_axes)
    names = recording.names(checked_record(record), varied[0])
    run_axes = [parse_axes(c, axes or {}) for c in varied]
    check_names([*variant_axes, *run_axes[0]], {name: DIAGNOSTICS[name].dims for name in names})
    check_count(size(run_axes[0]), count, free_memory())
    for c, a in zip(varied, run_axes, strict=True):
        check_grid(c, a)
    configs = [_chosen(c, a) for c, a in zip(varied, run_axes, strict=True)]
    request = Request(iterations, record_every, names, root)
    runs = size(run_axes[0]) * count
    shape, wanted, streamed = _planned(configs, run_axes[0], request, runs, out, width, devices)
    seed_values = checked_seeds(seeds)
    programs = [Program(c, a, request, shape) for c, a in zip(configs, run_axes, strict=True)]
    store = Store(out, _manifest(configs, run_axes, seed_values, request, shape, programs)) if out else None
    if progress:
        print(wanted.sentence(), file=sys.stderr)
        for text in filter(None, map(unlike, variant_axes)):
            print(f"what else differs between the methods\n{text}", file=sys.stderr)
    report = _Report(programs, runs * len(programs), iterations, progress)
    results = [
        _variant(i, program, seed_values, runs, store, report, disk=store if streamed else None)
        for i, program in enumerate(programs)
    ]
    if report.updates >= wanted.updates:  # no part was read back
        remember(configs[0], wanted, shape.devices, report.run_seconds)
    data = _dataset(results, variant_axes, run_axes[0], seed_values, request, configs[0])
    data.attrs |= {"config": json.dumps(describe(config)), "root": root}
    data.attrs |= report.attributes(configs[0], shape, because=reason(varied[0], swept_numbers(run_axes[0])))
    broken = int((~data["finite"].isel(iteration=-1)).sum())
    if progress and broken:
        print(f"{broken} of {runs * len(programs)} runs turned non-finite", file=sys.stderr)
    if store:
        store.finish(data)
    return store.open() if store and streamed else data


def _planned(
    configs: Sequence[Config],
    axes: Sequence[Axis],
    request: Request,
    runs: int,
    out: str | os.PathLike[str] | None,
    width: int | None,
    devices: int | None,
) -> tuple[Shape, Estimate, bool]:
    """The layout, what the sweep will take, and whether its results go to disk as they come."""
    first, numbers = configs[0], _numbers(request, configs[0])
    width = held_width(out) if width is None else width
    shape = layout(first, runs, numbers, width=width, devices=devices)
    total = runs * len(configs)
    wanted = estimate(first, shape, total, iterations=request.iterations, numbers=numbers)
    streamed = out is not None and wanted.output > STREAM_BYTES
    check_fits(wanted, free_memory(), streamed=streamed)
    seconds = foreseen(first, wanted, shape.devices)
    if width is None and worth_tuning(first, wanted):
        found = tuned(first, axes, request, runs=runs, devices=shape.devices)
        shape = layout(first, runs, numbers, about=found.width, devices=shape.devices)
        seconds = found.seconds * total * request.iterations
    return shape, dataclasses.replace(wanted, seconds=seconds), streamed


def _chosen(config: Config, axes: Sequence[Axis]) -> Config:
    """The configuration with an expectation that fits every table of the sweep, not the base's alone."""
    swept = swept_numbers(axes)
    for axis in axes:
        for path, values in zip(axis.paths, axis.values, strict=True):
            if path.startswith("task.") and values.ndim > 1:
                tables = put(config, path, np.moveaxis(values, 0, -1))
                config = dataclasses.replace(config, expectation=choose(tables, swept).expectation)
    return choose(config, swept)


def _numbers(request: Request, config: Config) -> int:
    """Numbers that one run records."""
    each = sum(int(np.prod(_extra(name, config), dtype=int)) for name in request.record)
    return each * (request.iterations // request.record_every)


def _extra(name: str, config: Config) -> tuple[int, ...]:
    sizes = {"quantile": len(QUANTILES), "context": config.policy.contexts or 1, "output": 64}
    return tuple(sizes[d] for d in DIAGNOSTICS[name].dims)


def _variant(
    variant: int,
    program: Program,
    seeds: np.ndarray,
    runs: int,
    store: Store | None,
    report: _Report,
    *,
    disk: Store | None,
) -> dict[str, np.ndarray]:
    """Every part of one variant, computed or read back: [records, ..., runs], held on ``disk`` if given."""
    whole: dict[str, np.ndarray] = {}
    sizes = [axis.size for axis in program.axes]
    for part, first in enumerate(range(0, runs, program.shape.runs)):
        done = store.read(variant, part) if store else None
        if done is None:
            run = np.minimum(np.arange(first, first + program.shape.runs), runs - 1)
            place = np.unravel_index(run // len(seeds), sizes) if sizes else np.zeros((0, len(run)))
            index = np.asarray(place, np.int32)
            done = report.timed(program, index, seeds[run % len(seeds)])
            done = {name: value[..., : runs - first] for name, value in done.items()}
            if store:
                store.write(variant, part, done)
        for name, value in done.items():
            if name not in whole:
                size = (*value.shape[:-1], runs)
                whole[name] = (
                    disk.array(variant, name, size, value.dtype) if disk else np.empty(size, value.dtype)
                )
            whole[name][..., first : first + value.shape[-1]] = value
            if disk:
                disk.release(whole[name])
        report.advance(min(program.shape.runs, runs - first))
    return whole


class _Report:
    """Progress, compilations and seconds."""

    def __init__(self, programs: list[Program], runs: int, iterations: int, progress: bool) -> None:
        self.compiled: dict[str, Any] = {}
        self.compile_seconds = self.run_seconds = 0.0
        self.updates = 0
        self.iterations = iterations
        self.spoken = progress
        self.bar = tqdm(total=runs, unit="run", disable=not progress, file=sys.stderr)

    def timed(self, program: Program, index: np.ndarray, seeds: np.ndarray) -> dict[str, np.ndarray]:
        """Compile if needed, run, keep the clock."""
        if program.compiled is None and program.compile(self.compiled):
            self.compile_seconds += program.compile_seconds
        start = time.perf_counter()
        result = program(index, seeds)
        self.run_seconds += time.perf_counter() - start
        loop = program.config.loop
        self.updates += len(seeds) * self.iterations * loop.inner_steps * loop.minibatches
        return result

    def advance(self, runs: int) -> None:
        """Move the bar."""
        self.bar.update(runs)

    def attributes(self, config: Config, shape: Shape, *, because: str) -> dict[str, Any]:
        """What the dataset says of its making; also printed."""
        self.bar.close()
        path = type(config.expectation).__name__
        found = {
            "expectation": path,
            "because": because,
            "width": shape.width,
            "devices": shape.devices,
            "compilations": len(self.compiled),
            "compile_seconds": round(self.compile_seconds, 3),
            "run_seconds": round(self.run_seconds, 3),
            "updates": self.updates,
        }
        if self.spoken:
            rate = self.updates / self.run_seconds / 1e6 if self.run_seconds else 0.0
            print(
                f"{path} path: {because} · chunks of {shape.width} runs on {shape.devices} device(s) · "
                f"{len(self.compiled)} compilation(s) in {self.compile_seconds:.2f} s · "
                f"{self.run_seconds:.2f} s running · "
                f"{rate:.2f} million updates/s",
                file=sys.stderr,
            )
        return found


def _manifest(
    configs: list[Config],
    axes: list[list[Axis]],
    seeds: np.ndarray,
    request: Request,
    shape: Shape,
    programs: Any,
) -> dict[str, Any]:
    def digest(value: Any) -> str:
        return hashlib.sha256(json.dumps(value).encode()).hexdigest()

    return {
        "configurations": [digest(describe(c)) for c in configs],
        "axes": [
            {"name": a.name, "paths": a.paths, "values": digest([v.tolist() for v in a.values])}
            for a in axes[0]
        ],
        "seeds": digest(seeds.tolist()),
        "root": request.root,
        "iterations": request.iterations,
        "record_every": request.record_every,
        "record": list(request.record),
        "width": shape.width,
        "chunks": shape.chunks,
        "programs": [p.hash for p in programs],
        "precision": str(jax.dtypes.canonicalize_dtype(float)),
    }


def _dataset(
    results: list[dict[str, np.ndarray]],
    variants: list[Axis],
    axes: list[Axis],
    seeds: np.ndarray,
    request: Request,
    config: Config,
) -> xr.Dataset:
    grid = [*variants, *axes]
    lead = [axis.name for axis in grid] + ["seed", "iteration"]
    shape = [axis.size for axis in grid] + [len(seeds)]
    variables = {}
    for name in request.record:
        if len({r[name].shape for r in results}) > 1:
            raise ValueError(f"{name} has another shape in every variant; sweep them apart")
        value = results[0][name][None] if len(results) == 1 else np.stack([r[name] for r in results])
        own = value.shape[1:-1]
        value = value.reshape((*shape[: len(variants)], *own, *shape[len(variants) :]))
        value = np.moveaxis(value, range(len(variants), len(variants) + len(own)), range(-len(own), 0))
        variables[name] = ((*lead, *DIAGNOSTICS[name].dims), value, {"about": DIAGNOSTICS[name].about})
    coordinates: dict[str, Any] = {"seed": seeds}
    coordinates["iteration"] = np.arange(request.record_every, request.iterations + 1, request.record_every)
    for axis in grid:
        coordinates |= {label: (axis.name, values) for label, values in axis.labels.items()}
    if "ratio_quantiles" in variables:
        coordinates["quantile"] = np.array(QUANTILES)
    return xr.Dataset(variables, coordinates)
