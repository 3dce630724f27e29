"""Expected objective, gradient and preference at any (θ, θ_old), and the law of the gradient over groups.

All of them take every context once (P = C); under group coupling drawn prompts have the same expectation.
Parameters may carry runs as their last axis, except where said. Gradients are those of J, to be ascended.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from grpo_jax.collectors import choose
from grpo_jax.config import Config, TrainState
from grpo_jax.exact.expectation import Exact
from grpo_jax.part import aligned, put
from grpo_jax.types import Array, Params, evaluated_at_old


def decided(config: Config) -> Config:
    """The configuration over every context, with the cells of its expectation decided where known."""
    given = config.expectation if isinstance(config.expectation, Exact) else Exact()
    return choose(put(put(config, "loop.prompts", None), "expectation", given))


def state_of(config: Config, old: Params, reference: Params) -> tuple[Config, TrainState]:
    """A state that samples from ``old``, whatever its age, and the configuration ready for its runs.

    Both trees are shaped like the policy's parameters, runs last.
    """
    leaf = jax.tree.leaves(old)[0]
    runs = config.policy.trailing and jnp.ndim(leaf) > config.policy.rank
    seed = jnp.zeros(jnp.shape(leaf)[-1:] if runs else (), jnp.uint32)
    zero = jnp.uint32(0)
    config = aligned(config) if runs else config
    queue = None if config.behavior is None else config.behavior.queued(old)
    return config, TrainState(old, old, reference, None, zero, zero, seed, queue)


@jax.jit
def _objective(config: Config, params: Params, old: Params, reference: Params) -> Array:
    config, state = state_of(config, old, reference)
    assert isinstance(config.expectation, Exact)
    return config.expectation.objective(config, config.expectation.collect(config, state), params)[0]


@jax.jit
def _gradient(config: Config, params: Params, old: Params, reference: Params) -> Params:
    return jax.grad(lambda p: jnp.sum(_objective(config, p, old, reference)))(params)


def expected_objective(
    config: Config, params: Params, *, old: Params | None = None, reference: Params | None = None
) -> Array:
    """E[J(θ)] over groups drawn from the old policy: a scalar, or [R].

    Args:
      config: its policy, task, method and group size; the optimizer is not read. ``expectation`` may be an
        ``Exact(cells=...)``.
      params: θ.
      old: θ_old; None is θ, held fixed.
      reference: θ_ref; None is ``config.reference``, and θ_old where that is None, too.

    A sampler's ``Noise`` is held at one draw, that of seed and root 0 at step 0: the expectation is over
    groups, given that draw.
    """
    return _objective(decided(config), *points(config, params, old, reference))


def expected_gradient(
    config: Config, params: Params, *, old: Params | None = None, reference: Params | None = None
) -> Params:
    """E[∇J(θ)], shaped like θ: what the optimizer is fed on average (with its sign turned).

    The arguments are those of ``expected_objective``, and so is what is held (``Noise``). A method whose
    ratio is ``Frozen`` has its gradient at θ_old whatever θ is. Differentiable: give ``old`` as well, to let
    θ_old move along.
    """
    params, old, reference = points(config, params, old, reference)
    at = old if evaluated_at_old(config.method.ratio) else params
    return _gradient(decided(config), at, old, reference)


def points(
    config: Config, params: Params, old: Params | None, reference: Params | None
) -> tuple[Params, Params, Params]:
    """θ, θ_old (θ itself, held, if None) and θ_ref, all of the default float type.

    Three trees shaped like the policy's parameters.

    θ_ref is what is given, else the configuration's, else θ_old. One table serves all runs of θ_old.
    """

    def floats(tree: Params) -> Params:
        return jax.tree.map(lambda x: jnp.asarray(x, float), tree)

    def like(own: Array, old: Array) -> Array:
        return jnp.broadcast_to(own if own.ndim == old.ndim else own[..., None], old.shape)

    params = floats(params)
    old = jax.lax.stop_gradient(params) if old is None else floats(old)
    if reference is not None:
        return params, old, floats(reference)
    if config.reference is not None:
        return params, old, jax.tree.map(like, floats(config.reference), old)
    return params, old, old
