"""What an update estimates, by the library: expected updates on random sequence trees, through every group.

And the gradients that they might be. Every table and setting is a run on a tree of ``experiments.trees``.
"""

import jax
import numpy as np
from numpy.typing import ArrayLike

from experiments.problems import trees
from experiments.problems.weights import LengthPower
from grpo_jax.config import Config, Loop
from grpo_jax.exact import Exact, expected_gradient
from grpo_jax.exact import values as tree_values
from grpo_jax.parts.advantages import GroupMean, GroupSpread, Normalized
from grpo_jax.parts.gains import Clip
from grpo_jax.policies import TreePolicy
from grpo_jax.sequences import Sequences
from grpo_jax.surrogate import Method
from grpo_jax.tasks import SequenceTable
from grpo_jax.types import Array

TARGETS = ("gradient at old", "gradient at current", "local surrogate")
"""∇J(θ_old), ∇J(θ), Σ_s d_old(s) Σ_a ∇π_θ(a|s) Q_old(s, a)."""
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
        reduction=LengthPower(power=trajectory),
    )


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


def widened(rows: np.ndarray, within: Sequences) -> np.ndarray:
    """Logits [rows, V, R] of a tree as those of a longer one, 0 wherever its sequences have ended."""
    rest = np.zeros((within.offsets[-1] - len(rows), *rows.shape[1:]))
    return np.concatenate([rows, rest])


def embedded(given: trees.Problem, within: Sequences) -> trees.Problem:
    """Tables over T tokens as tables over more: what follows has no effect. So one program serves every T."""
    table = np.repeat(given.table, len(within.support[0]) // len(given.table), 0)
    return trees.Problem(within, table, widened(given.logits, within))


@jax.jit
def candidates(policy: TreePolicy, task: SequenceTable, params: Array, old: Array) -> dict[str, Array]:
    """The three gradients that an update might estimate."""
    return {
        "gradient at old": tree_values.return_gradient(policy, task, old),
        "gradient at current": tree_values.return_gradient(policy, task, params),
        "local surrogate": tree_values.local_gradient(policy, task, params, old=old),
    }


def norm(gradient: ArrayLike) -> np.ndarray:
    """[R] ‖gradient‖ of gradients [1, rows, V, R]."""
    return np.sqrt(np.sum(np.asarray(gradient) ** 2, (0, 1, 2)))


def cosine(a: ArrayLike, b: ArrayLike) -> np.ndarray:
    """[R] cosine of two gradients [1, rows, V, R]."""
    return np.sum(np.asarray(a) * np.asarray(b), (0, 1, 2)) / (norm(a) * norm(b))
