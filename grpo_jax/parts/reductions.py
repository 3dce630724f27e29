"""Slot 7, reductions: the weight of each token, α_{i,t} without the advantage's scale.

Every weight carries the entry's multiplicity and mask, so a histogram reduces as its samples do. The
objective is Σ weights · gain.
"""

from __future__ import annotations

from typing import ClassVar, Protocol

import jax
import jax.numpy as jnp

from grpo_jax import kernels
from grpo_jax.part import number, part, static
from grpo_jax.statistics import GROUP_AXES, divide, tied
from grpo_jax.types import Array, Coupling, Number, Rollout


class Reduction(Protocol):
    """Rollout -> token weights [P, N, T]."""

    def __call__(self, rollout: Rollout, /) -> Array: ...


def _counted(rollout: Rollout) -> Array:
    return rollout.mask * rollout.multiplicity[:, :, None]


def _share(rollout: Rollout) -> Array:
    """1/B, made once: as a factor, so that no step divides token by token."""
    return kernels.materialize(divide(jnp.ones(()), kernels.total(rollout.multiplicity, (0, 1))))[:, :, None]


@part
class PerSequence:
    """Mean over tokens, then over entries: 1/(B |o_i|). GRPO ([B] α^S). An empty output counts in B.

    ``eps`` is added to the length (verl and OpenRLHF: 1e-8).
    """

    eps: Number = number(0.0, low=0.0)

    def __call__(self, rollout: Rollout) -> Array:
        length = jnp.sum(rollout.mask, 2, keepdims=True) + self.eps
        return divide(_counted(rollout), length) * _share(rollout)


@part
class PerToken:
    """Mean over all tokens of the batch: 1/Σ|o_i|. DAPO, CISPO, BNPO. Couples the batch through lengths."""

    couples: ClassVar[Coupling] = Coupling.BATCH
    cell_safe: ClassVar[bool] = True
    reads_lengths: ClassVar[bool] = True

    def __call__(self, rollout: Rollout) -> Array:
        counted = _counted(rollout)
        return divide(counted, jnp.sum(counted, (0, 1, 2), keepdims=True))


@part
class Constant:
    """Sum over tokens by a constant, mean over entries: 1/(B·length). Dr. GRPO; length 1 is Table 1's.

    ``length`` None is T, the padded width of the batch (what verl takes unless told otherwise).
    """

    length: Number | None = number(1.0, low=0.0, open_low=True)

    def __call__(self, rollout: Rollout) -> Array:
        length = rollout.mask.shape[2] if self.length is None else self.length
        return _counted(rollout) * (_share(rollout) / length)


@part
class TokenSum:
    """Plain sum over the tokens of the batch, no denominator (verl's token-sum)."""

    def __call__(self, rollout: Rollout) -> Array:
        return _counted(rollout)


@part
class Divided:
    """An inner reduction over a constant: Σ/by with ``TokenSum`` (open-instruct's ``loss_denominator``)."""

    inner: Reduction = TokenSum()
    by: Number = number(1.0, low=0.0, open_low=True)

    def __call__(self, rollout: Rollout) -> Array:
        return self.inner(rollout) / self.by


@part
class Rewarded:
    """An inner reduction of the answers whose reward Σ_m r_{i,m} exceeds ``above``; the others are masked."""

    inner: Reduction = PerToken()
    above: Number = number(0.0)

    def __call__(self, rollout: Rollout) -> Array:
        right = jnp.sum(rollout.rewards, 2) > self.above
        return self.inner(rollout._replace(mask=jnp.where(right[:, :, None], rollout.mask, 0)))


@part
class PerGroupToken:
    """Mean over each group's tokens, then over groups: 1/(P Σ_{i in group}|o_i|). DAPO within one group."""

    couples: ClassVar[Coupling] = Coupling.GROUP
    cell_safe: ClassVar[bool] = True
    reads_lengths: ClassVar[bool] = True

    def __call__(self, rollout: Rollout) -> Array:
        counted = _counted(rollout)
        groups = jnp.sum(jnp.any(rollout.multiplicity > 0, 1, keepdims=True), 0, keepdims=True)[:, :, None]
        return divide(counted, jnp.sum(counted, (1, 2), keepdims=True) * groups)


@part
class MicroBatches:
    """The mean over ``count`` equal parts of the batch, prompts in order, of an inner reduction in each.

    w = (1/count) w_inner(part of p): gradient accumulation, or an average over ranks, where every part is
    divided by its own tokens (TRL's "bnpo", SkyRL's "token_mean_legacy"). A part with few tokens then gives
    each of them a greater weight. Inner reductions whose denominator counts entries are left as they are. It
    nests: ranks around micro-batches. ValueError unless ``count`` divides P.
    """

    inner: Reduction = PerToken()
    count: int = static(1, low=1)
    couples: ClassVar[Coupling] = Coupling.BATCH
    cell_safe: ClassVar[bool] = True
    reads_lengths: ClassVar[bool] = True

    def __call__(self, rollout: Rollout) -> Array:
        prompts = rollout.mask.shape[0]
        if prompts % self.count:
            raise ValueError(f"{self.count} micro-batches do not divide {prompts} prompts")
        size = prompts // self.count
        parts = [
            self.inner(jax.tree.map(lambda x, first=first: x[first : first + size], rollout))
            for first in range(0, prompts, size)
        ]
        return jnp.concatenate(parts) / self.count


@part
class NonEmpty:
    """An inner reduction that does not count empty outputs (verl and OpenRLHF)."""

    inner: Reduction = PerSequence()
    couples: ClassVar[Coupling] = Coupling.BATCH
    cell_safe: ClassVar[bool] = True
    reads_lengths: ClassVar[bool] = True

    def __call__(self, rollout: Rollout) -> Array:
        filled = jnp.any(rollout.mask > 0, 2)
        return self.inner(rollout._replace(multiplicity=jnp.where(filled, rollout.multiplicity, 0)))


@part
class Informative:
    """An inner reduction that leaves out groups whose rewards all tie: DAPO's dynamic sampling.

    arXiv:2503.14476 samples until every group has spread; here such groups keep their place and lose their
    weight, so the others are averaged as if they were alone. A group ties where the plain sums of its rewards
    do, whatever the shaping makes of them: a ``WeightedSum`` may tell apart what is left out here.
    """

    inner: Reduction = PerToken()
    couples: ClassVar[Coupling] = Coupling.BATCH
    cell_safe: ClassVar[bool] = True

    def __call__(self, rollout: Rollout) -> Array:
        flat = tied(jnp.sum(rollout.rewards, 2), rollout.multiplicity, GROUP_AXES)
        return self.inner(rollout._replace(multiplicity=jnp.where(flat, 0, rollout.multiplicity)))
