"""How old the sampler's weights are: one lag, ages mixed in a batch, ages that grow with an answer's length.

θ_{n−a} are the weights of a iterations ago; of the first iterations they are the start's. An output of length
|o| that the trainer reads at iteration n has the age

    a = b + ⌈|o|/speed⌉ − 1,    b uniform on {lag, ..., lag + spread}

and comes from q_{n−a}. Answers of all ages arrive together, so that the law of one that arrives is

    P(o, a) ∝ p(b)·q_{n−a}(o)    with b = a + 1 − ⌈|o|/speed⌉

normalised over every age in the queue. Those older than ``limit`` are lost.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from grpo_jax.bounds import is_concrete
from grpo_jax.kernels import trailing
from grpo_jax.part import number, part, static
from grpo_jax.statistics import divide
from grpo_jax.types import Array, Number, Params, support_of

NUMBERS = ("lag", "spread", "speed", "limit")
SLACK = 1e-4
"""Of a quotient of lengths that rounding has put just above a whole number."""


def _most(value: Any) -> float:
    return 0.0 if value is None else float(np.max(np.asarray(value)))


@part
class Age:
    """The sampler's weights are ``lag`` iterations old (of the first iterations: as old as the run).

    Args:
      lag: whole number of iterations; a number, so that it can be swept.
      depth: how many past policies the state keeps, one copy of the parameters each; the greatest age.
      spread: ages lag, ..., lag + spread are equally likely, for each answer by itself; None is 0.
      speed: tokens that the engine writes in an iteration: an answer of ⌈|o|/speed⌉ iterations is that many
        less one older. None writes every answer within one. Needs outputs that can be listed.
      limit: answers older than this many iterations are lost; None keeps all.
      refill: draws anew in the place of an answer that is lost, until the group is whole; otherwise the group
        is smaller by it, and no statistic sees it.
    """

    lag: Number = number(1.0, low=0.0, integer=True)
    depth: int = static(1, low=1)
    spread: Number | None = number(None, low=0.0, integer=True)
    speed: Number | None = number(None, low=0.0, open_low=True)
    limit: Number | None = number(None, low=0.0, integer=True)
    refill: bool = static(True)

    def check(self) -> None:
        """No age is deeper than the queue, and some are within the limit."""
        self.require_depth(_most(self.lag) + _most(self.spread))
        if self.limit is not None and (np.asarray(self.limit) < np.asarray(self.lag)).any():
            raise ValueError(
                f"limit is {self.limit}, below the lag of {self.lag}: every answer is too old, and none is "
                "left to train on"
            )

    def require_depth(self, oldest: float) -> None:
        """ValueError for an age that the queue does not reach."""
        if oldest > self.depth:
            what = "lag" if self.spread is None and self.speed is None else "the greatest age"
            raise ValueError(
                f"{what} is {oldest:g}, older than the {self.depth} policies kept; give depth={oldest:g}"
            )

    @property
    def mixed(self) -> bool:
        """Whether answers of one batch may differ in age, or be lost."""
        return self.spread is not None or self.speed is not None or self.limit is not None

    @property
    def loses(self) -> bool:
        """Whether groups may lack members."""
        return self.limit is not None and not self.refill

    def queued(self, params: Params) -> Params:
        """A queue [depth + 1, ...] that holds these parameters only."""
        return jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (self.depth + 1, *leaf.shape)), params)

    def pushed(self, queue: Params, params: Params) -> Params:
        """The queue with these parameters as the newest. Leaves [age, ...]."""
        return jax.tree.map(lambda old, new: jnp.concatenate([new[None], old[:-1]]), queue, params)

    def waits(self, lengths: Array) -> Array:
        """⌈|o|/speed⌉ − 1, the iterations that answers of these lengths take beyond their first.

        Elementwise.
        """
        if self.speed is None:
            return jnp.zeros_like(lengths)
        return jnp.maximum(jnp.ceil(lengths / self.speed - SLACK) - 1, 0)

    def started(self, ages: Array) -> Array:
        """p(b) of starts ``ages`` iterations ago; 0 outside lag, ..., lag + spread. Elementwise."""
        spread = 0.0 if self.spread is None else self.spread
        inside = (ages >= self.lag) & (ages <= self.lag + spread)
        return jnp.where(inside, 1 / (1 + jnp.asarray(spread, float)), 0.0)

    def in_time(self, ages: Array) -> Array:
        """bool, which ages are within the limit. Elementwise."""
        return jnp.full(ages.shape, True) if self.limit is None else ages <= self.limit

    def law(self, logp: Array, lengths: Array) -> tuple[Array, Array]:
        """The law of what arrives.

        Args:
          logp: [P, S, depth + 1(, R)] log q_{n−a}(o) by age.
          lengths: [P, S(, R or 1)] tokens of every output.

        Returns:
          P(o, a), and whether (o, a) is not lost, both [P, S, depth + 1(, R)]; the first sums to one over
          outputs and ages, over those in time only where lost ones are drawn anew.
        """
        ages = trailing(jnp.arange(self.depth + 1, dtype=logp.dtype), logp.ndim - 2)
        mass = jnp.exp(logp) * self.started(ages - self.waits(lengths)[:, :, None])
        alive = jnp.broadcast_to(self.in_time(ages), mass.shape)
        if self.refill:
            mass = jnp.where(alive, mass, 0)
        return divide(mass, jnp.sum(mass, (1, 2), keepdims=True)), alive


def check_ages(age: Age, policy: Any, given: Mapping[str, Any], *, prefix: str = "") -> None:
    """ValueError for ages beyond the queue, or of which none is within the limit, at the numbers of any run.

    Args:
      age: the part; numbers that are traced pass unseen.
      policy: whose outputs have lengths.
      given: path -> values that a sweep puts in the place of the part's own.
      prefix: of the part's paths.
    """
    numbers = {name: given.get(f"{prefix}{name}", getattr(age, name)) for name in NUMBERS}
    if not all(value is None or is_concrete(value) for value in numbers.values()):
        return
    support = support_of(policy, np.zeros(1, int)) if age.mixed else None
    if age.speed is not None and support is None:
        raise ValueError(
            "an age that depends on an answer's length (speed) needs outputs that can be listed; "
            f"{type(policy).__name__} lists none; leave speed out"
        )
    newest = oldest = _most(numbers["lag"])
    oldest += _most(numbers["spread"])
    if support is not None and age.speed is not None:
        slowest = Age(speed=float(np.min(np.asarray(numbers["speed"]))))
        lengths = jnp.sum(jnp.asarray(support.mask), 2)
        waits = np.asarray(slowest.waits(lengths))
        newest, oldest = newest + float(waits.min()), oldest + float(waits.max())
    age.require_depth(oldest)
    limit = numbers["limit"]
    if limit is not None and np.min(np.asarray(limit)) < newest:
        raise ValueError(
            f"limit is {np.min(np.asarray(limit)):g}, but even the newest answers are {newest:g} iterations "
            "old: none is left to train on"
        )


def picked(queue: Params, lag: Number) -> Params:
    """The parameters ``lag`` iterations ago, out of a queue [depth + 1, ...]."""

    def pick(leaf: Array) -> Array:
        place = jnp.asarray(lag).astype(int)
        if place.ndim == 0:
            return leaf[place]
        index = jnp.broadcast_to(place, leaf.shape[1:])[None]
        return jnp.take_along_axis(leaf, index, axis=0)[0]

    return jax.tree.map(pick, queue)


def of_age(arrays: Array, age: Array) -> Array:
    """arrays[a, p, g, ...] at a = age[p, g(, R)]: what belongs to each entry, [P, G, ...(, R)]."""
    rank = arrays.ndim - 1
    index = age if age.ndim == rank else jnp.expand_dims(age, 2)
    shape = jnp.broadcast_shapes(arrays.shape[1:], index.shape)
    wide = jnp.broadcast_to(arrays, (arrays.shape[0], *shape))
    return jnp.take_along_axis(wide, jnp.broadcast_to(index, shape)[None].astype(int), axis=0)[0]
