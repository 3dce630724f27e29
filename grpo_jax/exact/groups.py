"""Groups of G independent draws as multisets: histograms over outcomes, or counts of cells of outcomes.

A *cell* is a set of outcomes that no group statistic tells apart (equal reward, and equal length where a part
reads lengths). Given the counts n_c of cells, outcome o of cell c occurs n_c·q(o)/q(c) times on average, and
everything a method computes is linear in that multiplicity. So C(G + L − 1, L − 1) groups of L cells give the
same expectation as the C(G + N − 1, N − 1) histograms of N outcomes. A histogram is the case where every
outcome is its own cell.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from grpo_jax.part import subparts
from grpo_jax.parts.shaping import lengths
from grpo_jax.statistics import divide
from grpo_jax.surrogate import Method
from grpo_jax.theory.counts import deviance, histograms, number_of_histograms, stirling_remainder
from grpo_jax.types import Array, CellSafe, Couples, Coupling, ReadsOldLogp, Rollout, coupling, reads_lengths

MAX_GROUPS = 300_000
"""The most groups that a sum may have."""


def require_couplings(method: Method, prompts: int) -> None:
    """ValueError, by name, for a part that couples the whole batch when there are several prompts."""
    wide = [
        type(p).__name__ for p in subparts(method) if isinstance(p, Couples) and p.couples == Coupling.BATCH
    ]
    if wide and prompts > 1:
        raise ValueError(
            f"{', '.join(dict.fromkeys(wide))} couples the whole batch: exact expectations need one prompt, "
            f"not {prompts}; use Sampled(), or parts that couple a group"
        )


def cell_breakers(method: Method) -> list[str]:
    """Names of the parts that cells would not serve: they read more than rewards and lengths."""
    found = [type(p).__name__ for p in subparts(method) if _breaks_cells(p)]
    return list(dict.fromkeys(found))


def _breaks_cells(part: Any) -> bool:
    apart = isinstance(part, Couples) and part.couples != Coupling.NOTHING
    unsafe = apart and not (isinstance(part, CellSafe) and part.cell_safe)
    return unsafe or (isinstance(part, ReadsOldLogp) and part.reads_old_logp)


def cells(method: Method, rollout: Rollout) -> Array:
    """int [P, N] the cell of every outcome, numbered from 0 within its prompt.

    Outcomes share a cell if their rewards are equal, and their shaped rewards, and their lengths where a part
    reads lengths.
    """
    keys = [jnp.sum(rollout.rewards, 2)]
    if coupling(method.shaping) == Coupling.NOTHING:
        keys.append(method.shaping(rollout))
    if reads_lengths(method):
        keys.append(lengths(rollout))
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
    n = counts.reshape((1, -1) + (1,) * (probabilities.ndim - 2)).astype(dtype)
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

    def multiplicity(self, counts: Array) -> Array:
        """[P, N(, R)] mean multiplicity of every outcome given the counts [C] of cells."""
        if self.cell is None:
            row = counts.reshape((1, -1) + (1,) * (self.fraction.ndim - 2))
            return row * self.fraction
        return counts[self.cell] * self.fraction


def split(probabilities: Array, cell: Array | None, width: int) -> Split:
    """Probabilities and cells of outcomes, [P, N(, R)] both -> ``Split``; NaN if ``width`` is too small."""
    if cell is None:
        return Split(None, jnp.where(probabilities > 0, 1.0, 0.0), probabilities)
    ids = jnp.arange(width).reshape((width,) + (1,) * (cell.ndim - 2))
    inside = cell[:, :, None] == ids
    mass = jnp.sum(jnp.where(inside, probabilities[:, :, None], 0), 1)
    own = jnp.sum(jnp.where(inside, mass[:, None], 0), 2)
    fits = jnp.all(cell < width, 1, keepdims=True)
    return Split(cell, divide(probabilities, own), jnp.where(fits, mass, jnp.nan))
