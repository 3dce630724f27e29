"""Slot 2, continued: normalisation with mean and spread chosen one by one (AReaL's ``NormConfig``)."""

from __future__ import annotations

from typing import ClassVar

import jax.numpy as jnp

from grpo_jax.part import nearest, number, part, static
from grpo_jax.parts.advantages import Advantage, NoBaseline, Normalized
from grpo_jax.statistics import GROUP_AXES, centred, divide, present, total
from grpo_jax.types import Array, Coupling, Number, Rollout

LEVELS = ("group", "batch", "none")
TOKENS = (0, 1, 2)


@part
class CentredScaled:
    """(x − b)/(σ + eps), σ² = Σ(x − b)²/(n − ddof): the spread is taken about the baseline that was chosen.

    Args:
      inner: what is normalised; with ``by_token`` every valid token counts, else every entry.
      center: the mean of the "group", of the "batch", or "none".
      leave_one_out: each value's own part in that mean is left out.
      scale: over what σ is taken; "none" does not divide.
      ddof: 1 is a sample's. A set of at most one value is not divided.
      eps: outside the root.
    """

    inner: Advantage = Normalized(center=NoBaseline(), scale=None)
    center: str = static("group")
    leave_one_out: bool = static(False)
    scale: str = static("group")
    by_token: bool = static(False)
    ddof: Number = number(1.0, low=0.0)
    eps: Number = number(1e-5, low=0.0)

    def check(self) -> None:
        """Levels are names of ``LEVELS``."""
        for level in (self.center, self.scale):
            if level not in LEVELS:
                raise ValueError(f"{level!r} is no level; {nearest(level, LEVELS)}")

    cell_safe: ClassVar[bool] = True

    @property
    def reads_lengths(self) -> bool:
        """by_token."""
        return self.by_token

    @property
    def couples(self) -> Coupling:
        """The wider of the two levels."""
        levels = (self.center, self.scale)
        if "batch" in levels:
            return Coupling.BATCH
        return Coupling.GROUP if "group" in levels else Coupling.NOTHING

    def __call__(self, rollout: Rollout, rewards: Array) -> Array:
        inner = self.inner(rollout, rewards)
        weight = rollout.multiplicity[:, :, None] * (rollout.mask if self.by_token else 1)
        value = inner + jnp.zeros_like(weight)
        deviation = self._centred(value, weight)
        if self.scale == "none":
            return present(deviation, weight)
        axes = self._axes(self.scale)
        count = jnp.sum(weight, axes, keepdims=True)
        variance = divide(total(deviation**2, weight, axes), jnp.maximum(count - self.ddof, 0))
        scale = jnp.where(count > self.ddof, jnp.sqrt(variance), 1) + self.eps
        return present(divide(deviation, scale), weight)

    def _axes(self, level: str) -> tuple[int, ...]:
        return TOKENS if level == "batch" else (*GROUP_AXES, 2)

    def _centred(self, value: Array, weight: Array) -> Array:
        if self.center == "none":
            return value
        axes = self._axes(self.center)
        deviation = centred(value, weight, axes)
        if not self.leave_one_out:
            return deviation
        # x − (Σ − x)/(n − 1) = (x − x̄)·n/(n − 1); the mean of no others is 0.
        count = jnp.sum(weight, axes, keepdims=True)
        return jnp.where(count > 1, deviation * divide(count, jnp.maximum(count - 1, 0)), value)


@part
class NoEosIsZero:
    """An inner advantage that is 0 where an output fills its width: AReaL's ``mask_no_eos_with_zero``.

    Such an output was cut off; its tokens stay in every denominator.
    """

    inner: Advantage = Normalized()

    def __call__(self, rollout: Rollout, rewards: Array) -> Array:
        full = rollout.mask[:, :, -1:] > 0
        return jnp.where(full, 0, self.inner(rollout, rewards))
