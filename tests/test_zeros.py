"""What is exactly zero stays zero: gradients that cancel, probabilities of 0, a choice among one action."""

import dataclasses
from typing import Any

import jax
import numpy as np
import pytest

from grpo_jax import methods, train
from grpo_jax.collectors import Counts, Sampled, choose
from grpo_jax.config import Config, Loop
from grpo_jax.exact import Exact
from grpo_jax.methods import METHODS
from grpo_jax.optimizers import L2, OPTIMIZERS, SGD, AdamW, ClippedNorm, Lion
from grpo_jax.part import aligned, put_all
from grpo_jax.policies import ActionPolicy
from grpo_jax.tasks import Questions
from grpo_jax.types import Coupling, coupling

UNEQUAL = {
    "policy": ActionPolicy(logits=np.random.default_rng(0).normal(size=(4, 4))),
    "task": Questions(table=[[0.1, 0.9, 0.4, 0.7], [1.0, 0, 0.2, 0.2], [0.5] * 4, [0.3, 0.1, 0.7, 0.5]]),
}
"""Contexts of which one ties always, and one where (0.1 + 0.4 + 0.7)/3 = 0.4 up to rounding."""


def apart(method, optimizer):
    """[seeds] how far the parameters of samples and of their histograms are apart after 8 iterations."""
    loop, seeds = Loop(group_size=6, inner_steps=2), np.arange(24)
    config = Config(method=method, optimizer=optimizer, loop=loop, **UNEQUAL)
    ends = []
    for expectation in (Sampled(), Counts()):
        asked = dataclasses.replace(config, expectation=expectation)
        ends.append(train.run(asked, train.init(asked, seeds), iterations=8, record=())[0].params)
    assert np.abs(ends[0] - config.policy.logits[..., None]).max() > 0.1
    return np.abs(ends[0] - ends[1]).max((0, 1))


def unfiltered(name):
    """The method; GTPO without its filter, which would drop every output of so even a policy."""
    keep = {"corrections.0.threshold": 9.0, "penalty.factors.0.threshold": 9.0}
    return put_all(METHODS[name], keep) if name == "gtpo" else METHODS[name]


@pytest.mark.parametrize(
    "name",
    [pytest.param(m, marks=() if m in ("dapo_dynamic", "gspo") else pytest.mark.slow) for m in METHODS],
)
@pytest.mark.usefixtures("x64")
def test_samples_and_counts_agree_under_an_optimizer_that_reads_signs(name):
    """A gradient of exactly 0 must be 0 in both, or Lion steps along the sign of its rounding."""
    assert apart(unfiltered(name), Lion(learning_rate=0.05)).max() < 1e-12


def test_samples_and_counts_agree_under_adamw_in_single_precision():
    """AdamW divides a gradient by its own size: rounding of 1e-8 would move a logit by half a rate."""
    assert apart(methods.grpo_score, AdamW(learning_rate=0.05)).max() < 1e-5


def test_what_was_not_drawn_does_not_move_on_policy():
    """Advantages sum to 0, so its gradient −π Σ A is 0: exactly, in single precision too.

    Nor does what was drawn, where its reward is the group's mean: decided here in whole numbers.
    """
    table = np.array([[1, 9, 4, 7], [3, 2, 8, 6]])
    policy = ActionPolicy(logits=np.array([[0.3, -0.2, 1.0, 0.4], [0.0, 0.5, -0.4, 0.8]]))
    config = Config(
        policy=policy,
        task=Questions(table=table / 10),
        method=methods.dapo,
        optimizer=Lion(),
        loop=Loop(group_size=5),
    )
    seeds = np.arange(60)
    state = train.init(config, seeds)
    rollout = jax.jit(lambda s: Sampled().collect(aligned(config), s).rollout)(state)
    actions = np.asarray(rollout.tokens)[:, :, 0]
    drawn = (actions[:, :, None] == np.arange(4)[:, None]).any(1)
    rewards = np.take_along_axis(table[..., None], actions, 1)
    off = 5 * table[..., None] != rewards.sum(1, keepdims=True)
    after, _ = train.run(config, state, iterations=1, record=())
    moved = np.asarray(after.params != state.params)
    np.testing.assert_array_equal(moved, drawn & off)
    assert 50 < moved.sum() < moved.size


@pytest.mark.parametrize("expectation", [Sampled(), Counts(), Exact(), None], ids=lambda e: type(e).__name__)
def test_a_single_action_trains_nothing(expectation):
    config = Config(
        policy=ActionPolicy(logits=[[0.0], [0.4]]), task=Questions(table=[[0.3], [1.0]]),
        optimizer=AdamW(learning_rate=0.1), expectation=expectation,
    )  # fmt: skip
    state, info = train.run(
        config, train.init(config, np.arange(2)), iterations=2, record=("reward", "entropy")
    )
    np.testing.assert_array_equal(state.params, np.array([[[0.0] * 2], [[0.4] * 2]], np.float32))
    np.testing.assert_allclose(info["reward"], 0.65, rtol=1e-6)
    assert info["finite"].all()
    assert not info["entropy"].any()


BARRED = np.array([[0.3, -np.inf, 0.5, -0.2], [0.1, 0.4, -np.inf, 0.0]])
REWARDS = np.array([[0.1, 9.0, 0.4, 1.0], [1.0, 0.2, 9.0, 0.7]])
KEPT = np.array([[0, 2, 3], [0, 1, 3]])


def barred_and_without(**changes: Any) -> tuple[Config, Config]:
    """A policy that gives one action of each context probability 0, and the policy that lacks it."""

    def kept(table):
        return np.take_along_axis(table, KEPT, 1)

    whole = Config(
        policy=ActionPolicy(logits=BARRED), task=Questions(table=REWARDS), reference=BARRED / 2, **changes
    )
    without = {
        "policy": ActionPolicy(logits=kept(BARRED)), "task": Questions(table=kept(REWARDS)),
        "reference": kept(BARRED) / 2,
    }  # fmt: skip
    return whole, dataclasses.replace(whole, **without)


MEASURES = ("expected_reward", "entropy", "kl_ref", "kl_ref_reverse", "grad_norm", "update_norm", "surrogate")
BUILT = {name: kind() for name, kind in OPTIMIZERS.items()} | {
    "adamw": AdamW(weight_decay=0.2),
    "lion": Lion(weight_decay=0.3),
    "clipped_l2": ClippedNorm(inner=L2(inner=SGD(learning_rate=0.5), coef=0.1), max_norm=0.2),
}


@pytest.mark.parametrize(
    ("optimizer", "expectation"),
    [
        pytest.param(
            name, kind, marks=() if (name, type(kind)) == ("clipped_l2", Counts) else pytest.mark.slow
        )
        for name in BUILT
        for kind in (Sampled(), Counts(), Exact())
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
@pytest.mark.usefixtures("x64")
def test_an_action_of_probability_zero_is_no_action(optimizer, expectation):
    """Training, norms and measures are those of the policy that lacks the action; −inf stays −inf."""
    loop = Loop(group_size=4, inner_steps=2)
    ends = []
    for config in barred_and_without(optimizer=BUILT[optimizer], expectation=expectation, loop=loop):
        ends.append(train.run(config, train.init(config, 1), iterations=3, record=MEASURES))
    (state, info), (alone, told) = ends
    params = np.asarray(state.params)
    np.testing.assert_allclose(np.take_along_axis(params, KEPT, 1), alone.params, rtol=1e-11, atol=1e-13)
    np.testing.assert_array_equal(np.isneginf(params), np.isneginf(BARRED))
    assert info["finite"].all()
    for name in MEASURES:
        np.testing.assert_allclose(info[name], told[name], rtol=1e-10, atol=1e-13, err_msg=name)


@pytest.mark.parametrize("expectation", [Sampled(), Counts(), Exact()], ids=lambda e: type(e).__name__)
@pytest.mark.parametrize(
    "name",
    [pytest.param(m, marks=() if m == "gtpo" else pytest.mark.slow) for m in METHODS],
)
def test_the_gradient_at_probability_zero_is_zero(name, expectation):
    config, _ = barred_and_without(method=unfiltered(name), expectation=expectation)
    if isinstance(expectation, Exact) and coupling(config.method) == Coupling.BATCH:
        first = {"policy.logits": BARRED[:1], "task.table": REWARDS[:1], "reference": BARRED[:1] / 2}
        config = put_all(config, first)
    config = choose(config)

    @jax.jit
    def slope(state, point):
        batch = config.expectation.collect(config, state)
        return jax.grad(lambda p: config.expectation.objective(config, batch, p)[0])(point)

    state = train.init(config, 3)
    found = slope(state, 1.5 * state.params)
    barred = np.isneginf(state.params)
    assert np.isfinite(found).all()
    assert (found[barred] == 0).all()
    assert (np.abs(found[~barred]) > 0).any()
