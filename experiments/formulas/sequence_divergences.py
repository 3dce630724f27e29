"""Gradients in logits of both divergences between policies over sequences, whole and prefix by prefix."""

import jax.numpy as jnp

from grpo_jax import TreePolicy
from grpo_jax.diagnostics import all_prompts, log_support
from grpo_jax.exact import values
from grpo_jax.sequences import Sequences
from grpo_jax.tasks import SequenceTable
from grpo_jax.types import Array


def sequence_gradients(space: Sequences, logits: Array, reference: Array) -> dict[tuple[str, str], Array]:
    """("forward" or "reverse", "prefix" or "sequence") -> gradient in logits.

    Forward is KL(π‖π_ref), reverse KL(π_ref‖π). A divergence of sequences is the sum over prefixes of the
    chance to meet the prefix times the divergence there. "prefix" holds that chance, under π, as it is;
    "sequence" does not: KL(π‖π_ref) is an expected log ratio, whose own derivative has mean zero, so its
    gradient is that of an expected reward; and in KL(π_ref‖π) prefixes are met under π_ref.

    Args:
      space: the sequences.
      logits: [1, nodes, V, R] of π.
      reference: [1, nodes, V, R] of π_ref.
    """
    policy = TreePolicy.uniform(space)
    now, anchor = (values.step_probabilities(policy, x) for x in (logits, reference))
    reach, met = (values.visits(policy, x)[:, :, None] for x in (logits, reference))
    log_ratio = jnp.log(now) - jnp.log(anchor)
    forward = now * (log_ratio - (now * log_ratio).sum(2, keepdims=True))
    prompts = all_prompts(policy)
    whole = log_support(policy, logits, prompts) - log_support(policy, reference, prompts)
    rewards = SequenceTable(space=space, table=whole)
    return {
        ("forward", "prefix"): reach * forward,
        ("reverse", "prefix"): reach * (now - anchor),
        ("forward", "sequence"): values.return_gradient(policy, rewards, logits),
        ("reverse", "sequence"): met * (now - anchor),
    }
