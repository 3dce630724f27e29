"""Gradients of divergences between policies over sequences, whole and token by token.

A divergence of answers is the sum over prefixes of the chance to meet the prefix times the divergence there:
KL(π‖π_ref) = Σ_s d_π(s) KL(π(·|s)‖π_ref(·|s)), prefixes met under π, and KL(π_ref‖π) the same with prefixes
met under π_ref. Token by token that chance is held as it is under whoever sampled, which leaves out how a
token changes what comes after it (arXiv:2506.09477 calls it a partial gradient).
"""

from __future__ import annotations

import jax.numpy as jnp

from grpo_jax.diagnostics import all_prompts, log_support
from grpo_jax.exact import values
from grpo_jax.policies import TreePolicy
from grpo_jax.tasks import SequenceTable
from grpo_jax.types import Array

FORWARD, BACKWARD = "KL(π‖π_ref)", "KL(π_ref‖π)"
TOKENWISE = "{}, token by token"
VARIATION = "total variation, token by token"
MIXED = f"{FORWARD} − {BACKWARD} token by token"
AWAY = "−KL(π_old‖π)"
TOWARDS = "KL(π‖π_old), token by token"


def divergence_gradients(
    policy: TreePolicy, params: Array, reference: Array, *, old: Array | None = None
) -> dict[str, Array]:
    """Name -> gradient in the logits, to be descended, of what a penalty may belong to.

    ``FORWARD`` is an expected log ratio, whose own derivative has mean zero, so that its gradient is that of
    an expected reward: Σ_o π(o) log(π(o)/π_ref(o)) ∇log π(o). ``TOKENWISE.format(FORWARD)`` is
    Σ_s d(s) Σ_a π(a|s) log(π/π_ref) ∇log π(a|s), d under the sampler; ``TOKENWISE.format(BACKWARD)`` is
    Σ_s d(s) (π − π_ref)(·|s). ``VARIATION`` is ½Σ_a|π − π_ref| likewise, ``MIXED`` what a reward of −k3 a
    token descends, ``AWAY`` what a loss with k1 in it does, which leaves the sampler; ``TOWARDS`` holds on
    to it.

    Args:
      policy: the space of sequences; one context, states that share no parameters, no decoding.
      params: [1, nodes, V, R] of π.
      reference: [1, nodes, V, R] of π_ref.
      old: [1, nodes, V, R] of the sampler; None is ``params``.
    """
    old = params if old is None else old
    now, anchor, sampler = (values.step_probabilities(policy, x) for x in (params, reference, old))
    met = values.visits(policy, old)[:, :, None]
    prompts = all_prompts(policy)
    answers = log_support(policy, params, prompts) - log_support(policy, reference, prompts)
    whole = values.return_gradient(policy, SequenceTable(space=policy.space, table=answers), params)
    backward = met * (now - anchor)
    sign = jnp.sign(now - anchor)
    return {
        FORWARD: whole,
        BACKWARD: values.visits(policy, reference)[:, :, None] * (now - anchor),
        TOKENWISE.format(FORWARD): met * _centred(now, jnp.log(now) - jnp.log(anchor)),
        TOKENWISE.format(BACKWARD): backward,
        VARIATION: met * _centred(now, sign) / 2,
        MIXED: whole - backward,
        AWAY: met * (sampler - now),
        TOWARDS: met * _centred(now, jnp.log(now) - jnp.log(sampler)),
    }


def _centred(chance: Array, value: Array) -> Array:
    """π(a|s)(v(a) − Σ_b π(b|s) v(b)): the gradient in logits of Σ_a π(a|s) v(a) with v held."""
    return chance * (value - jnp.sum(chance * value, 2, keepdims=True))
