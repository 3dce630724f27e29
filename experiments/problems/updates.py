"""The plainest method, and the library's expected updates: what sums and enumerations are held against."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np

import grpo_jax as gj
from grpo_jax.exact import expected_gradient
from grpo_jax.methods import SHIFT
from grpo_jax.parts.gains import Linear
from grpo_jax.parts.ratios import Score
from grpo_jax.parts.reductions import Constant

PLAIN = gj.Method(advantage=SHIFT, ratio=Score(), gain=Linear(), reduction=Constant(length=1.0))
"""r − r̄ times the score of whole answers, one step on-policy: no clip, no penalty, no length."""


def expected_update(
    method: gj.Method,
    space: gj.Sequences,
    logits: np.ndarray,
    table: np.ndarray,
    *,
    group_size: int,
    noise: Any = None,
    refill: Any = None,
) -> np.ndarray:
    """[P, rows, V] the library's expected update, the mean over the prompts of a batch.

    Args:
      method: on-policy.
      space: of the answers.
      logits: [P, rows, V] of every prompt's own tree.
      table: [P, S] rewards, or success probabilities if `noise` is Bernoulli.
      group_size, noise, refill: as in ``Loop`` and ``SequenceTable``.
    """
    config = gj.Config(
        policy=gj.TreePolicy(space=space, logits=logits),
        task=gj.SequenceTable(space=space, table=table, noise=noise),
        method=method,
        loop=gj.Loop(group_size=group_size, refill=refill),
        expectation=gj.Exact(),
    )
    return np.asarray(expected_gradient(config, jnp.asarray(logits)))
