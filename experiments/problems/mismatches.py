"""Engines that are apart from the policy, and what is done about them, as tables that one program holds.

At the first step on a batch the trained policy is still the old one. Every weight, mask and trust region is
then a factor c_t on A·∇log π(y_t|·), whatever slot it has in training:

    g = 1/G Σ_i (r_i − r̄) u_i,    u_i = Σ_t c_t(y_i, sign A_i) ∇log π(y_{i,t}|·),    y_i ~ q

With two levels of reward the sign of A is that of the reward, in every group in which A is not 0. So g is a
sample covariance of r and u, and its mean and variance over all groups are moments under q.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import grpo_jax as gj
from experiments.formulas import expected_updates as closed
from experiments.problems.trees import Problem
from experiments.problems.weights import LengthPower
from grpo_jax.behavior import Mismatch, Noise, Rounded
from grpo_jax.methods import SHIFT
from grpo_jax.part import number, part
from grpo_jax.parts.gains import Clip, Gain, Linear, TruncatedScore
from grpo_jax.parts.ratios import Ratio, Score, SequenceMean, Token, Trajectory
from grpo_jax.parts.sampler import (
    BothBinaryKL,
    MismatchRatio,
    SamplerMask,
    SamplerMismatch,
    TotalVariation,
)
from grpo_jax.parts.soft_gains import BinaryKLRegion, VariationRegion
from grpo_jax.sequences import Sequences
from grpo_jax.statistics import divide
from grpo_jax.surrogate import Method
from grpo_jax.types import Array, Evaluation, Number, Params, Rollout

INF = float("inf")
CAP = 2.0
"""Of truncated weights and of masks, at every level, so that levels can be compared."""
REGION = 0.1
"""Of trust regions, in probability or in nats: what prime-rl takes (pull requests 3236, 2798 and 3283)."""
WIDE = 0.2
"""Of DPPO's and IPO's masks where prime-rl took them over (pull requests 1930, 2187, 2434)."""
EXCESSIVE = 8.0
"""The ratio that prime-rl's pull requests 1030 and 1101 call excessively high."""
RATE = 0.02
"""Of AdamW, at which runs without mismatch climb from .5 to .9 in a hundred iterations."""
Correction = Callable[[Evaluation], Array]


@part
class AgainstSampler:
    """A gain whose ratio has the sampler as its denominator, as a factor: (∂J/∂log π)/A, 0 where A is 0."""

    gain: Gain = Linear()
    ratio: Ratio = Token()

    def __call__(self, at: Evaluation) -> Array:
        rollout = at.rollout._replace(old_logp=at.rollout.sampling_logp)

        def total(logp: Array) -> Array:
            return jnp.sum(self.gain(Evaluation(rollout, logp, self.ratio(rollout, logp), at.advantages)))

        return divide(jax.grad(total)(jax.lax.stop_gradient(at.logp)), at.advantages)


CORRECTIONS: dict[str, Correction] = {
    "none": SamplerMismatch(low=1.0, high=1.0),
    "token weights": SamplerMismatch(high=INF),
    "sequence weights": SamplerMismatch(ratio=Trajectory(), high=INF),
    "token TIS": SamplerMismatch(high=CAP),
    "sequence TIS": SamplerMismatch(ratio=Trajectory(), high=CAP),
    "geometric TIS": SamplerMismatch(ratio=SequenceMean(), high=CAP),
    "token mask": SamplerMask(high=CAP),
    "sequence mask": SamplerMask(ratio=Trajectory(), statistic=MismatchRatio(ratio=Trajectory()), high=CAP),
    "geometric mask": SamplerMask(statistic=MismatchRatio(ratio=SequenceMean()), low=1 / CAP, high=CAP),
    "IcePop": SamplerMask(low=0.2, high=5.0),
    "PPO's clip": AgainstSampler(gain=Clip(low=0.2, high=0.2)),
    "CISPO": AgainstSampler(gain=TruncatedScore(low=1.0, high=0.2)),
    "DPPO (TV)": AgainstSampler(gain=VariationRegion(low=REGION, high=REGION)),
    "DPPO (KL)": AgainstSampler(gain=BinaryKLRegion(low=REGION, high=REGION)),
    "IPO": SamplerMask(statistic=TotalVariation(), high=REGION),
    "KPop": SamplerMask(statistic=BothBinaryKL(), high=REGION),
}
"""Masks by tokens and by the geometric mean keep token weights, the mask by sequences sequence weights."""
ROWS = list(CORRECTIONS)
AS_QUOTED: dict[str, Correction] = {
    "token TIS at 8": SamplerMismatch(high=EXCESSIVE),
    "token mask at 8": SamplerMask(high=EXCESSIVE),
    "DPPO (TV) at 0.2": AgainstSampler(gain=VariationRegion(low=WIDE, high=WIDE)),
    "IPO at 0.2": SamplerMask(statistic=TotalVariation(), high=WIDE),
}
"""The same at the sizes that users' sentences are about; none is a row of the map."""
EVERY = [*ROWS, *AS_QUOTED]
EXPERT = 0.1
"""Chance per state of another expert."""


def engine(kind: str, size: float) -> Mismatch:
    """An engine's weights; noise of this root mean square over all logits, except for ``bfloat16``."""
    if kind == "bfloat16":
        return Rounded()
    if kind == "expert":
        return Noise(scale=size / EXPERT**0.5, chance=EXPERT)
    return Noise(scale=size, fresh=kind == "fresh")


@part
class Chosen:
    """The row of ``CORRECTIONS`` with this number, so that one program holds all of them."""

    row: Number = number(0.0, low=0.0, high=float(len(CORRECTIONS) - 1))
    corrects_sampler: ClassVar[bool] = True

    def __call__(self, at: Evaluation) -> Array:
        factors = [correction(at) for correction in CORRECTIONS.values()]
        return jnp.select([self.row == place for place in range(len(factors))], factors)


ENGINES: dict[str, Mismatch] = {
    "same": Noise(scale=0.0),
    "bfloat16": engine("bfloat16", 0.0),
    "fixed": engine("fixed", 0.8),
    "fresh": engine("fresh", 0.8),
    "expert": engine("expert", 0.8),
}


@part
class OneOf:
    """The engine of ``ENGINES`` with this number."""

    kind: Number = number(0.0, low=0.0, high=float(len(ENGINES) - 1))

    def __call__(self, params: Params, root: Array, seed: Array, step: Array, /) -> Params:
        found = [one(params, root, seed, step) for one in ENGINES.values()]
        return jnp.select([self.kind == place for place in range(len(found))], found)


METHOD = Method(
    advantage=SHIFT,
    ratio=Score(),
    gain=Linear(),
    corrections=(Chosen(),),
    reduction=LengthPower(apart=True),
)
"""Shift-only GRPO by tokens, summed over an answer, with a factor of the table."""


def held(mismatch: Mismatch, logits: np.ndarray, *, root: int, draw: int) -> np.ndarray:
    """The engine's logits [rows, V, R] for the policy's, each run with noise of its own."""
    runs = logits.shape[-1]
    seeds = np.arange(draw * runs, (draw + 1) * runs, dtype=np.uint32)
    return np.asarray(_held(mismatch, logits[None], np.uint32(root), seeds))[0]


@jax.jit
def _held(mismatch: Mismatch, params: Array, root: Array, seeds: Array) -> Array:
    return mismatch(params, root, seeds, jnp.zeros((), jnp.uint32))


@jax.jit
def factors(old: Array, drawn: Array, table: Array) -> Array:
    """[K, T, S, R] c_t of ``EVERY`` for log π and log q [T, S, R], winners being those with a reward."""
    logp, sampling = (jnp.moveaxis(each, 0, 1)[None] for each in (old, drawn))
    blank = jnp.ones_like(logp)
    rollout = Rollout(
        prompts=jnp.zeros(1, int),
        tokens=jnp.zeros(logp.shape, int),
        mask=blank,
        rewards=table[None, :, None],
        multiplicity=blank[:, :, 0],
        sampling_logp=sampling,
        old_logp=logp,
        ref_logp=logp,
    )
    sign = jnp.where(table > 0, 1.0, -1.0)[None, :, None]
    at = Evaluation(rollout, logp, jnp.zeros_like(logp), sign)
    rows = (CORRECTIONS | AS_QUOTED).values()
    found = [jnp.broadcast_to(row(at), logp.shape)[0] for row in rows]
    return jnp.moveaxis(jnp.stack(found), 2, 1)


class Update(NamedTuple):
    """One group's gradient under each of ``EVERY``, exactly."""

    mean: np.ndarray
    """[K, rows, V, R]."""
    variance: np.ndarray
    """[K, R] trace of its covariance."""
    kept: np.ndarray
    """[K, R] share of the tokens drawn that have a weight."""
    lost: np.ndarray
    """[K, R] share of the squared log-ratio, E_q Σ_t (log π/q)², that falls on tokens without one."""


def one_update(given: Problem, sampled: np.ndarray, *, group_size: int) -> Update:
    """Mean and variance over all groups from q, of the update of the policy ``given.logits``, binary rewards.

    Var of a sample covariance of G pairs: (1/G)·E[dr²|du|²] − (G−2)/(G(G−1))·|E[dr du]|² +
    E[dr²]·E|du|²/(G(G−1)); the update is 1 − 1/G times it.
    """
    space, table = given.space, given.table
    before, behind = closed.log_softmax(given.logits), closed.log_softmax(sampled)
    old, drawn, steps = closed.along(space, before), closed.along(space, behind), np.exp(before)
    chance = np.exp(drawn.sum(0))
    score = closed.along(space, 1 - 2 * steps + np.sum(steps**2, 1, keepdims=True))
    apart = (old - drawn) ** 2
    gap = table - np.sum(chance * table, 0)
    found = []
    for factor in np.asarray(factors(old, drawn, table)):
        mean, variance = _moments(space, steps, chance, gap, factor, score, group_size)
        dropped = factor == 0
        kept = 1 - np.sum(chance * dropped, (0, 1)) / space.horizon
        every = np.sum(chance * apart, (0, 1))
        lost = np.sum(chance * apart * dropped, (0, 1)) / np.where(every > 0, every, 1)
        found.append((mean, variance, kept, lost))
    return Update(*(np.stack(each) for each in zip(*found, strict=True)))


def _moments(
    space: Sequences, steps: np.ndarray, chance: np.ndarray, gap: np.ndarray, factor: np.ndarray,
    score: np.ndarray, size: int,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """[rows, V, R] and [R]: mean and variance of the update, from c [T, S, R] and |∇log π_t|² [T, S, R]."""

    def expected(weight: np.ndarray) -> np.ndarray:
        return closed.pulled_back(space, chance * weight * factor, steps)

    centre, both, squared = expected(np.ones_like(gap)), expected(gap), expected(gap**2)
    norm, spread = np.sum(factor**2 * score, 0), np.sum(chance * gap**2, 0)
    scatter = np.sum(chance * norm, 0) - _square(centre)
    fourth = np.sum(chance * gap**2 * norm, 0) - 2 * np.sum(squared * centre, (0, 1))
    fourth = fourth + spread * _square(centre)
    pairs = size * (size - 1)
    covariance = fourth / size - (size - 2) / pairs * _square(both) + spread * scatter / pairs
    share = 1 - 1 / size
    return share * both, share**2 * covariance


def _square(gradient: np.ndarray) -> np.ndarray:
    return np.sum(gradient**2, (-3, -2))


class Errors(NamedTuple):
    """Squared bias and variance [K, R] of one group's update, against f·∇J(π), f = 1 − 1/G."""

    bias: np.ndarray
    variance: np.ndarray


def aim(given: Problem, *, group_size: int) -> np.ndarray:
    """[rows, V, R] f·∇J(π): what a group drawn from the policy itself gives on average."""
    return (1 - 1 / group_size) * closed.old_gradient(given)


def errors(updates: list[Update], target: np.ndarray) -> tuple[Errors, Errors]:
    """Of draws of an engine's noise: where each is there to stay, and where every group has another.

    Staying, squared bias and variance are means over draws. Fresh, the noise belongs to the variance, and the
    bias is that of the mean over draws, less what so few draws leave of the scatter.
    """
    means = np.stack([update.mean for update in updates])
    within = np.mean([update.variance for update in updates], 0)
    stays = Errors(np.mean(_square(means - target), 0), within)
    if len(updates) == 1:
        return stays, stays
    middle = means.mean(0)
    scatter = np.sum(_square(means - middle), 0) / (len(updates) - 1)
    return stays, Errors(_square(middle - target) - scatter / len(updates), within + scatter)


def config_of(
    given: Problem, mismatch: Mismatch, *, group_size: int, correction: Correction = METHOD.corrections[0]
) -> gj.Config:
    """Training on all tables at once, each a question with a tree of its own, as if it were alone."""
    return gj.Config(
        policy=gj.TreePolicy(space=given.space, logits=given.logits.transpose(2, 0, 1)),
        task=gj.SequenceTable(space=given.space, table=given.table.T),
        method=replace(METHOD, corrections=(correction,)),
        optimizer=gj.AdamW(learning_rate=RATE, weight_decay=0.0),
        loop=gj.Loop(group_size=group_size),
        behavior=gj.Behavior(mismatch=mismatch),
        expectation=gj.Sampled(),
    )
