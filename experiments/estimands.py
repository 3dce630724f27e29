"""What an update estimates: expected updates on random sequence trees beside the gradients they might be.

Everything is exact, and every table, drift and setting is a run: trees of ``experiments.trees`` with all
sequences of T tokens, a drift of a given KL(π_old‖π_θ) from the starting policy, three candidates.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from experiments import trees
from grpo_jax.config import Config, Loop
from grpo_jax.exact import Exact, expected_gradient, tree
from grpo_jax.parts.advantages import GroupMean, GroupSpread, Normalized
from grpo_jax.parts.gains import Clip
from grpo_jax.parts.ratios import SequenceMean
from grpo_jax.parts.reductions import PerSequence
from grpo_jax.policies import TreePolicy
from grpo_jax.sequences import Sequences
from grpo_jax.surrogate import Method
from grpo_jax.tasks import SequenceTable
from grpo_jax.types import Array

TARGETS = ("gradient at old", "gradient at current", "local surrogate")
"""∇J(θ_old), ∇J(θ), Σ_s d_old(s) Σ_a ∇π_θ(a|s) Q_old(s, a)."""
DIRECTIONS = ("random", "ascent")
RATIOS = {
    "token ratio (GRPO)": {"trajectory": 0.0, "score": 0.0},
    "trajectory ratio (TIC)": {"trajectory": 1.0, "score": 0.0},
    "no ratio, score at θ": {"trajectory": 0.0, "score": 1.0},
    "sequence mean (GSPO)": None,
}
"""The numbers of ``trees.Blend``, so that one program serves the first three."""
LEVELS = Exact(cells=4)
"""Binary and graded rewards have at most four levels."""


def method(*, trajectory=0.0, score=0.0, normalized=0.0, low=np.inf, high=np.inf, gain=None) -> Method:
    """A blend of ratios with A = (r − r̄)/σ^normalized and a clip; no penalty, no 1/len.

    A ratio that is differentiated whole stands at each of |o| tokens, hence its 1/|o|.
    """
    return Method(
        advantage=Normalized(center=GroupMean(), scale=GroupSpread(), power=normalized),
        ratio=trees.Blend(trajectory=trajectory, score=score),
        gain=gain or Clip(low=low, high=high),
        reduction=trees.LengthPower(power=trajectory),
    )


def sequence_mean(**setting) -> Method:
    """GSPO's ratio under the same advantage and clip."""
    return dataclasses.replace(method(**setting), ratio=SequenceMean(), reduction=PerSequence())


def update(
    given: tuple[TreePolicy, SequenceTable], method: Method, params: np.ndarray, *, group_size: int
) -> np.ndarray:
    """[1, rows, V, R] expected update of groups from the policy's own logits, at ``params`` [rows, V, R]."""
    policy, task = given
    loop = Loop(group_size=group_size)
    config = Config(policy=policy, task=task, method=method, loop=loop, expectation=LEVELS)
    return np.asarray(expected_gradient(config, params[None], old=policy.logits))


def made(space: Sequences, logits: np.ndarray, table: np.ndarray) -> tuple[TreePolicy, SequenceTable]:
    """Policy and task of runs, from [rows, V, R] logits and [S, R] rewards."""
    return TreePolicy(space=space, logits=logits[None]), SequenceTable(space=space, table=table[None])


def embedded(root: int, horizon: int, *, within: Sequences, tables: int, kind: str) -> trees.Problem:
    """Random tables over T tokens as tables over more: what follows has no effect and does not drift.

    So one program serves every horizon.
    """
    inner = trees.problem(root, Sequences(vocab=within.vocab, horizon=horizon), tables=tables, kind=kind)
    rest = np.zeros((within.offsets[-1] - len(inner.logits), within.vocab, tables))
    table = np.repeat(inner.table, len(within.support[0]) // len(inner.table), 0)
    return trees.Problem(within, table, np.concatenate([inner.logits, rest]))


@functools.partial(jax.jit, static_argnames=("space", "halvings"))
def displaced(space: Sequences, logits: Array, direction: Array, kl: Array, *, halvings: int = 32) -> Array:
    """Logits [rows, V, R] moved along ``direction`` until KL(π_old‖π_θ) is ``kl`` [R], by bisection.

    KL(π_old‖π_θ) = Σ_s d_old(s) KL(π_old(·|s)‖π_θ(·|s)) is convex along a line of logits.
    """
    policy = TreePolicy(space=space, logits=logits[None])
    old = jax.nn.log_softmax(logits, 1)
    weight = tree.visits(policy, logits[None])[0][:, None] * jnp.exp(old)

    def at(exponent: Array) -> Array:
        return logits + jnp.exp(exponent) * direction

    def halve(_: int, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = ends
        middle = (low + high) / 2
        over = jnp.sum(weight * (old - jax.nn.log_softmax(at(middle), 1)), (0, 1)) > kl
        return jnp.where(over, low, middle), jnp.where(over, middle, high)

    low, high = jax.lax.fori_loop(0, halvings, halve, (jnp.full_like(kl, -9.0), jnp.full_like(kl, 9.0)))
    return at((low + high) / 2)


def drifts(given: trees.Problem, which: np.ndarray, ascent: np.ndarray, kl: np.ndarray) -> np.ndarray:
    """[rows, V, R] drifted logits of run r: table ``which[r]``, along the gradient where ``ascent[r]``.

    Else in a normal direction, among the states that have an effect.
    """
    policy, task = made(given.space, given.logits, given.table)
    climb = np.asarray(jax.jit(tree.return_gradient)(policy, task, jnp.asarray(policy.logits)))[0]
    climb = climb / np.sqrt(np.sum(climb**2, (0, 1)))
    matters = (np.abs(climb) > 1e-14).any((1, 2), keepdims=True)
    chance = np.random.default_rng(len(which)).normal(size=climb.shape) * matters
    chance = chance / np.sqrt(np.sum(chance**2, (0, 1)))
    direction = np.where(ascent, climb[..., which], chance[..., which])
    return np.asarray(displaced(given.space, given.logits[..., which], direction, jnp.asarray(kl)))


@jax.jit
def candidates(policy: TreePolicy, task: SequenceTable, params: Array, old: Array) -> dict[str, Array]:
    """The three gradients that an update might estimate."""
    return {
        "gradient at old": tree.return_gradient(policy, task, old),
        "gradient at current": tree.return_gradient(policy, task, params),
        "local surrogate": tree.local_gradient(policy, task, params, old=old),
    }


def norm(gradient: ArrayLike) -> np.ndarray:
    """[R] ‖gradient‖ of gradients [1, rows, V, R]."""
    return np.sqrt(np.sum(np.asarray(gradient) ** 2, (0, 1, 2)))


def cosine(a: ArrayLike, b: ArrayLike) -> np.ndarray:
    """[R] cosine of two gradients [1, rows, V, R]."""
    return np.sum(np.asarray(a) * np.asarray(b), (0, 1, 2)) / (norm(a) * norm(b))


def error(found: ArrayLike, target: ArrayLike) -> np.ndarray:
    """[R] ‖found − target‖/‖target‖."""
    return norm(np.asarray(found) - np.asarray(target)) / norm(target)


def cosines(found: ArrayLike, targets: Mapping[str, Any]) -> np.ndarray:
    """[target, R]."""
    return np.stack([cosine(found, targets[name]) for name in TARGETS])
