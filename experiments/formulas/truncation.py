"""Expected updates where outputs are cut off at a budget, by enumeration in NumPy; nothing of the library.

A tree of T tokens out of V, the last of which ends an output; its prefixes are numbered depth by depth, in
the order of their digits. K are the finished outputs, P = P(K), m = E[r | K], rewards of the others are 0, so
that J = P m and ∇J = P ∇m + m ∇P. With f = 1 − 1/G and advantages r − r̄ the update is a ∇m + b ∇P,

    not masked               a = f P                        b = f m
    masked, voting           a = f P                        b = f m (1 − P)
    masked, without a vote   a = P − (1 − (1 − P)^G)/G      b = 0
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

import numpy as np

PLAIN, VOTING, VOTELESS = "not masked", "masked, voting", "masked, no vote"
HANDLINGS = (PLAIN, VOTING, VOTELESS)


class Tree(NamedTuple):
    """Every output of a tree of one context."""

    outputs: list[tuple[int, ...]]
    """In lexicographic order, without padding."""
    finished: np.ndarray
    """bool [S]."""
    chance: np.ndarray
    """[S]."""
    scores: np.ndarray
    """[S, nodes, V] ∇log π."""

    def mean(self, values: np.ndarray) -> float:
        """E[values]."""
        return float(self.chance @ values)

    def slope(self, values: np.ndarray) -> np.ndarray:
        """∇E[values], [nodes, V]."""
        return np.einsum("s,snv->nv", self.chance * values, self.scores)


def tree(logits: np.ndarray, horizon: int) -> Tree:
    """The tree of logits [nodes, V] of a policy."""
    vocab = logits.shape[1]
    rows = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    outputs = [
        row
        for length in range(1, horizon + 1)
        for row in itertools.product(range(vocab), repeat=length)
        if vocab - 1 not in row[:-1] and (row[-1] == vocab - 1 or length == horizon)
    ]
    outputs.sort()
    scores, chance = np.zeros((len(outputs), *logits.shape)), np.ones(len(outputs))
    for s, output in enumerate(outputs):
        first, place = 0, 0
        for depth, token in enumerate(output):
            node = first + place
            scores[s, node] += np.eye(vocab)[token] - rows[node]
            chance[s] *= rows[node, token]
            first, place = first + (vocab - 1) ** depth, place * (vocab - 1) + token
    return Tree(outputs, np.array([row[-1] == vocab - 1 for row in outputs]), chance, scores)


def enumerated(given: Tree, rewards: np.ndarray, group: int, handling: str) -> np.ndarray:
    """Mean over every ordered group of Σ_i A_i ∇log π(o_i) / G, [nodes, V]; rewards [S]."""
    drawn = np.array(list(itertools.product(range(len(rewards)), repeat=group)))
    r, done = rewards[drawn], given.finished[drawn]
    voters = done if handling == VOTELESS else np.ones_like(done)
    level = (r * voters).sum(1) / np.maximum(voters.sum(1), 1)
    kept = np.ones_like(done) if handling == PLAIN else done
    push = given.chance[drawn].prod(1)[:, None] * kept * (r - level[:, None]) / group
    return np.einsum("s,snv->nv", np.bincount(drawn.ravel(), push.ravel(), len(rewards)), given.scores)


def coefficients(done: float, level: float, group: int, handling: str) -> tuple[float, float]:
    """(a, b) of the update a ∇m + b ∇P at P = ``done`` and m = ``level``."""
    f = 1 - 1 / group
    if handling == PLAIN:
        return f * done, f * level
    if handling == VOTING:
        return f * done, f * level * (1 - done)
    return done - (1 - (1 - done) ** group) / group, 0.0


def closed(given: Tree, rewards: np.ndarray, group: int, handling: str) -> np.ndarray:
    """a ∇m + b ∇P, [nodes, V]."""
    done, to_end = given.mean(given.finished), given.slope(given.finished)
    level = given.mean(rewards * given.finished) / done
    to_level = (given.slope(rewards * given.finished) - level * to_end) / done
    a, b = coefficients(done, level, group, handling)
    return a * to_level + b * to_end
