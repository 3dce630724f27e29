"""The instruments measure what their equations say: by hand, by brute force, or against Optax alone."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grpo_jax import methods, train
from grpo_jax.biases import (
    aggregate_weight,
    coasted,
    inner_path,
    length_moments,
    live_steps,
    penalty_gradients,
    split_gradient,
    token_gradients,
)
from grpo_jax.config import Config, Loop
from grpo_jax.optimizers import SGD, Adam
from grpo_jax.policies import ActionPolicy, MLPPolicy, TreePolicy
from grpo_jax.tasks import Questions, trees
from grpo_jax.theory.optimizer import (
    coasting,
    coasting_rate,
    coasting_travel,
    heavy_ball_coasting,
    scale_corner,
    scale_response,
)
from grpo_jax.types import Rollout

pytestmark = pytest.mark.usefixtures("x64")


def binary(**changes) -> Config:
    """One question, a right and a wrong answer."""
    base = Config(
        policy=ActionPolicy(logits=np.zeros((1, 2))),
        task=Questions(table=np.array([[1.0, 0.0]])),
        method=dataclasses.replace(methods.grpo, penalty=None),
        optimizer=Adam(learning_rate=0.03, eps=0.0),
        loop=Loop(group_size=16),
    )
    return dataclasses.replace(base, **changes)


def optax_updates(grads: np.ndarray, transformation: optax.GradientTransformation) -> np.ndarray:
    """Updates of a scalar parameter for a sequence of gradients."""
    state, found = transformation.init(jnp.zeros(())), []
    for grad in grads:
        update, state = transformation.update(jnp.asarray(grad), state, jnp.zeros(()))
        found.append(float(update))
    return np.array(found)


@settings(max_examples=15, deadline=None)
@given(
    b1=st.floats(0.0, 0.99),
    b2=st.floats(0.5, 0.9999),
    history=st.lists(st.floats(0.1, 2.0), min_size=1, max_size=6),
    quiet=st.integers(1, 8),
)
def test_coasting_is_what_optax_does_after_any_history(b1, b2, history, quiet):
    grads = np.array(history + [0.0] * quiet)
    updates = optax_updates(grads, optax.adam(0.1, b1=b1, b2=b2, eps=0.0))
    live = len(history)
    expected = coasting(b1, b2, live=live, k=np.arange(quiet))
    np.testing.assert_allclose(updates[live:] / updates[live - 1], expected, rtol=1e-9, atol=1e-12)


def test_coasting_adds_up_to_its_limit():
    late = np.asarray(coasting(0.9, 0.95, live=10**6, k=np.arange(2000)))
    np.testing.assert_allclose(late[:5], (0.9 / 0.95**0.5) ** np.arange(1, 6), rtol=1e-12)
    np.testing.assert_allclose(late.sum(), coasting_travel(0.9, 0.95), rtol=1e-9)
    assert coasting_travel(0.99, 0.9) == np.inf
    assert coasting_rate(0.99, 0.9) > 1


def test_heavy_ball_coasting_is_optax():
    updates = optax_updates(np.array([1.0, 2.0, 0, 0, 0]), optax.trace(decay=0.8))
    np.testing.assert_allclose(updates[2:] / updates[1], heavy_ball_coasting(0.8, k=np.arange(3)), rtol=1e-12)


@pytest.mark.parametrize("scale", [1e-7, 3e-6, 1.0, 1e3])
def test_scale_response_is_the_first_step_of_optax(scale):
    grad, eps = 0.02, 1e-8
    here = optax_updates(np.array([scale * grad]), optax.adam(1.0, eps=eps))[0]
    bare = optax_updates(np.array([grad]), optax.adam(1.0, eps=0.0))[0]
    np.testing.assert_allclose(here / bare, scale_response(scale, root_v=grad, eps=eps), rtol=1e-9)


def test_scale_corner_halves_the_step():
    assert scale_response(scale_corner(root_v=0.3, eps=1e-5), root_v=0.3, eps=1e-5) == pytest.approx(0.5)
    assert scale_response(1e-30, root_v=1.0, eps=0.0) == 1.0


@pytest.mark.parametrize(
    "call",
    [
        lambda: coasting(1.0, 0.9, live=3, k=0),
        lambda: coasting(0.9, 0.99, live=0, k=0),
        lambda: coasting(0.9, 0.99, live=3, k=-1),
        lambda: scale_response(-1.0, root_v=1.0, eps=0.0),
    ],
)
def test_theory_refuses_what_has_no_meaning(call):
    with pytest.raises(ValueError, match="must"):
        call()


def test_inner_path_is_an_iteration_of_training():
    config = binary(loop=Loop(group_size=16, inner_steps=5))
    state = train.init(config, np.arange(3))
    after, _ = train.run(config, state, iterations=1)
    _, path = inner_path(config, state, steps=5)
    # two programs, so that the last bit may differ
    np.testing.assert_allclose(path.params[-1] + path.updates[-1], after.params, rtol=1e-14)
    np.testing.assert_array_equal(path.log_ratio[0], 0)


def test_inner_path_serves_one_run_and_neural_policies():
    space = trees.free_length(horizon=3)
    config = binary(
        policy=MLPPolicy(space=space, width=4), task=trees.first_token(space), loop=Loop(prompts=2)
    )
    batch, path = inner_path(config, train.init(config, 1), steps=3)
    assert path.log_ratio.shape == (3, *batch.rollout.tokens.shape)


def test_after_the_clip_the_gradient_is_zero_and_momentum_goes_on():
    config = binary()
    _, path = inner_path(config, train.init(config, np.arange(4)), steps=40)
    live = np.asarray(live_steps(path, runs=True))
    grads, updates = np.asarray(path.grads)[:, 0, 0], np.asarray(path.updates)[:, 0, 0]
    moved, last = coasted(path, runs=True)
    for run, count in enumerate(live):
        assert grads[count - 1, run] != 0
        assert not grads[count:, run].any()
        np.testing.assert_allclose(moved[0, 0, run], updates[count:, run].sum(), rtol=1e-12)
        np.testing.assert_allclose(last[0, 0, run], updates[count - 1, run], rtol=1e-12)
        assert np.exp(np.asarray(path.log_ratio)[count, 0, 0, 0, run]) > 1.2


def test_sgd_does_not_coast():
    config = binary(optimizer=SGD(learning_rate=0.1))
    _, path = inner_path(config, train.init(config, np.arange(4)), steps=40)
    moved, _ = coasted(path, runs=True)
    assert live_steps(path, runs=True).max() < 40
    np.testing.assert_array_equal(moved, 0)


def test_a_tied_batch_has_no_live_step():
    config = binary(task=Questions(table=np.ones((1, 2))))
    _, path = inner_path(config, train.init(config, 0), steps=3)
    assert live_steps(path, runs=False) == 0


def shared(rewards: list[float], lengths: list[int], horizon: int = 4) -> Rollout:
    """A group whose outputs share the first token; π_ref is off by 0.1 everywhere."""
    mask = (np.arange(horizon) < np.array(lengths)[:, None]).astype(float)[None]
    zero = jnp.zeros(mask.shape)
    return Rollout(
        prompts=np.zeros(1, int),
        tokens=jnp.zeros(mask.shape, int),
        mask=jnp.asarray(mask),
        rewards=jnp.asarray(rewards, float)[None, :, None],
        multiplicity=jnp.ones((1, len(rewards))),
        sampling_logp=zero - 1,
        old_logp=zero - 1,
        ref_logp=zero - 0.9,
    )


@settings(max_examples=15, deadline=None)
@given(
    members=st.lists(st.tuples(st.sampled_from([0.0, 0.25, 1.0]), st.integers(1, 4)), min_size=4, max_size=4)
)
def test_the_push_is_the_covariance_of_advantage_and_weight(members):
    rewards, lengths = map(list, zip(*members, strict=True))
    rollout = shared(rewards, lengths)
    method = dataclasses.replace(methods.grpo, advantage=methods.SHIFT)
    net = aggregate_weight(token_gradients(method, rollout, rollout.old_logp), prefix=1)[0, 0]
    covariance = np.cov(rewards, 1 / np.array(lengths), ddof=0)[0, 1]
    np.testing.assert_allclose(net, covariance, atol=1e-14)
    flat = aggregate_weight(token_gradients(methods.dr_grpo, rollout, rollout.old_logp), prefix=1)
    np.testing.assert_allclose(flat, 0, atol=1e-14)


def test_a_clip_on_one_side_pushes_the_prefix_back():
    rollout = shared([1.0, 0.0, 0.0, 1.0], [2, 3, 4, 2])
    logp = rollout.old_logp + np.log(1.3) * (jnp.arange(4) == 0)
    net = aggregate_weight(token_gradients(methods.dr_grpo, rollout, logp), prefix=1)[0, 0]
    np.testing.assert_allclose(net, -1.3 * (0.5 + 0.5) / 4, rtol=1e-12)


def test_penalty_gradients_are_apart():
    rollout = shared([1.0, 0.0], [2, 3])
    found = penalty_gradients(methods.grpo, rollout, rollout.old_logp)
    by_hand = 0.04 * (np.exp(0.1) - 1) * np.asarray(rollout.mask) / np.array([2, 3])[:, None] / 2
    np.testing.assert_allclose(found, by_hand, atol=1e-15)
    np.testing.assert_array_equal(penalty_gradients(methods.dapo, rollout, rollout.old_logp), 0)


def test_shares_of_the_gradient_add_up():
    gradients = jnp.asarray([[[1.0, 2.0, -3.0], [-1.0, 0.0, 1.0]]])
    prefix, suffix = split_gradient(gradients, prefix=1)
    assert (prefix, suffix) == (0.0, 1.0)
    prefix, suffix = split_gradient(gradients, prefix=2)
    np.testing.assert_allclose((prefix, suffix), (2 / 6, 4 / 6))


def test_length_moments_by_counting():
    space = trees.free_length(horizon=3)
    policy = TreePolicy.uniform(space)
    first = space.support[0][:, 0]
    found = length_moments(policy, jnp.asarray(policy.logits), np.arange(1), first)
    # behind either first token: EOS at step 1 with probability 1/3 (length 2), else length 3
    np.testing.assert_allclose(found, [2 / 3 + 3 * 2 / 3] * 2, rtol=1e-12)
    moved = jnp.asarray(policy.logits).at[0, 1, space.eos].set(50.0)  # after token 0 it ends at once
    np.testing.assert_allclose(length_moments(policy, moved, np.arange(1), first), [2.0, 8 / 3], rtol=1e-12)


def test_length_moments_keep_runs_apart():
    space = trees.free_length(horizon=3)
    logits = np.random.default_rng(0).normal(size=(1, space.offsets[-1], 3, 4))
    policy = TreePolicy(space=space, logits=logits)
    first = space.support[0][:, 0]
    together = length_moments(policy, jnp.asarray(logits), np.arange(1), first)
    for run in range(4):
        alone = length_moments(policy, jnp.asarray(logits[..., run]), np.arange(1), first)
        np.testing.assert_allclose(together[:, run], alone, rtol=1e-12)


def test_length_moments_need_a_list_of_outputs():
    class Endless:
        def support(self, prompts):
            return None

    with pytest.raises(ValueError, match="Endless cannot list its outputs"):
        length_moments(Endless(), jnp.zeros(1), np.arange(1), np.zeros(1, int))
