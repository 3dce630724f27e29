"""How a sweep meets the machine: compiler options, runs in a chunk and a part, and whether it all fits."""

from __future__ import annotations

import dataclasses
import math
import os
from pathlib import Path

import jax
import numpy as np

from grpo_jax.config import Config, prompt_count

CHUNK_NUMBERS = 8192
"""Numbers in one array of a chunk on one device: what keeps a chunk's dozen arrays in a 1 MiB L2 cache."""
LEAST_WIDTH = 80
"""Runs that a chunk has on each device at least, so that every loop over them fills several vectors."""
ARRAYS = 32
"""Arrays the size of a chunk's state that its program holds at once, roughly."""
PART_RUNS = 65536
"""Runs of a part at most; an accelerator takes as many as fill it."""
FILLING = 2**25
"""Numbers in one array of a chunk on an accelerator."""
PART_BYTES = 256 * 2**20


@dataclasses.dataclass(frozen=True)
class Shape:
    """How runs are laid out: ``chunks`` chunks of ``width`` runs in a part, over ``devices`` devices."""

    width: int
    chunks: int
    devices: int

    @property
    def runs(self) -> int:
        """Runs in a part."""
        return self.width * self.chunks


def odd_width(runs: float) -> int:
    """The odd multiple of 16 next below ``runs``: whole vectors, rows spread over the cache's sets."""
    return 16 * (2 * max(0, (round(runs) - 16) // 32) + 1)


def default_width(config: Config, runs: int, devices: int) -> int:
    """Runs in a chunk, all devices together.

    On a CPU as many as keep a chunk in the L2 cache; on an accelerator as many as fill it.
    """
    needed = -(-runs // devices)
    if not config.policy.trailing:
        return min(8, needed) * devices
    start = jax.eval_shape(config.policy.init, jax.random.key(0))
    numbers = sum(int(np.prod(leaf.shape[: config.policy.rank])) for leaf in jax.tree.leaves(start))
    budget = CHUNK_NUMBERS if jax.default_backend() == "cpu" else FILLING
    return min(odd_width(max(budget // max(numbers, 1), LEAST_WIDTH)), needed) * devices


def layout(
    config: Config,
    runs: int,
    numbers: int,
    *,
    width: int | None = None,
    about: int | None = None,
    devices: int | None = None,
) -> Shape:
    """Chunks and parts for ``runs`` runs that record ``numbers`` numbers each, parts of about equal size.

    Args:
      width: runs in a chunk, a multiple of ``devices``; None chooses.
      about: what to choose near, so that chunks are of about equal size, too; None is ``default_width``.
      devices: how many local devices share a chunk; None is all of them (no more than there are runs).
    """
    local = jax.local_device_count()
    if devices is not None and not 1 <= devices <= local:
        raise ValueError(f"devices is {devices}; this process has {local}")
    count = devices or min(local, runs)
    most = PART_RUNS if jax.default_backend() == "cpu" else max(PART_RUNS, default_width(config, runs, count))
    most = min(most, max(PART_BYTES // (8 * numbers), 16 * count))
    part = -(-runs // -(-runs // most))
    if width is None:
        near = about or default_width(config, runs, count)
        each = -(-part // -(-part // near) // count)
        wide = part > near >= 16 * count
        width = count * (_odd_multiple(each) if wide else each)
    if width < 1 or width % count:
        raise ValueError(f"width is {width}; it must be a positive multiple of the {count} devices")
    return Shape(width=width, chunks=max(1, -(-part // width)), devices=count)


def _odd_multiple(runs: int) -> int:
    """The odd multiple of 16 next above."""
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

    def sentence(self) -> str:
        """For people."""
        updates = f"{self.updates:,}" if self.updates < 1e6 else f"{self.updates / 1e6:.3g} million"
        sizes = f"{self.output / 2**20:.1f} MiB of results, about {self.memory / 2**20:.0f} MiB besides"
        time = "" if self.seconds is None else f", about {self.seconds:.3g} s"
        return f"{updates} updates, {sizes}{time}"


def estimate(config: Config, shape: Shape, runs: int, *, iterations: int, numbers: int) -> Estimate:
    """What ``runs`` runs of ``iterations`` iterations that record ``numbers`` numbers each will take."""
    item = np.dtype(jax.dtypes.canonicalize_dtype(float)).itemsize
    start = jax.eval_shape(config.policy.init, jax.random.key(0))
    drawn = prompt_count(config) * config.loop.group_size * config.policy.horizon
    state = drawn + sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(start))
    return Estimate(
        updates=runs * iterations * config.loop.inner_steps * config.loop.minibatches,
        output=runs * numbers * item,
        memory=item * (3 * shape.runs * numbers + ARRAYS * state * shape.width),
    )


def check_fits(wanted: Estimate, available: int | None, *, streamed: bool) -> None:
    """MemoryError, with what to do about it, where a sweep needs more memory than there is."""
    needed = wanted.memory + (0 if streamed else wanted.output)
    if available is None or needed <= available:
        return
    remedy = "" if streamed else ", or give out= a folder: large results then stay on disk"
    raise MemoryError(
        f"this sweep needs {needed / 2**30:.1f} GiB of memory and {available / 2**30:.1f} GiB are free: "
        f"raise record_every, name fewer diagnostics in record{remedy}"
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
