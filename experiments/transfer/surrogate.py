"""What the library's own surrogate gives, for the enumerations to be held against."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

import grpo_jax as gj
from experiments.transfer.enumeration import GROUP
from experiments.transfer.policies import PROMPTS, SPACE, World, derivatives
from grpo_jax.exact import expected_gradient
from grpo_jax.part import part, static
from grpo_jax.parts.gains import Clip
from grpo_jax.parts.penalties import K3, Penalty
from grpo_jax.parts.reductions import Constant
from grpo_jax.types import Array, Scores, Support

UNCLIPPED = 1e9
PENALISED = replace(
    gj.methods.grpo,
    gain=Clip(low=UNCLIPPED, high=UNCLIPPED),
    penalty=Penalty(divergence=K3(), coef=0.0),
    reduction=Constant(length=1.0),
)
"""GRPO, σ-normalised, constant token weights; clip and penalty are numbers, so that it compiles once."""


@part
class Listed:
    """A policy whose parameters are the listed log-probabilities themselves, [C, S, T].

    The gradient of a surrogate in them is what its own code puts on ∇log π, whatever network stands behind.
    """

    space: gj.Sequences = static()
    trailing: ClassVar[bool] = False
    rank: ClassVar[int] = 0
    contexts: ClassVar[int] = PROMPTS

    @property
    def horizon(self) -> int:
        """T."""
        return self.space.horizon

    def init(self, key: Array) -> Array:
        """[C, S, T] zeros."""
        return jnp.zeros((PROMPTS, *self.space.support[0].shape))

    def support(self, prompts: Array) -> Support | None:
        """[P, S, T] every answer."""
        return self.space.support_for(prompts)

    def score_support(self, params: Array, prompts: Array) -> Scores:
        """[P, S, T]."""
        return Scores(logp=params, entropy=jnp.zeros_like(params))

    def sample(self, params: Array, prompts: Array, uniforms: Array) -> tuple[Array, Array]:
        """Nothing is drawn of it."""
        raise NotImplementedError("listed log-probabilities are enumerated, not sampled")

    def score(self, params: Array, prompts: Array, tokens: Array, mask: Array) -> Scores:
        """[P, S, T], the tokens taken to be the list of all answers."""
        return self.score_support(params, prompts)


def _config(policy: Any, rewards: np.ndarray, method: Any) -> gj.Config:
    return gj.Config(
        policy=policy,
        task=gj.SequenceTable(space=SPACE, table=rewards),
        method=method,
        loop=gj.Loop(group_size=GROUP),
        expectation=gj.Exact(),
    )


def weights(
    method: Any, rewards: np.ndarray, old: np.ndarray, now: np.ndarray, reference: np.ndarray | None = None
) -> np.ndarray:
    """[C, S, T] what the library's expected surrogate puts on ∇log π, from log π_old and log π of one run.

    The reference of a penalty is log π_ref, log π_old if None; all [C, S, T].
    """
    config = _config(Listed(space=SPACE), rewards, method)
    given = [jnp.asarray(x) for x in (now, old, old if reference is None else reference)]
    return np.asarray(expected_gradient(config, given[0], old=given[1], reference=given[2]))


def gradient(
    world: World,
    rewards: np.ndarray,
    params: np.ndarray,
    *,
    old: np.ndarray | None = None,
    reference: np.ndarray | None = None,
    clip: float = UNCLIPPED,
    kl_coef: float = 0.0,
) -> np.ndarray:
    """[D] the library's expected gradient of GRPO (σ-normalised, constant weights) through the policy itself.

    Args:
      world: the policy.
      rewards: [C, S].
      params: [D], of one run; old and reference likewise, params if None.
      old: who sampled.
      reference: of the k3 penalty.
      clip: ε on both sides.
      kl_coef: β.
    """
    own = derivatives(world.name)
    method = replace(
        PENALISED, gain=Clip(low=clip, high=clip), penalty=Penalty(divergence=K3(), coef=kl_coef)
    )
    old, reference = (params if x is None else x for x in (old, reference))
    config = _config(own.policy, rewards, method)
    found = expected_gradient(
        config, own.restore(params), old=own.restore(old), reference=own.restore(reference)
    )
    return np.asarray(ravel_pytree(found)[0])
