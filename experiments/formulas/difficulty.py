"""How much a group's advantages weigh a prompt of success rate p: by sums and by enumeration in NumPy.

K ~ Bin(G, p) answers are right. Where right answers get the advantage a(K) and wrong ones b(K), the expected
update of whole sequences, (1/G) E[Σ_i A_i ∇log π(o_i)], is w(p)∇p with

    w(p) = (1/G) E[K a(K)/p − (G − K) b(K)/(1 − p)],

as a right answer's score has mean ∇p/p and a wrong one's −∇p/(1 − p). r − r̄ gives 1 − 1/G, whatever p;
divided by σ it gives E√(K(G − K))/(G p(1 − p)). Nothing here passes through the library's advantages.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
from scipy import stats

from grpo_jax.sequences import Sequences

Rule = Callable[[np.ndarray], np.ndarray]
"""Rewards [G] of a group -> advantages [G]."""


def centred(rewards: np.ndarray) -> np.ndarray:
    """r − r̄."""
    return rewards - rewards.mean()


def divided(rewards: np.ndarray, *, ddof: int = 0, added: float = 0.0) -> np.ndarray:
    """(r − r̄)/(σ + added), σ with ``ddof``; 0 where all rewards are equal."""
    if np.ptp(rewards) == 0:
        return np.zeros(rewards.shape)
    return centred(rewards) / (rewards.std(ddof=ddof) + added)


def without_own(rewards: np.ndarray, *, added: float = 1e-6) -> np.ndarray:
    """NeMo-RL 0.6.0: mean and sample deviation of the others; not divided where that deviation is 0."""
    count = len(rewards) - 1
    mean = (rewards.sum() - rewards) / count
    square = ((rewards**2).sum() - rewards**2) / count - mean**2
    spread = np.sqrt(np.where(square > 1e-12, square, 0) * count / max(count - 1, 1))
    return (rewards - mean) / np.where(spread > 0, spread + added, 1.0)


def over_mean(rewards: np.ndarray, *, centre: bool = False) -> np.ndarray:
    """r/r̄, or (r − r̄)/r̄; 0 where no reward is positive."""
    mean = rewards.mean()
    return (rewards - mean * centre) / mean if mean > 0 else np.zeros(rewards.shape)


def by_successes(rule: Rule, group_size: int) -> tuple[np.ndarray, np.ndarray]:
    """a(K) and b(K), [G + 1] each; 0 where there is no such answer."""
    right, wrong = np.zeros(group_size + 1), np.zeros(group_size + 1)
    for k in range(group_size + 1):
        advantage = rule(np.repeat([1.0, 0.0], [k, group_size - k]))
        right[k] = advantage[0] if k else 0.0
        wrong[k] = advantage[-1] if k < group_size else 0.0
    return right, wrong


def weight(rates: np.ndarray, right: np.ndarray, wrong: np.ndarray) -> np.ndarray:
    """w(p) of every success rate in (0, 1), from a(K) and b(K) [G + 1]."""
    p, size = np.asarray(rates, float)[..., None], len(right) - 1
    k = np.arange(size + 1)
    return (stats.binom.pmf(k, size, p) * (k * right / p - (size - k) * wrong / (1 - p))).sum(-1) / size


def weight_of(rule: Rule, rates: np.ndarray, group_size: int) -> np.ndarray:
    """w(p) of a rule."""
    return weight(rates, *by_successes(rule, group_size))


def greatest_fold(group_size: int) -> float:
    """√(G − 1), to which dividing by σ weighs success rates close to 0 or 1, over its weight at one half."""
    k = np.arange(group_size + 1)
    half = 4 * stats.binom.pmf(k, group_size, 0.5) @ np.sqrt(k * (group_size - k)) / group_size
    return float(np.sqrt(group_size - 1) / half)


def batch_weight(rates: np.ndarray, group_size: int) -> np.ndarray:
    """w of every prompt [P] of a batch whose σ (ddof 0) is taken over all P·G rewards; (G + 1)^P terms."""
    rates = np.asarray(rates, float)
    k = np.array(list(itertools.product(range(group_size + 1), repeat=len(rates))))
    chance = stats.binom.pmf(k, group_size, rates).prod(1)
    share = k.mean(1) / group_size
    spread = np.sqrt(share * (1 - share))
    own = k * (group_size - k) / group_size**2
    scaled = np.divide(own, spread[:, None], out=np.zeros(own.shape), where=spread[:, None] > 0)
    return chance @ scaled / (rates * (1 - rates))


def scores(space: Sequences, logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities [S] of a tree's outputs and their scores ∇log π [S, rows·V], from logits [rows, V]."""
    tokens, mask = space.support
    lengths = mask.sum(1).astype(int)
    paths = [tuple(row[:n]) for row, n in zip(tokens.tolist(), lengths, strict=True)]
    prefixes = sorted({path[:t] for path in paths for t in range(len(path))}, key=lambda x: (len(x), x))
    place = {prefix: row for row, prefix in enumerate(prefixes)}
    steps = np.exp(logits - logits.max(1, keepdims=True))
    steps /= steps.sum(1, keepdims=True)
    chance, found = np.ones(len(paths)), np.zeros((len(paths), *logits.shape))
    for s, path in enumerate(paths):
        for t, token in enumerate(path):
            row = place[path[:t]]
            chance[s] *= steps[row, token]
            found[s, row] -= steps[row]
            found[s, row, token] += 1
    return chance, found.reshape(len(paths), -1)


def enumerated(
    space: Sequences, logits: np.ndarray, rewards: np.ndarray, rule: Rule, group_size: int
) -> np.ndarray:
    """[rows, V] E[(1/G) Σ_i A_i ∇log π(o_i)] over all groups of G outputs of one prompt with rewards [S]."""
    chance, score = scores(space, logits)
    found = np.zeros(score.shape[1])
    for group in itertools.combinations_with_replacement(range(len(chance)), group_size):
        counts = np.bincount(group, minlength=len(chance))
        ways = math.factorial(group_size) / math.prod(math.factorial(n) for n in counts)
        law = ways * math.prod(chance**counts)
        found += law * rule(rewards[list(group)]) @ score[list(group)] / group_size
    return found.reshape(logits.shape)


def slope(space: Sequences, logits: np.ndarray, right: np.ndarray) -> tuple[float, np.ndarray]:
    """p, and ∇p [rows, V], of the outputs that are right [S]."""
    chance, score = scores(space, logits)
    return float(chance @ right), ((chance * right) @ score).reshape(logits.shape)
