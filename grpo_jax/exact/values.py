"""A policy over sequences seen as a decision process: visits, values, exact return and its derivatives.

States are the prefixes (nodes) of the tree; a state is met at most once on the way. With d(s) the probability
of reaching s, Q(s, a) the expected reward after a at s, and J the mean over contexts of E[r],

    ∇J(θ) = Σ_s d_θ(s) Σ_a ∇π_θ(a|s) Q_θ(s, a),

and freezing d and Q at θ_old gives the gradient of the local surrogate (CPI/TRPO) that GRPO's token ratios
estimate ([C]). Parameters may carry runs as their last axis, except where said.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from grpo_jax.diagnostics import all_prompts, expected_reward, log_support, support_means
from grpo_jax.kernels import trailing
from grpo_jax.policies import TreePolicy
from grpo_jax.policies.tree import support_nodes
from grpo_jax.sequences import Sequences
from grpo_jax.types import Array, Params, Task


def expected_return(policy: TreePolicy, task: Task, params: Params) -> Array:
    """J(θ) = mean over contexts of Σ_y π_θ(y) E[r|y]: a scalar, or [R]."""
    return expected_reward(policy, task, params, all_prompts(policy))


def return_gradient(policy: TreePolicy, task: Task, params: Params) -> Params:
    """∇J(θ), shaped like θ."""
    return jax.grad(lambda p: jnp.sum(expected_return(policy, task, p)))(params)


def return_hessian(policy: TreePolicy, task: Task, params: Params) -> Array:
    """∇²J(θ), [D, D] over the flattened parameters of one run; ``jax.vmap`` serves several."""
    flat, restore = ravel_pytree(params)
    return jax.hessian(lambda x: expected_return(policy, task, restore(x)))(flat)


def step_probabilities(policy: TreePolicy, params: Params) -> Array:
    """[C, nodes, V(, R)] π_θ(a|s)."""
    return jnp.exp(policy.log_probabilities(params, all_prompts(policy)))


def continuing(space: Sequences) -> np.ndarray:
    """int [branching] the tokens that do not end a sequence."""
    return np.array([v for v in range(space.vocab) if v != space.eos])


def visits(policy: TreePolicy, params: Params) -> Array:
    """d(s), [C, nodes(, R)]: the probability of reaching each prefix; their sum is the mean length."""
    space, probabilities = policy.space, step_probabilities(policy, params)
    here = jnp.ones_like(probabilities[:, :1, 0])
    found = [here]
    for first, last in zip(space.offsets[:-2], space.offsets[1:-1], strict=True):
        on = here[:, :, None] * probabilities[:, first:last][:, :, continuing(space)]
        here = on.reshape((on.shape[0], -1, *on.shape[3:]))
        found.append(here)
    return jnp.concatenate(found, 1)


def action_values(policy: TreePolicy, task: Task, params: Params) -> Array:
    """Q(s, a), [C, nodes, V(, R)]: the expected reward after a at s; 0 where a is forbidden."""
    space, probabilities = policy.space, step_probabilities(policy, params)
    values = _final_rewards(policy, task, params)
    for first, last in zip(space.offsets[-2::-1], space.offsets[-1:0:-1], strict=True):
        if last == space.offsets[-1]:
            continue
        after = slice(last, last + (last - first) * space.branching)
        worth = jnp.sum(probabilities[:, after] * values[:, after], 2)
        worth = worth.reshape((worth.shape[0], last - first, space.branching, *worth.shape[2:]))
        allowed = space.allowed[space.depths[first], continuing(space)]
        worth = jnp.where(trailing(allowed[None, None], worth.ndim), worth, 0)
        values = values.at[:, first:last, continuing(space)].set(worth)
    return values


def _final_rewards(policy: TreePolicy, task: Task, params: Params) -> Array:
    """[C, nodes, V(, R)] the mean reward of the sequence that ends with this token at this node, else 0."""
    prompts = all_prompts(policy)
    means = support_means(policy, task, prompts, log_support(policy, params, prompts))
    tokens, mask = policy.space.support
    last = mask.sum(1).astype(int) - 1
    rows = np.arange(len(tokens))
    node, token = support_nodes(policy.space)[rows, last], tokens[rows, last]
    shape = (means.shape[0], policy.space.offsets[-1], policy.space.vocab, *means.shape[2:])
    return jnp.zeros(shape).at[:, node, token].set(means)


def advantages(policy: TreePolicy, task: Task, params: Params) -> Array:
    """Q(s, a) − Σ_b π(b|s) Q(s, b), [C, nodes, V(, R)]."""
    values, probabilities = action_values(policy, task, params), step_probabilities(policy, params)
    return values - jnp.sum(probabilities * values, 2, keepdims=True)


def local_gradient(policy: TreePolicy, task: Task, params: Params, *, old: Params) -> Params:
    """∇_θ Σ_s d_old(s) Σ_a π_θ(a|s) Q_old(s, a), mean over contexts, shaped like θ.

    The gradient at θ of the local surrogate around θ_old. At θ = θ_old it is ∇J.
    """
    weight = visits(policy, old)[:, :, None] * action_values(policy, task, old)
    weight = jax.lax.stop_gradient(weight)

    def surrogate(point: Params) -> Array:
        return jnp.sum(weight * step_probabilities(policy, point)) / weight.shape[0]

    return jax.grad(surrogate)(params)


def state_curvature(policy: TreePolicy, task: Task, params: Params) -> Array:
    """The block of ∇²J(θ) at each state, [C, nodes, V, V(, R)], where states share no parameters.

    d(s)[diag(π∘A) − π(π∘A)ᵀ − (π∘A)πᵀ]/(C τ²), τ the temperature of ``policy.decoding``: neither d(s) nor
    Q(s, ·) depends on the logits at s, and what its filters keep is held. ValueError where ``tie`` lets
    states share logits.
    """
    if policy.tie is not None:
        raise ValueError("states share logits (tie is given), so the curvature has no block for each state")
    probabilities = step_probabilities(policy, params)
    gain = probabilities * advantages(policy, task, params)
    unit = trailing(jnp.eye(policy.space.vocab)[None, None], gain.ndim + 1)
    cross = probabilities[:, :, :, None] * gain[:, :, None]
    block = unit * gain[:, :, None] - cross - jnp.swapaxes(cross, 2, 3)
    temperature = 1.0 if policy.decoding is None else policy.decoding.temperature
    return visits(policy, params)[:, :, None, None] * block / (gain.shape[0] * jnp.square(temperature))


def block_hessian(policy: TreePolicy, task: Task, params: Params) -> Array:
    """H_block, [D, D]: ∇²J(θ) with everything between different states set to 0; one run."""
    blocks = state_curvature(policy, task, params)
    contexts, nodes, vocab = blocks.shape[:3]
    same = jnp.eye(contexts * nodes).reshape(contexts, nodes, 1, contexts, nodes, 1)
    full = same * blocks.reshape(contexts, nodes, vocab, 1, 1, vocab)
    return full.reshape((contexts * nodes * vocab,) * 2)


def lengths(policy: TreePolicy, params: Params) -> Array:
    """[C, T(, R)] probability of length 1, ..., T."""
    chance = jnp.exp(log_support(policy, params, all_prompts(policy)))
    length = policy.space.support[1].sum(1).astype(int)
    member = (length == np.arange(1, policy.horizon + 1)[:, None]).astype(float)
    return _over_outputs(member, chance)


def _over_outputs(member: np.ndarray, chance: Array) -> Array:
    """[C, M(, R)] Σ_y member[m, y]·chance[c, y(, r)]."""
    return jnp.moveaxis(jnp.tensordot(member, chance, (1, 1)), 0, 1)


def expectation(policy: TreePolicy, params: Params, values: Any) -> Array:
    """Mean over contexts of Σ_y π_θ(y)·values[c, y(, r)], differentiable: a scalar, or [R]."""
    return jnp.mean(jnp.sum(jnp.exp(log_support(policy, params, all_prompts(policy))) * values, 1), 0)
