"""The compiled program of a sweep: a part of the runs, chunk by chunk, each chunk's runs as the last axis."""

from __future__ import annotations

import dataclasses
import hashlib
import numbers
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from grpo_jax import train
from grpo_jax.config import Config
from grpo_jax.part import put_all
from grpo_jax.records import Recording
from grpo_jax.runtime import compiler_options
from grpo_jax.sweeps.axes import Axis
from grpo_jax.sweeps.layout import Layout
from grpo_jax.types import Array

KEPT = 64
"""Programs that a process keeps, those used last, so that an equal sweep neither traces nor compiles again.
Each takes some ten megabytes and 200 memory mappings, of which Linux allows a process 65,530."""
_kept: dict[Any, Any] = {}


@dataclasses.dataclass(frozen=True)
class Request:
    """What every run does; with the configuration's structure, a program's identity."""

    iterations: int
    recording: Recording
    lanes: int = 0
    """Of each run, if the iterations are one kernel (``fused.kernel``); 0 where they are not."""


def chunk(
    config: Config,
    axes: Sequence[Axis],
    values: Any,
    root: Array,
    index: Array,
    seeds: Array,
    request: Request,
) -> Any:
    """One chunk of runs [W]: index [axes, W] picks each run's settings; what is recorded comes runs last."""
    picked = own_numbers(axes, values, index)
    if request.lanes:
        from grpo_jax.fused import kernel  # here: few sweeps need Pallas, which takes a while to import

        given = (config, picked, seeds, root, request.iterations, request.recording)
        return kernel.simulate(*given, questions=request.lanes)

    def simulate(config: Config, seeds: Array) -> Any:
        state = train.start(config, seeds, root)
        fresh = train.starts_fresh(config)
        return train.advance(config, state, request.iterations, request.recording, fresh)[1]

    if config.policy.trailing:
        return simulate(put_all(config, picked), seeds)

    def single(picked: Any, seed: Array) -> Any:
        return simulate(put_all(config, picked), seed)

    if seeds.shape[0] == 1:  # a batch of one matrix is slower than the matrix
        only = single({path: value[..., 0] for path, value in picked.items()}, seeds[0])
        return jax.tree.map(lambda value: value[..., None], only)
    return jax.vmap(single, in_axes=(-1, 0), out_axes=-1)(picked, seeds)


def own_numbers(axes: Sequence[Axis], values: Any, index: Any) -> dict[str, Array]:
    """Dotted path -> [..., W], the numbers that runs with these settings [axes, W] have of their own."""
    return {
        path: jnp.moveaxis(column[index[i]], 0, -1)
        for i, axis in enumerate(axes)
        for path, column in zip(axis.paths, values[i], strict=True)
    }


class Program:
    """A compiled part of a sweep; lowered first, so that its text can be hashed and its compilation timed."""

    def __init__(self, config: Config, axes: Sequence[Axis], request: Request, shape: Layout) -> None:
        self.axes, self.shape = axes, shape
        self._options = _options(config, bool(request.lanes))
        self._sharding = _sharding(shape.devices)
        self._lock = threading.Lock()

        def whole_chunk(config: Config, values: Any, root: Array, index: Array, seeds: Array) -> Any:
            return chunk(config, axes, values, root, index, seeds, request)

        traced_once: Any = jax.jit(whole_chunk, inline=True)

        def program(config: Config, values: Any, root: Array, index: Array, seeds: Array) -> Any:
            def simulated(i: Any) -> Any:
                return traced_once(config, values, root, index[i], seeds[i])

            def add(i: Any, whole: Any) -> Any:
                return jax.tree.map(
                    lambda w, new: jax.lax.dynamic_update_index_in_dim(w, new, i, w.ndim - 2),
                    whole,
                    simulated(i),
                )

            def empty(new: Any) -> Array:
                return jnp.zeros((*new.shape[:-1], shape.chunks, new.shape[-1]), new.dtype)

            return jax.lax.fori_loop(0, shape.chunks, add, jax.tree.map(empty, jax.eval_shape(simulated, 0)))

        part = self.place(np.zeros((len(axes), shape.runs), np.int32), np.zeros(shape.runs, np.uint32))
        self._lowered: Any = jax.jit(program).lower(*arguments(config, axes, 0), *part)
        traced_once.clear_cache()
        self.dtypes = {name: info.dtype for name, info in self._lowered.out_info.items()}
        """Name -> type of what is recorded."""
        self.hash = hashlib.sha256(self._lowered.as_text().encode()).hexdigest()
        self.compiled: Any = None

    def compile(self) -> float:
        """Compile unless that is done; the seconds it took. Threads that ask at once wait for one of them."""
        with self._lock:
            if self.compiled is not None:
                return 0.0
            start = time.perf_counter()
            self.compiled = self._lowered.compile(compiler_options=self._options)
            self._lowered = None
            return time.perf_counter() - start

    def __call__(self, given: Any, index: np.ndarray, seeds: np.ndarray) -> dict[str, np.ndarray]:
        """What is recorded, [..., runs], of one part: ``arguments``, index [axes, runs], seeds [runs]."""
        result = jax.device_get(self.compiled(*given, *self.place(index, seeds)))
        return {name: value.reshape((*value.shape[:-2], -1)) for name, value in result.items()}

    def place(self, index: np.ndarray, seeds: np.ndarray) -> tuple[Array, Array]:
        """Index and seeds of a part on its devices, a row for each chunk."""
        n, w = self.shape.chunks, self.shape.chunk_size
        split = np.moveaxis(index.reshape(len(self.axes), n, w), 1, 0)
        return jax.device_put(split, self._sharding(3)), jax.device_put(
            seeds.reshape(n, w), self._sharding(2)
        )


def arguments(config: Config, axes: Sequence[Axis], root: int) -> Any:
    """What a program is called with besides index and seeds, made once: numbers as arrays."""
    leaves = jax.tree.map(_array, config)
    return leaves, [tuple(jnp.asarray(v, float) for v in axis.values) for axis in axes], jnp.uint32(root)


def _array(leaf: Any) -> Array:
    return jnp.asarray(leaf, float) if isinstance(leaf, numbers.Number) else jnp.asarray(leaf)


def _kind(leaf: Any) -> tuple[tuple[int, ...], Any]:
    """Shape and type of ``_array``, without making it."""
    if isinstance(leaf, jax.Array):
        return leaf.shape, leaf.dtype
    own = float if isinstance(leaf, numbers.Number) else leaf.dtype
    return np.shape(leaf), jax.dtypes.canonicalize_dtype(own)


def program_of(config: Config, axes: Sequence[Axis], request: Request, shape: Layout) -> Program:
    """The program of a sweep, from an earlier one of this process where one of its structure is kept."""
    varied = tuple((axis.paths, tuple(map(np.shape, axis.values))) for axis in axes)
    key = (structure(config), varied, request, shape)
    return latest(_kept, key, KEPT, lambda: Program(config, axes, request, shape))


def structure(config: Config) -> Any:
    """What configurations share whose traces are equal: all but their numbers."""
    kinds = tuple(map(_kind, jax.tree.leaves(config)))
    machine = (jax.dtypes.canonicalize_dtype(float), jax.default_backend())
    return jax.tree.structure(config), kinds, machine


T = TypeVar("T")


def latest(held: dict[Any, T], key: Any, count: int, make: Callable[[], T]) -> T:
    """What is held under the key, or else made; of those used last ``count`` are held."""
    try:
        hash(key)
    except TypeError:  # a part of the user's holds structure that has no hash
        return make()
    found = held.pop(key) if key in held else make()
    while len(held) >= count:
        held.pop(next(iter(held)))
    held[key] = found
    return found


def _options(config: Config, fused: bool) -> dict[str, Any]:
    if not fused:
        return compiler_options(networks=not config.policy.trailing)
    from grpo_jax.fused import kernel

    return kernel.compiler_options()


def _sharding(devices: int) -> Any:
    automatic = (jax.sharding.AxisType.Auto,)
    mesh = jax.make_mesh((devices,), ("runs",), automatic, devices=jax.local_devices()[:devices])

    def over_runs(rank: int) -> jax.sharding.NamedSharding:
        return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*[None] * (rank - 1), "runs"))

    return over_runs
