"""The training loop against a whole simulation in NumPy (``simulation.py``)."""

import dataclasses
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from grpo_jax import methods, train
from grpo_jax.collectors import Counts, Sampled, choose
from grpo_jax.config import Config, Loop
from grpo_jax.optimizers import (
    L2,
    SGD,
    Adam,
    AdamW,
    ClippedNorm,
    Cosine,
    HeavyBall,
    Lion,
    RMSProp,
    Warmup,
)
from grpo_jax.part import put_all
from grpo_jax.policies import ActionPolicy, TreePolicy
from grpo_jax.sequences import Sequences
from grpo_jax.tasks import Bernoulli, Questions, SequenceTable
from tests import simulation
from tests.simulation import RULES, Problem, Simulation, softmax

pytestmark = pytest.mark.usefixtures("x64")

RNG = np.random.default_rng(11)
RUNS, SEEDS, ITERATIONS = 3, np.array([7, 7, 2]), 6
NUMBERS: dict[str, Any] = {
    "rate": [0.9, 0.3, 1.5], "decay": [0.3, 0.05, 0.02], "momentum": [0.8, 0.5, 0.9], "b1": [0.9, 0.5, 0.7],
    "b2": [0.99, 0.9, 0.95], "eps": [1e-8, 1e-3, 1e-2], "max_norm": [0.1, 0.04, 0.2],
    "steps": [20.0, 7.0, 60.0], "low": [0.05, 0.15, 0.1], "high": [0.03, 0.3, 0.2], "coef": [0.3, 0.1, 1.0],
}  # fmt: skip
"""One number for each of three runs."""


def numbers(run=slice(None), **changes):
    """All runs' numbers, or one run's; ``changes`` hold for all runs."""
    return SimpleNamespace(**{name: np.array(values)[run] for name, values in NUMBERS.items()} | changes)


# What is trained: contexts with rewards of their own, the last one tied whatever is drawn.

TABLE = np.array([[0.1, 0.9, 0.4], [1.0, 0.0, 0.0], [0.3, 0.2, 0.8], [0.5, 0.5, 0.5]])
SPACE = Sequences(vocab=3, horizon=3, eos=2)


ACTIONS = Problem(3, 1, None, TABLE, RNG.normal(size=(4, 1, 3)), RNG.normal(size=(4, 1, 3)))
TREE = Problem(
    3, 3, 2, np.vstack([RNG.integers(0, 4, (2, 15)) / 3, np.full(15, 0.5)]),
    RNG.normal(size=(3, 7, 3)), RNG.normal(size=(3, 7, 3)),
)  # fmt: skip


def configured(problem, loop, rule, n, optimizer, noisy=False):
    noise, at = (Bernoulli() if noisy else None), {"gain.low": n.low, "gain.high": n.high}
    at |= {"penalty.coef": n.coef} if RULES[rule].penalty else {}
    method = getattr(methods, rule)
    method = put_all(method, {k: v for k, v in at.items() if k != "gain.low" or rule != "tic_grpo"})
    if problem.horizon == 1:
        policy: Any = ActionPolicy(logits=problem.start[:, 0])
        task: Any = Questions(table=problem.rewards, noise=noise)
        reference = problem.reference[:, 0]
    else:
        policy, reference = TreePolicy(space=SPACE, logits=problem.start), problem.reference
        task = SequenceTable(space=SPACE, table=problem.rewards, noise=noise)
    return Config(
        policy=policy, task=task, method=method, optimizer=optimizer, loop=loop, reference=reference
    )


OPTIMIZERS: dict[str, Any] = {
    "sgd": (lambda n: SGD(learning_rate=n.rate), lambda n: simulation.descent(n.rate)),
    "cosine": (
        lambda n: SGD(learning_rate=Cosine(init=n.rate, steps=n.steps, end=n.decay)),
        lambda n: simulation.descent(simulation.cosine(n.rate, n.steps, n.decay)),
    ),
    "heavy_ball": (
        lambda n: HeavyBall(learning_rate=n.rate / 4, momentum=n.momentum),
        lambda n: simulation.heavy_ball(n.rate / 4, n.momentum),
    ),
    "rmsprop": (
        lambda n: RMSProp(learning_rate=n.rate / 30, decay=n.b2, eps=n.eps),
        lambda n: simulation.rmsprop(n.rate / 30, n.b2, n.eps),
    ),
    "adam": (
        lambda n: Adam(learning_rate=n.rate / 20, b1=n.b1, b2=n.b2, eps=n.eps),
        lambda n: simulation.adam(n.rate / 20, n.b1, n.b2, n.eps),
    ),
    "adamw": (
        lambda n: AdamW(
            learning_rate=Warmup(peak=n.rate / 10, steps=n.steps), b1=n.b1, b2=n.b2, eps=n.eps,
            weight_decay=n.decay,
        ),
        lambda n: simulation.adam(simulation.warmup(n.rate / 10, n.steps), n.b1, n.b2, n.eps, n.decay),
    ),
    "lion": (
        lambda n: Lion(learning_rate=n.rate / 30, b1=n.b1, b2=n.b2, weight_decay=n.decay),
        lambda n: simulation.lion(n.rate / 30, n.b1, n.b2, n.decay),
    ),
    "clipped": (
        lambda n: ClippedNorm(
            inner=HeavyBall(learning_rate=n.rate, momentum=n.momentum), max_norm=n.max_norm
        ),
        lambda n: simulation.clipped(n.max_norm, simulation.heavy_ball(n.rate, n.momentum)),
    ),
    "l2": (
        lambda n: L2(inner=Adam(learning_rate=n.rate / 20, b1=n.b1, b2=n.b2, eps=n.eps), coef=n.decay),
        lambda n: simulation.coupled(n.decay, simulation.adam(n.rate / 20, n.b1, n.b2, n.eps)),
    ),
}  # fmt: skip
"""Name -> (the library's, the simulation's), both made from a run's numbers."""


# The comparisons

ALL = (
    "expected_reward", "entropy", "kl_ref", "kl_ref_reverse", "reward", "length", "surrogate", "grad_norm",
    "update_norm", "clip_fraction_high", "clip_fraction_low", "ratio_min", "ratio_max", "ratio_quantiles",
    "tied", "probabilities",
)  # fmt: skip
SOME = ("surrogate", "grad_norm", "update_norm", "clip_fraction_high", "clip_fraction_low")
LOOPS = {
    "on_policy": Loop(group_size=6),
    "inner_steps": Loop(group_size=6, inner_steps=3),
    "minibatches": Loop(group_size=5, inner_steps=2, minibatches=2),
    "stale": Loop(group_size=6, refresh_every=3),
    "drawn_prompts": Loop(group_size=4, prompts=6, inner_steps=3, minibatches=3, refresh_every=2),
}


def compare(
    problem, loop, rule, optimizer, *, runs=False, noisy=False, record=SOME, expectation=None, **changes
):
    """Train in the library and in NumPy; the simulation's records, one list of iterations for each run."""
    n, seeds = (numbers(**changes), SEEDS) if runs else (numbers(0, **changes), SEEDS[0])
    config = configured(problem, loop, rule, n, OPTIMIZERS[optimizer][0](n), noisy)
    config = dataclasses.replace(config, expectation=expectation)
    state, info = train.run(config, train.init(config, seeds), iterations=ITERATIONS, record=record)
    kept = []
    for run in range(RUNS if runs else 1):
        n = numbers(run, **changes)
        move = OPTIMIZERS[optimizer][1](n)
        alone = Simulation(problem, loop, rule, n, move, seed=int(SEEDS[run]), noisy=noisy)
        kept.append([alone.iterate() for _ in range(ITERATIONS)])
        for found, wanted in ((state.params, alone.theta), (state.old_params, alone.old)):
            found = np.asarray(found)[..., run] if runs else np.asarray(found)
            np.testing.assert_allclose(found.reshape(wanted.shape), wanted, rtol=1e-10, atol=1e-11)
        for name in record:
            wanted = np.stack([np.asarray(one[name]) for one in kept[-1]])
            found = np.asarray(info[name])[..., run] if runs else info[name]
            np.testing.assert_allclose(found, wanted, rtol=1e-9, atol=1e-10, err_msg=name)
    return kept


def held(kept):
    return sum(one["clip_fraction_high"] + one["clip_fraction_low"] for run in kept for one in run)


@pytest.mark.parametrize(
    ("name", "noisy"), [*((name, False) for name in LOOPS), ("inner_steps", True), ("drawn_prompts", True)]
)
def test_every_loop_and_every_diagnostic_follow_the_simulation(name, noisy):
    chosen = choose(configured(ACTIONS, LOOPS[name], "grpo", numbers(0), SGD(), noisy)).expectation
    assert isinstance(chosen, Sampled if noisy else Counts)
    kept = compare(ACTIONS, LOOPS[name], "grpo", "sgd", noisy=noisy, record=ALL)
    assert held(kept) > 0 or name == "on_policy"


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_optimizer_with_other_numbers_in_every_run(optimizer):
    kept = compare(ACTIONS, LOOPS["drawn_prompts"], "grpo", optimizer, runs=True)
    assert all(held([run]) > 0 for run in kept)
    if optimizer == "clipped":
        norms = np.array([[one["grad_norm"] for one in run] for run in kept])
        assert (norms > np.array(NUMBERS["max_norm"])[:, None]).any(1).all()


@pytest.mark.parametrize("rule", [rule for rule in RULES if rule != "grpo"])
def test_every_rule_on_actions(rule):
    kept = compare(ACTIONS, LOOPS["inner_steps"], rule, "sgd")
    assert held(kept) > 0 or rule == "cispo"


@pytest.mark.parametrize("rule", ["grpo", "dapo"])
def test_outputs_of_unequal_lengths(rule):
    kept = compare(TREE, Loop(group_size=4, inner_steps=3, minibatches=3), rule, "sgd", record=ALL)
    assert held(kept) > 0
    assert 1 < np.mean([one["length"] for one in kept[0]]) < 3


@pytest.mark.parametrize("expectation", [Sampled(), Counts()])
def test_lion_does_not_take_the_sign_of_a_gradient_of_zero(expectation):
    """Rewards in eighths and groups of four, so that sums of advantages are exactly 0, without rounding.

    At the old policy the gradient is 0 at actions not sampled; in a tied context, which only decay moves, it
    always is.
    """
    problem, loop = ACTIONS._replace(rewards=np.round(8 * TABLE) / 8), Loop(group_size=4, inner_steps=3)
    kept = compare(problem, loop, "dr_grpo", "lion", expectation=expectation, coef=0.0, record=ALL)
    n = numbers(0)
    shrunk = ACTIONS.start[-1] * (1 - n.rate / 30 * n.decay) ** (ITERATIONS * loop.inner_steps)
    np.testing.assert_allclose(kept[0][-1]["probabilities"][-1:], softmax(shrunk), rtol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("problem", [ACTIONS, TREE], ids=["actions", "tree"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("rule", RULES)
def test_every_rule_with_every_optimizer(rule, optimizer, problem):
    """Lion only where a penalty pulls: else actions not sampled have gradient 0 but for rounding's sign."""
    if optimizer == "lion" and not RULES[rule].penalty:
        pytest.skip("the sign of rounding noise")
    loop = Loop(group_size=4, prompts=6, inner_steps=3, minibatches=3, refresh_every=2)
    compare(problem, loop, rule, optimizer, runs=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", LOOPS)
@pytest.mark.parametrize("rule", RULES)
def test_every_rule_in_every_loop(rule, name):
    compare(ACTIONS, LOOPS[name], rule, "heavy_ball", runs=True, noisy=True, record=ALL)
