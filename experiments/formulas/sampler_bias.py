"""Expected updates on groups that another policy samples, by enumeration in NumPy; nothing of the library.

A tree of T tokens out of V has V^t prefixes of t tokens, in order of their digits; rows [nodes, V, R] are
laid out level by level, outputs [V^T, R] in order of their digits. With Q = Π_t q and w(o) =
Q(o)(r(o) − E_Q r) the update of large groups is Σ_o w(o) Σ_t ∇log π_t; groups of G have the factor 1 − 1/G.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np


def levels(rows: np.ndarray) -> Iterator[np.ndarray]:
    """Rows [V^t, V, R] of every depth t."""
    vocab, first, width = rows.shape[1], 0, 1
    while first < len(rows):
        yield rows[first : first + width]
        first, width = first + width, width * vocab


def softmax(logits: np.ndarray) -> np.ndarray:
    """Rows of probabilities."""
    weight = np.exp(logits - logits.max(1, keepdims=True))
    return weight / weight.sum(1, keepdims=True)


def kept_by_top_p(rows: np.ndarray, level: float) -> np.ndarray:
    """bool like the rows: the fewest likeliest tokens whose mass reaches the level."""
    order = np.argsort(-rows, 1, kind="stable")
    ranked = np.take_along_axis(rows, order, 1)
    kept = np.empty(rows.shape, bool)
    np.put_along_axis(kept, order, (np.cumsum(ranked, 1) - ranked < level) | (level >= 1), 1)
    return kept


def truncated(rows: np.ndarray, level: float) -> np.ndarray:
    """q: the rows on what top-p keeps, renormalised."""
    cut = np.where(kept_by_top_p(rows, level), rows, 0)
    return cut / cut.sum(1, keepdims=True)


def mass(rows: np.ndarray, sampler: np.ndarray) -> np.ndarray:
    """S [nodes, R]: what the rows give to tokens that the sampler can draw."""
    return np.where(sampler > 0, rows, 0).sum(1)


def products(rows: np.ndarray) -> np.ndarray:
    """[V^T, R] product of the rows' entries along every output."""
    found = np.ones((1, rows.shape[2]))
    for level in levels(rows):
        found = (found[:, None] * level).reshape(-1, rows.shape[2])
    return found


def visits(rows: np.ndarray) -> np.ndarray:
    """[nodes, R] probability that an output passes through each node."""
    found, here = [], np.ones((1, rows.shape[2]))
    for level in levels(rows):
        found.append(here)
        here = (here[:, None] * level).reshape(-1, rows.shape[2])
    return np.concatenate(found)


def ratios(policy: np.ndarray, drawn: np.ndarray, tokens: int) -> tuple[np.ndarray, np.ndarray]:
    """E π/q over the tokens that q draws in outputs of so many, and the share of them outside [.9, 1.1]."""
    seen = visits(drawn)[:, None] * drawn / tokens
    ratio = np.where(drawn > 0, policy / np.where(drawn > 0, drawn, 1), 1)
    return (seen * ratio).sum((0, 1)), (seen * (abs(ratio - 1) > 0.1)).sum((0, 1))


def through(weights: np.ndarray, like: np.ndarray) -> np.ndarray:
    """[nodes, V, R] sum of output weights [V^T, R] over all outputs that take a token at a node."""
    parts = [weights.reshape(*level.shape[:2], -1, level.shape[2]).sum(2) for level in levels(like)]
    return np.concatenate(parts)


def ascent(weights: np.ndarray, policy: np.ndarray, factor: np.ndarray | None = None) -> np.ndarray:
    """Σ_o w(o) Σ_t c(s_t) ∇log π(o_t|s_t) in the logits, [nodes, V, R]; c [nodes, R] is 1 if left out."""
    along = through(weights, policy)
    if factor is not None:
        along = along * factor[:, None]
    return along - policy * along.sum(1, keepdims=True)


def centred(sampler: np.ndarray, table: np.ndarray) -> np.ndarray:
    """w(o) = Q(o)(r(o) − E_Q r), [V^T, R], for rewards [V^T, R]."""
    chance = products(sampler)
    return chance * (table - (chance * table).sum(0))


def corrected(sampler: np.ndarray, policy: np.ndarray, table: np.ndarray) -> np.ndarray:
    """π(o)(r(o) − E_Q r) where Q(o) > 0: w times Π_t π/q."""
    chance = products(sampler)
    return np.where(chance > 0, products(policy), 0) * (table - (chance * table).sum(0))


def size(update: np.ndarray) -> np.ndarray:
    """[R] norm of updates [nodes, V, R]."""
    return np.sqrt((update**2).sum((0, 1)))


def sine(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """[R] |sine| of the angle between updates: the part of one that no multiple of the other explains."""
    cosine = (one * other).sum((0, 1)) / (size(one) * size(other))
    return np.sqrt(np.clip(1 - cosine**2, 0, 1))


def by_length(sampler: np.ndarray, factor: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """E_q[Π_t c(s_t); length L] and P_q(length L), each [T, R], where the last token of a row ends an output.

    Rows are those of a tree in which every token but the last goes on, as ``Sequences`` lays it out.
    """
    branching, runs = sampler.shape[1] - 1, sampler.shape[2]
    weight = chance = np.ones((1, runs))
    first, sums = 0, []
    while first < len(sampler):
        here = slice(first, first + len(chance))
        first = here.stop
        weight = weight * factor[here]
        last = first >= len(sampler)
        ends = sampler[here].sum(1) if last else sampler[here, -1]
        sums.append(((weight * ends).sum(0), (chance * ends).sum(0)))
        on = sampler[here, :branching]
        weight = (weight[:, None] * on).reshape(-1, runs)
        chance = (chance[:, None] * on).reshape(-1, runs)
    found = np.array(sums)
    return found[:, 0], found[:, 1]
