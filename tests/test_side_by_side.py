"""Methods that share a program train as each does in a program of its own."""

from dataclasses import replace

import numpy as np
import pytest

import grpo_jax as gj
from experiments.problems.side_by_side import Held, OneOf

STEPS = 3
PLAIN = {
    name: replace(gj.methods.get(name), penalty=None) for name in ("grpo", "gspo", "dr_grpo", "grpo_score")
}
FROZEN = replace(gj.methods.grpo_frozen, penalty=None)
"""Not among those that share: it is the score, held."""
SPACE = gj.Sequences(vocab=3, horizon=3, eos=2)


def config(method, expectation, held=None):
    adam = gj.AdamW(learning_rate=0.1)
    return gj.Config(
        policy=gj.TreePolicy.uniform(SPACE, contexts=2),
        task=gj.SequenceTable(
            space=SPACE, table=np.random.default_rng(0).normal(size=(2, len(SPACE.support[0])))
        ),
        method=method,
        optimizer=gj.ClippedNorm(inner=adam if held is None else Held(inner=adam, held=held, period=STEPS)),
        loop=gj.Loop(group_size=4, inner_steps=STEPS),
        expectation=expectation,
    )


def trained(given, axes=None):
    return gj.sweep(
        given, axes, seeds=2, iterations=5, record=["expected_reward"], progress=False, root=3
    ).expected_reward


def test_each_of_several_methods_trains_as_it_does_alone(x64):
    shared = config(PLAIN["grpo"], OneOf(methods=tuple(PLAIN.values())), held=0.0)
    own = {name: (float(k), 0.0) for k, name in enumerate(PLAIN)}
    own["frozen"] = (float(list(PLAIN).index("grpo_score")), 1.0)
    together = trained(shared, {("expectation.chosen", "optimizer.inner.held"): own})
    found = {}
    for place, name in enumerate(own):
        alone = trained(config(PLAIN.get(name, FROZEN), gj.Sampled()))
        np.testing.assert_allclose(together[place], alone, rtol=1e-9)
        found[name] = alone.values
    for one, other in (("grpo", "gspo"), ("grpo", "dr_grpo"), ("grpo_score", "frozen")):
        assert np.abs(found[one] - found[other]).max() > 1e-3


def test_a_held_gradient_is_the_first_of_its_period():
    """Of 1, 2, 3, 4, 5 with a period of 2: 1, 1, 3, 3, 5; SGD of 1 takes them away."""
    optimizer = Held(inner=gj.SGD(learning_rate=1.0), held=1.0, period=2).transform()
    params, taken = np.zeros(1), []
    state = optimizer.init(params)
    for gradient in range(1, 6):
        updates, state = optimizer.update(np.full(1, float(gradient)), state, params)
        taken.append(-float(updates[0]))
    assert taken == pytest.approx([1, 1, 3, 3, 5])
