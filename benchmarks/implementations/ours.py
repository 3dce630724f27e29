"""The library itself, through the program that ``sweep`` compiles; a user writes none of this."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from benchmarks.case import Case, Result

NAME = "grpo_jax"
NOTE = "counts path, autodiff and optax, a thread a core; also records whether every run is finite"
RECORD = ("expected_reward", "entropy", "kl_ref", "clip_fraction_high", "clip_fraction_low", "finite")


def configuration(case: Case):
    """The case as the library's configuration."""
    from grpo_jax.config import Config, Loop
    from grpo_jax.methods import grpo
    from grpo_jax.optimizers import AdamW
    from grpo_jax.part import put_all
    from grpo_jax.policies.actions import ActionPolicy
    from grpo_jax.tasks.questions import Questions

    shape = case.shape
    clip = {"gain.low": case.clip, "gain.high": case.clip, "penalty.coef": case.kl_coef}
    return Config(
        policy=ActionPolicy.uniform(contexts=shape.questions, actions=shape.actions),
        task=Questions(table=case.table),
        method=put_all(grpo, clip),
        optimizer=AdamW(
            learning_rate=case.learning_rate,
            b1=case.b1,
            b2=case.b2,
            eps=case.eps,
            weight_decay=case.weight_decay,
        ),
        loop=Loop(group_size=shape.group, inner_steps=shape.inner),
    )


def sweeping(config, case: Case, *, tune: bool = True) -> Callable[[], list[dict[str, np.ndarray]]]:
    """What ``sweep`` does between its checks and its dataset: every part, by a thread a core."""
    from grpo_jax.records import recording
    from grpo_jax.sweeps.layout import layout
    from grpo_jax.sweeps.program import Program, Request, arguments
    from grpo_jax.sweeps.tuning import tuned

    request = Request(case.iterations, recording(config, RECORD, None, iterations=case.iterations))
    numbers = len(RECORD) * case.iterations
    shape = layout(config, case.runs, numbers)
    if tune:
        about = tuned(config, (), request, runs=case.runs, shape=shape).chunk_size
        shape = layout(config, case.runs, numbers, about=about)
    program = Program(config, (), request, shape)
    program.compile()
    given = arguments(config, (), 0)

    def part(first: int) -> dict[str, np.ndarray]:
        seeds = np.minimum(np.arange(first, first + shape.runs), case.runs - 1).astype(np.uint32)
        found = program(given, np.zeros((0, shape.runs), np.int32), seeds)
        return {name: value[:, : case.runs - first] for name, value in found.items()}

    def run() -> list[dict[str, np.ndarray]]:
        with ThreadPoolExecutor(shape.threads) as pool:
            return list(pool.map(part, range(0, case.runs, shape.runs)))

    return run


def prepare(case: Case, draws: np.ndarray | None) -> Callable[[], Result]:
    """The library draws the very numbers of ``case.draws()`` itself."""
    from grpo_jax.collectors import choose

    swept = sweeping(choose(configuration(case)), case, tune=not case.double)

    def run() -> Result:
        parts = []
        for found in swept():
            clipped = found["clip_fraction_high"] + found["clip_fraction_low"]
            parts.append([*(found[name] for name in RECORD[:3]), clipped])
        return Result(*(np.concatenate(p, 1) if len(p) > 1 else p[0] for p in zip(*parts, strict=True)))

    run()
    return run
