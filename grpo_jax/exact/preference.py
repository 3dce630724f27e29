"""The expected group preference P_G(o|π) of [A]."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from grpo_jax.collectors import draw_prompts
from grpo_jax.config import Config
from grpo_jax.exact.expectation import Exact, enumeration, expect
from grpo_jax.exact.gradient import decided, points, state_of
from grpo_jax.exact.groups import require_couplings
from grpo_jax.exact.outcomes import outcomes, support_levels
from grpo_jax.kernels import trailing
from grpo_jax.sampling import mixed
from grpo_jax.surrogate import advantages
from grpo_jax.types import Array, Params, Rollout


def expected_preference(config: Config, old: Params, *, reference: Params | None = None) -> Array:
    """P_G(o|π_old) = E[A_1 | o_1 = o; o_2, ..., o_G ~ π_old], an output's advantage among others ([A]).

    Args:
      config: its policy, task, method and group size.
      old: parameters of the policy that the others come from; outputs of probability 0 count too.
      reference: θ_ref, where advantages read it; None is ``config.reference``, else ``old``.

    Returns:
      [C, S(, R)], mean over the output's reward levels. ValueError for advantages that differ by token, and
      for those that couple the whole batch where there are several contexts.
    """
    _, old, reference = points(config, old, old, reference)
    return _preference(decided(config), old, reference)


@jax.jit
def _preference(config: Config, old: Params, reference: Params) -> Array:
    config, state = state_of(config, old, reference)
    assert isinstance(config.expectation, Exact)
    if mixed(config):
        raise ValueError("answers of one batch differ in age, so an output has no single preference")
    every, _ = outcomes(config, state, draw_prompts(config, state))
    require_couplings((config.method.shaping, config.method.advantage), len(every.prompts))
    count, size = every.multiplicity.shape[1], config.loop.group_size
    others = enumeration(config, every, group_size=size - 1, cells=config.expectation.cells or 0)

    def terms(rollout: Rollout, _: Array) -> Array:
        def of(outcome: Array) -> Array:
            here = trailing(jnp.arange(count)[None], rollout.multiplicity.ndim) == outcome
            group = rollout._replace(multiplicity=rollout.multiplicity + here)
            advantage = advantages(config.method, group)
            if advantage.shape[2] != 1:
                raise ValueError("advantages differ by token, so an output has no single preference")
            return jnp.sum(jnp.where(here, advantage[:, :, 0], 0), 1)

        return jax.vmap(of, out_axes=1)(jnp.arange(count))

    levels = support_levels(config, state, every.prompts)[2].probabilities
    found = expect(config, others, terms)
    found = found.reshape((*levels.shape[:2], -1, *found.shape[2:]))
    return jnp.sum(found * levels, 2)
