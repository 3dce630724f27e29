"""Groups of G independent draws as multisets: histograms over outcomes, or counts of cells of outcomes.

A *cell* is a set of outcomes that no group statistic tells apart (equal reward, and equal length where a part
reads lengths). Given the counts n_c of cells, outcome o of cell c occurs n_c·q(o)/q(c) times on average, and
everything a method computes is linear in that multiplicity. So C(G + L − 1, L − 1) groups of L cells give the
same expectation as the C(G + N − 1, N − 1) histograms of N outcomes. A histogram is the case where every
outcome is its own cell.

One row of counts is laid upon all prompts at once. A prompt that cannot draw it (it lacks a cell, or has
probability 0 there) gives it weight 0, but still stands in the batch by whose totals other prompts' terms are
divided: so every prompt holds G entries in every row (``Split.multiplicity``).
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from grpo_jax.kernels import trailing
from grpo_jax.part import outside, subparts
from grpo_jax.parts.shaping import lengths
from grpo_jax.statistics import divide
from grpo_jax.surrogate import Method
from grpo_jax.theory.counts import deviance, histograms, number_of_histograms, stirling_remainder
from grpo_jax.types import (
    Array,
    CellSafe,
    Couples,
    Coupling,
    ReadsOldLogp,
    Rollout,
    coupling,
    reads_lengths,
    reads_truncation,
)

MAX_GROUPS = 300_000
"""The most groups that a sum may have."""


def require_couplings(parts: Any, prompts: int) -> None:
    """ValueError, by name, for a part that couples the whole batch when there are several prompts.

    ``parts`` is a method, or those of its parts that are asked for.
    """
    wide = [
        type(p).__name__ for p in subparts(parts) if isinstance(p, Couples) and p.couples == Coupling.BATCH
    ]
    if wide and prompts > 1:
        raise ValueError(
            f"{', '.join(dict.fromkeys(wide))} couples the whole batch: exact expectations need one prompt, "
            f"not {prompts}; use Sampled(), or parts that couple a group"
        )


def cell_breakers(method: Method) -> list[str]:
    """Names of the parts that cells might not serve: they read more than rewards and lengths.

    So may a statistic that is taken of what a part inside makes of each outcome: a shaping that couples a
    group, around any other; an advantage that couples, around one from outside.
    """
    found = [type(p).__name__ for p in subparts(method) if _breaks_cells(p)]
    if coupling(method.shaping) != Coupling.NOTHING and len(list(subparts(method.shaping))) > 1:
        found.append(type(method.shaping).__name__)
    for part in subparts(method.advantage):
        unknown = {type(p).__name__ for p in list(subparts(part))[1:] if not _cell_safe(p)}
        if _couples(part) and unknown.intersection(outside(part)):
            found.append(type(part).__name__)
    return list(dict.fromkeys(found))


def _couples(part: Any) -> bool:
    return isinstance(part, Couples) and part.couples != Coupling.NOTHING


def _cell_safe(part: Any) -> bool:
    return isinstance(part, CellSafe) and part.cell_safe


def _breaks_cells(part: Any) -> bool:
    return (_couples(part) and not _cell_safe(part)) or (
        isinstance(part, ReadsOldLogp) and part.reads_old_logp
    )


def cells(method: Method, rollout: Rollout) -> Array:
    """int [P, N] the cell of every outcome, numbered from 0 within its prompt.

    Outcomes share a cell if their rewards are equal, and their shaped rewards, and their lengths where a part
    reads lengths, and both or neither are cut off where a part reads that.
    """
    keys = [jnp.sum(rollout.rewards, 2)]
    if coupling(method.shaping) == Coupling.NOTHING:
        keys.append(method.shaping(rollout))
    if reads_lengths(method):
        keys.append(lengths(rollout))
    if reads_truncation(method) and rollout.truncated is not None:
        keys.append(rollout.truncated)
    shape = jnp.broadcast_shapes(*(key.shape for key in keys))
    keys = [jnp.broadcast_to(key, shape) for key in keys]
    order = jnp.lexsort(keys, axis=1)
    changes = sum(jnp.abs(jnp.diff(jnp.take_along_axis(key, order, axis=1), axis=1)) > 0 for key in keys)
    rank = jnp.cumsum(changes > 0, axis=1)
    rank = jnp.concatenate([jnp.zeros_like(rank[:, :1]), rank], axis=1)
    return jnp.take_along_axis(rank, jnp.argsort(order, axis=1), axis=1)


def require_size(group_size: int, width: int, what: str) -> None:
    """ValueError with the count and the memory where there would be more than ``MAX_GROUPS`` groups."""
    terms = number_of_histograms(group_size, width)
    if terms > MAX_GROUPS:
        raise ValueError(
            f"{terms} groups of {group_size} over {width} {what}, more than {MAX_GROUPS} (their counts alone "
            f"take {8e-9 * terms * width:.3g} GB); use Exact(cells=...) where rewards take few values, "
            "a smaller group, or Sampled()"
        )


@functools.lru_cache(maxsize=32)
def enumerate_groups(group_size: int, width: int) -> np.ndarray:
    """int32 [H, width] every way to put G draws into ``width`` cells."""
    return histograms(group_size, width, MAX_GROUPS)


def weights(counts: Array, group_size: int, probabilities: Array) -> Array:
    """Multinomial probability of one group, G!/Π n_c!·Π q_c^{n_c}, by the method of types.

    Args:
      counts: int [C], summing to G.
      group_size: G.
      probabilities: [P, C(, R)], summing to one over C.

    Returns:
      [P(, R)]; the sum over all groups is one to 1e-12 in float64 for G in the thousands.
    """
    dtype = probabilities.dtype
    table = jnp.asarray(stirling_remainder(group_size), dtype)
    n = trailing(counts[None], probabilities.ndim).astype(dtype)
    distance = jnp.sum(deviance(n, group_size * probabilities), 1)
    return jnp.exp(table[group_size] - jnp.sum(table[counts]) - distance)


class Split(NamedTuple):
    """How the outcomes of every prompt fall into cells."""

    cell: Array | None
    """int [P, N(, R)], or None where every outcome is its own cell."""
    fraction: Array
    """[P, N(, R)] q(o)/q(cell of o), 0 where q(o) is 0."""
    probabilities: Array
    """[P, C(, R)] probability of each cell."""
    fallback: Array
    """[P, N(, R)] ``fraction`` within the likeliest cell, 0 outside it; sums to one over N."""

    def multiplicity(self, counts: Array) -> Array:
        """[P, N(, R)] mean multiplicity of every outcome given the counts [C] of cells; sums to G over N.

        Draws from cells of probability 0 are counted in the likeliest cell: a prompt where there are any
        gives the group weight 0, but other prompts' terms are divided by totals over the whole batch.
        """
        drawn = trailing(counts[None], self.probabilities.ndim)
        lost = jnp.sum(jnp.where(self.probabilities > 0, 0, drawn), 1, keepdims=True)
        return (drawn if self.cell is None else counts[self.cell]) * self.fraction + lost * self.fallback


def split(probabilities: Array, cell: Array | None, width: int) -> Split:
    """Probabilities and cells of outcomes, [P, N(, R)] both -> ``Split``; NaN if ``width`` is too small."""
    if cell is None:
        place, mass = trailing(jnp.arange(width)[None], probabilities.ndim), probabilities
        fraction = jnp.where(probabilities > 0, 1.0, 0.0)
    else:
        inside = cell[:, :, None] == trailing(jnp.arange(width), cell.ndim - 1)
        mass = jnp.sum(jnp.where(inside, probabilities[:, :, None], 0), 1)
        own = jnp.sum(jnp.where(inside, mass[:, None], 0), 2)
        place, fraction = cell, divide(probabilities, own)
        mass = jnp.where(jnp.all(cell < width, 1, keepdims=True), mass, jnp.nan)
    likeliest = jnp.argmax(mass, 1, keepdims=True)
    return Split(cell, fraction, mass, jnp.where(place == likeliest, fraction, 0))
