"""Whole runs in one Pallas kernel: the iterations a loop inside, the state in registers.

A run is a lane, or each of its questions is one: then a lane holds one question's parameters, and what is
summed over questions is exchanged among the lanes of a run.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl

from grpo_jax import train
from grpo_jax.config import Config
from grpo_jax.fused.arrays import QUESTIONS, RUNS, asked, filled, held, questions_last
from grpo_jax.fused.lanes import Lanes
from grpo_jax.fused.twins import marked
from grpo_jax.kernels import whole
from grpo_jax.part import aligned, put_all
from grpo_jax.records import Recording
from grpo_jax.types import Array

LANES = 128
"""Lanes of a block, one to a thread of four warps; a power of two, which Triton's arrays must have."""


def simulate(
    config: Config,
    picked: Mapping[str, Array],
    seeds: Array,
    root: Array,
    iterations: int,
    plan: Recording,
    *,
    questions: int = 1,
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
      questions: how many there are, for a lane each; 1 for one of each run. NoLanesError where questions
        cannot be told from other axes, or are mixed by anything but sums and extremes.
      lanes: of a block, a power of two.
      interpret: run the kernel as an ordinary program; None where there is no GPU.

    Returns:
      Name -> [recorded, ..., R].
    """
    interpret = jax.default_backend() != "gpu" if interpret is None else interpret
    width = wide(questions)
    shape = (max(1, lanes // width), width)
    runs = seeds.shape[0]
    filling = -runs % shape[0]
    shared, own = jax.tree.map(jnp.asarray, ((config, root), (dict(picked), seeds)))
    own = jax.tree.map(lambda x: jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, filling)], "edge"), own)
    traces = Traces(shared, own, plan, questions)
    inputs = traces.inputs(shared, own, width)
    first = len(jax.tree.leaves(shared))
    rounds = iterations // plan.every
    stores = [(rounds + plan.start, runs + filling, *part.lead(width), part.width) for part in traces.parts]
    call = pl.pallas_call(
        functools.partial(block, traces, shape, rounds),
        out_shape=[jax.ShapeDtypeStruct(store, jnp.zeros(()).dtype) for store in stores],
        grid=((runs + filling) // shape[0],),
        in_specs=[
            *(pl.BlockSpec(x.shape, lambda i: (0, 0)) for x in inputs[:first]),
            *(_by_block(x.shape, x.ndim - 2, shape[0]) for x in inputs[first:]),
        ],
        out_specs=[_by_block(store, 1, shape[0]) for store in stores],
        compiler_params=None if interpret else _by_triton(lanes),
        interpret=interpret,
        name="runs",
    )
    return traces.unpacked([stored[:, :runs] for stored in call(*inputs)])


def wide(questions: int) -> int:
    """W, the lanes of a run: as many as questions, filled up to a power of two."""
    return 2 ** math.ceil(math.log2(questions))


def led(lead: tuple[int, ...], questions: int) -> bool:
    """Whether the first of an array's axes before runs is taken for that of questions, if these are lanes.

    Where it is another one as long, the two traces are no one program, and that is noticed.
    """
    return questions > 1 and lead[:1] == (questions,)


def _by_triton(lanes: int) -> Any:
    """A lane to a thread; ImportError where JAX has this compiler no more."""
    from jax.experimental.pallas import triton

    return triton.CompilerParams(num_warps=max(1, lanes // 32), num_stages=1)


def compiler_options() -> dict[str, Any]:
    """What a program with the kernel asks of the compiler: on a CPU not to fuse, which takes it minutes.

    Nor to simplify what is then left apart: XLA's older emitters compute it wrongly (JAX 0.10, on [runs, W]).
    """
    return {} if jax.default_backend() == "gpu" else {"xla_disable_hlo_passes": "fusion,algsimp"}


def _by_block(shape: tuple[int, ...], axis: int, runs: int) -> pl.BlockSpec:
    """A block's runs of an array, and everything of each."""
    before, behind = (0,) * axis, (0,) * (len(shape) - axis - 1)
    return pl.BlockSpec((*shape[:axis], runs, *shape[axis + 1 :]), lambda i: (*before, i, *behind))


@dataclasses.dataclass(frozen=True)
class Part:
    """Records that are stored together: those by question, or the others."""

    kinds: Mapping[str, Any]
    """Name -> marked shape and type."""
    by_question: bool

    @property
    def sizes(self) -> list[int]:
        """Numbers of each record of a lane."""
        return [math.prod(held(kind.shape)) for kind in self.kinds.values()]

    @property
    def width(self) -> int:
        """Numbers of a lane: what is recorded, filled up to a power of two."""
        return wide(sum(self.sizes))

    def lead(self, width: int) -> tuple[int, ...]:
        """The axes of lanes behind runs, where there are ``width`` of them."""
        return (width,) if self.by_question else ()

    def unpacked(self, stored: Array, questions: int) -> train.Info:
        """Name -> [recorded, ..., R] of [recorded, R(, W), width]."""
        lanes = stored[:, :, :questions] if self.by_question else stored[:, :, None]
        ends = np.cumsum(self.sizes)
        parts = jnp.split(jnp.transpose(lanes, (0, 2, 3, 1)), ends, axis=2)  # [recorded, Q or 1, n, R]
        found = {}
        for (name, kind), part in zip(self.kinds.items(), parts, strict=False):
            shape, axis = held(kind.shape)[:-1], asked(kind.shape)
            split = part.reshape((*part.shape[:2], *shape, part.shape[-1]))
            moved = jnp.moveaxis(split, 1, 1 + (axis or 0))
            whole = [n * part.shape[1] if i == axis else n for i, n in enumerate(shape)]
            found[name] = moved.reshape((len(stored), *whole, part.shape[-1])).astype(kind.dtype)
        return found


class Traces:
    """The general path, traced: what happens before the first iteration, and from one record to the next."""

    def __init__(self, shared: Any, own: Any, plan: Recording, questions: int = 1) -> None:
        self.plan, self.questions = plan, questions
        self.kinds = self._kinds(shared, own, QUESTIONS if questions > 1 else 1)
        """Marked shapes and types of what all runs share, and of what they have of their own."""
        with whole():
            real = self._traced(self._kinds(shared, own, questions))
            twin = self._traced(self.kinds) if questions > 1 else real
        begin, record, first = (
            a and marked(a, b, questions) for a, b in zip(real[:3], twin[:3], strict=True)
        )
        self.begin, self.record, self.first = begin, record, first
        self.configured, self.info = twin[3], dict(sorted(twin[4].items()))  # in the order of its leaves
        apart = {name: asked(kind.shape) is not None for name, kind in self.info.items()}
        self.parts = [
            Part({name: kind for name, kind in self.info.items() if apart[name] == by_question}, by_question)
            for by_question in sorted(set(apart.values()))
        ]

    def _kinds(self, shared: Any, own: Any, questions: int) -> Any:
        """Shapes and types, with so many questions in the place of theirs where first axes are as long."""

        def kind(lead: tuple[int, ...], runs: tuple[int, ...], dtype: Any) -> Any:
            lead = (questions, *lead[1:]) if led(lead, self.questions) else lead
            return jax.ShapeDtypeStruct(lead + runs, dtype)

        return (
            jax.tree.map(lambda x: kind(x.shape, (), x.dtype), shared),
            jax.tree.map(lambda x: kind(x.shape[:-1], (RUNS,), x.dtype), own),
        )

    def _traced(self, kinds: Any) -> tuple[Any, Any, Any, int, Any]:
        """The three traces (None without a record of the start), leaves of the configuration, and records."""
        plan = self.plan

        def begin(shared: Any, own: Any) -> Any:
            (config, root), (picked, seeds) = shared, own
            config = put_all(config, picked)
            return aligned(config), train.start(config, seeds, root)

        def record(config: Config, state: Any) -> Any:
            return train.next_record(config, state, plan)

        def first(config: Config, state: Any) -> Any:
            return train.at_start(config, state, plan)

        beginning, begun = jax.make_jaxpr(begin, return_shape=True)(*kinds)
        recording, (_, info) = jax.make_jaxpr(record, return_shape=True)(*begun)
        started = jax.make_jaxpr(first)(*begun) if plan.start else None
        return beginning, recording, started, len(jax.tree.leaves(begun[0])), info

    def inputs(self, shared: Any, own: Any, width: int) -> list[Array]:
        """What a kernel is given: [n, 1 or W] of what runs share, and [..., R, 1 or W] of their own."""

        def moved(tree: Any, kinds: Any) -> list[Array]:
            pairs = zip(jax.tree.leaves(tree), jax.tree.leaves(kinds), strict=True)
            return [questions_last(jnp, x, kind.shape, width) for x, kind in pairs]

        shared, own = map(moved, (shared, own), self.kinds)
        return [*(x.reshape((-1, x.shape[-1])) for x in shared), *own]

    def unpacked(self, stored: Sequence[Array]) -> train.Info:
        """Name -> [recorded, ..., R], of what a kernel stores, in the order of ``parts``."""
        pairs = zip(self.parts, stored, strict=True)
        found = [part.unpacked(numbers, self.questions) for part, numbers in pairs]
        return {name: value for part in found for name, value in part.items()}


def block(traces: Traces, shape: tuple[int, int], rounds: int, *refs: Any) -> None:
    """A block of runs, from the start to the end; its lanes are [runs, W]."""
    ins, outs = refs[: -len(traces.parts)], refs[-len(traces.parts) :]
    shared, own = (jax.tree.leaves(kinds) for kinds in traces.kinds)
    read = [
        *(_shared(x, ref, shape) for x, ref in zip(shared, ins, strict=False)),
        *(_own(x, ref, shape) for x, ref in zip(own, ins[len(shared) :], strict=True)),
    ]
    evaluate = Lanes(shape, traces.questions)
    begun = evaluate(traces.begin, read)
    config, state = begun[: traces.configured], begun[traces.configured :]

    def write(lanes: Lanes, row: Any, found: list[np.ndarray]) -> None:
        numbers = {
            name: [number.astype(float) for number in lanes.stored(x, kind)]
            for (name, kind), x in zip(traces.info.items(), found, strict=True)
        }
        for part, out in zip(traces.parts, outs, strict=True):
            own = [number for name in part.kinds for number in numbers[name]]
            own = own if part.by_question else [jnp.max(number, axis=1) for number in own]
            empty = [jnp.zeros(own[0].shape)] * (part.width - len(own))
            joined = _joined([*own, *empty]).reshape((*own[0].shape, part.width))
            out[(row, *(slice(None),) * joined.ndim)] = joined

    ahead = 0
    if traces.first is not None:
        write(evaluate, 0, evaluate(traces.first, begun))
        ahead = 1

    def keep(inside: Lanes, i: Any, found: list[np.ndarray], kept: list[np.ndarray]) -> list[np.ndarray]:
        write(inside, i + ahead, found)
        return kept

    evaluate.loop(traces.record, config, state, rounds, keep, [], [])


def _joined(numbers: list[Array]) -> Array:
    """[..., 2, ..., 2], in order, pair by pair as Triton can: one store compiles much faster than many."""
    if len(numbers) == 1:
        return numbers[0]
    return jnp.stack([_joined(numbers[::2]), _joined(numbers[1::2])], -1)


def _shared(kind: Any, ref: Any, shape: tuple[int, int]) -> np.ndarray:
    """The lane array of what all runs share, [n, 1 or W]."""
    lead = held(kind.shape)
    if asked(kind.shape) is None:
        return filled(lead, (ref[i, 0] for i in range(math.prod(lead))))
    return filled(lead, (jnp.broadcast_to(ref[i, slice(None)], shape) for i in range(math.prod(lead))))


def _own(kind: Any, ref: Any, shape: tuple[int, int]) -> np.ndarray:
    """The lane array of a block of runs' own numbers, [..., runs, 1 or W]."""
    lead = held(kind.shape)
    read = (ref[(*place, slice(None), slice(None))] for place in np.ndindex(*lead[:-1]))
    return filled(lead, (jnp.broadcast_to(numbers, shape) for numbers in read))
