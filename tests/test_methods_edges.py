"""Every method at the edges: finite, or a documented NaN, never a silent wrong number."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax import methods
from grpo_jax.surrogate import Method, advantages, objective
from grpo_jax.types import Coupling, Rollout, coupling

NAMES = list(methods.METHODS)
SHAPE = (2, 4, 3)
UNCENTRED = {"reinforce", "max_rl_successes", "tic_grpo_length", "grpo_kl_in_reward", "reinforce_plus_plus"}
"""Methods for which equal rewards are not equal advantages: no baseline, lengths, a divergence inside."""
SCALE_FREE = {n for n in NAMES if getattr(methods.get(n).advantage, "scale", None) is not None} - {
    "grpo_kl_in_reward"
}


def batch(*, drift: float = 0.0) -> tuple[Rollout, jax.Array]:
    """Two groups of four in float32; the third place of two outputs is masked and holds NaN."""
    rng = np.random.default_rng(0)
    mask = np.ones(SHAPE, np.float32)
    mask[:, 1:3, 2] = 0
    logp = np.where(mask > 0, -rng.gamma(2.0, 0.5, SHAPE), np.nan).astype(np.float32)
    signs = np.where(np.arange(SHAPE[1]) % 2, -1.0, 1.0)[None, :, None]
    rollout = Rollout(
        prompts=jnp.arange(SHAPE[0]),
        tokens=jnp.asarray(rng.integers(0, 2, SHAPE)),
        mask=jnp.asarray(mask),
        rewards=jnp.asarray(rng.permuted([[0.0, 0.5, 1.0, 2.0]] * 2, axis=1)[:, :, None], jnp.float32),
        multiplicity=jnp.ones(SHAPE[:2], jnp.float32),
        sampling_logp=jnp.asarray(logp),
        old_logp=jnp.asarray(logp - drift * signs, jnp.float32),
        ref_logp=jnp.asarray(logp, jnp.float32) - 0.1,
        entropy=jnp.asarray(np.where(mask > 0, rng.gamma(2.0, 0.3, SHAPE), np.nan), jnp.float32),
    )
    return rollout, jnp.asarray(logp)


def evaluate(method: Method, rollout: Rollout, logp: jax.Array) -> tuple[np.ndarray, np.ndarray]:
    """J and ∂J/∂log π_θ, and that masked tokens have gradient exactly 0."""
    advantage = advantages(method, rollout)
    value, grad = jax.value_and_grad(lambda at: objective(method, rollout, advantage, at))(logp)
    return np.asarray(value), np.asarray(grad)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("drift", [80.0, -80.0])
def test_log_ratios_of_eighty(name: str, drift: float) -> None:
    rollout, logp = batch(drift=drift)
    value, grad = evaluate(methods.get(name), rollout, logp)
    assert np.isfinite(value)
    assert np.isfinite(grad).all()
    assert np.all(grad[np.asarray(rollout.mask) == 0] == 0)


@pytest.mark.parametrize("name", NAMES)
def test_tied_rewards_are_no_signal(name: str) -> None:
    rollout, logp = batch()
    tied = rollout._replace(rewards=jnp.full_like(rollout.rewards, 0.1), ref_logp=logp)
    advantage = np.asarray(advantages(methods.get(name), tied))
    assert np.isfinite(advantage).all()
    if name not in UNCENTRED:
        assert np.all(advantage == 0)
        _, grad = evaluate(methods.get(name), tied, logp)
        if methods.get(name).penalty is None:
            assert np.all(grad == 0)


@pytest.mark.parametrize("name", NAMES)
def test_group_of_one(name: str) -> None:
    rollout, logp = batch()
    alone = rollout._replace(multiplicity=jnp.zeros(SHAPE[:2]).at[:, 0].set(1.0))
    value, grad = evaluate(methods.get(name), alone, logp)
    assert np.isfinite(value)
    assert np.isfinite(grad).all()
    assert np.all(grad[:, 1:] == 0)
    grouped = coupling(methods.get(name).advantage) == Coupling.GROUP and name not in UNCENTRED
    if grouped:
        assert np.all(np.asarray(advantages(methods.get(name), alone)) == 0)


@pytest.mark.parametrize("name", NAMES)
def test_empty_output_and_everything_masked(name: str) -> None:
    rollout, logp = batch()
    value, grad = evaluate(methods.get(name), rollout._replace(mask=rollout.mask.at[0, 0].set(0.0)), logp)
    assert np.isfinite(value)
    assert np.isfinite(grad).all()
    assert np.all(grad[0, 0] == 0)
    value, grad = evaluate(methods.get(name), rollout._replace(mask=jnp.zeros(SHAPE)), logp)
    assert value == 0
    assert np.all(grad == 0)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [1e30, 1e-30])
def test_huge_and_tiny_rewards(name: str, size: float) -> None:
    rollout, logp = batch()
    method = methods.get(name)
    scaled = rollout._replace(rewards=rollout.rewards * size)
    value, grad = evaluate(method, scaled, logp)
    assert np.isfinite(value)
    assert np.isfinite(grad).all()
    if name in SCALE_FREE:
        np.testing.assert_allclose(
            advantages(method, scaled), advantages(method, rollout), rtol=1e-5, atol=1e-6
        )


@pytest.mark.parametrize("name", NAMES)
def test_nan_reward_stays_in_what_it_couples_to(name: str) -> None:
    rollout, logp = batch()
    method = methods.get(name)
    broken = rollout._replace(rewards=rollout.rewards.at[0, 1].set(jnp.nan))
    advantage = np.broadcast_to(advantages(method, broken), SHAPE)
    assert np.isnan(advantage[0, 1, 0])
    value, grad = evaluate(method, broken, logp)
    assert np.isnan(value)
    assert np.all(grad[np.asarray(rollout.mask) == 0] == 0)
    if coupling(method.advantage) < Coupling.BATCH:
        np.testing.assert_array_equal(advantage[1], np.broadcast_to(advantages(method, rollout), SHAPE)[1])
    if coupling(method.advantage) == Coupling.GROUP:
        assert np.isnan(advantage[0, :, 0]).all()
