"""Several methods in one program: which of them a run is trained by is a number.

A network's program takes longer to compile than one of its runs; the methods differ in what they make of the
log-probabilities of one batch, which costs next to nothing.
"""

from __future__ import annotations

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import optax

from grpo_jax.collectors import Sampled, with_entropy
from grpo_jax.config import Batch, Config
from grpo_jax.optimizers import Optimizer
from grpo_jax.part import number, part
from grpo_jax.surrogate import Method, advantages, objective
from grpo_jax.types import Array, Number, Params


@part
class OneOf(Sampled):
    """``Sampled`` with the surrogate of one of several methods, instead of the configuration's own.

    Args:
      methods: which there are.
      chosen: the place of the one that counts.
    """

    methods: tuple[Method, ...] = ()
    chosen: Number = number(0.0, low=0.0, integer=True)

    def objective(self, config: Config, batch: Batch, params: Params) -> tuple[Array, Array]:
        """A scalar, and logp [P, N, T]."""
        rollout = batch.rollout
        scores = config.policy.score(params, rollout.prompts, rollout.tokens, rollout.mask)
        seen = with_entropy(rollout, scores)
        values = [objective(m, seen, advantages(m, rollout), scores.logp) for m in self.methods]
        return jnp.select([self.chosen == k for k in range(len(values))], values), scores.logp


@part
class Held:
    """At ``held`` 1 every step of a period takes the gradient of its first: on one batch, that at θ_old.

    Args:
      inner: what is done with the gradient.
      held: 0 takes each step's own.
      period: optimizer steps on one batch.
    """

    inner: Optimizer
    held: Number = number(0.0, low=0.0, high=1.0)
    period: Number = number(1.0, low=1.0, integer=True)
    reduces: ClassVar[bool] = True

    def transform(self) -> optax.GradientTransformation:
        """Of one run."""
        inner = self.inner.transform()

        def init(params: Params) -> Any:
            return jnp.zeros((), int), jax.tree.map(jnp.zeros_like, params), inner.init(params)

        def update(grads: Params, state: Any, params: Params = None) -> tuple[Params, Any]:
            count, first, rest = state
            kept = (self.held > 0) & (count % self.period != 0)
            grads = jax.tree.map(lambda old, new: jnp.where(kept, old, new), first, grads)
            updates, rest = inner.update(grads, rest, params)
            return updates, (count + 1, grads, rest)

        return optax.GradientTransformation(init, update)
