"""Presets with their own engine under ``Exact``, against all groups of two of a tree, in NumPy."""

import itertools
import math

import jax.numpy as jnp
import numpy as np
import pytest

import grpo_jax as gj
from grpo_jax import presets
from grpo_jax.exact import expected_gradient
from tests.filters import softmax

pytestmark = pytest.mark.usefixtures("x64")

SPACE = gj.Sequences(vocab=2, horizon=2)
LOGITS = np.array([[0.9, -0.2], [-0.3, 0.8], [0.4, 1.9]])
REWARDS = np.array([1.0, 0.1, -0.4, 0.6])
OUTPUTS = list(itertools.product(range(2), repeat=2))
STEP = 1e-5


def logps(rows):
    """[4, 2] log-probability of every output's tokens; a row of the table is a prefix."""
    return np.array([[math.log(rows[0][a]), math.log(rows[1 + a][b])] for a, b in OUTPUTS])


def prime_rl(keeps, leash):
    """Tokens that the rule keeps weigh A·r, all pay leash·x², over the tokens of both outputs."""

    def value(pi, old, q, group, seen):
        rewards = REWARDS[list(group)]
        total = 0.0
        for y, a in zip(group, rewards - rewards.mean(), strict=True):
            for t in range(2):
                x = pi[y, t] - q[y, t]
                kept = keeps(math.exp(old[y, t]), math.exp(q[y, t]), a)
                seen.add(kept)
                total += kept * a * math.exp(x) - leash * x * x
        return total / 4

    return value


def areal(pi, old, q, group, seen):
    """PPO's clip on π/π_old times the geometric mean of π_old/q, answers outside [.8, 1.25] dropped."""
    rewards = REWARDS[list(group)]
    spread = rewards.std(ddof=1) + 1e-5
    total = 0.0
    for y, a in zip(group, (rewards - rewards.mean()) / spread, strict=True):
        weight = math.exp(np.mean(old[y] - q[y]))
        seen.add(0.8 <= weight <= 1.25)
        for t in range(2):
            r = math.exp(pi[y, t] - old[y, t])
            total += (0.8 <= weight <= 1.25) * weight * min(r * a, np.clip(r, 0.8, 1.2) * a)
    return total / 4


def two_outcomes(p, q):
    return p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))


CASES = {
    "default": (
        "prime_rl",
        {"dppo_mask_low": 0.01, "dppo_mask_high": 0.01, "kl_tau": 0.1, "loss": {"type": "default"}},
        prime_rl(lambda p, q, a: p - q <= 0.01 if a > 0 else p - q >= -0.01, 0.1),
    ),
    "ipo": (
        "prime_rl",
        {"type": "ipo", "ipo_threshold": 0.09, "kl_tau": 0.0},
        prime_rl(lambda p, q, a: abs(p - q) <= 0.09, 0.0),
    ),
    "kpop": (
        "prime_rl",
        {"type": "kpop", "kpop_threshold": 0.02, "kl_tau": 0.2},
        prime_rl(lambda p, q, a: max(two_outcomes(p, q), two_outcomes(q, p)) <= 0.02, 0.2),
    ),
    "icepop": (
        "prime_rl",
        {"type": "icepop", "ratio_low": 0.7, "ratio_high": 1.1},
        prime_rl(lambda p, q, a: 0.7 <= p / q <= 1.1, 0.0),
    ),
    "areal": (
        "areal",
        {
            "use_decoupled_loss": True,
            "kl_ctl": 0.0,
            "reward_norm": {"mean_level": "group", "std_level": "group"},
            "rejection_sampling": {"level": "sequence", "upper": 1.25, "lower": 0.8},
        },
        areal,
    ),
}
HOT = 1.6
"""The engine's temperature; the trainer scores at 1."""


@pytest.mark.parametrize("name", CASES)
def test_an_exact_update_is_the_mean_over_all_groups(name):
    library, options, value = CASES[name]
    engine = gj.Behavior(decoding=gj.Decoding(temperature=HOT))
    if library == "areal":
        options = options | {"gconfig": {"temperature": HOT}}
        found = presets.sampling("areal", **options).behavior
        assert found.decoding.temperature == HOT
        assert found.records == "processed"
        engine = found
    config = gj.Config(
        policy=gj.TreePolicy(space=SPACE, logits=LOGITS[None]),
        task=gj.SequenceTable(space=SPACE, table=REWARDS[None]),
        method=presets.PRESETS[library](**options),
        optimizer=gj.SGD(learning_rate=0.1),
        loop=gj.Loop(group_size=2),
        expectation=gj.Exact(cells=0),
        behavior=engine,
    )
    found = np.asarray(expected_gradient(config, jnp.asarray(LOGITS[None])))[0]
    q = logps([softmax(row / HOT) for row in LOGITS])
    old = logps([softmax(row) for row in LOGITS])
    groups = list(itertools.product(range(4), repeat=2))
    chance = [math.exp(q[list(g)].sum()) for g in groups]
    assert sum(chance) == pytest.approx(1)

    seen = set()  # whether the rule keeps some tokens and drops some

    def expected(table):
        pi = logps([softmax(row) for row in table])
        return sum(c * value(pi, old, q, g, seen) for c, g in zip(chance, groups, strict=True))

    slope = np.zeros_like(LOGITS)
    for place in np.ndindex(LOGITS.shape):
        step = np.zeros_like(LOGITS)
        step[place] = STEP
        slope[place] = (expected(LOGITS + step) - expected(LOGITS - step)) / (2 * STEP)
    np.testing.assert_allclose(found, slope, atol=1e-9)
    assert np.abs(slope).max() > 1e-3
    assert seen == {True, False}
