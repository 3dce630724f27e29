"""Training written out in NumPy, for ``test_simulation.py``: rules, clips, optimizers and loops.

The papers' formulas read anew and differentiated by hand; nothing is shared with the library but its uniform
numbers (``test_random.py`` checks those apart). A softmax stands at every prefix of a tree; a table of
actions is the tree with one prefix.
"""

import itertools
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from grpo_jax.config import Loop
from grpo_jax.random import Stream, uniforms


class Problem(NamedTuple):
    """A tree of prefixes, a softmax at each, with the rewards of its outputs."""

    vocab: int
    horizon: int
    eos: int | None
    rewards: np.ndarray
    """[C, S], outputs in lexicographic order."""
    start: np.ndarray
    """[C, prefixes, V]."""
    reference: np.ndarray

    def prefixes(self):
        """Depth by depth, by the tokens that do not end an output."""
        going = [token for token in range(self.vocab) if token != self.eos]
        return [p for depth in range(self.horizon) for p in itertools.product(going, repeat=depth)]

    def outputs(self):
        whole = (
            p + (token,)
            for p in self.prefixes()
            for token in range(self.vocab)
            if token == self.eos or len(p) == self.horizon - 1
        )
        return sorted(whole)


# The rules


class Rule(NamedTuple):
    """Which formulas a method is made of."""

    advantage: str
    ratio: str
    gain: str
    weight: str
    penalty: bool


RULES = {
    "grpo": Rule("normalized", "token", "clip", "sequence", True),
    "dr_grpo": Rule("shift", "token", "clip", "sum", True),
    "dapo": Rule("normalized", "token", "clip", "token", False),
    "gspo": Rule("normalized", "mean", "clip", "sequence", False),
    "cispo": Rule("normalized", "token", "score", "token", False),
    "tic_grpo": Rule("normalized", "product", "upper", "sequence", False),
    "rloo": Rule("leave_one_out", "product", "clip", "sequence", False),
}


def softmax(logits):
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def advantages(rule, rewards):
    """[P, G] advantages, exactly 0 where all of a group's rewards are equal, and [P, 1] where they are."""
    tied = np.ptp(rewards, 1, keepdims=True) == 0
    if rule.advantage == "leave_one_out":
        others = rewards.shape[1] - 1
        value = rewards - (rewards.sum(1, keepdims=True) - rewards) / others
    else:
        value = rewards - rewards.mean(1, keepdims=True)
    if rule.advantage == "normalized":
        value = value / np.where(tied, 1, rewards.std(1, keepdims=True))
    return np.where(tied, 0, value), tied


class Batch(NamedTuple):
    """Groups: contexts [P], rewards and advantages [P, G], prefixes, tokens and which count [P, G, T]."""

    contexts: np.ndarray
    rewards: np.ndarray
    advantages: np.ndarray
    nodes: np.ndarray
    tokens: np.ndarray
    live: np.ndarray

    def logp(self, theta):
        table = np.log(softmax(theta))
        return np.where(self.live, table[self.contexts[:, None, None], self.nodes, self.tokens], 0)

    def at(self, rows):
        return Batch(*(array[rows] for array in self))


def gradient(rule, n, batch, theta, old, reference):
    """∇J in logits, J, and the shares of tokens that the clip holds above and below."""
    logp, live = batch.logp(theta), batch.live
    gap, length = logp - batch.logp(old), batch.live.sum(2, keepdims=True)
    advantage = np.broadcast_to(batch.advantages[:, :, None], live.shape)
    whole = gap.sum(2, keepdims=True) * np.ones_like(gap)
    ratio = np.exp({"token": gap, "mean": whole / length, "product": whole}[rule.ratio])
    above, below = (ratio > 1 + n.high) & (advantage > 0), (ratio < 1 - n.low) & (advantage < 0)
    if rule.gain == "score":
        above, below = np.zeros_like(above), np.zeros_like(below)
        slope = np.clip(ratio, 1 - n.low, 1 + n.high) * advantage
        value = slope * logp
    else:
        below = below & (rule.gain == "clip")
        value = np.where(above, 1 + n.high, np.where(below, 1 - n.low, ratio)) * advantage
        slope = np.where(above | below, 0, ratio * advantage)
    entries = batch.rewards.size
    weight = {"sequence": live / (length * entries), "token": live / live.sum(), "sum": live / entries}
    alpha = weight[rule.weight]
    pull = alpha * slope
    if rule.ratio != "token":
        pull = live * pull.sum(2, keepdims=True) / (length if rule.ratio == "mean" else 1)
    if rule.penalty:
        x = batch.logp(reference) - logp
        value, pull = value - n.coef * (np.exp(x) - x - 1), pull - alpha * n.coef * (1 - np.exp(x))
    total = np.zeros_like(theta)
    np.add.at(total, (batch.contexts[:, None, None], batch.nodes, batch.tokens), pull)
    total -= softmax(theta) * total.sum(-1, keepdims=True)
    return total, (alpha * value).sum(), (above & live).sum() / live.sum(), (below & live).sum() / live.sum()


# The optimizers: functions of (gradient of the loss, parameters) that return what is added, with a memory


def descent(rate):
    count = itertools.count()
    return lambda g, theta: -(rate(next(count)) if callable(rate) else rate) * g


def heavy_ball(rate, momentum):
    memory = [0.0]

    def move(g, theta):
        memory[0] = momentum * memory[0] + g
        return -rate * memory[0]

    return move


def rmsprop(rate, decay, eps):
    memory = [0.0]

    def move(g, theta):
        memory[0] = decay * memory[0] + (1 - decay) * g**2
        return -rate * g / np.sqrt(memory[0] + eps)

    return move


def adam(rate, b1, b2, eps, decay=0.0):
    """Adam, and AdamW where ``decay`` is positive; ``rate`` may be a function of the steps done."""
    first, second, count = [0.0], [0.0], itertools.count()

    def move(g, theta):
        done = next(count)
        first[0], second[0] = b1 * first[0] + (1 - b1) * g, b2 * second[0] + (1 - b2) * g**2
        m, v = first[0] / (1 - b1 ** (done + 1)), second[0] / (1 - b2 ** (done + 1))
        return -(rate(done) if callable(rate) else rate) * (m / (np.sqrt(v) + eps) + decay * theta)

    return move


def lion(rate, b1, b2, decay):
    memory = [0.0]

    def move(g, theta):
        sign = np.sign(b1 * memory[0] + (1 - b1) * g)
        memory[0] = b2 * memory[0] + (1 - b2) * g
        return -rate * (sign + decay * theta)

    return move


def clipped(max_norm, inner):
    def move(g, theta):
        norm = np.sqrt((g**2).sum())
        return inner(g * max_norm / norm if norm > max_norm else g, theta)

    return move


def coupled(coef, inner):
    return lambda g, theta: inner(g + coef * theta, theta)


def cosine(peak, steps, end):
    return lambda done: peak * (end + (1 - end) * (1 + np.cos(np.pi * min(done / steps, 1))) / 2)


def warmup(peak, steps):
    return lambda done: peak * min((done + 1) / steps, 1)


class Simulation:
    """One run of training, written out."""

    def __init__(self, problem: Problem, loop: Loop, rule: str, n: Any, move: Any, *, seed: int, noisy: bool):
        self.problem, self.loop, self.rule, self.n, self.move = problem, loop, RULES[rule], n, move
        self.seed, self.noisy, self.step = seed, noisy, 0
        self.theta, self.old = problem.start.copy(), problem.start.copy()
        self.node = {prefix: place for place, prefix in enumerate(problem.prefixes())}
        self.row = {output: place for place, output in enumerate(problem.outputs())}

    def draws(self, stream, *shape):
        words = (jnp.uint32(word) for word in (0, self.seed, self.step))
        return np.asarray(uniforms(*words, stream, shape))

    def groups(self):
        problem, loop = self.problem, self.loop
        count = len(problem.rewards)
        contexts = np.arange(count)
        if loop.prompts is not None:
            contexts = (self.draws(Stream.PROMPT, loop.prompts) * count).astype(int)
        shape = (len(contexts), loop.group_size, problem.horizon)
        u, upto = self.draws(Stream.TOKEN, *shape), softmax(self.old).cumsum(-1)
        nodes, tokens, live = np.zeros(shape, int), np.zeros(shape, int), np.zeros(shape, bool)
        means = np.zeros(shape[:2])
        for p, i in np.ndindex(*shape[:2]):
            output: tuple[int, ...] = ()
            while output not in self.row:
                at = (p, i, len(output))
                nodes[at], live[at] = self.node[output], True
                tokens[at] = np.searchsorted(upto[contexts[p], nodes[at]], u[at], side="right")
                output = (*output, int(tokens[at]))
            means[p, i] = problem.rewards[contexts[p], self.row[output]]
        rewards = (self.draws(Stream.REWARD, *means.shape) < means) * 1.0 if self.noisy else means
        value, tied = advantages(self.rule, rewards)
        return Batch(contexts, rewards, value, nodes, tokens, live), tied

    def iterate(self):
        loop, reference = self.loop, self.problem.reference
        batch, tied = self.groups()
        order = self.draws(Stream.SHUFFLE, loop.inner_steps, len(tied)).argsort(1)
        seen = []
        for inner in range(loop.inner_steps):
            for rows in order[inner].reshape(loop.minibatches, -1):
                slope, *rest = gradient(self.rule, self.n, batch.at(rows), self.theta, self.old, reference)
                move = self.move(-slope, self.theta)
                self.theta = self.theta + move
                seen.append((*rest, np.sqrt((slope**2).sum()), np.sqrt((move**2).sum())))
        logs = (batch.logp(self.theta) - batch.logp(self.old))[batch.live]
        self.step += 1
        if self.step % loop.refresh_every == 0:
            self.old = self.theta.copy()
        names = "surrogate", "clip_fraction_high", "clip_fraction_low", "grad_norm", "update_norm"
        return dict(zip(names, np.mean(seen, 0), strict=True)) | self.measures() | {
            "reward": batch.rewards.mean(), "length": batch.live.sum(2).mean(), "tied": tied.mean(),
            "ratio_min": np.exp(logs.min()), "ratio_max": np.exp(logs.max()),
            "ratio_quantiles": np.exp(np.quantile(logs, [0.01, 0.05, 0.5, 0.95, 0.99])),
        }  # fmt: skip

    def probabilities(self, theta):
        """[C, S] of whole outputs."""
        table = softmax(theta)
        steps = ([(self.node[o[:t]], o[t]) for t in range(len(o))] for o in self.row)
        return np.stack([np.prod([table[:, node, token] for node, token in s], 0) for s in steps], 1)

    def measures(self):
        pi, ref = self.probabilities(self.theta), self.probabilities(self.problem.reference)
        return {
            "probabilities": pi,
            "expected_reward": (pi * self.problem.rewards).sum(1).mean(),
            "entropy": -(pi * np.log(pi)).sum(1).mean(),
            "kl_ref": (pi * np.log(pi / ref)).sum(1).mean(),
            "kl_ref_reverse": (ref * np.log(ref / pi)).sum(1).mean(),
        }
