"""Token weights by the length of an output, with the power of it a number."""

from __future__ import annotations

import jax.numpy as jnp

from grpo_jax.part import number, part, static
from grpo_jax.parts.shaping import lengths
from grpo_jax.statistics import divide
from grpo_jax.types import Array, Number, Rollout


@part
class LengthPower:
    """Token weights (L/|o|)^power/B: ``Constant(length=1)`` at power 0, ``PerSequence`` at 1 with L = 1.

    Args:
      power: of the length.
      length: L, in tokens; the mean length keeps the mean weight of 1/|o|.
      apart: each prompt has weights of its own, as if it were alone: B counts its entries only.
    """

    power: Number = number(0.0, low=0.0)
    length: Number = number(1.0, low=0.0)
    apart: bool = static(False)

    def __call__(self, rollout: Rollout) -> Array:
        counted = rollout.mask * rollout.multiplicity[:, :, None]
        together = (1,) if self.apart else (0, 1)
        entries = jnp.sum(rollout.multiplicity, together, keepdims=True)[:, :, None]
        return divide(counted * self.length**self.power, entries * lengths(rollout)[:, :, None] ** self.power)
