"""Whether a sweep may take the kernel: where it applies, lowers and agrees with the general path."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from grpo_jax import runtime, train
from grpo_jax.config import Config, prompt_count
from grpo_jax.fused import kernel
from grpo_jax.fused.arrays import NoLanesError
from grpo_jax.fused.kernel import LANES, led, simulate
from grpo_jax.part import put_all
from grpo_jax.records import Recording
from grpo_jax.types import Array, Tabular

PARAMETERS = 64
"""The most parameters of a lane: with two moments and π_old's they fill a thread's registers."""
OWN = 4
"""The most numbers that a lane has of its own: a compiler takes the longer for each that is loaded."""
DRAWS = 512
"""The most answers of an iteration and lane: each is drawn by operations of its own."""
OPERATIONS = 50_000
"""The most operations of a kernel; a compiler takes the longer for each."""
BLOCK = LANES
"""Runs on which the two paths are compared."""
TRIED = 2
"""Records after which the two paths are compared."""
AGREEING = 0.95
"""The least share of runs whose records must agree. A draw within rounding of a border may fall on either
side of it, and that run goes another way from there."""


def tolerance() -> float:
    """What the paths may differ in |a − b|/(1 + |b|): rounding, and what an optimizer makes of it."""
    return 1e-3 if jnp.zeros(()).dtype == jnp.float32 else 1e-9


def forms(config: Config) -> list[int]:
    """What may be a lane, the best form first: the number of questions for each, and 1 for the run."""
    questions = prompt_count(config)
    return [questions, 1] if 1 < questions <= LANES else [1]


def refusal(config: Config, plan: Recording, *, devices: int = 1, questions: int = 1) -> str | None:
    """Why no kernel is tried, in a few words; None where one is.

    Args:
      config: with its expectation chosen.
      plan: what is recorded.
      devices: how many share a chunk.
      questions: of ``forms``.
    """
    policy = config.policy
    if not (isinstance(policy, Tabular) and policy.trailing and policy.horizon == 1):
        return "answers are not single actions of a table"
    numbers = math.prod(jnp.shape(policy.logits)[: policy.rank]) // questions
    draws = prompt_count(config) * config.loop.group_size // questions
    if devices > 1:
        return f"{devices} devices share a chunk"
    if plan.average_from is not None:
        return "averages are taken by the general path"
    if config.behavior is not None:
        return "a sampler of its own"
    if config.loop.refill is not None or config.loop.prompts is not None or config.loop.minibatches > 1:
        return "what is drawn, kept or ordered differs from run to run"
    if numbers > PARAMETERS:
        return f"{numbers} parameters; at most {PARAMETERS} fit a thread's registers"
    if draws > DRAWS:
        return f"{draws} draws an iteration; at most {DRAWS} are written out"
    return None


def untraceable(
    config: Config,
    picked: Mapping[str, Array],
    seeds: Array,
    root: Any,
    iterations: int,
    plan: Recording,
    questions: int = 1,
) -> str | None:
    """What of the step has no form on single lanes, or is too much for a kernel; None where nothing.

    The arguments are those of ``simulate``, or their shapes.
    """
    own = sum(by_lane(jnp.shape(leaf)[:-1], questions) for leaf in picked.values())
    if own > OWN:
        return f"{own} numbers of each run are swept; at most {OWN}"

    def traced(config: Config, picked: Any, seeds: Array, root: Array) -> train.Info:
        return simulate(config, picked, seeds, root, iterations, plan, questions=questions, interpret=True)

    try:
        trace = jax.make_jaxpr(traced)(config, picked, seeds, root)
    except NoLanesError as error:
        return str(error)
    except Exception as error:  # a trace that nobody foresaw is no reason to stop: the general path takes it
        return f"its step cannot be traced on lanes ({first_line(error)})"
    count = operations(trace.jaxpr)
    return f"{count} operations; at most {OPERATIONS} are one kernel" if count > OPERATIONS else None


def by_lane(shape: tuple[int, ...], questions: int) -> int:
    """How many numbers a lane holds of an array of this shape."""
    return math.prod(shape) // (questions if led(shape, questions) else 1)


def first_line(error: Exception) -> str:
    """What an error says, in a line."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def operations(jaxpr: Any) -> int:
    """How many operations a trace writes down, those of loops and branches once each."""
    count = 0
    for eqn in jaxpr.eqns:
        inside = [
            x for value in eqn.params.values() for x in (value if isinstance(value, tuple) else [value])
        ]
        traces = [getattr(x, "jaxpr", x) for x in inside]
        count += 1 + sum(operations(trace) for trace in traces if hasattr(trace, "eqns"))
    return count


def disagreement(
    config: Config,
    picked: Mapping[str, Array],
    seeds: Array,
    root: Any,
    plan: Recording,
    questions: int = 1,
) -> str | None:
    """How one block's records differ from the general path's; None where they agree to ``tolerance``.

    Errors of lowering and compiling come through. ``picked``: [..., R]; ``seeds``: [R].
    """
    iterations = TRIED * plan.every

    def general(config: Config, picked: Any, seeds: Array, root: Any) -> train.Info:
        config = put_all(config, picked)
        return train.advance(config, train.start(config, seeds, root), iterations, plan)[1]

    def fused(config: Config, picked: Any, seeds: Array, root: Array) -> train.Info:
        return simulate(config, picked, seeds, root, iterations, plan, questions=questions)

    def run(path: Any, options: dict[str, Any]) -> dict[str, np.ndarray]:
        given = (config, picked, seeds, root)
        return jax.device_get(jax.jit(path).lower(*given).compile(compiler_options=options)(*given))

    wanted, found = run(general, runtime.compiler_options()), run(fused, kernel.compiler_options())
    return unlike(found, wanted)


def unlike(found: Mapping[str, np.ndarray], wanted: Mapping[str, np.ndarray]) -> str | None:
    """Which records differ by more than ``tolerance`` in too many runs; None where none do. [..., R] each."""
    for name, right in wanted.items():
        a, b = np.asarray(found[name], float), np.asarray(right, float)
        with np.errstate(invalid="ignore"):  # inf − inf
            near = (np.abs(a - b) <= tolerance() * (1 + np.abs(b))) | (a == b) | (np.isnan(a) & np.isnan(b))
        share = float(np.mean(np.all(near, axis=tuple(range(near.ndim - 1)))))
        if share < AGREEING:
            return f"{name} agrees in {share:.0%} of the runs"
    return None
