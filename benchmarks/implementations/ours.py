"""The library itself, through the program that ``sweep`` compiles; a user writes none of this."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from benchmarks.case import Case, Result

NAME = "grpo_jax"
NOTE = "counts path, autodiff and optax, all local devices; also records whether every run is finite"
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


def prepare(case: Case, draws: np.ndarray | None) -> Callable[[], Result]:
    """The library draws the very numbers of ``case.draws()`` itself."""
    import jax

    from grpo_jax.collectors import choose
    from grpo_jax.sweeps.layout import layout
    from grpo_jax.sweeps.program import Program, Request
    from grpo_jax.sweeps.tuning import tuned

    config = choose(configuration(case))
    request = Request(case.iterations, 1, RECORD, 0)
    devices = min(jax.local_device_count(), case.runs)
    about = None if case.double else tuned(config, (), request, runs=case.runs, devices=devices).width
    shape = layout(config, case.runs, len(RECORD) * case.iterations, about=about)
    program = Program(config, (), request, shape)
    program.compile({})

    def run() -> Result:
        parts = []
        for first in range(0, case.runs, shape.runs):
            seeds = np.minimum(np.arange(first, first + shape.runs), case.runs - 1).astype(np.uint32)
            found = program(np.zeros((0, shape.runs), np.int32), seeds)
            clipped = found["clip_fraction_high"] + found["clip_fraction_low"]
            values = (*(found[name] for name in RECORD[:3]), clipped)
            parts.append([value[:, : case.runs - first] for value in values])
        return Result(*(np.concatenate(p, 1) if len(p) > 1 else p[0] for p in zip(*parts, strict=True)))

    run()
    return run
