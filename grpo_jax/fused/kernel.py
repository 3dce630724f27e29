"""Whole runs in one Pallas kernel: a run to a lane, the iterations a loop inside, the state in registers."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl

from grpo_jax import train
from grpo_jax.config import Config
from grpo_jax.fused.arrays import RUNS, filled, stored
from grpo_jax.fused.lanes import Lanes
from grpo_jax.part import aligned, put_all
from grpo_jax.records import Recording
from grpo_jax.types import Array

LANES = 128
"""Runs of a block, one to a thread of four warps; a power of two, which Triton's arrays must have."""


def simulate(
    config: Config,
    picked: Mapping[str, Array],
    seeds: Array,
    root: Array,
    iterations: int,
    plan: Recording,
    *,
    lanes: int = LANES,
    interpret: bool | None = None,
) -> train.Info:
    """What ``train.advance`` records from the start on, by the kernel.

    Args:
      config: ready, its numbers shared by all runs.
      picked: dotted path -> [..., R], the numbers that runs have of their own.
      seeds: [R] seed coordinates.
      root: the seed root, a scalar.
      iterations: of every run.
      plan: what is recorded; without averages.
      lanes: runs of a block, a power of two.
      interpret: run the kernel as an ordinary program; None where there is no GPU.

    Returns:
      Name -> [recorded, ..., R].
    """
    interpret = jax.default_backend() != "gpu" if interpret is None else interpret
    runs = seeds.shape[0]
    filling = -runs % lanes
    shared, own = jax.tree.map(jnp.asarray, ((config, root), (dict(picked), seeds)))
    own = jax.tree.map(lambda x: jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, filling)], "edge"), own)
    traces = Traces(shared, own, plan)
    records = iterations // plan.every + plan.start
    inputs = [*(x.reshape(-1) for x in jax.tree.leaves(shared)), *jax.tree.leaves(own)]
    first = len(jax.tree.leaves(shared))
    call = pl.pallas_call(
        functools.partial(block, traces, lanes, iterations // plan.every),
        out_shape=jax.ShapeDtypeStruct((records, runs + filling, traces.width), jnp.zeros(()).dtype),
        grid=((runs + filling) // lanes,),
        in_specs=[
            *(pl.BlockSpec(x.shape, lambda i: (0,)) for x in inputs[:first]),
            *(_by_block(x.shape, lanes) for x in inputs[first:]),
        ],
        out_specs=pl.BlockSpec((records, lanes, traces.width), lambda i: (0, i, 0)),
        compiler_params=None if interpret else _by_triton(lanes),
        interpret=interpret,
        name="runs",
    )
    return traces.unpacked(call(*inputs)[:, :runs])


def _by_triton(lanes: int) -> Any:
    """A lane to a thread; ImportError where JAX has this compiler no more."""
    from jax.experimental.pallas import triton

    return triton.CompilerParams(num_warps=max(1, lanes // 32), num_stages=1)


def compiler_options() -> dict[str, Any]:
    """What a program with the kernel asks of the compiler: on a CPU not to fuse, which takes it minutes."""
    return {} if jax.default_backend() == "gpu" else {"xla_disable_hlo_passes": "fusion"}


def _by_block(shape: tuple[int, ...], lanes: int) -> pl.BlockSpec:
    """A block's runs of an array, and everything of each."""
    lead = (0,) * (len(shape) - 1)
    return pl.BlockSpec((*shape[:-1], lanes), lambda i: (*lead, i))


class Traces:
    """The general path, traced: what happens before the first iteration, and from one record to the next."""

    def __init__(self, shared: Any, own: Any, plan: Recording) -> None:
        self.inputs = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), shared)
        self.own = jax.tree.map(lambda x: jax.ShapeDtypeStruct((*x.shape[:-1], RUNS), x.dtype), own)

        def begin(shared: Any, own: Any) -> Any:
            (config, root), (picked, seeds) = shared, own
            config = put_all(config, picked)
            return aligned(config), train.start(config, seeds, root)

        def record(config: Config, state: Any) -> Any:
            return train.next_record(config, state, plan)

        def first(config: Config, state: Any) -> Any:
            return train.at_start(config, state, plan)

        self.begin, begun = jax.make_jaxpr(begin, return_shape=True)(self.inputs, self.own)
        self.record, (_, info) = jax.make_jaxpr(record, return_shape=True)(*begun)
        self.info = dict(sorted(info.items()))  # in the order of its leaves
        self.first = jax.make_jaxpr(first)(*begun) if plan.start else None
        self.configured = len(jax.tree.leaves(begun[0]))
        self.sizes = [math.prod(kind.shape[:-1]) for kind in self.info.values()]
        self.width = 2 ** math.ceil(math.log2(sum(self.sizes)))
        """Numbers that are stored for each record: what is recorded, filled up to a power of two."""

    def unpacked(self, stored: Array) -> train.Info:
        """Name -> [recorded, ..., R], of what a kernel stores, [recorded, R, width]."""
        parts = jnp.split(jnp.moveaxis(stored, 2, 1), np.cumsum(self.sizes), axis=1)
        return {
            name: part.reshape((len(stored), *kind.shape[:-1], stored.shape[1])).astype(kind.dtype)
            for (name, kind), part in zip(self.info.items(), parts, strict=False)
        }


def block(traces: Traces, lanes: int, rounds: int, *refs: Any) -> None:
    """A block of runs, from the start to the end."""
    *ins, out = refs
    shared, own = jax.tree.leaves(traces.inputs), jax.tree.leaves(traces.own)
    read = [
        *(filled(x.shape, (ref[i] for i in range(x.size))) for x, ref in zip(shared, ins, strict=False)),
        *(_columns(x, ref) for x, ref in zip(own, ins[len(shared) :], strict=True)),
    ]
    evaluate = Lanes(lanes)
    begun = evaluate(traces.begin, read)
    config, state = begun[: traces.configured], begun[traces.configured :]

    def write(row: Any, found: list[np.ndarray]) -> None:
        pairs = zip(found, traces.info.values(), strict=True)
        numbers = [number.astype(float) for x, kind in pairs for number in stored(x, kind, lanes)]
        empty = [jnp.zeros(lanes)] * (traces.width - len(numbers))
        out[(row, slice(None), slice(None))] = _joined([*numbers, *empty]).reshape(lanes, traces.width)

    ahead = 0
    if traces.first is not None:
        write(0, evaluate(traces.first, begun))
        ahead = 1

    def keep(i: Any, found: list[np.ndarray], kept: list[np.ndarray]) -> list[np.ndarray]:
        write(i + ahead, found)
        return kept

    evaluate.loop(traces.record, config, state, rounds, keep, [], [])


def _joined(numbers: list[Array]) -> Array:
    """[lanes, 2, ..., 2], in order, pair by pair as Triton can: one store compiles much faster than many."""
    if len(numbers) == 1:
        return numbers[0]
    return jnp.stack([_joined(numbers[::2]), _joined(numbers[1::2])], -1)


def _columns(kind: Any, ref: Any) -> np.ndarray:
    """The lane array of a block of runs' own numbers."""
    lead = kind.shape[:-1]
    return filled((*lead, 1), (ref[(*place, slice(None))] for place in np.ndindex(*lead)))
