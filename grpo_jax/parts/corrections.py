"""Slot 5, corrections: detached factors [P, N, T] on the gain.

They never touch the penalty or the denominators.
"""

from __future__ import annotations

from typing import ClassVar, Protocol

import jax.numpy as jnp

from grpo_jax.part import number, part, static
from grpo_jax.statistics import divide, quantile
from grpo_jax.types import Array, Coupling, Evaluation, Number, Rollout


class Correction(Protocol):
    """Evaluation -> factor [P, N, T]; the surrogate detaches it."""

    def __call__(self, at: Evaluation, /) -> Array: ...


@part
class OffPolicyMask:
    """GRPO (V3.2): drops sequences with A < 0 and mean_t log(π_old/π_θ) > threshold.

    ``from_sampler`` measures the drift from the sampler instead of the old policy (TRL where vLLM samples).
    """

    threshold: Number = number(0.1, nonfinite=True)
    from_sampler: bool = static(False)

    @property
    def corrects_sampler(self) -> bool:
        """from_sampler."""
        return self.from_sampler

    def __call__(self, at: Evaluation) -> Array:
        source = at.rollout.sampling_logp if self.from_sampler else at.rollout.old_logp
        gap = jnp.where(at.rollout.mask > 0, source - at.logp, 0)
        drift = divide(jnp.sum(gap, 2, keepdims=True), jnp.sum(at.rollout.mask, 2, keepdims=True))
        return jnp.where((at.advantages >= 0) | (drift <= self.threshold), 1.0, 0.0)


@part
class Factor:
    """A constant factor on the gain, which leaves advantages and penalty alone (prime-rl's ``adv_tau``)."""

    value: Number = number(1.0, low=0.0)

    def __call__(self, at: Evaluation) -> Array:
        return self.value * jnp.ones_like(at.logp)


@part
class Prune:
    """CPPO (arXiv:2503.22342): 1{|A_i| > threshold}."""

    threshold: Number = number(0.0, low=0.0)

    def __call__(self, at: Evaluation) -> Array:
        return jnp.where(jnp.abs(at.advantages) > self.threshold, 1.0, 0.0)


@part
class TopEntropy:
    """Keeps the ``share`` of valid tokens of highest entropy (arXiv:2506.01939).

    Denominators are not reduced. Needs ``rollout.entropy``. ``single`` takes the threshold in float32 (TRL).
    """

    share: Number = number(0.2, low=0.0, high=1.0)
    single: bool = static(False)
    couples: ClassVar[Coupling] = Coupling.BATCH

    def __call__(self, at: Evaluation) -> Array:
        entropy = _entropy(at.rollout, "TopEntropy")
        weight = at.rollout.multiplicity[:, :, None] * at.rollout.mask
        ranked = entropy.astype(jnp.float32) if self.single else entropy
        threshold = quantile(ranked, weight, 1 - self.share, (0, 1, 2))
        return jnp.where(entropy >= threshold.astype(entropy.dtype), 1.0, 0.0)


@part
class Conflict:
    """GTPO's λ_{i,t} (arXiv:2508.03772): tokens that winners and losers share at one position.

    Where another entry with an advantage of the other sign has the same token: 0 for A < 0, ``amplify`` for A
    > 0; elsewhere 1. Positions are counted from the left.
    """

    amplify: Number = number(2.0, low=0.0)
    couples: ClassVar[Coupling] = Coupling.GROUP

    def __call__(self, at: Evaluation) -> Array:
        live = (at.rollout.mask > 0) & (at.rollout.multiplicity > 0)[:, :, None]
        same = (
            (at.rollout.tokens[:, :, None] == at.rollout.tokens[:, None]) & live[:, :, None] & live[:, None]
        )
        opposed = jnp.sign(at.advantages)[:, :, None] * jnp.sign(at.advantages)[:, None] < 0
        shared = jnp.any(same & opposed, 2)
        return jnp.where(shared, jnp.where(at.advantages > 0, self.amplify, 0), 1.0)


@part
class EntropyFilter:
    """GTPO's δ_i (arXiv:2508.03772): 1{⟨H⟩_i ≤ threshold}, ⟨H⟩_i the sequence's mean entropy in nats.

    The paper's threshold is ln 2. Needs ``rollout.entropy``.
    """

    threshold: Number = number(0.6931471805599453, low=0.0, nonfinite=True)

    def __call__(self, at: Evaluation) -> Array:
        total = jnp.sum(_entropy(at.rollout, "EntropyFilter") * at.rollout.mask, 2, keepdims=True)
        mean = divide(total, jnp.sum(at.rollout.mask, 2, keepdims=True))
        return jnp.where(mean <= self.threshold, 1.0, 0.0)


def _entropy(rollout: Rollout, who: str) -> Array:
    if rollout.entropy is None:
        raise ValueError(f"{who} needs rollout.entropy")
    return rollout.entropy
