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
    truncated: Array | None = None
    """[P, N] 1 where an output was cut off at the budget: it ends without end-of-sequence. Only there where a
    part reads it (``ReadsTruncation``)."""


class Evaluation(NamedTuple):
    """A batch at θ: what gains, corrections and penalties are functions of. Arrays are [P, N, T]."""

    rollout: Rollout
    logp: Array
    """log π_θ of every token."""
    log_ratio: Array
    """log s, as the method's ratio measures it."""
    advantages: Array
    """[P, N, 1 or T], constants."""


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


# What a policy, a task or a part may be able to do besides: optional protocols, asked for with isinstance.


@runtime_checkable
class Listable(Protocol):
    """A policy whose outputs can be listed, so that expectations over them are sums."""

    def support(self, prompts: Array) -> Support | None:
        """All outputs of each prompt, or None where there are too many to list."""

    def score_support(self, params: Params, prompts: Array) -> Scores:
        """``score`` of the whole support, in order."""


@runtime_checkable
class Countable(Protocol):
    """A policy that counts its draws over the support without storing them."""

    def counts(self, params: Params, prompts: Array, uniforms: Array) -> Array:
        """[P, S] histogram over the support of what ``sample`` draws from the same uniforms."""


@runtime_checkable
class FiniteActions(Protocol):
    """A policy whose outputs are single actions."""

    @property
    def actions(self) -> int:
        """K."""


@runtime_checkable
class Tabular(Protocol):
    """A policy whose parameters are a table of logits, [C, ..., K]."""

    logits: Any
    """Where training starts; −inf is probability 0."""


@runtime_checkable
class Decodable(Protocol):
    """A policy that can be given other sampling parameters (``decoding.Decoding``)."""

    decoding: Any


@runtime_checkable
class OverSequences(Protocol):
    """A policy or a task over a finite space of token sequences (``sequences.Sequences``)."""

    space: Any


@runtime_checkable
class HasActivations(Protocol):
    """A policy that says how much memory its gradient takes."""

    @property
    def numbers_per_token(self) -> int:
        """Numbers that are held for one token of a batch until the gradient has passed it."""


@runtime_checkable
class HasMeans(Protocol):
    """A task that knows the expected reward of an output."""

    def means(self, prompts: Array, tokens: Array, mask: Array) -> Array:
        """[P, N] expected total reward given each output."""


@runtime_checkable
class HasLevels(Protocol):
    """A task that knows the finite law of an output's reward."""

    def levels(self, prompts: Array, tokens: Array, mask: Array) -> Levels | None:
        """The reward's law given each output, or None where it is not finite."""


@runtime_checkable
class HasNoise(Protocol):
    """A task that declares its reward's noise; None says that the reward depends on the output alone."""

    noise: Any


@runtime_checkable
class HasTable(Protocol):
    """A task whose rewards are a table, [C, K] by action or [C, S] by row of the support."""

    table: Any


@runtime_checkable
class OneToken(Protocol):
    """A task whose answers are single tokens, numbered by the columns of its table."""

    one_token: ClassVar[bool]
    table: Any


@runtime_checkable
class HasContexts(Protocol):
    """A task that knows its number of prompts."""

    contexts: int


@runtime_checkable
class HasHeldOut(Protocol):
    """A task that keeps some of its problems from training."""

    def held_out_prompts(self, uniforms: Array) -> Array:
        """Held-out prompts from uniforms [P]."""

    def grade(self, prompts: Array, tokens: Array, mask: Array) -> Array:
        """[P, N] in [0, 1], 1 for a right answer: what the reward is made of, without noise or wrappers."""


@runtime_checkable
class Teaches(HasHeldOut, Protocol):
    """A task with right answers to imitate."""

    def demonstrations(self, uniforms: Array) -> tuple[Array, Array, Array]:
        """Training prompts from uniforms [P], and tokens and mask [P, T] of a right answer to each."""


@runtime_checkable
class Couples(Protocol):
    """A part whose value for one entry depends on others; a part without it couples nothing."""

    couples: ClassVar[Coupling]


@runtime_checkable
class ReadsLengths(Protocol):
    """A part whose group or batch statistic depends on outputs' lengths."""

    reads_lengths: ClassVar[bool]


@runtime_checkable
class ReadsTruncation(Protocol):
    """A part that reads ``rollout.truncated``."""

    reads_truncation: ClassVar[bool]


@runtime_checkable
class CellSafe(Protocol):
    """A coupling part whose statistics are functions of rewards (and of what else it says that it reads)."""

    cell_safe: ClassVar[bool]


@runtime_checkable
class ReadsOldLogp(Protocol):
    """A part that couples nothing, but hands log-probabilities under π_old on to parts that do."""

    reads_old_logp: ClassVar[bool]


@runtime_checkable
class SplitsRewards(Protocol):
    """A part that says whether it reads an entry's M rewards one by one, rather than their sum.

    One of this package that says nothing reads the sum; one from outside may do either.
    """

    splits_rewards: ClassVar[bool]


@runtime_checkable
class NeedsGroup(Protocol):
    """A part without meaning in groups smaller than ``least_group``."""

    least_group: ClassVar[int]


@runtime_checkable
class ReadsReference(Protocol):
    """A part that reads π_ref wherever its coefficient is not 0."""

    @property
    def reference_coef(self) -> Number:
        """The coefficient."""


@runtime_checkable
class CorrectsSampler(Protocol):
    """A part that reads ``rollout.sampling_logp``: without a sampler apart from π_old it corrects nothing."""

    corrects_sampler: bool


@runtime_checkable
class LimitsWeights(Protocol):
    """A correction that truncates or masks the weights of tokens whose sampler was another policy."""

    def limited(self, rollout: Rollout) -> Array:
        """bool [P, N, T], where it does."""


@runtime_checkable
class EvaluatedAtOld(Protocol):
    """A ratio whose gradient is taken at θ_old in every inner step."""

    at_old: ClassVar[bool]


@runtime_checkable
class ReducesParams(Protocol):
    """An optimizer that reduces over parameters (a global norm): it is given one run at a time."""

    reduces: ClassVar[bool]


def coupling(tree: Any) -> Coupling:
    """The widest coupling that any part of the tree declares.

    Exact expectations over groups are exact for group coupling at any P, and for batch coupling at P = 1.
    """
    return max((p.couples for p in subparts(tree) if isinstance(p, Couples)), default=Coupling.NOTHING)


def reads_lengths(tree: Any) -> bool:
    """Whether any part of the tree reads lengths."""
    return any(p.reads_lengths for p in subparts(tree) if isinstance(p, ReadsLengths))


def reads_truncation(tree: Any) -> bool:
    """Whether any part of the tree reads which outputs were cut off."""
    return any(p.reads_truncation for p in subparts(tree) if isinstance(p, ReadsTruncation))


def evaluated_at_old(ratio: Any) -> bool:
    """Whether a method with this ratio has its gradient at θ_old."""
    return isinstance(ratio, EvaluatedAtOld) and ratio.at_old


def support_of(policy: Any, prompts: Any) -> Support | None:
    """The policy's outputs, or None where it cannot list them."""
    return policy.support(prompts) if isinstance(policy, Listable) else None


def require_support(policy: Any, prompts: Any, *, instead: str) -> Support:
    """The policy's outputs; ValueError, with what to do ``instead``, where it cannot list them."""
    support = support_of(policy, prompts)
    if support is None:
        why = (
            "has more outputs than can be listed"
            if isinstance(policy, Listable)
            else "cannot list its outputs"
        )
        raise ValueError(f"{type(policy).__name__} {why}; {instead}")
    return support


def require_means(task: Any, *, instead: str) -> HasMeans:
    """The task; ValueError, with what to do ``instead``, where it does not know expected rewards."""
    if not isinstance(task, HasMeans):
        raise ValueError(f"{type(task).__name__} does not know expected rewards (no ``means``); {instead}")
    return task


@runtime_checkable
class Policy(Protocol):
    """A differentiable family of distributions over token sequences.

    One whose outputs can be listed is ``Listable`` too.
    """

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


@runtime_checkable
class Task(Protocol):
    """Prompts and verifiable rewards; ``HasMeans`` and ``HasLevels`` say what more is known of them."""

    def prompts(self, uniforms: Array) -> Array:
        """[P] prompts from uniforms [P]."""

    def rewards(self, prompts: Array, tokens: Array, mask: Array, uniforms: Array) -> Array:
        """[P, N, M] rewards; uniforms [P, N] are the reward's own noise."""
