"""Slots 1, 2 and 7, continued: outputs that were cut off at the budget (``rollout.truncated``).

Masked, they leave the loss (``MaskTruncated``). Whether they *vote*, that is count in the statistics of their
group, is another matter: they do, unless the advantage is ``OfFinished``. With f = 1 − 1/G, K the finished
outputs, rewards of 0 for the others and advantages r − r̄ the expected update is

    f·∇J                                      not masked
    f·(∇J − J ∇P(K))                          masked, voting
    (P(K) − (1 − (1 − P(K))^G)/G)·∇E[r | K]   masked, without a vote
"""

from __future__ import annotations

from typing import ClassVar

import jax.numpy as jnp

from grpo_jax.part import number, part
from grpo_jax.parts.advantages import Advantage, Normalized
from grpo_jax.parts.reductions import PerSequence, Reduction
from grpo_jax.parts.shaping import Shaping, Sum
from grpo_jax.types import Array, Number, Rollout


def _cut(part: object, rollout: Rollout) -> Array:
    """bool [P, N], the outputs that were cut off."""
    if rollout.truncated is None:
        raise ValueError(f"{type(part).__name__} needs rollout.truncated")
    return rollout.truncated > 0


@part
class MaskTruncated:
    """An inner reduction of which the tokens of truncated outputs are masked.

    They leave denominators of tokens, and count as empty outputs where the inner reduction counts outputs
    (TRL's ``mask_truncated_completions``); not there, either, within ``NonEmpty`` (NeMo-RL's
    ``overlong_filtering``).
    """

    inner: Reduction = PerSequence()
    reads_truncation: ClassVar[bool] = True

    def __call__(self, rollout: Rollout) -> Array:
        cut = _cut(self, rollout)
        return self.inner(rollout._replace(mask=jnp.where(cut[:, :, None], 0, rollout.mask)))


@part
class OfFinished:
    """An inner advantage of the finished outputs alone: truncated ones do not vote, and have advantage 0.

    open-instruct's ``mask_truncated_completions`` (with ``MaskTruncated``), within groups of one prompt.
    """

    inner: Advantage = Normalized()
    reads_truncation: ClassVar[bool] = True

    def __call__(self, rollout: Rollout, rewards: Array) -> Array:
        voters = jnp.where(_cut(self, rollout), 0, rollout.multiplicity)
        return self.inner(rollout._replace(multiplicity=voters), rewards)


@part
class TruncatedReward:
    """scale·r_i + value where the output was truncated, r_i elsewhere.

    The stop-properly penalty of OpenRLHF and NeMo-RL: scale is its coefficient, or value where that is
    negative (and scale 0).
    """

    inner: Shaping = Sum()
    scale: Number = number(0.0)
    value: Number = number(0.0)
    reads_truncation: ClassVar[bool] = True

    def __call__(self, rollout: Rollout) -> Array:
        rewards = self.inner(rollout)
        return jnp.where(_cut(self, rollout), self.scale * rewards + self.value, rewards)
