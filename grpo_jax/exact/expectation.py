"""The expectation over all groups: the surrogate of samples, summed over multisets with their probability.

    E[J(θ)] = Σ_p Σ_h w_h(p)·J_p(θ; h),    w_h(p) the multinomial weight of group h of prompt p

Under group coupling the surrogate is additive over prompts, so every prompt's terms carry that prompt's own
weights and nothing is enumerated jointly. [A], [B] and [C] state their claims for this expectation.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from grpo_jax.collectors import draw_prompts, every_score, with_entropy
from grpo_jax.config import Batch, Config, TrainState, prompt_count
from grpo_jax.exact import groups
from grpo_jax.exact.outcomes import listed, outcomes
from grpo_jax.kernels import per_prompt
from grpo_jax.part import aligned, leaf_paths, part, static
from grpo_jax.parts.gains import ClipMask, clip_mask
from grpo_jax.refill import Refill
from grpo_jax.statistics import GROUP_AXES, divide, tied
from grpo_jax.surrogate import advantages, objective_terms, sanitized
from grpo_jax.types import Array, HasLevels, Params, Rollout, Scores, support_of

CHUNK = 2**18
"""Numbers of one kind that are alive at once while groups are summed."""

Terms = Callable[[Rollout, Array], Any]
"""(a group, its advantages) -> tree of [P, ...(, R)]."""


class Enumeration(NamedTuple):
    """All groups of a rollout's outcomes."""

    counts: np.ndarray
    """int [H, C]."""
    split: groups.Split
    rollout: Rollout
    """Every outcome; its multiplicity is its probability."""
    refill: Refill | None = None
    ties: Array | None = None
    """[P(, R)] probability that a group ties, where such are drawn anew."""

    def group(self, counts: Array) -> Rollout:
        """The group that has these counts [C], as multiplicities of outcomes."""
        entries = self.rollout.multiplicity.shape[1]
        return self.rollout._replace(multiplicity=self.split.multiplicity(counts)[:, :entries])

    def weights(self, counts: Array) -> Array:
        """[P(, R)] the group's probability at each prompt."""
        once = groups.weights(counts, int(self.counts[0].sum()), self.split.probabilities)
        if self.refill is None or self.ties is None:
            return once
        group = self.group(counts)
        same = tied(jnp.sum(group.rewards, 2), group.multiplicity, GROUP_AXES)[:, 0]
        return once * self.refill.factor(same, self.ties)


def enumeration(
    config: Config, rollout: Rollout, *, group_size: int, cells: int, lost: Array | None = None
) -> Enumeration:
    """All groups of ``group_size`` outcomes; by ``cells`` cells, or by outcome where ``cells`` is 0.

    ``lost`` [P(, R)] is the probability of a draw that never arrives: one more outcome, in a cell of its own,
    whose draws the group lacks.
    """
    missing = lost is not None
    width = (cells or rollout.multiplicity.shape[1]) + missing
    groups.require_size(group_size, width, "cells" if cells else "outcomes")
    breakers = groups.cell_breakers(config.method)
    if cells and breakers:
        raise ValueError(f"{', '.join(breakers)} reads more than rewards and lengths; use Exact(cells=0)")
    cell = groups.cells(config.method, rollout) if cells else None
    probabilities = rollout.multiplicity
    if lost is not None:
        probabilities = jnp.concatenate([probabilities, lost[:, None]], 1)
        if cell is not None:
            cell = jnp.concatenate([cell, jnp.full_like(cell[:, :1], width - 1)], 1)
    split = groups.split(probabilities, cell, width)
    refill = config.loop.refill
    ties = None if refill is None else refill.ties(rollout, group_size)
    return Enumeration(groups.enumerate_groups(group_size, width), split, rollout, refill, ties)


def expect(config: Config, every: Enumeration, terms: Terms) -> Any:
    """Σ_h w_h(p)·terms(h)[p]: the expectation over groups, for each prompt; a tree of [P, ...(, R)].

    Long sums go chunk by chunk, and their gradients too.
    """
    per_group = max(every.rollout.multiplicity.size * every.rollout.mask.shape[2], 1)
    size = max(1, min(len(every.counts), CHUNK // per_group))
    chunks = math.ceil(len(every.counts) / size)
    padded = np.zeros((chunks * size, every.counts.shape[1]), np.int32)
    padded[: len(every.counts)] = every.counts
    live = (np.arange(chunks * size) < len(every.counts)).reshape(chunks, size)

    def one(counts: Array, alive: Array) -> Any:
        rollout = every.group(counts)
        weight = jnp.where(alive, every.weights(counts), 0)
        value = terms(rollout, advantages(config.method, rollout))
        return jax.tree.map(lambda t: _weighted(weight, t), value)

    def chunk(rows: tuple[Array, Array]) -> Any:
        return jax.tree.map(lambda t: jnp.sum(t, 0), jax.vmap(one)(*rows))

    rows = (jnp.asarray(padded.reshape(chunks, size, -1)), jnp.asarray(live))
    first = (rows[0][0], rows[1][0])
    if chunks == 1:
        return chunk(first)
    start = jax.tree.map(lambda t: jnp.zeros(t.shape, t.dtype), jax.eval_shape(chunk, first))
    remade = jax.checkpoint(lambda total, row: jax.tree.map(jnp.add, total, chunk(row)))
    return jax.lax.scan(lambda total, row: (remade(total, row), None), start, rows)[0]


def _weighted(weight: Array, value: Array) -> Array:
    """weight [P(, R)] times value [P, ...(, R)], 0 where the weight is 0."""
    weight = per_prompt(weight, value.ndim)
    return weight * jnp.where(weight == 0, 0, value)


@part
class Exact:
    """The exact expectation over all groups of the old policy: deterministic dynamics fed with E[∇J].

    Needs a policy that lists its outputs and rewards with finitely many levels; ValueError otherwise, and for
    minibatches, for parts that couple a batch of several prompts, for more than ``groups.MAX_GROUPS`` groups.

    Args:
      cells: how many cells the outcomes of a prompt fall into at most: equal rewards, and equal lengths where
        a part reads lengths. 0 enumerates histograms of single outcomes. None takes cells wherever they are
        fewer and the numbers that they depend on (``moves_cells``) are known, else histograms. With more
        cells than said: ValueError where the numbers are known, else the result is NaN.
    """

    cells: int | None = static(None, low=0)

    def resolved(self, config: Config) -> Exact:
        """The same with ``cells`` decided, if the configuration's numbers are known.

        Numbers may carry runs as their last axis: the cells are enough for every run. A sweep gives every
        combination of the values of those axes that ``moves_cells`` names, one a run.
        """
        if self.cells == 0 or any(isinstance(x, jax.core.Tracer) for x in leaf_paths(config).values()):
            return self
        unlisted = config.policy.contexts is None  # prompts, so that none can be said to have most cells
        if unlisted or groups.cell_breakers(config.method):
            return self if self.cells else dataclasses.replace(self, cells=0)
        most, outcomes = _most_cells(dataclasses.replace(config, expectation=None))
        if self.cells is None:
            return dataclasses.replace(self, cells=most if most < outcomes else 0)
        if most > self.cells:
            raise ValueError(
                f"Exact(cells={self.cells}), but outcomes of a prompt fall into {most} cells (unequal rewards"
                f", and lengths where a part reads them); give cells={most} or more, or leave cells out"
            )
        return self

    def collect(self, config: Config, state: TrainState) -> Batch:
        """Every outcome, with its expected multiplicity G·q: no group, so that it has no advantages."""
        if config.loop.minibatches > 1:
            raise ValueError("Exact() takes whole batches: minibatches must be 1")
        groups.require_couplings(config.method, prompt_count(config))
        size, refill = config.loop.group_size, config.loop.refill
        if refill is not None and refill.other:
            raise ValueError(
                "which prompts fill a batch depends on all that are drawn, so that groups cannot be summed "
                "prompt by prompt; use Refill(other=False), or Sampled()"
            )
        rollout, origin = outcomes(config, state, draw_prompts(config, state))
        drawn = None if refill is None else refill.price(refill.ties(rollout, size))
        return Batch(rollout._replace(multiplicity=size * rollout.multiplicity), None, origin, drawn)

    def enumeration(self, config: Config, batch: Batch) -> Enumeration:
        """All groups of a collected batch."""
        size = config.loop.group_size
        rollout = batch.rollout._replace(multiplicity=batch.rollout.multiplicity / size)
        lost = None if batch.origin is None else batch.origin.lost
        return enumeration(config, rollout, group_size=size, cells=self.cells or 0, lost=lost)

    def objective(self, config: Config, batch: Batch, params: Params) -> tuple[Array, Array]:
        """E[J(θ)] over groups, and the log-probabilities of every outcome."""
        scores = every_score(config, batch.rollout, params)

        def terms(rollout: Rollout, advantage: Array) -> Array:
            rollout = with_entropy(rollout, scores)
            return jnp.sum(objective_terms(config.method, rollout, advantage, scores.logp), (1, 2))

        value = expect(config, self.enumeration(config, batch), terms)
        return jnp.sum(value, 0), scores.logp

    def clip_mask(self, config: Config, batch: Batch, logp: Array) -> ClipMask:
        """[P, N, T] share of an outcome's expected draws that the clip holds at this token, above and below.

        Where an outcome is held depends on the group that it is drawn in: there is a share, not a mask.
        """
        held = self._held(config, batch, logp)
        drawn = batch.rollout.multiplicity[:, :, None]
        return ClipMask(*(divide(side, drawn) for side in held))

    def clip_fractions(self, config: Config, batch: Batch, logp: Array) -> tuple[Array, Array]:
        """Expected tokens whose gain the clip holds constant, above and below, over expected tokens.

        Two scalars, or [R].
        """
        tokens = jnp.sum(batch.rollout.multiplicity[:, :, None] * batch.rollout.mask, (0, 1, 2))
        high, low = (jnp.sum(side, (0, 1, 2)) / tokens for side in self._held(config, batch, logp))
        return high, low

    def _held(self, config: Config, batch: Batch, logp: Array) -> ClipMask:
        """[P, N, T] expected number of draws of each outcome that the clip holds, 0 where masked."""

        def terms(rollout: Rollout, advantage: Array) -> ClipMask:
            weight = rollout.multiplicity[:, :, None] * rollout.mask
            clean, here = sanitized(rollout, logp)
            out = clip_mask(config.method.gain, config.method.ratio(clean, here), advantage)
            return ClipMask(*(jnp.where(side, weight, 0) for side in out))

        return expect(config, self.enumeration(config, batch), terms)

    def tied(self, config: Config, batch: Batch) -> Array:
        """Probability that all rewards of a group are equal, mean over prompts. A scalar, or [R]."""

        def terms(rollout: Rollout, advantage: Array) -> Array:
            same = tied(jnp.sum(rollout.rewards, 2), rollout.multiplicity, GROUP_AXES)
            return same[:, 0].astype(rollout.rewards.dtype)

        return jnp.mean(expect(config, self.enumeration(config, batch), terms), 0)


def moves_cells(path: str) -> bool:
    """Whether the number at this path of a configuration has a say in how many cells outcomes fall into.

    The policy's have not: an outcome of probability 0 keeps its cell.
    """
    return path.startswith(("task.", "method.shaping."))


def _most_cells(config: Config) -> tuple[int, int]:
    """The most cells that a prompt's outcomes fall into in any run, and the number of outcomes."""
    cell = _cells_of(config)
    if isinstance(cell, jax.core.Tracer):  # within a trace; there, constants are folded one by one
        with jax.ensure_compile_time_eval():
            cell = _cells_of(config)
    return int(np.asarray(cell).max(initial=0)) + 1, cell.shape[1]


@jax.jit
def _cells_of(config: Config) -> Array:
    """[P, N, R or 1] the cell of every outcome of every context; no probability is read."""
    config = aligned(config)
    contexts: Any = np.arange(config.policy.contexts or 0)
    support = support_of(config.policy, contexts)
    levels = None
    if support is not None and isinstance(config.task, HasLevels):
        tokens, mask = jnp.asarray(support.tokens)[..., None], jnp.asarray(support.mask)[..., None]
        levels = config.task.levels(contexts, tokens, mask)
    if levels is None:
        return jnp.zeros((1, 1, 1), int)
    blank = Scores(logp=jnp.zeros(mask.shape), entropy=jnp.zeros(mask.shape))
    return groups.cells(config.method, listed(config, contexts, tokens, mask, levels, blank, blank))
