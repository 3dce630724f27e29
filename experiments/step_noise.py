"""Why sampled training settles beside a stationary policy: a group's gradient, its law, and what follows.

One question, deterministic rewards, on-policy. A group with counts n has the logit gradient
g = sum_k (n_k / G) (A_k + beta (pi_ref / pi - 1)_k) (e_k - pi), with E g = F = pi P_G + beta (pi_ref - pi).
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from scipy.linalg import solve_continuous_lyapunov
from scipy.signal import lfilter

from grpo_jax.theory.counts import histograms, multinomial_weights
from grpo_jax.theory.preferences import histogram_advantages


class Law(NamedTuple):
    """Every group's probability [H] and gradient [H, K]."""

    weights: jax.Array
    gradients: jax.Array

    def moment(self, power: int) -> jax.Array:
        """[K] E g^power."""
        return self.weights @ self.gradients**power


class Question(NamedTuple):
    """K answers with distinct rewards [K], their reference [K], the penalty and the group's size."""

    rewards: np.ndarray
    reference: np.ndarray
    beta: float
    group_size: int

    def law(self, policy: jax.Array) -> Law:
        """The law of a group's gradient at a policy [K]."""
        return _law(policy, self.rewards, self.reference, self.beta, group_size=self.group_size)

    def drift(self, logits: jax.Array) -> jax.Array:
        """[K] F, the expected gradient."""
        return self.law(jax.nn.softmax(logits)).moment(1)


@functools.partial(jax.jit, static_argnames="group_size")
def _law(policy, rewards, reference, beta, *, group_size: int) -> Law:
    counts = histograms(group_size, len(rewards))
    pull = histogram_advantages(jnp.asarray(counts), rewards) + beta * (reference / policy - 1)
    share = counts / group_size * pull
    gradients = share - policy * share.sum(1, keepdims=True)
    return Law(multinomial_weights(counts, group_size, policy), gradients)


def sgd_slope(question: Question, policy: np.ndarray) -> np.ndarray:
    """[K] d E[pi] / d rate of SGD at rate 0, at a stationary policy [K].

    The logits fluctuate with covariance rate C, J C + C J' + Cov(g) = 0 for J the Jacobian of F. The
    curvature of F then holds their mean at -J^-1 (F'' : C) / 2; that of the softmax adds to the mean policy.
    """
    logits = jnp.log(jnp.asarray(policy))
    basis = np.linalg.svd(np.ones((1, len(policy))))[2][1:].T
    law = question.law(jnp.asarray(policy))
    noise = np.asarray((law.weights[:, None] * law.gradients).T @ law.gradients)
    jacobian = basis.T @ np.asarray(jax.jacfwd(question.drift)(logits)) @ basis
    spread = basis @ solve_continuous_lyapunov(jacobian, -basis.T @ noise @ basis) @ basis.T
    bend, bulge = (
        0.5 * np.einsum("kij,ij->k", jax.hessian(f)(logits), spread) for f in (question.drift, jax.nn.softmax)
    )
    shift = -basis @ np.linalg.solve(jacobian, basis.T @ bend)
    return np.asarray(jax.jacfwd(jax.nn.softmax)(logits)) @ shift + bulge


def adam_limit(
    question: Question,
    policy: np.ndarray,
    *,
    b1: float,
    b2: float,
    weight_decay: float = 0.0,
    draws: int = 100_000,
) -> np.ndarray:
    """[K] where Adam settles as its rate goes to 0, from a stationary policy [K].

    While the policy stands still, gradients are independent draws of the law and a logit's mean step is
    U = E[m / sqrt(v)], which is not 0 where E g is: m and v share gradients, and the law is skew. At rest
    U - weight_decay logits is equal in all logits. U is averaged over `draws` gradients, drawn anew at each
    of ten policies; Newton's steps use d(F / sqrt(E g^2)).
    """
    uniform = np.random.default_rng(0).uniform(size=draws)

    def logits(unknown: ArrayLike) -> jax.Array:
        return jnp.append(jnp.asarray(unknown)[:-1], 0.0)

    def excess(unknown: jax.Array) -> jax.Array:
        law = question.law(jax.nn.softmax(logits(unknown)))
        return law.moment(1) / jnp.sqrt(law.moment(2)) - weight_decay * logits(unknown) - unknown[-1]

    unknown = np.append(np.log(policy[:-1] / policy[-1]), 0.0)
    inverse = np.linalg.inv(np.asarray(jax.jacfwd(excess)(unknown)))
    for _ in range(10):
        law, here = question.law(jax.nn.softmax(logits(unknown))), np.asarray(logits(unknown))
        step = _mean_step(law, uniform, b1, b2) - weight_decay * here - unknown[-1]
        unknown = unknown - inverse @ step
    return np.asarray(jax.nn.softmax(logits(unknown)))


def _mean_step(law: Law, uniform: np.ndarray, b1: float, b2: float) -> np.ndarray:
    """[K] mean of m / sqrt(v) over independent gradients."""
    group = np.minimum(np.searchsorted(np.cumsum(law.weights), uniform), len(law.weights) - 1)
    gradients = np.asarray(law.gradients)[group]
    m, square = (
        lfilter([1 - b], [1, -b], values, axis=0) for b, values in ((b1, gradients), (b2, gradients**2))
    )
    late = len(uniform) // 10
    return (m / np.sqrt(square))[late:].mean(0)
