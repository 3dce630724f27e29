"""Dynamic sampling: a group whose rewards all tie is drawn anew (DAPO, arXiv:2503.14476).

With t the probability that a group of a prompt ties, and k tries, a mixed group h has the probability

    w_h·(1 + t + ... + t^{k−1}),    w_h·t^{k−1} if it is tied,

w_h its probability at the first try. So each prompt's update is multiplied by (1 − t^k)/(1 − t), towards
1/P(mixed), at the price of (1 − t^k)/(1 − t) groups drawn. Where a tied group gives its place to another
prompt, all prompts share one factor, 1/(share of mixed groups), and the price is that, too.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from grpo_jax.kernels import per_prompt, take_rows
from grpo_jax.part import part, static
from grpo_jax.statistics import tied
from grpo_jax.types import Array, Rollout


class Filled(NamedTuple):
    """A batch after groups were drawn anew."""

    rollout: Rollout
    origin: Any
    drawn: Array
    """[P(, R)] groups drawn for each that is kept; their mean, where prompts take each other's places."""


@part
class Refill:
    """Groups are drawn until their rewards do not all tie; an entry's reward is the plain sum of its rewards.

    Where no try gives a mixed group a tied one stays, whose advantages are 0 (libraries stop there).

    Args:
      tries: how often a group is drawn at most; with ``other`` how many prompts are drawn at most for each
        one kept (verl's ``filter_groups.max_num_gen_batches``).
      other: a tied group gives its place to the next prompt drawn, as in DAPO, verl and NeMo-RL; otherwise
        the same prompt is asked again. Needs prompts that are drawn (``Loop(prompts=...)``).
    """

    tries: int = static(10, low=1)
    other: bool = static(False)

    def widened(self, group_size: int, prompts: int | None) -> tuple[int, int | None]:
        """Group size and prompts of a batch that holds every try."""
        if not self.other:
            return group_size * self.tries, prompts
        assert prompts is not None
        return group_size, prompts * self.tries

    def filled(self, rollout: Rollout, origin: Any) -> Filled:
        """The groups that are kept out of a batch that holds every try."""
        return self._other(rollout, origin) if self.other else self._same(rollout, origin)

    def _same(self, rollout: Rollout, origin: Any) -> Filled:
        def tries(leaf: Array) -> Array:
            return leaf.reshape((leaf.shape[0], self.tries, -1, *leaf.shape[2:]))

        same = tied(tries(jnp.sum(rollout.rewards, 2)), tries(rollout.multiplicity), (2,))[:, :, 0]
        place = jnp.where(jnp.all(same, 1), self.tries - 1, jnp.argmin(same, 1))

        def pick(leaf: Array) -> Array:
            leaf = tries(leaf)
            index = per_prompt(place, leaf.ndim)
            shape = jnp.broadcast_shapes(leaf.shape[2:], index.shape[2:])
            wide = jnp.broadcast_to(leaf, leaf.shape[:2] + shape)
            index = jnp.broadcast_to(index, (leaf.shape[0], 1, *shape))
            return jnp.take_along_axis(wide, index, axis=1)[:, 0]

        entries = rollout._asdict()
        prompts = entries.pop("prompts")
        entries, origin = jax.tree.map(pick, (entries, origin))
        return Filled(Rollout(prompts=prompts, **entries), origin, (place + 1).astype(rollout.rewards.dtype))

    def _other(self, rollout: Rollout, origin: Any) -> Filled:
        same = tied(jnp.sum(rollout.rewards, 2), rollout.multiplicity, (1,))[:, 0]
        prompts = same.shape[0] // self.tries
        rows = jnp.argsort(same, axis=0, stable=True)[:prompts]
        enough = jnp.sum(~same, 0) >= prompts
        drawn = jnp.where(enough, rows[-1] + 1, same.shape[0]) / prompts
        rollout, origin = take_rows((rollout, origin), rows)
        return Filled(rollout, origin, jnp.broadcast_to(drawn, rows.shape).astype(rollout.rewards.dtype))

    def ties(self, rollout: Rollout, group_size: int) -> Array:
        """[P(, R)] t = Σ_v P(reward = v)^G of a rollout of outcomes; multiplicities are probabilities."""
        rewards, chance = jnp.sum(rollout.rewards, 2), rollout.multiplicity
        equal = rewards[:, :, None] == rewards[:, None]
        mass = jnp.sum(jnp.where(equal, chance[:, None], 0), 2)
        return jnp.sum(chance * mass ** (group_size - 1), 1)

    def price(self, ties: Array) -> Array:
        """1 + t + ... + t^{k−1}, the expected number of groups drawn. Elementwise."""
        return sum((ties**j for j in range(self.tries)), jnp.zeros_like(ties))

    def factor(self, same: Array, ties: Array) -> Array:
        """By what the probability of a group is multiplied, one that ties (``same``) or not. Elementwise."""
        return jnp.where(same, ties ** (self.tries - 1), self.price(ties))
