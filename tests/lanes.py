"""What the tests of the fused kernel share: small configurations, and its body run for one block."""

import jax
import jax.numpy as jnp
import numpy as np

import grpo_jax as gj
from grpo_jax import train
from grpo_jax.collectors import choose
from grpo_jax.fused.arrays import QUESTIONS, RUNS, asked, filled, questions_last
from grpo_jax.fused.kernel import Part, Traces, block, wide
from grpo_jax.fused.lanes import Lanes
from grpo_jax.fused.twins import marked
from grpo_jax.kernels import whole
from grpo_jax.part import put_all
from grpo_jax.records import recording

WIDTH = 4
"""Runs where a trace is evaluated on lanes by itself."""


def on_lanes(function, *arrays):
    """``function`` of arrays [..., WIDTH], evaluated on lanes."""
    shapes = [jax.ShapeDtypeStruct((*x.shape[:-1], RUNS), x.dtype) for x in arrays]
    trace = jax.make_jaxpr(function)(*shapes)
    given = [
        filled((*x.shape[:-1], 1), (jnp.asarray(x[place])[:, None] for place in np.ndindex(*x.shape[:-1])))
        for x in arrays
    ]
    (found,) = Lanes((WIDTH, 1))(trace, given)
    rows = [np.broadcast_to(np.asarray(element), (WIDTH, 1))[:, 0] for element in found.flat]
    return np.stack(rows).reshape((*found.shape[:-1], WIDTH))


def by_question(function, *arrays):
    """``function`` of arrays [Q, ..., WIDTH], evaluated with a lane for each question."""
    questions = len(arrays[0])

    def trace(questions):
        shapes = [jax.ShapeDtypeStruct((questions, *x.shape[1:-1], RUNS), x.dtype) for x in arrays]
        with whole():
            return jax.make_jaxpr(function)(*shapes)

    twin = marked(trace(questions), trace(QUESTIONS), questions)
    lanes = Lanes((WIDTH, wide(questions)), questions)
    given = []
    for x in arrays:
        moved = questions_last(jnp, x, (QUESTIONS, *x.shape[1:]), lanes.shape[1])
        lead = moved.shape[:-2]
        given.append(filled((*lead, 1), (moved[place] for place in np.ndindex(*lead))))
    (found,), kind = lanes(twin, given), twin.jaxpr.outvars[0].aval
    numbers = np.stack(lanes.stored(found, kind), -1)[None]
    part = Part({"it": kind}, asked(kind.shape) is not None)
    if not part.by_question:
        np.testing.assert_array_equal(numbers, np.broadcast_to(numbers[:, :, :1], numbers.shape))
        numbers = numbers[:, :, 0]
    return np.asarray(part.unpacked(jnp.asarray(numbers), questions)["it"][0])


TABLE = [[1.0, 0.0, 0.0], [0.5, 2.0, 0.5]]
"""Rewards that tie, of two unequal contexts."""
LOGITS = [[0.3, -0.2, 0.1], [0.0, 1.0, -1.0]]


def configuration(method=gj.methods.grpo, optimizer=None, *, table=TABLE, logits=LOGITS, noise=None, **loop):
    return gj.Config(
        policy=gj.ActionPolicy(logits=logits),
        task=gj.Questions(table=table, noise=noise),
        method=method,
        optimizer=optimizer or gj.AdamW(learning_rate=0.1, weight_decay=0.01),
        loop=gj.Loop(**{"group_size": 4} | loop),
    )


def given(config, iterations=3, picked=None, runs=WIDTH, record=None, **plan):
    """The arguments of ``simulate``, and the plan."""
    config = choose(config)
    plan = recording(config, record, None, iterations=iterations, **plan)
    picked = {path: jnp.asarray(values, float) for path, values in (picked or {}).items()}
    config = jax.tree.map(lambda leaf: jnp.asarray(leaf, float), config)
    return config, picked, jnp.arange(runs, dtype=jnp.uint32) + 3, jnp.uint32(11), iterations, plan


def generally(config, picked, seeds, root, iterations, plan):
    """The general path."""
    config = put_all(config, picked)
    return train.advance(config, train.start(config, seeds, root), iterations, plan)[1]


def by_block(config, picked, seeds, root, iterations, plan, questions=1):
    """The kernel's body, run as it stands on arrays for one block: there is nothing to compile."""
    shared, own = jax.tree.map(jnp.asarray, ((config, root), (picked, seeds)))
    traces, width = Traces(shared, own, plan, questions), wide(questions)
    records, runs = iterations // plan.every + plan.start, len(seeds)
    outs = [np.zeros((records, runs, *part.lead(width), part.width)) for part in traces.parts]
    with jax.disable_jit():
        block(traces, (runs, width), iterations // plan.every, *traces.inputs(shared, own, width), *outs)
    return traces.unpacked(outs)
