"""One tree of three tokens, its policy and rewards, and who may sample it: written down by hand."""

import dataclasses
import itertools

import numpy as np

import grpo_jax as gj
from grpo_jax.methods import SHIFT
from grpo_jax.parts.gains import Linear
from grpo_jax.parts.ratios import Score, Token
from grpo_jax.parts.reductions import Constant
from grpo_jax.parts.sampler import SamplerMismatch
from tests.filters import softmax, top_p

SPACE = gj.Sequences(vocab=3, horizon=3)
RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(1, SPACE.offsets[-1], 3))
REWARDS = RNG.normal(size=(1, 27))
SEQUENCES = list(itertools.product(range(3), repeat=3))
GROUP = 3
SCORE = gj.Method(advantage=SHIFT, ratio=Score(), gain=Linear(), reduction=Constant(length=1.0))
TOKEN = gj.Method(advantage=SHIFT, ratio=Token(), corrections=(SamplerMismatch(high=5.0),), penalty=None)


def node(prefix):
    """The row of a prefix, level by level in order of its digits."""
    return sum(3**depth for depth in range(len(prefix))) + int("".join(map(str, prefix)) or "0", 3)


def sequences(rows):
    """[27] product of the entries of ``rows`` [nodes, 3] along each sequence."""
    return np.array([np.prod([rows[node(y[:t]), y[t]] for t in range(3)]) for y in SEQUENCES])


def scores(pi):
    """[27, nodes, 3] gradient of log π(y) in the logits."""
    found = np.zeros((27, len(pi), 3))
    for place, y in enumerate(SEQUENCES):
        for t in range(3):
            row = node(y[:t])
            found[place, row] -= pi[row]
            found[place, row, y[t]] += 1
    return found


def problem(method=SCORE, behavior=None, **changes):
    base = gj.Config(
        policy=gj.TreePolicy(space=SPACE, logits=LOGITS),
        task=gj.SequenceTable(space=SPACE, table=REWARDS),
        method=method,
        optimizer=gj.SGD(learning_rate=0.1),
        loop=gj.Loop(group_size=GROUP),
        expectation=gj.Exact(cells=0),
        behavior=behavior,
    )
    return dataclasses.replace(base, **changes)


PI = np.stack([softmax(row) for row in LOGITS[0]])
OUTPUTS = sequences(PI)


def kept_by(level):
    kept = np.stack([top_p(row, level) for row in PI])
    mass = (PI * kept).sum(1, keepdims=True)
    return kept, mass, np.where(kept, PI / mass, 0)
