"""Expected gradients of penalties on trees by enumeration, in plain NumPy: what claim E1 holds libraries to.

A tree has V logits at every prefix of fewer than T tokens, prefixes numbered depth by depth; all answers have
T tokens unless one of them is EOS (the last token of the vocabulary), which ends an answer. x is
log π/π_ref of a token, I = π/π_old.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import optimize

IN_LOSS: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "k1": lambda x, ratio: np.ones_like(x),
    "k2": lambda x, ratio: x,
    "k3": lambda x, ratio: 1 - np.exp(-x),
    "ratio x k3": lambda x, ratio: ratio * x,
}
"""What multiplies a token's ∇log π where the estimator is differentiated; π_ref and π_old are constants."""
VALUES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "k1": lambda x: x,
    "k2": lambda x: x**2 / 2,
    "k3": lambda x: np.exp(-x) + x - 1,
}


@dataclass(frozen=True)
class Tree:
    """All answers: the prefix that each token stands at, and the token; -1 where there is none; [S, T]."""

    vocab: int
    node: np.ndarray
    token: np.ndarray

    @property
    def live(self) -> np.ndarray:
        """bool [S, T]."""
        return self.token >= 0

    @property
    def nodes(self) -> int:
        """The number of prefixes."""
        return int(self.node.max()) + 1


def tree(vocab: int, horizon: int, *, eos: bool = False) -> Tree:
    """Every answer in lexicographic order."""
    going = range(vocab - eos)
    prefixes = [p for depth in range(horizon) for p in itertools.product(going, repeat=depth)]
    number = {prefix: i for i, prefix in enumerate(prefixes)}
    answers = list(itertools.product(range(vocab), repeat=horizon))
    if eos:
        cut = [p[: p.index(vocab - 1) + 1] if vocab - 1 in p else p for p in answers]
        answers = sorted(set(cut))
    node, token = -np.ones((2, len(answers), horizon), int)
    for i, answer in enumerate(answers):
        for t, symbol in enumerate(answer):
            node[i, t], token[i, t] = number[answer[:t]], symbol
    return Tree(vocab, node, token)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Over the last axis."""
    apart = logits - logits.max(-1, keepdims=True)
    return apart - np.log(np.exp(apart).sum(-1, keepdims=True))


def token_logp(space: Tree, logits: np.ndarray) -> np.ndarray:
    """[S, T] log-probability of every token under logits [nodes, V]; 0 where there is none."""
    return np.where(space.live, log_softmax(logits)[space.node, space.token], 0)


def pulled(space: Tree, logits: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Σ_o Σ_t weight[o, t] ∇log π(o_t|o_<t), [nodes, V], in logits."""
    total = np.zeros_like(logits)
    np.add.at(total, (space.node[space.live], space.token[space.live]), weight[space.live])
    return total - np.exp(log_softmax(logits)) * total.sum(-1, keepdims=True)


def forward(space: Tree, logits: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """∇KL(π‖π_ref) of whole answers: Σ_o π(o) log(π(o)/π_ref(o)) ∇log π(o)."""
    logp, anchor = token_logp(space, logits), token_logp(space, reference)
    weight = np.exp(logp.sum(1)) * (logp - anchor).sum(1)
    return pulled(space, logits, np.repeat(weight[:, None], logp.shape[1], 1))


def backward(space: Tree, logits: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """∇KL(π_ref‖π) of whole answers: −Σ_o π_ref(o) ∇log π(o)."""
    weight = -np.exp(token_logp(space, reference).sum(1))
    return pulled(space, logits, np.repeat(weight[:, None], space.node.shape[1], 1))


def held(space: Tree, logits: np.ndarray, reference: np.ndarray, old: np.ndarray) -> np.ndarray:
    """∇KL(π‖π_ref) token by token: prefixes met as ``old`` meets them. Summed prefix by prefix."""
    now, anchor, sampler = log_softmax(logits), log_softmax(reference), token_logp(space, old)
    met, seen = np.zeros(len(logits)), {}
    for i, t in zip(*np.nonzero(space.live), strict=True):
        seen[space.node[i, t]] = np.exp(sampler[i, :t].sum())
    met[list(seen)] = list(seen.values())
    x = now - anchor
    return met[:, None] * np.exp(now) * (x - (np.exp(now) * x).sum(1, keepdims=True))


def in_loss(
    name: str, space: Tree, logits: np.ndarray, reference: np.ndarray, old: np.ndarray, *, whole: bool = False
) -> np.ndarray:
    """E_old of the estimator's derivative, tokens summed; ``whole`` takes the answer's log ratio instead."""
    logp, sampler = token_logp(space, logits), token_logp(space, old)
    x, log_ratio = logp - token_logp(space, reference), logp - sampler
    if whole:
        x, log_ratio = (np.repeat(a.sum(1, keepdims=True), a.shape[1], 1) for a in (x, log_ratio))
    chance = np.exp(sampler.sum(1, keepdims=True))
    return pulled(space, logits, chance * IN_LOSS[name](x, np.exp(log_ratio)))


def in_reward(
    name: str, space: Tree, logits: np.ndarray, reference: np.ndarray, old: np.ndarray
) -> np.ndarray:
    """What subtracting Σ_t D_t(π_old, π_ref) from a reward descends, per 1 − 1/G, without a spread."""
    logp, sampler = token_logp(space, logits), token_logp(space, old)
    value = np.where(space.live, VALUES[name](sampler - token_logp(space, reference)), 0).sum(1)
    chance = np.exp(sampler.sum(1))
    weight = (chance * (value - chance @ value))[:, None] * np.exp(logp - sampler)
    return pulled(space, logits, weight)


def of_groups(
    space: Tree,
    logits: np.ndarray,
    reference: np.ndarray,
    old: np.ndarray,
    rewards: np.ndarray,
    *,
    coef: float,
    size: int,
    eps: float | None = None,
    divergence: str = "k1",
) -> np.ndarray:
    """E ∇ of GRPO's unclipped objective with −coef·Σ_t D_t in the reward, summed over all ordered groups.

    D is the divergence's value at π_old. Advantages are r − r̄, over σ + eps (σ with ddof 0) where eps is
    given; tokens are summed, answers averaged.
    """
    logp, sampler = token_logp(space, logits), token_logp(space, old)
    value = np.where(space.live, VALUES[divergence](sampler - token_logp(space, reference)), 0)
    earned = rewards - coef * value.sum(1)
    chance, total = np.exp(sampler.sum(1)), np.zeros(len(rewards))
    groups = np.array(list(itertools.product(range(len(rewards)), repeat=size)))
    r = earned[groups]
    advantage = r - r.mean(1, keepdims=True)
    if eps is not None:
        advantage = advantage / (r.std(1, keepdims=True) + eps)
    np.add.at(total, groups, chance[groups].prod(1, keepdims=True) * advantage / size)
    return pulled(space, logits, total[:, None] * np.exp(logp - sampler))


def optimum(space: Tree, reference: np.ndarray, rewards: np.ndarray, beta: float) -> np.ndarray:
    """[nodes, V] log of π* ∝ π_ref e^{r/β}, which maximises J − β KL(π‖π_ref)."""
    return _backwards(space, reference, rewards, beta, _tilted, soft=True)


def forward_end(space: Tree, reference: np.ndarray, rewards: np.ndarray, beta: float) -> np.ndarray:
    """[nodes, V] log-policy π(a|s) ∝ π_ref(a|s) e^{Q(s,a)/β}, Q the expected reward itself, last token first.

    Where ∇KL(π‖π_ref) token by token balances ∇J: at every prefix π_ref is tilted by the reward to come, as
    if the tokens to come had no divergence to pay for.
    """
    return _backwards(space, reference, rewards, beta, _tilted)


def backward_end(space: Tree, reference: np.ndarray, rewards: np.ndarray, beta: float) -> np.ndarray:
    """[nodes, V] log-policy π(a|s) = π_ref(a|s) β/(β + V(s) − Q(s,a)), last token first.

    Where ∇KL(π_ref‖π) token by token, prefixes met under π, balances ∇J.
    """
    return _backwards(space, reference, rewards, beta, _shared)


def _tilted(anchor: np.ndarray, worth: np.ndarray, beta: float) -> np.ndarray:
    return log_softmax(anchor + worth / beta)


def _shared(anchor: np.ndarray, worth: np.ndarray, beta: float) -> np.ndarray:
    chance = np.exp(anchor)

    def excess(level: float) -> float:
        return float((beta * chance / (level - worth)).sum() - 1)

    low, high = float((worth + beta * chance).max()), float(worth.max() + beta * (1 + 1e-9))
    level = low if excess(low) <= 0 else optimize.brentq(excess, low, high, xtol=1e-15)
    return log_softmax(anchor - np.log(level - worth))


def _backwards(
    space: Tree,
    reference: np.ndarray,
    rewards: np.ndarray,
    beta: float,
    rule: Callable[[np.ndarray, np.ndarray, float], np.ndarray],
    *,
    soft: bool = False,
) -> np.ndarray:
    """The rule at every prefix, from the last ones on; ``soft`` counts what later tokens pay."""
    anchor = log_softmax(reference)
    worth, found = np.zeros_like(anchor), np.zeros_like(anchor)
    last = space.live.sum(1) - 1
    rows = np.arange(len(last))
    worth[space.node[rows, last], space.token[rows, last]] = rewards
    for t in range(space.node.shape[1] - 1, -1, -1):
        nodes, first = np.unique(space.node[:, t], return_index=True)
        for s, i in zip(nodes[nodes >= 0], first[nodes >= 0], strict=True):
            found[s] = rule(anchor[s], worth[s], beta)
            own = np.exp(found[s]) @ (worth[s] - soft * beta * (found[s] - anchor[s]))
            if t:
                worth[space.node[i, t - 1], space.token[i, t - 1]] = own
    return found
