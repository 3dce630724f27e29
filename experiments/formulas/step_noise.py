"""Why sampled training settles beside a stationary policy: a group's gradient, its law, and what follows.

One question, deterministic rewards, on-policy. A group with counts n has the logit gradient
g = sum_k (n_k / G) (A_k + beta (pi_ref / pi - 1)_k) (e_k - pi), with E g = F = pi P_G + beta (pi_ref - pi).
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.linalg import solve_continuous_lyapunov
from scipy.signal import lfilter
from scipy.special import gammaln, softmax

from grpo_jax.theory import fixed_point
from grpo_jax.theory.counts import histograms
from grpo_jax.theory.preferences import histogram_advantages


class Law(NamedTuple):
    """Every group's probability [H] and gradient [H, K]."""

    weights: jax.Array
    gradients: jax.Array

    def moment(self, power: int) -> jax.Array:
        """[K] E g^power."""
        return self.weights @ self.gradients**power


class Question(NamedTuple):
    """One question with its groups [H]: how often they hold each answer, and the log number of their orders.

    Rows without orders (log 0) pad the groups, so that one program serves groups of several sizes.
    """

    rewards: Any
    reference: Any
    beta: Any
    counts: Any
    log_orders: Any

    def law(self, policy: jax.Array) -> Law:
        """The law of a group's gradient at a policy [K]."""
        counts = jnp.asarray(self.counts)
        pull = histogram_advantages(counts, self.rewards) + self.beta * (self.reference / policy - 1)
        share = counts / counts.sum(1, keepdims=True) * pull
        gradients = share - policy * share.sum(1, keepdims=True)
        return Law(jnp.exp(self.log_orders + counts @ jnp.log(policy)), gradients)

    def preference(self, policy: jax.Array) -> jax.Array:
        """[K] P_G, what an answer's members of a group get on average."""
        policy = policy / policy.sum()
        return self._replace(beta=jnp.zeros(())).law(policy).moment(1) / policy

    def drift(self, logits: jax.Array) -> jax.Array:
        """[K] F, the expected gradient."""
        return self.law(jax.nn.softmax(logits)).moment(1)


def ask(rewards: np.ndarray, reference: np.ndarray, beta: float, group_size: int, *, rows: int) -> Question:
    """K answers with distinct rewards [K], their reference [K], the penalty, the group's size, and how many
    rows its groups are padded to."""
    counts = histograms(group_size, len(rewards))
    log_orders = gammaln(group_size + 1) - gammaln(counts + 1).sum(1)
    more = rows - len(counts)
    counts = np.concatenate([counts, np.repeat(counts[:1], more, axis=0)]).astype(float)
    return Question(
        rewards, reference, np.asarray(beta), counts, np.append(log_orders, np.full(more, -np.inf))
    )


class Expansion(NamedTuple):
    """The law of the gradient at a policy; derivatives of the drift and of the softmax in logits there."""

    law: Law
    drift: tuple[jax.Array, jax.Array]
    chances: tuple[jax.Array, jax.Array]


@jax.jit
def rest(question: Question) -> jax.Array:
    """[K] the stationary policy, by the solver of (11)."""
    return fixed_point(question.preference, question.reference, question.beta).policy


@jax.jit
def _expand(question: Question, policy: jax.Array) -> Expansion:
    logits = jnp.log(policy)
    drift, chances = (
        (jax.jacfwd(f)(logits), jax.jacfwd(jax.jacfwd(f))(logits)) for f in (question.drift, jax.nn.softmax)
    )
    return Expansion(question.law(policy), drift, chances)


def sgd_slope(question: Question, policy: np.ndarray) -> np.ndarray:
    """[K] d E[pi] / d rate of SGD at rate 0, at a stationary policy [K].

    The logits fluctuate with covariance rate C, J C + C J' + Cov(g) = 0 for J the Jacobian of F. The
    curvature of F then holds their mean at -J^-1 (F'' : C) / 2; that of the softmax adds to the mean policy.
    """
    law, drift, chances = jax.tree.map(np.asarray, _expand(question, policy))
    basis = np.linalg.svd(np.ones((1, len(policy))))[2][1:].T
    noise = (law.weights[:, None] * law.gradients).T @ law.gradients
    jacobian = basis.T @ drift[0] @ basis
    spread = basis @ solve_continuous_lyapunov(jacobian, -basis.T @ noise @ basis) @ basis.T
    bend, bulge = (0.5 * np.einsum("kij,ij->k", second, spread) for _, second in (drift, chances))
    shift = -basis @ np.linalg.solve(jacobian, basis.T @ bend)
    return chances[0] @ shift + bulge


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
    unknown = np.append(np.log(policy[:-1] / policy[-1]), 0.0)
    inverse = np.linalg.inv(np.asarray(_excess_slope(question, unknown, weight_decay)))
    for _ in range(10):
        logits = np.append(unknown[:-1], 0.0)
        step = _mean_step(_law_at(question, logits), uniform, b1, b2) - weight_decay * logits - unknown[-1]
        unknown = unknown - inverse @ step
    return softmax(np.append(unknown[:-1], 0.0))


@jax.jit
def _law_at(question: Question, logits: jax.Array) -> Law:
    return question.law(jax.nn.softmax(logits))


@jax.jit
def _excess_slope(question: Question, unknown: jax.Array, weight_decay: float) -> jax.Array:
    """[K, K] of F / sqrt(E g^2) - weight_decay logits - u, in all logits but the last, which is 0, and u."""

    def excess(point: jax.Array) -> jax.Array:
        logits = jnp.append(point[:-1], 0.0)
        law = question.law(jax.nn.softmax(logits))
        return law.moment(1) / jnp.sqrt(law.moment(2)) - weight_decay * logits - point[-1]

    return jax.jacfwd(excess)(unknown)


def _mean_step(law: Law, uniform: np.ndarray, b1: float, b2: float) -> np.ndarray:
    """[K] mean of m / sqrt(v) over independent gradients."""
    group = np.minimum(np.searchsorted(np.cumsum(law.weights), uniform), len(law.weights) - 1)
    gradients = np.asarray(law.gradients)[group]
    m, square = (
        lfilter([1 - b], [1, -b], values, axis=0) for b, values in ((b1, gradients), (b2, gradients**2))
    )
    late = len(uniform) // 10
    return (m / np.sqrt(square))[late:].mean(0)
