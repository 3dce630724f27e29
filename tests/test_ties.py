"""Equal rewards tie to the last bit, wherever a part compares them, even where a task computes them anew."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import grpo_jax as gj
from grpo_jax import kernels, surrogate, theory
from grpo_jax.exact import Exact
from grpo_jax.types import Coupling, Levels, Rollout

REFERENCE = np.array([0.2, 0.3, 0.5])


@gj.part
class Wins:
    """Mean over the others of sign(r_i − r_j), which takes no tolerance."""

    couples: ClassVar[Coupling] = Coupling.GROUP
    cell_safe: ClassVar[bool] = True

    def __call__(self, rollout, rewards):
        count = rollout.multiplicity[:, None]
        beaten = jnp.sum(count * jnp.sign(rewards[:, :, None] - rewards[:, None]), 2)
        return (beaten / (jnp.sum(count, 2) - 1))[:, :, None]


@gj.part
class Steep:
    """Rewards that each reader could compute anew, and round otherwise."""

    steepness: float = gj.number(1.0)

    def prompts(self, uniforms):
        return jnp.zeros(uniforms.shape, int)

    def rewards(self, prompts, tokens, mask, uniforms):
        quality = jnp.array([1.0, 0.5, 0.0])[tokens[:, :, 0]]
        return (jnp.expm1(self.steepness * quality) / jnp.expm1(self.steepness))[:, :, None]

    def levels(self, prompts, tokens, mask):
        values = self.rewards(prompts, tokens, mask, None)
        return Levels(values, jnp.ones_like(values))


@pytest.mark.usefixtures("x64")
def test_wins_settle_where_grpo_with_pairs_does():
    """E sign(r_o − r_j) = P(o ≻ π) − P(π ≻ o) = P_2(o|π), whatever the group size and the rewards."""
    config = gj.Config(
        policy=gj.ActionPolicy(logits=np.log([REFERENCE])),
        task=Steep(),
        method=dataclasses.replace(
            gj.methods.grpo, advantage=Wins(), penalty=dataclasses.replace(gj.methods.grpo.penalty, coef=1.0)
        ),
        optimizer=gj.SGD(learning_rate=0.5),
        loop=gj.Loop(group_size=4),
        expectation=Exact(),
        reference=np.log([REFERENCE]),
    )
    with pytest.warns(UserWarning, match="steepness"):  # every steepness gives the same, to the last bit
        data = gj.sweep(
            config,
            {"steepness": [0.25, 1.0, 2.0, 4.0, 6.0, 8.0]},
            iterations=300,
            record_every=300,
            record=["probabilities"],
            progress=False,
        )
    ended = data.probabilities.isel(seed=0, iteration=-1, context=0)
    pairs = theory.stationary(REFERENCE, theory.reward_table([1.0, 0.5, 0.0]), 1.0, group_size=2).policy
    np.testing.assert_allclose(ended, np.broadcast_to(pairs, ended.shape), atol=1e-8)


def test_rewards_are_stored_on_every_backend(monkeypatch):
    """Other compilers fuse them into their readers, too; what is stored for speed alone stays out there."""
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    batch, tokens = jnp.zeros((2, 4)), jnp.zeros((2, 4, 3))
    rollout = Rollout(
        prompts=jnp.zeros(2, int), tokens=tokens.astype(int), mask=tokens + 1, rewards=tokens,
        multiplicity=batch + 1, sampling_logp=tokens, old_logp=tokens, ref_logp=tokens,
    )  # fmt: skip
    traced = str(jax.make_jaxpr(lambda given: surrogate.advantages(gj.methods.grpo, given))(rollout))
    assert traced.count("optimization_barrier") == 1
    assert "optimization_barrier" not in str(jax.make_jaxpr(kernels.materialize)(batch))
