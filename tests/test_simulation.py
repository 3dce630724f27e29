"""Training against a simulation of it in plain NumPy: every optimizer, loop and a reading of seven methods.

The oracle shares the draws with the library (``random.uniforms``, tested apart) and nothing else: softmax,
sampling, advantages, slopes, reductions, gradients in logits and optimizers are written out from the papers.
"""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax import methods, train
from grpo_jax.collectors import Counts, Sampled
from grpo_jax.config import Config, Loop
from grpo_jax.optimizers import (
    L2,
    SGD,
    Adam,
    AdamW,
    ClippedNorm,
    Cosine,
    HeavyBall,
    Lion,
    RMSProp,
    Warmup,
)  # fmt: skip
from grpo_jax.part import put_all
from grpo_jax.policies import ActionPolicy, TreePolicy
from grpo_jax.random import Stream, uniforms
from grpo_jax.sequences import Sequences
from grpo_jax.tasks import Questions, SequenceTable

pytestmark = pytest.mark.usefixtures("x64")

RNG = np.random.default_rng(17)
SEEDS = np.array([5, 5, 11])
ITERATIONS = 6

# The problems: contexts with different rewards, one of which ties whatever is drawn


class Problem:
    """Sequences over V tokens, θ [C, prefixes, V]; an action is a sequence of length one."""

    def __init__(self, *, vocab, horizon, eos, rewards, actions):
        self.vocab, self.horizon, self.eos, self.actions = vocab, horizon, eos, actions
        going = [token for token in range(vocab) if token != eos]
        prefixes = [p for depth in range(horizon) for p in itertools.product(going, repeat=depth)]
        self.row = {prefix: row for row, prefix in enumerate(prefixes)}
        last = [(*p, token) for p in prefixes for token in range(vocab)]
        self.outputs = sorted(o for o in last if len(o) == horizon or o[-1] == eos)
        self.rewards = np.asarray(rewards)
        shape = (len(self.rewards), len(prefixes), vocab)
        self.start, self.reference = RNG.normal(size=shape), RNG.normal(size=shape)

    def library(self):
        """(policy, task, reference) for the library."""
        if self.actions:
            flat = self.start[:, 0], self.reference[:, 0]
            return ActionPolicy(logits=flat[0]), Questions(table=self.rewards), flat[1]
        space = Sequences(vocab=self.vocab, horizon=self.horizon, eos=self.eos)
        task = SequenceTable(space=space, table=self.rewards)
        return TreePolicy(space=space, logits=self.start), task, self.reference


ACTIONS = Problem(
    vocab=4, horizon=1, eos=None, actions=True,
    rewards=[[0.1, 0.9, 0.4, 0.3], [1.0, 0.0, 0.0, 1.0], [0.5, 0.5, 0.5, 0.5], [2.0, -1.0, 0.7, 0.6]],
)  # fmt: skip
TREE = Problem(
    vocab=3, horizon=3, eos=2, actions=False,
    rewards=[RNG.integers(0, 3, 15) / 2.0, RNG.normal(size=15), np.full(15, 0.3)],
)  # fmt: skip

# The oracle


def softmax(logits):
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def deviations(name, rewards):
    """Advantages of groups [P, G], 0 where a group ties."""
    size = rewards.shape[1]
    centred = rewards - rewards.mean(1, keepdims=True)
    tied = np.ptp(rewards, 1, keepdims=True) == 0
    if name == "rloo":
        others = (rewards.sum(1, keepdims=True) - rewards) / (size - 1)
        return np.where(tied, 0, rewards - others)
    if name == "dr_grpo":
        return np.where(tied, 0, centred)
    spread = np.sqrt((centred**2).mean(1, keepdims=True))
    return np.where(tied, 0, centred / np.where(tied, 1, spread))


def slopes(name, numbers, advantages, logp, old, ref, mask):
    """(∂J/∂log π [P, G, T], the share of tokens whose gain the clip holds)."""
    low, high, coef = (numbers.get(key, 0.0) for key in ("low", "high", "coef"))
    length, entries, tokens = mask.sum(2, keepdims=True), mask[:, :, 0].size, mask.sum()
    advantage, gap = advantages[:, :, None] * mask, (logp - old) * mask
    ratio = np.exp(gap)
    if name == "gspo":
        ratio = np.exp(gap.sum(2, keepdims=True) / length)
    if name in ("tic_grpo", "rloo"):
        ratio = np.exp(gap.sum(2, keepdims=True))
    above, below = (ratio > 1 + high) & (advantage > 0), (ratio < 1 - low) & (advantage < 0)
    if name == "cispo":
        slope, held = np.clip(ratio, 1 - low, 1 + high) * advantage, ratio > 1 + high
    else:
        held = above if name == "tic_grpo" else above | below
        slope = np.where(held, 0, ratio * advantage)
    if name in ("tic_grpo", "rloo"):  # once per output, and every token moves the product
        slope = slope * length
    constant = {"dr_grpo": 1 / entries, "dapo": 1 / tokens, "cispo": 1 / tokens}
    weight = constant.get(name, 1 / (entries * length))
    penalty = coef * (1 - np.exp(ref - logp)) if name in ("grpo", "dr_grpo") else 0.0
    return weight * mask * (slope - penalty), (held * mask).sum() / tokens


def rate(schedule, t):
    """The learning rate of optimizer step t = 0, 1, ..."""
    if not isinstance(schedule, dict):
        return schedule
    if schedule["kind"] == "warmup":
        return schedule["peak"] * min((t + 1) / schedule["steps"], 1.0)
    done = min(t / schedule["steps"], 1.0)
    end = schedule["end"]
    return schedule["init"] * (end + (1 - end) * 0.5 * (1 + np.cos(np.pi * done)))


def descended(optimizer, theta, g, memory, t):
    """θ after optimizer step t on the gradient g of the loss; ``memory`` is the optimizer's own."""
    o, kind = optimizer, optimizer["kind"]
    if kind == "clipped":
        size = np.sqrt((g * g).sum())
        shrunk = g * (o["max_norm"] / size) if size > o["max_norm"] else g
        return descended(o["inner"], theta, shrunk, memory, t)
    if kind == "l2":
        return descended(o["inner"], theta, g + o["coef"] * theta, memory, t)
    lr, decay = rate(o["learning_rate"], t), o.get("weight_decay", 0.0)
    m, v = memory.get("m", 0.0), memory.get("v", 0.0)
    if kind == "sgd":
        return theta - lr * g
    if kind == "heavy_ball":
        memory["m"] = m = o["momentum"] * m + g
        return theta - lr * m
    if kind == "rmsprop":
        memory["v"] = v = o["decay"] * v + (1 - o["decay"]) * g * g
        return theta - lr * g / np.sqrt(v + o["eps"])
    if kind == "lion":
        memory["m"] = o["b2"] * m + (1 - o["b2"]) * g
        return theta - lr * (np.sign(o["b1"] * m + (1 - o["b1"]) * g) + decay * theta)
    memory["m"] = m = o["b1"] * m + (1 - o["b1"]) * g
    memory["v"] = v = o["b2"] * v + (1 - o["b2"]) * g * g
    direction = (m / (1 - o["b1"] ** (t + 1))) / (np.sqrt(v / (1 - o["b2"] ** (t + 1))) + o["eps"])
    return theta - lr * (direction + decay * theta)


class Oracle:
    """One run of training; numbers are plain floats."""

    def __init__(self, problem, name, numbers, optimizer, loop, seed):
        self.problem, self.name, self.numbers, self.loop, self.seed = problem, name, numbers, loop, seed
        self.optimizer, self.memory, self.steps = optimizer, {}, 0
        self.theta = self.old = problem.start
        self.iteration, self.held = 0, []

    def draws(self, stream, *shape):
        words = jnp.uint32(0), jnp.uint32(self.seed), jnp.uint32(self.iteration)
        return np.asarray(uniforms(*words, stream, shape))

    def drawn(self, context, u):
        """Prefixes' rows, tokens and mask [T] of one output, by inverse CDF of u [T]."""
        problem, prefix = self.problem, ()
        rows, tokens, mask = (np.zeros(problem.horizon, int) for _ in range(3))
        for t in range(problem.horizon):
            rows[t] = problem.row[prefix]
            upto = np.cumsum(softmax(self.old[context, rows[t]]))
            tokens[t], mask[t] = (u[t] >= upto[:-1]).sum(), 1
            prefix = (*prefix, int(tokens[t]))
            if tokens[t] == problem.eos:
                break
        return rows, tokens, mask, problem.rewards[context, problem.outputs.index(prefix)]

    def logp(self, theta, at):
        contexts, rows, tokens, _ = at
        return np.log(softmax(theta))[contexts, rows, tokens]

    def step(self, at, advantages):
        """One optimizer step on a minibatch ``at`` = contexts, rows, tokens, mask, each [P, G, T]."""
        contexts, rows, tokens, mask = at
        scores = (self.logp(theta, at) for theta in (self.theta, self.old, self.problem.reference))
        slope, held = slopes(self.name, self.numbers, advantages, *scores, mask)
        chosen = np.eye(self.problem.vocab)[tokens] - softmax(self.theta)[contexts, rows]
        gradient = np.zeros_like(self.theta)
        np.add.at(gradient, (contexts, rows), slope[..., None] * chosen)
        self.theta = descended(self.optimizer, self.theta, -gradient, self.memory, self.steps)
        self.steps += 1
        self.held.append(held)

    def iterate(self):
        loop, problem = self.loop, self.problem
        contexts = np.arange(len(problem.rewards))
        if loop.prompts is not None:
            contexts = np.floor(self.draws(Stream.PROMPT, loop.prompts) * len(contexts)).astype(int)
        shape = (len(contexts), loop.group_size, problem.horizon)
        u = self.draws(Stream.TOKEN, *shape)
        group = [[self.drawn(c, u[p, g]) for g in range(shape[1])] for p, c in enumerate(contexts)]
        rows, tokens, mask = (np.array([[out[i] for out in row] for row in group]) for i in range(3))
        advantages = deviations(self.name, np.array([[out[3] for out in row] for row in group]))
        at = np.broadcast_to(contexts[:, None, None], shape), rows, tokens, mask
        order = self.draws(Stream.SHUFFLE, loop.inner_steps, len(contexts)).argsort(1)
        for inner in range(loop.inner_steps):
            for part in order[inner].reshape(loop.minibatches, -1):
                self.step(tuple(x[part] for x in at), advantages[part])
        self.iteration += 1
        if self.iteration % loop.refresh_every == 0:
            self.old = self.theta


# The cases: numbers are plain, or one for each run

KINDS = {
    "sgd": SGD, "heavy_ball": HeavyBall, "rmsprop": RMSProp, "adam": Adam, "adamw": AdamW, "lion": Lion,
    "clipped": ClippedNorm, "l2": L2, "cosine": Cosine, "warmup": Warmup,
}  # fmt: skip
PATHS = {"low": "gain.low", "high": "gain.high", "coef": "penalty.coef"}
RATES = np.array([0.8, 0.3, 1.5])
COSINE = {"kind": "cosine", "init": np.array([0.3, 0.1, 0.2]), "steps": 9.0, "end": 0.1}
WARMUP = {"kind": "warmup", "peak": 0.2, "steps": np.array([2.0, 5.0, 8.0])}
MOMENTS = {"b1": 0.8, "b2": 0.9, "eps": 1e-3}
OPTIMIZERS = {
    "sgd": {"kind": "sgd", "learning_rate": RATES},
    "heavy_ball": {"kind": "heavy_ball", "learning_rate": RATES / 4, "momentum": np.array([0.9, 0.5, 0.0])},
    "rmsprop": {"kind": "rmsprop", "learning_rate": RATES / 8, "decay": 0.7, "eps": 1e-3},
    "adam": {"kind": "adam", "learning_rate": COSINE, **MOMENTS},
    "adamw": {"kind": "adamw", "learning_rate": 0.2, "weight_decay": np.array([0.4, 0.0, 0.1]), **MOMENTS},
    "lion": {"kind": "lion", "learning_rate": RATES / 10, "b1": 0.7, "b2": 0.9, "weight_decay": RATES / 3},
    "clipped": {
        "kind": "clipped", "max_norm": np.array([0.1, 0.3, 0.2]),
        "inner": {"kind": "adamw", "learning_rate": WARMUP, "weight_decay": 0.2, **MOMENTS},
    },
    "l2": {
        "kind": "l2", "coef": np.array([0.02, 0.3, 0.1]),
        "inner": {"kind": "heavy_ball", "learning_rate": 0.3, "momentum": 0.6},
    },
}  # fmt: skip
NUMBERS = {
    "grpo": {"low": 0.15, "high": np.array([0.1, 0.3, 0.2]), "coef": np.array([0.3, 0.1, 1.0])},
    "dr_grpo": {"low": 0.1, "high": 0.2, "coef": np.array([0.0, 0.2, 0.1])},
    "dapo": {"low": 0.1, "high": np.array([0.28, 0.1, 0.2])},
    "gspo": {"low": 0.03, "high": 0.04},
    "cispo": {"low": 1.0, "high": np.array([0.1, 0.3, 4.0])},
    "tic_grpo": {"high": 0.1},
    "rloo": {"low": 0.2, "high": 0.1},
}
INNER = Loop(group_size=6, inner_steps=3)
SPLIT = Loop(group_size=5, inner_steps=2, minibatches=2)
STALE = Loop(group_size=5, inner_steps=2, refresh_every=3)
DRAWN = Loop(group_size=4, prompts=6, inner_steps=2, minibatches=3, refresh_every=2)


def picked(numbers, r):
    """The numbers of run r."""
    if isinstance(numbers, dict):
        return {key: picked(value, r) for key, value in numbers.items()}
    return float(numbers[r]) if isinstance(numbers, np.ndarray) else numbers


def built(numbers):
    """The library's part for a description of an optimizer or a schedule."""
    if not isinstance(numbers, dict):
        return numbers
    fields = {key: built(value) for key, value in numbers.items() if key != "kind"}
    return KINDS[numbers["kind"]](**fields)


def check(problem, name, optimizer, loop, expectation=None):
    numbers, optimizer = NUMBERS[name], OPTIMIZERS[optimizer]
    policy, task, reference = problem.library()
    method = put_all(methods.get(name), {PATHS[key]: value for key, value in numbers.items()})
    config = Config(
        policy=policy, task=task, method=method, optimizer=built(optimizer), loop=loop,
        expectation=expectation, reference=reference,
    )  # fmt: skip
    state, _ = train.run(config, train.init(config, SEEDS), iterations=ITERATIONS, record=())
    held, moved = 0.0, 0.0
    for r, seed in enumerate(SEEDS):
        oracle = Oracle(problem, name, picked(numbers, r), picked(optimizer, r), loop, seed)
        for _ in range(ITERATIONS):
            oracle.iterate()
        shape = state.params.shape[:-1]
        for found, wanted in ((state.params, oracle.theta), (state.old_params, oracle.old)):
            np.testing.assert_allclose(found[..., r], wanted.reshape(shape), rtol=0, atol=1e-10)
        held, moved = held + sum(oracle.held), max(moved, np.abs(oracle.theta - problem.start).max())
    assert moved > 0.1
    assert held > 0


@pytest.mark.parametrize(
    ("name", "optimizer", "loop", "expectation"),
    [
        ("grpo", "adamw", SPLIT, Counts()),
        ("grpo", "lion", INNER, Counts()),
        ("grpo", "sgd", DRAWN, Sampled()),
        ("dr_grpo", "rmsprop", STALE, Counts()),
        ("dapo", "heavy_ball", DRAWN, Counts()),
        ("gspo", "adam", INNER, Counts()),
        ("cispo", "clipped", SPLIT, Counts()),
        ("tic_grpo", "l2", INNER, Sampled()),
        ("rloo", "sgd", STALE, Counts()),
    ],
)
def test_training_on_actions_is_the_simulation(name, optimizer, loop, expectation):
    check(ACTIONS, name, optimizer, loop, expectation)


@pytest.mark.parametrize(("name", "optimizer", "loop"), [("grpo", "adamw", INNER), ("dapo", "sgd", STALE)])
def test_training_on_sequences_of_unequal_lengths_is_the_simulation(name, optimizer, loop):
    check(TREE, name, optimizer, loop)


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("name", NUMBERS)
def test_every_method_with_every_optimizer_is_the_simulation(name, optimizer):
    loops = itertools.cycle((INNER, SPLIT, STALE, DRAWN))
    place = list(NUMBERS).index(name) + list(OPTIMIZERS).index(optimizer)
    check(ACTIONS, name, optimizer, next(itertools.islice(loops, place, None)))
