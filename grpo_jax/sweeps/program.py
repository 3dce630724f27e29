"""The compiled program of a sweep: a part of the runs, chunk by chunk, each chunk's runs as the last axis."""

from __future__ import annotations

import dataclasses
import hashlib
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from grpo_jax import train
from grpo_jax.config import Config
from grpo_jax.part import put_all
from grpo_jax.runtime import compiler_options
from grpo_jax.sweeps.axes import Axis
from grpo_jax.sweeps.layout import Shape
from grpo_jax.types import Array


@dataclasses.dataclass(frozen=True)
class Request:
    """What every run does."""

    iterations: int
    record_every: int
    record: tuple[str, ...]
    root: int


def chunk(
    config: Config, axes: Sequence[Axis], values: Any, index: Array, seeds: Array, request: Request
) -> Any:
    """One chunk of runs [W]: index [axes, W] picks each run's settings; diagnostics come runs last."""
    picked = {
        path: jnp.moveaxis(column[index[i]], 0, -1)
        for i, axis in enumerate(axes)
        for path, column in zip(axis.paths, values[i], strict=True)
    }

    def simulate(config: Config, seeds: Array) -> Any:
        state = train.init(config, seeds, root=request.root)
        return train.run(
            config,
            state,
            iterations=request.iterations,
            record_every=request.record_every,
            record=request.record,
        )[1]

    if config.policy.trailing:
        return simulate(put_all(config, picked), seeds)
    single = jax.vmap(lambda p, seed: simulate(put_all(config, p), seed), in_axes=(-1, 0), out_axes=-1)
    return single(picked, seeds)


class Program:
    """A compiled part of a sweep; lowered first, so that its text can be hashed and its compilation timed."""

    def __init__(self, config: Config, axes: Sequence[Axis], request: Request, shape: Shape) -> None:
        self.config, self.axes, self.shape = config, axes, shape
        self.values = [tuple(jnp.asarray(v, float) for v in axis.values) for axis in axes]
        self._sharding = _sharding(shape.devices)

        def program(config: Config, values: Any, index: Array, seeds: Array) -> Any:
            def simulated(i: Any) -> Any:
                return chunk(config, axes, values, index[i], seeds[i], request)

            def add(i: Any, whole: Any) -> Any:
                return jax.tree.map(
                    lambda w, new: jax.lax.dynamic_update_index_in_dim(w, new, i, w.ndim - 2),
                    whole,
                    simulated(i),
                )

            def empty(new: Any) -> Array:
                return jnp.zeros((*new.shape[:-1], shape.chunks, new.shape[-1]), new.dtype)

            return jax.lax.fori_loop(0, shape.chunks, add, jax.tree.map(empty, jax.eval_shape(simulated, 0)))

        index, seeds = self._place(
            np.zeros((len(axes), shape.runs), np.int32), np.zeros(shape.runs, np.uint32)
        )
        self._lowered = jax.jit(program).lower(config, self.values, index, seeds)
        text = self._lowered.as_text()
        self.hash = hashlib.sha256(text.encode()).hexdigest()
        self.compiled: Any = None
        self.compile_seconds = 0.0

    def compile(self, known: dict[str, Any]) -> bool:
        """Compile unless an equal program is known; True if it compiled."""
        if self.hash in known:
            self.compiled = known[self.hash]
            return False
        start = time.perf_counter()
        self.compiled = known[self.hash] = self._lowered.compile(compiler_options=compiler_options())
        self.compile_seconds = time.perf_counter() - start
        return True

    def __call__(self, index: np.ndarray, seeds: np.ndarray) -> dict[str, np.ndarray]:
        """Diagnostics [records, ..., runs] of one part: index [axes, runs], seeds [runs]."""
        result = jax.device_get(self.compiled(self.config, self.values, *self._place(index, seeds)))
        return {name: value.reshape((*value.shape[:-2], -1)) for name, value in result.items()}

    def _place(self, index: np.ndarray, seeds: np.ndarray) -> tuple[Array, Array]:
        n, w = self.shape.chunks, self.shape.width
        split = np.moveaxis(index.reshape(len(self.axes), n, w), 1, 0)
        return jax.device_put(split, self._sharding(3)), jax.device_put(
            seeds.reshape(n, w), self._sharding(2)
        )


def _sharding(devices: int) -> Any:
    automatic = (jax.sharding.AxisType.Auto,)
    mesh = jax.make_mesh((devices,), ("runs",), automatic, devices=jax.local_devices()[:devices])

    def over_runs(rank: int) -> jax.sharding.NamedSharding:
        return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*[None] * (rank - 1), "runs"))

    return over_runs
