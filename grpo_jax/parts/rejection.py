"""Slots 3, 4 and 7, continued: tokens rejected because sampler and old policy are too far apart.

A correction gives such a token the factor 0 and leaves denominators as they are. A rejection takes it out of
the mask: ratios of sequences and denominators are those of the tokens that are kept.
"""

from __future__ import annotations

import math
from typing import ClassVar, Protocol

import jax.numpy as jnp

from grpo_jax.part import number, part, static
from grpo_jax.parts.corrections import Correction
from grpo_jax.parts.gains import Clip, ClipMask, Gain, clip_mask
from grpo_jax.parts.ratios import Ratio, SequenceMean
from grpo_jax.parts.reductions import PerToken, Reduction
from grpo_jax.parts.sampler import MismatchRatio, SamplerMismatch, Statistic
from grpo_jax.statistics import divide
from grpo_jax.types import Array, Coupling, Evaluation, Number, Rollout


class Rejection(Protocol):
    """Rollout -> [P, N, T], the share of each entry's copies whose token is kept."""

    def __call__(self, rollout: Rollout, /) -> Array: ...


@part
class Within:
    """Keeps tokens whose statistic lies in [low, high]."""

    statistic: Statistic = MismatchRatio()
    low: Number = number(0.0, nonfinite=True)
    high: Number = number(2.0, nonfinite=True)
    corrects_sampler: ClassVar[bool] = True

    def __call__(self, rollout: Rollout) -> Array:
        value = self.statistic(rollout)
        return jnp.where((value >= self.low) & (value <= self.high), 1.0, 0.0)


@part
class Every:
    """Keeps what all its rules keep, each judged on the whole mask."""

    rules: tuple[Rejection, ...]

    def __call__(self, rollout: Rollout) -> Array:
        return math.prod((rule(rollout) for rule in self.rules), start=jnp.ones_like(rollout.mask))


@part
class SecondMoment:
    """M2PO (arXiv:2510.01161): drops the largest (log π_old − log π_sampling)² of the batch.

    As few as bring the mean of the others below ``threshold``, never all. Of an entry that stands for several
    samples a part may be kept.
    """

    threshold: Number = number(0.04, low=0.0, open_low=True)
    couples: ClassVar[Coupling] = Coupling.BATCH
    corrects_sampler: ClassVar[bool] = True

    def __call__(self, rollout: Rollout) -> Array:
        weight = rollout.multiplicity[:, :, None] * rollout.mask
        moment = (rollout.old_logp - rollout.sampling_logp) ** 2
        shape = jnp.broadcast_shapes(moment.shape, weight.shape)
        copies = jnp.broadcast_to(weight, shape).reshape((-1, *shape[3:]))
        value = jnp.broadcast_to(moment, shape).reshape(copies.shape)
        order = jnp.argsort(jnp.where(copies > 0, value, jnp.inf), axis=0)
        value, mass = (jnp.take_along_axis(x, order, 0) for x in (value, copies))
        value = jnp.where(mass > 0, value, 0)
        before, summed = jnp.cumsum(mass, 0) - mass, jnp.cumsum(mass * value, 0) - mass * value
        # j copies more leave the mean below the threshold while j (value − threshold) < room.
        room, excess = self.threshold * before - summed, value - self.threshold
        some = jnp.ceil(room / jnp.where(excess > 0, excess, 1)) - 1
        kept = jnp.where((excess > 0) | (room < 0), jnp.clip(some, 0, mass), mass)
        kept = jnp.where((before == 0) & (mass > 0), jnp.maximum(kept, jnp.minimum(mass, 1)), kept)
        share = jnp.where(mass > 0, kept / jnp.where(mass > 0, mass, 1), 0)
        return jnp.take_along_axis(share, jnp.argsort(order, axis=0), 0).reshape(shape)


@part
class WhereKept:
    """An inner correction where a rejection keeps the token, 0 elsewhere; denominators stay (open-instruct).

    ``one_sided`` drops a token only where A·log(π_old/π_sampling) > 0: where the update takes them further
    apart (arXiv:2603.01365).
    """

    inner: Correction = SamplerMismatch()
    keep: Rejection = Within()
    one_sided: bool = static(False)

    def __call__(self, at: Evaluation) -> Array:
        share = self.keep(at.rollout)
        if self.one_sided:
            apart = jnp.sign(at.rollout.old_logp - at.rollout.sampling_logp) * at.advantages > 0
            share = jnp.where(apart, share, 1)
        return self.inner(at) * share


@part
class RatioOfKept:
    """An inner ratio over the tokens that a rejection keeps (AReaL: the mean of GSPO's exponent)."""

    keep: Rejection = Within()
    inner: Ratio = SequenceMean()

    def __call__(self, rollout: Rollout, logp: Array) -> Array:
        share = self.keep(rollout)
        kept = rollout._replace(
            mask=rollout.mask * share,
            old_logp=jnp.where(share > 0, rollout.old_logp, 0),
            sampling_logp=jnp.where(share > 0, rollout.sampling_logp, 0),
        )
        return self.inner(kept, jnp.where(share > 0, logp, 0))


@part
class ReductionOfKept:
    """An inner reduction over the tokens that a rejection keeps: the others leave the denominator, too."""

    keep: Rejection = Within()
    inner: Reduction = PerToken()
    couples: ClassVar[Coupling] = Coupling.BATCH

    def __call__(self, rollout: Rollout) -> Array:
        return self.inner(rollout._replace(mask=rollout.mask * self.keep(rollout)))


@part
class SequenceAdvantage:
    """An inner gain whose advantage is the sequence's mean over its kept tokens (AReaL, sequence ratios)."""

    inner: Gain = Clip()
    keep: Rejection | None = None

    def clip_mask(self, ratio: Array, advantages: Array) -> ClipMask:
        """As the inner gain."""
        return clip_mask(self.inner, jnp.log(ratio), advantages)

    def __call__(self, at: Evaluation) -> Array:
        mask = at.rollout.mask if self.keep is None else at.rollout.mask * self.keep(at.rollout)
        total = jnp.sum(mask * at.advantages, 2, keepdims=True)
        return self.inner(at._replace(advantages=divide(total, jnp.sum(mask, 2, keepdims=True))))
