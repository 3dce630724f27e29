"""Gates and lengths as rewards of their own, recomputed by hand."""

import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax.parts import advantages, returns, shaping
from grpo_jax.presets.compare import random_batch

pytestmark = pytest.mark.usefixtures("x64")


def several():
    """Three groups of four with two rewards: the first fails whole, the second ties in the sum only."""
    rollout, _ = random_batch(seed=3, prompts=3, group=4, tokens=6)
    rewards = np.zeros((3, 4, 2))
    rewards[1] = [[1, 0], [0, 1], [0, 1], [1, 0]]
    rewards[2] = [[1, 1], [0, 1], [0, 0], [1, 0]]
    return rollout._replace(rewards=jnp.asarray(rewards)), np.asarray(rollout.mask).sum(2), rewards


def test_a_length_is_a_reward_of_its_own():
    rollout, length, rewards = several()
    cost = -np.minimum(length / 4.0, 1)
    summed = shaping.WithLength(inner=shaping.WeightedSum(weights=(1.0, 2.0, 1.0)), weight=0.3, limit=4.0)(
        rollout
    )
    np.testing.assert_allclose(summed, rewards[..., 0] + 2 * rewards[..., 1] + 0.3 * cost, rtol=1e-12)
    three = np.concatenate([rewards, cost[..., None]], 2)
    spread = three.std(1, ddof=1, keepdims=True)
    unit = (three - three.mean(1, keepdims=True)) / (spread + 1e-4)
    apart = shaping.WithLength(inner=shaping.NormalizedSum(weights=(1.0, 2.0, 0.3)), limit=4.0)(rollout)
    np.testing.assert_allclose(apart, unit @ [1.0, 2.0, 0.3], rtol=1e-10, atol=1e-12)


def test_what_shaping_adds_counts_for_right_answers_only():
    rollout, length, rewards = several()
    inner = shaping.WithLength(weight=0.3, limit=6.0)
    total = rewards.sum(2)
    want = np.where(total > 0.5, total - 0.3 * length / 6, total)
    np.testing.assert_allclose(shaping.OnSuccess(inner=inner, above=0.5)(rollout), want, rtol=1e-12)


@pytest.mark.parametrize(("apart", "silent"), [(False, [0, 1]), (True, [0])])
def test_groups_with_one_outcome_are_silent(apart, silent):
    rollout, length, _ = several()
    shaped = jnp.asarray(-0.1 * length)
    gated = returns.MixedOnly(inner=advantages.Normalized(), apart=apart)(rollout, shaped)
    unit = (shaped - shaped.mean(1, keepdims=True)) / shaped.std(1, keepdims=True)
    want = np.array(unit)
    want[silent] = 0
    np.testing.assert_allclose(gated[:, :, 0], want, rtol=1e-10, atol=1e-12)
    assert (np.abs(want[2]) > 0).any()
