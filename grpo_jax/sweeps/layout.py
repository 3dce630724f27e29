"""How a sweep meets the machine: runs in a chunk and a part, threads and devices, and whether it all fits."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from grpo_jax.config import Config, prompt_count
from grpo_jax.runtime import cores
from grpo_jax.types import HasActivations

CHUNK_NUMBERS = 8192
"""Numbers in one array of a chunk on one core: what keeps a chunk's dozen arrays in a 1 MiB L2 cache."""
LEAST_CHUNK = 80
"""Runs that a chunk has at least, so that every loop over them fills several vectors."""
ARRAYS = 32
"""Arrays the size of a chunk's state that its program holds at once, roughly."""
PART_RUNS = 65536
"""Runs of a part at most; an accelerator takes as many as fill it."""
WORTH_SHARING = 32
"""Runs for each thread from which on a sweep is shared among threads."""
LARGE = 2**12
"""Parameters from which on a network's runs take turns on a core: its products fill a core one by one. Of
the networks of ``python -m benchmarks --networks``, 6,736 run fastest so, and 388 four or eight at a time; a
long sweep tries for itself (``tuning``)."""
TOGETHER = 8
"""Runs of a smaller network that share a chunk."""
FILLING = 2**25
"""Numbers in one array of a chunk on an accelerator."""
PART_BYTES = 256 * 2**20


@dataclasses.dataclass(frozen=True)
class Layout:
    """A part is ``chunks`` chunks of ``chunk_size`` runs over ``devices``; threads take parts in turn."""

    chunk_size: int
    chunks: int
    devices: int = 1
    threads: int = 1

    @property
    def runs(self) -> int:
        """Runs in a part."""
        return self.chunk_size * self.chunks


def odd_multiple(runs: float) -> int:
    """The odd multiple of 16 next below ``runs``: whole vectors, rows spread over the cache's sets."""
    return 16 * (2 * max(0, (round(runs) - 16) // 32) + 1)


def default_chunk(config: Config, runs: int, devices: int) -> int:
    """Runs in a chunk, all devices together.

    On a CPU as many as keep a chunk in the L2 cache; on an accelerator as many as fill it.
    """
    needed = -(-runs // devices)
    numbers, cpu = parameters(config), jax.default_backend() == "cpu"
    if not config.policy.trailing:
        most = (
            (1 if large(config) else TOGETHER) if cpu else max(FILLING // (numbers + activations(config)), 1)
        )
        return min(most, needed) * devices
    budget = CHUNK_NUMBERS if cpu else FILLING
    return min(odd_multiple(max(budget // max(numbers, 1), LEAST_CHUNK)), needed) * devices


@jax.jit
def _started(policy: Any) -> Any:
    """Parameters; under ``jit``, so that an equal policy is not traced again."""
    return policy.init(jax.random.key(0))


def parameters(config: Config) -> int:
    """Parameters of one run."""
    start = _started.eval_shape(config.policy)
    rank = config.policy.rank if config.policy.trailing else None
    return sum(math.prod(leaf.shape[:rank]) for leaf in jax.tree.leaves(start))


def activations(config: Config) -> int:
    """Numbers that the gradient of one run's batch holds, where the policy says how many a token takes."""
    if not isinstance(config.policy, HasActivations):
        return 0
    tokens = prompt_count(config) * config.loop.group_size * config.policy.horizon
    return tokens * config.policy.numbers_per_token


def large(config: Config) -> bool:
    """Whether a run keeps a core busy by itself."""
    return not config.policy.trailing and parameters(config) >= LARGE


def hands(runs: int, devices: int | None) -> tuple[int, int]:
    """(devices, threads) that share ``runs`` runs.

    A CPU is one device whose cores take parts in turn, each thread its own; of accelerators all local ones
    share every chunk. ``devices`` given overrides that.
    """
    local = jax.local_device_count()
    if devices is not None:
        if not 1 <= devices <= local:
            raise ValueError(f"devices is {devices}; this process has {local}")
        return devices, 1
    if jax.default_backend() == "cpu":
        return 1, cores()
    return min(local, runs), 1


def layout(
    config: Config,
    runs: int,
    numbers: int,
    *,
    chunk_size: int | None = None,
    about: int | None = None,
    devices: int | None = None,
    processes: int = 1,
) -> Layout:
    """Chunks and parts for ``runs`` runs that record ``numbers`` numbers each, parts of about equal size.

    Args:
      chunk_size: runs in a chunk, a multiple of ``devices``; None chooses.
      about: what to choose near, so that chunks are of about equal size, too; None is ``default_chunk``.
      devices: how many local devices share a chunk; None decides by the machine.
      processes: how many processes like this one share the parts.
    """
    count, threads = hands(runs, devices)
    most = PART_RUNS if jax.default_backend() == "cpu" else max(PART_RUNS, default_chunk(config, runs, count))
    most = min(most, max(PART_BYTES // (8 * numbers), 16 * count))
    worth = (1 if large(config) else WORTH_SHARING) * threads
    sharing = min(processes, runs // worth) * threads if runs >= worth else 1
    parts = sharing * -(-runs // (most * sharing))
    part = -(-runs // parts)
    if chunk_size is None:
        near = about or default_chunk(config, runs, count)
        each = -(-part // -(-part // near) // count)
        wide = part > near >= 16 * count
        chunk_size = count * (_odd_multiple_above(each) if wide else each)
    if chunk_size < 1 or chunk_size % count:
        raise ValueError(f"chunk_size is {chunk_size}; it must be a positive multiple of the {count} devices")
    return Layout(chunk_size, max(1, -(-part // chunk_size)), count, threads)


def _odd_multiple_above(runs: int) -> int:
    return 16 * (2 * (-(-(runs - 16) // 32)) + 1)


@dataclasses.dataclass(frozen=True)
class Estimate:
    """What a sweep will take, known before it starts."""

    updates: int
    """Optimizer steps of all runs together."""
    output: int
    """Bytes of all results."""
    memory: int
    """Bytes needed at once besides the results."""
    seconds: float | None = None
    """Of running: from a measured chunk, else from the pace of an earlier sweep; None without either."""
    compile_seconds: float | None = None
    """Of compiling what this process has not compiled, going by earlier compilations; None before any."""

    def of(self, portion: float) -> Estimate:
        """What a share of the runs will take, from 0 to 1; memory and compiling are not divided."""
        seconds = None if self.seconds is None else self.seconds * portion
        updates, output = round(self.updates * portion), round(self.output * portion)
        return dataclasses.replace(self, updates=updates, output=output, seconds=seconds)

    def sentence(self) -> str:
        """For people."""
        updates = f"{self.updates:,}" if self.updates < 1e6 else f"{self.updates / 1e6:.3g} million"
        sizes = f"{self.output / 2**20:.1f} MiB of results, about {self.memory / 2**20:.0f} MiB besides"
        return f"{updates} updates, {sizes}{self._time()}"

    def _time(self) -> str:
        if self.seconds is None or self.compile_seconds is None:
            known = self.seconds if self.seconds is not None else self.compile_seconds
            if not known:
                return "; no earlier sweep here tells how long it will take"
            what = "running, after compiling" if self.seconds is not None else "compiling, then running"
            return f", about {known:.3g} s {what}"
        total = self.seconds + self.compile_seconds
        return f", about {total:.3g} s ({self.compile_seconds:.2g} compiling)"


def estimate(config: Config, shape: Layout, runs: int, *, iterations: int, numbers: int) -> Estimate:
    """What ``runs`` runs of ``iterations`` iterations that record ``numbers`` numbers each will take."""
    item = np.dtype(jax.dtypes.canonicalize_dtype(float)).itemsize
    own = parameters(config)
    state = prompt_count(config) * config.loop.group_size * config.policy.horizon + own
    queue = 0
    if config.behavior is not None and config.behavior.age is not None:
        queue = 2 * (config.behavior.age.depth + 1) * own
    in_flight = (2 + shape.threads) * min(shape.runs, runs) * numbers
    return Estimate(
        updates=runs * updates(config, iterations),
        output=runs * numbers * item,
        memory=item
        * (in_flight + (ARRAYS * state + queue + activations(config)) * shape.chunk_size * shape.threads),
    )


def updates(config: Config, iterations: int) -> int:
    """Optimizer steps of one run."""
    return iterations * config.loop.inner_steps * config.loop.minibatches


def together(each: Iterable[Estimate]) -> Estimate:
    """What several variants take that are computed one after the other."""
    each = list(each)
    return Estimate(
        updates=sum(e.updates for e in each),
        output=sum(e.output for e in each),
        memory=max(e.memory for e in each),
    )


def check_fits(wanted: Estimate, available: int | None, *, streamed: bool) -> None:
    """MemoryError, with what to do about it, where a sweep needs more memory than there is."""
    needed = wanted.memory + (0 if streamed else wanted.output)
    if available is None or needed <= available:
        return
    remedy = "" if streamed else ", or give out= a folder: large results then stay on disk"
    raise MemoryError(
        f"this sweep needs {needed / 2**30:.1f} GiB of memory and {available / 2**30:.1f} GiB are free: "
        f"raise record_every, average with average_from, name fewer diagnostics in record{remedy}"
    )


def free_memory() -> int | None:
    """Bytes of memory that this process could still get; None where the system does not say."""
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, AttributeError):
        return None
