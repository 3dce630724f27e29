"""``sweep``: a configuration, the paths it varies, seeds -> one labelled ``xarray.Dataset``."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import time
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import xarray as xr

from grpo_jax.collectors import choose, reason
from grpo_jax.config import Config, check_root, check_slots
from grpo_jax.exact.expectation import Exact, moves_cells
from grpo_jax.part import describe, put_all
from grpo_jax.records import recording
from grpo_jax.runtime import keep_compilations
from grpo_jax.sweeps.axes import Axis, check_alike, parse_axes, parse_variants, settings, size, swept_numbers
from grpo_jax.sweeps.computing import Computing
from grpo_jax.sweeps.dataset import dataset, idle
from grpo_jax.sweeps.fusing import FUSED, requests
from grpo_jax.sweeps.interrupt import interruptible
from grpo_jax.sweeps.layout import (
    Estimate,
    Layout,
    check_fits,
    estimate,
    free_memory,
    layout,
    together,
    updates,
)
from grpo_jax.sweeps.netcdf import check_storable
from grpo_jax.sweeps.program import Request, program_of
from grpo_jax.sweeps.progress import Progress
from grpo_jax.sweeps.request import (
    check_count,
    check_grid,
    checked_seeds,
    optional_whole,
    seed_count,
    share_of,
    unlike,
)
from grpo_jax.sweeps.shares import Share
from grpo_jax.sweeps.storage import Store, check_space, held_layout, prepare_folder
from grpo_jax.sweeps.tuning import (
    foreseen,
    foreseen_compiling,
    remember,
    tuned,
    worth_tuning,
)
from grpo_jax.sweeps.turns import planning, turn
from grpo_jax.sweeps.work import Work, manifest
from grpo_jax.train import forget_traces, warn_of_idle_corrections

STREAM_BYTES = 2**28
"""Results beyond this size go to disk as they come, where ``out`` names a folder."""
CELL_SETTINGS = 4096
"""Settings of numbers that cells depend on, up to which ``Exact`` counts the cells of each."""
QUICK = 0.1
"""Seconds below which a sweep is over before a bar could be read."""


def sweep(
    config: Config,
    axes: Mapping[Any, Any] | None = None,
    *,
    variants: Mapping[str, Any] | None = None,
    seeds: int | Sequence[int] = 1,
    iterations: int,
    record_every: int = 1,
    record: Iterable[str] | None = None,
    measure: Mapping[str, Any] | None = None,
    average_from: float | None = None,
    record_start: bool = False,
    root: int = 0,
    out: str | os.PathLike[str] | None = None,
    chunk_size: int | None = None,
    devices: int | None = None,
    fused: bool | None = None,
    share: tuple[int, int] | None = None,
    progress: bool = True,
) -> xr.Dataset:
    """Train every setting of a grid with every seed.

    A run's draws depend on (root, its seed, iteration) alone: settings share them (common random numbers),
    and a larger grid leaves the runs of a smaller one unchanged. Every core is used; a program is compiled
    once a process and once a machine. A number that is swept and changes nothing of what is
    recorded is said with a warning.

    What a function of your own (a reward, a measure, a part) reads from outside, a global or a variable of an
    enclosing function, is read when the program is made. To change it, define the function anew: the same
    function object means the same program, whatever has become of what it reads.

    Several processes that make the same call with the same ``out`` share its parts: those of one
    ``jax.distributed.initialize`` by themselves, each waiting for the others and returning the whole dataset;
    those that know nothing of each other by ``share``. Each takes local devices only, and any of them that
    is killed can be started again.

    Args:
      config: the base configuration.
      axes: traced numbers: {path: values}; {(path, path): [(value, value), ...]} zips. Values of a table's
        path are tables. A mapping {label: value} names its settings. Any unambiguous tail of a path will do.
      variants: structure, one program each: {"method": {"grpo": grpo, "mine": mine}, "group_size": [4, 8]}.
        The dimension of "method" is called ``algorithm`` (``method`` is an argument of ``Dataset.sel``).
      seeds: how many, or which.
      iterations: training iterations of each run.
      record_every: record every n-th iteration.
      record: names of diagnostics; None is ``measures.DEFAULT``.
      measure: measures of one's own: {name: function of a ``measures.View``}; ``measures.measure`` names and
        labels their axes.
      average_from: record means over the recorded iterations from this one on (a whole number), or from this
        share of the run on (a fraction); nothing else is stored, and there is no dimension ``iteration``.
        What is NaN at one of these iterations (the length of right answers where there are none) is NaN.
      record_start: record the state before the first step, too, as iteration 0.
      root: the seed root.
      out: a folder for the parts; a sweep that was interrupted there goes on where it stopped. Results
        beyond 256 MiB are streamed there, and the dataset returned reads them when they are used.
      chunk_size: runs in a chunk; must divide by the number of devices. None chooses.
      devices: how many local devices share the runs; None is one CPU with all its cores, or all accelerators.
      fused: whether a run's iterations are one kernel (``grpo_jax.fused``), which computes the same to
        rounding, with a lane of a GPU for each run or, where it can be, for each of its questions. None takes
        it on a GPU, for a long sweep, where it applies and agrees; True anywhere (on a CPU it is interpreted,
        for tests), and is refused where it does not apply; False never.
      share: (3, 16) computes share 3 of 0 to 15 of the parts; the share that ends last returns the dataset.
      progress: show a progress bar and a summary.

    Returns:
      A dataset with dimensions (variants..., axes..., seed, iteration, own axes of a measure...), every
      diagnostic and measure a variable, and the whole configuration in its attributes.

    Raises:
      Unfinished: this process's share is done, and parts of others are missing: of a ``share`` that others
        have yet to compute, of a process that has ended.
    """
    began = time.perf_counter()
    keep_compilations()
    check_slots(config)
    root, count = check_root(root), seed_count(seeds)
    chunk_size, devices = optional_whole("chunk_size", chunk_size), optional_whole("devices", devices)
    variant_axes = parse_variants(config, {} if variants is None else variants)
    varied = settings(config, variant_axes)
    plan = recording(
        varied[0], record, measure, iterations=iterations, every=record_every, average_from=average_from,
        start=record_start,
    )  # fmt: skip
    part = share_of(share, out, process=jax.process_index(), processes=jax.process_count())
    folder = None if out is None else prepare_folder(out)
    run_axes = [parse_axes(c, {} if axes is None else axes) for c in varied]
    check_alike(variant_axes, run_axes)
    check_count(size(run_axes[0]), count, free_memory())
    for c, a in zip(varied, run_axes, strict=True):
        check_grid(c, a, iterations)
    configs = [_chosen(c, a) for c, a in zip(varied, run_axes, strict=True)]
    for c in varied:
        warn_of_idle_corrections(c)
    request = Request(iterations, plan)
    reasons = [reason(c, swept_numbers(a)) for c, a in zip(varied, run_axes, strict=True)]
    work = Work(configs, run_axes, variant_axes, checked_seeds(seeds), request, root, reasons)
    with contextlib.ExitStack() as held:
        with planning(folder, part):
            shape, wanted, streamed = _planned(work, folder, part, chunk_size, devices)
            asked, kernels = requests(work, shape, fused)
            programs = [program_of(c, a, r, shape) for c, a, r in zip(configs, run_axes, asked, strict=True)]
            if folder is not None:
                check_storable(programs[0].dtypes)
            made_of = manifest(work, shape, programs)
            store = None if folder is None else held.enter_context(Store(folder, made_of, part))
        places = work.places(shape)
        runs = sum(min(shape.runs, work.runs - first) for _, first in part.of(places))
        fresh = {p.hash: p for p in programs if p.compiled is None}
        if fresh:
            forget_traces()
        wanted = dataclasses.replace(wanted, compile_seconds=foreseen_compiling(list(fresh)))
        wanted = wanted.of(runs / (work.runs * len(programs)))
        told = progress and (bool(fresh) or wanted.seconds is None or wanted.seconds > QUICK)
        bar = Progress(runs, iterations, told and not (part.waits and part.index))
        bar.say(wanted.sentence())
        differences = "\n".join(filter(None, (unlike(axis, run_axes[0]) for axis in variant_axes)))
        if differences:
            bar.say(f"these differ in more than their names\n{differences}")
        stop = held.enter_context(interruptible(folder))
        held.enter_context(contextlib.closing(bar))
        computing = Computing(work, programs, store, bar, stop)
        data = None
        if store and not part.alone:
            computing.share(part)
            held.enter_context(turn(store.folder))
            data = store.result()
        assembled = data is None
        if data is None:
            if not part.alone:  # every part is read back, and the bar was that of a share
                computing = dataclasses.replace(computing, bar=Progress(len(places), iterations, False))
            results = _computed(computing, disk=store if streamed else None)
            data = dataset(
                results, variant_axes, run_axes[0], work.seeds, plan, iterations, work.shapes, work.labels
            )
            data.attrs = _attributes(work, config, shape, bar, differences)
            data.attrs["fused"] = work.by_variant(kernels)
            if store:
                store.finish(data)
        elif not streamed:
            data = data.load()
            data.close()
    if bar.computed == bar.runs:
        remember(configs[0], wanted, shape, bar.run_seconds)
    finite = data["finite"].isel(iteration=-1) if "iteration" in data.dims else data["finite"]
    broken = int((~finite).sum())
    if assembled and not streamed and not broken:
        _say_idle(data, [axis.name for axis in (*variant_axes, *run_axes[0])])
    kinds = [", fused" if kernel.startswith(FUSED) else "" for kernel in kernels]
    how = work.by_variant(
        [f"{e} ({b}){k}" for e, b, k in zip(work.expectations, reasons, kinds, strict=True)]
    )
    took = time.perf_counter() - began
    bar.say_closing(data.attrs, how, seconds=took, broken=broken, whole=finite.size, folder=folder)
    return store.open() if store and streamed and assembled else data


def _attributes(work: Work, config: Config, shape: Layout, bar: Progress, differences: str) -> dict[str, Any]:
    """What the dataset says of its making."""
    plan = work.request.recording
    found = {
        "config": json.dumps(describe(config)),
        "root": work.root,
        "iterations": work.request.iterations,
        "record_every": plan.every,
        "expectation": work.by_variant(work.expectations),
        "because": work.by_variant(work.reasons),
        "chunk_size": shape.chunk_size,
        "devices": shape.devices,
        "threads": max(1, min(shape.threads, len(bar.ran))),
        "compilations": bar.compilations,
        "compile_seconds": round(bar.compile_seconds, 3),
        "run_seconds": round(bar.run_seconds, 3),
        "updates": bar.updates,
    }
    found |= {"differences": differences} if differences else {}
    return found | ({} if plan.average_from is None else {"average_from": plan.average_from})


def _planned(
    work: Work, folder: Path | None, share: Share, chunk_size: int | None, devices: int | None
) -> tuple[Layout, Estimate, bool]:
    """The layout, what the sweep will take, and whether its results go to disk as they come."""
    first, numbers, request = work.configs[0], work.numbers, work.request
    shape = layout(first, work.runs, numbers, chunk_size=chunk_size, devices=devices, processes=share.count)
    held = None if folder is None else held_layout(folder)
    if held is not None and chunk_size in (None, held[0]):  # go on with the very same program
        shape = dataclasses.replace(shape, chunk_size=held[0], chunks=held[1])
        chunk_size = held[0]
    wanted = together(
        estimate(c, shape, work.runs, iterations=request.iterations, numbers=numbers) for c in work.configs
    )
    streamed = folder is not None and wanted.output > STREAM_BYTES
    check_fits(wanted, free_memory(), streamed=streamed)
    if folder is not None:
        check_space(folder, wanted.output, streamed=streamed)
    seconds = foreseen(first, wanted, shape)
    if chunk_size is None and worth_tuning(first, wanted):
        found = tuned(first, work.axes[0], request, runs=work.runs, shape=shape)
        shape = layout(
            first, work.runs, numbers, about=found.chunk_size, devices=devices, processes=share.count
        )
        seconds = found.seconds * wanted.updates / updates(first, 1)
    return shape, dataclasses.replace(wanted, seconds=seconds), streamed


def _chosen(config: Config, axes: Sequence[Axis]) -> Config:
    """The configuration with an expectation that fits every setting of the sweep, not the base's alone."""
    swept = swept_numbers(axes)
    moving = [d for d in swept if any(moves_cells(path) for path in d)]
    if not isinstance(config.expectation, Exact) or not moving:
        return choose(config, swept)
    places = np.indices([len(next(iter(d.values()))) for d in moving]).reshape(len(moving), -1)
    if places.shape[1] > CELL_SETTINGS:
        return dataclasses.replace(config, expectation=Exact(cells=0))
    runs = {
        path: np.moveaxis(values[place], 0, -1)
        for d, place in zip(moving, places, strict=True)
        for path, values in d.items()
    }
    return dataclasses.replace(config, expectation=choose(put_all(config, runs), swept).expectation)


def _computed(computing: Computing, disk: Store | None) -> list[dict[str, np.ndarray]]:
    """Every part of every variant: name -> [recorded, ..., runs], held on ``disk`` if given."""
    whole: list[dict[str, np.ndarray]] = [{} for _ in computing.programs]
    for variant, first, done in computing.parts(computing.places):
        for name, value in done.items():
            held = whole[variant]
            if name not in held:
                full = ((*value.shape[:-1], computing.work.runs), value.dtype)
                held[name] = disk.array(*full) if disk else np.empty(*full)
            held[name][..., first : first + value.shape[-1]] = value
            if disk:
                disk.release(held[name])
    return whole


def _say_idle(data: xr.Dataset, names: Sequence[str]) -> None:
    for name in idle(data, names):
        warnings.warn(
            f"everything recorded is identical along {name!r}: what it varies changes nothing of it (a clip, "
            "say, acts only after the first inner step on a batch)",
            stacklevel=3,
        )
