"""Records, protocols and axes that everything else is written in.

Leading axes are the mathematics, trailing axes are runs. P prompts, N entries of a group and T tokens are
axes 0, 1 and 2; whatever follows is runs. So one piece of code serves a single run ``[P, N, T]`` and a chunk
of runs ``[P, N, T, R]`` without ``vmap``: numbers are scalars or ``[R]`` and broadcast from the right, losses
are summed over the leading axes only, and the gradient of the sum over runs is every run's gradient. Where
runs are present, an array that all runs share carries a trailing axis of length one.

A finite action is a sequence of length one; a histogram is a group whose entries carry multiplicities.
"""

from __future__ import annotations

import enum
from typing import Any, ClassVar, NamedTuple, Protocol, TypeAlias, runtime_checkable

import jax
import numpy as np

from grpo_jax.part import subparts

PROMPT, ENTRY, TOKEN = 0, 1, 2
"""The leading axes of every array of a rollout."""

Array: TypeAlias = jax.Array
Number: TypeAlias = float | jax.Array
"""A traced hyperparameter: a scalar, or ``[R]``, one value per run."""
Params: TypeAlias = Any


def fits(shape: tuple[int, ...], lead: tuple[int, ...], *, runs: int = 0) -> bool:
    """Whether a shape is a scalar's, or the axes ``lead``, each whole or of length one, and ``runs`` more."""
    same = all(own in (1, full) for own, full in zip(shape, lead, strict=False))
    return not shape or (len(shape) == len(lead) + runs and same)


class Rollout(NamedTuple):
    """A batch of groups: P prompts, N entries each, T tokens (and optionally runs behind).

    Masked places may hold any number, NaN included: nothing reads them. An entry of multiplicity 0 is absent.
    """

    prompts: Array
    """[P] prompt ids, or [P, Tq] prompt tokens."""
    tokens: Array
    """int [P, N, T]."""
    mask: Array
    """[P, N, T], 1 where the token counts; holes are allowed."""
    rewards: Array
    """[P, N, M], M rewards for each entry (usually one)."""
    multiplicity: Array
    """[P, N]: 1 a sample, n a count, a fraction a conditional expectation, 0 absent."""
    sampling_logp: Array
    """[P, N, T] log-probability under whoever sampled (an inference engine, say)."""
    old_logp: Array
    """[P, N, T] log-probability under the old policy: the denominator of the ratio."""
    ref_logp: Array
    """[P, N, T] log-probability under the reference: the anchor of the penalty."""
    entropy: Array | None = None
    """[P, N, T] entropy in nats of the next-token distribution; needed by some corrections only."""
    baseline: Array | None = None
    """[P, N] baseline supplied from outside (ReMax's greedy reward); needed by one advantage only."""


class Scores(NamedTuple):
    """What a policy says of given tokens."""

    logp: Array
    """[P, N, T] log-probability of each token given the ones before it; 0 where masked."""
    entropy: Array
    """[P, N, T] entropy in nats of the distribution that the token was drawn from; 0 where masked."""


class Support(NamedTuple):
    """Every output a policy can give to each prompt; S of them."""

    tokens: Array | np.ndarray
    """int [P, S, T]."""
    mask: Array | np.ndarray
    """[P, S, T]."""


class Levels(NamedTuple):
    """The finite law of a stochastic reward given the output; L values."""

    values: Array
    """[P, S, L] reward values."""
    probabilities: Array
    """[P, S, L], summing to one over L."""


class Coupling(enum.IntEnum):
    """What a part's value for one entry depends on, besides the entry itself."""

    NOTHING = 0
    GROUP = 1
    BATCH = 2


def coupling(tree: Any) -> Coupling:
    """The widest coupling that any part of the tree declares (``couples``, default nothing).

    Exact expectations over groups are exact for group coupling at any P, and for batch coupling at P = 1.
    """
    return max((getattr(p, "couples", Coupling.NOTHING) for p in subparts(tree)), default=Coupling.NOTHING)


@runtime_checkable
class Policy(Protocol):
    """A differentiable family of distributions over token sequences."""

    trailing: ClassVar[bool]
    """Whether runs may stand as a last axis; otherwise runs are vmapped."""
    rank: ClassVar[int]
    """The number of axes of a parameter table before runs (read only where ``trailing``)."""

    @property
    def horizon(self) -> int:
        """T, the greatest number of tokens."""

    @property
    def contexts(self) -> int | None:
        """The number of prompt ids it knows; None when prompts are token sequences."""

    def init(self, key: Array) -> Params:
        """Initial parameters."""

    def sample(self, params: Params, prompts: Array, uniforms: Array) -> tuple[Array, Array]:
        """Tokens and mask [P, G, T] by inverse CDF from uniforms [P, G, T] in [0, 1)."""

    def score(self, params: Params, prompts: Array, tokens: Array, mask: Array) -> Scores:
        """Log-probability and entropy at each given token."""

    def support(self, prompts: Array) -> Support | None:
        """All outputs of each prompt, or None where they cannot be listed."""

    def score_support(self, params: Params, prompts: Array) -> Scores:
        """``score`` of the whole support, in order."""


@runtime_checkable
class Task(Protocol):
    """Prompts and verifiable rewards."""

    def prompts(self, uniforms: Array) -> Array:
        """[P] prompts from uniforms [P]."""

    def rewards(self, prompts: Array, tokens: Array, mask: Array, uniforms: Array) -> Array:
        """[P, N, M] rewards; uniforms [P, N] are the reward's own noise."""

    def means(self, prompts: Array, tokens: Array, mask: Array) -> Array:
        """[P, N] expected total reward given each output."""

    def levels(self, prompts: Array, tokens: Array, mask: Array) -> Levels | None:
        """The reward's law given each output, where it is finite (one level for a deterministic reward)."""
