"""The instruments of the claims about TIC-GRPO: what they are said to equal, they equal."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr

from experiments import c03_no_importance, c05_convergence, trees
from grpo_jax import train
from grpo_jax.collectors import Sampled
from grpo_jax.config import Loop
from grpo_jax.exact import Exact
from grpo_jax.methods import SHIFT, grpo_frozen
from grpo_jax.optimizers import SGD, AdamW
from grpo_jax.parts.gains import Clip
from grpo_jax.parts.ratios import Score, Token, Trajectory
from grpo_jax.parts.reductions import Constant, PerSequence
from grpo_jax.parts.shaping import DivideByLength, Sum
from grpo_jax.sequences import Sequences
from grpo_jax.surrogate import Method, loss
from grpo_jax.types import Rollout

pytestmark = pytest.mark.usefixtures("x64")
SPACE = Sequences(vocab=2, horizon=3)


def rollout(rng) -> Rollout:
    """Two groups of five outputs of one to four tokens."""
    shape = (2, 5, 4)
    mask = (np.arange(4) < rng.integers(1, 5, (2, 5, 1))).astype(float)
    old = jnp.asarray(-rng.uniform(0.1, 2, shape))
    rewards = jnp.asarray(rng.normal(size=(2, 5, 1)))
    return Rollout(
        np.arange(2), jnp.zeros(shape, int), jnp.asarray(mask), rewards, jnp.ones((2, 5)), old, old, old
    )


@pytest.mark.parametrize(
    ("switches", "slots"),
    [
        ({"trajectory": 0.0}, {"ratio": Token(), "reduction": Constant(length=1.0)}),
        ({"trajectory": 1.0}, {"ratio": Trajectory(), "reduction": PerSequence()}),
        ({"trajectory": 0.0, "score": 1.0}, {"ratio": Score(), "reduction": Constant(length=1.0)}),
        ({"trajectory": 0.0, "loss_power": 1.0}, {"ratio": Token(), "reduction": PerSequence()}),
        (
            {"trajectory": 1.0, "reward_power": 1.0},
            {"ratio": Trajectory(), "reduction": PerSequence(), "shaping": DivideByLength()},
        ),
    ],
)
def test_switches_reach_the_library_s_parts(switches, slots):
    rng = np.random.default_rng(3)
    batch = rollout(rng)
    logp = batch.old_logp + jnp.asarray(rng.normal(scale=0.3, size=(2, 5, 4)))
    switched = trees.method(low=0.2, high=0.3, **switches)
    named = Method(**({"shaping": Sum(), "advantage": SHIFT, "gain": Clip(low=0.2, high=0.3)} | slots))
    for function in (jax.jit(loss), jax.jit(jax.grad(loss, 2))):
        np.testing.assert_allclose(function(switched, batch, logp), function(named, batch, logp), atol=1e-14)


def tree(kind: str, *, period: int = 4, steps: float = 4.0, rate: float = 3.0, **changes):
    """Three tables, GRPO and TIC-GRPO on each."""
    given = trees.problem(5, SPACE, tables=3, kind=kind)
    which, tic = np.repeat(np.arange(3), 2), np.tile([0.0, 1.0], 3)
    return trees.config_of(
        given,
        which,
        trees.method(trajectory=tic, **changes),
        rate=np.full(6, rate),
        steps=np.full(6, steps),
        period=period,
        group_size=None,
    )


@pytest.mark.parametrize("kind", ["binary", "graded"])
def test_population_is_the_expectation_over_pairs_up_to_its_factor(kind):
    """Pairs have 1 − 1/G = ½ of the update, so twice the rate; clipped where there are two levels."""
    bounds = {"low": 0.2, "high": 0.2} if kind == "binary" else {"low": 1.0, "high": trees.INF}
    config = tree(kind, **bounds)
    twice = dataclasses.replace(
        config,
        expectation=Exact(cells=2 if kind == "binary" else 4),
        loop=dataclasses.replace(config.loop, group_size=2),
        optimizer=SGD(learning_rate=np.full(6, 6.0)),
    )
    state = train.init(config, np.arange(6))
    after = [jax.jit(lambda c, s: train.step(c, s, record=())[0].params)(c, state) for c in (config, twice)]
    assert float(jnp.abs(after[0] - state.params).max()) > 0.1
    np.testing.assert_allclose(after[0], after[1], atol=1e-12)


def test_first_steps_are_inner_steps():
    config = tree("binary", period=4, steps=3.0, low=0.2, high=0.2)
    plain = dataclasses.replace(
        config,
        loop=Loop(group_size=2, inner_steps=3),
        optimizer=SGD(learning_rate=np.full(6, 3.0)),
    )
    found = []
    for chosen in (config, plain):
        state, _ = train.run(chosen, train.init(chosen, np.arange(6)), iterations=3, record=())
        found.append(state.params)
    np.testing.assert_array_equal(found[0], found[1])


def test_curvature_gap_is_the_slope_of_the_difference_between_two_fields():
    """gᵀ(H − H_block)g from finite differences of ∇J along g, all of it and prefix by prefix."""
    given = trees.problem(1, SPACE, tables=2, kind="graded")
    tokens = SPACE.support[0]
    nodes = np.array([[0, 1 + row[0], 3 + 2 * row[0] + row[1]] for row in tokens])

    def gradient(logits, rewards):
        p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        chance = p[nodes, tokens].prod(1)
        slope = np.zeros_like(logits)
        for row, node, weight in zip(tokens, nodes, chance * rewards, strict=True):
            for token, place in zip(row, node, strict=True):
                slope[place] += weight * (np.eye(2)[token] - p[place])
        return slope

    for table in range(2):
        theta, rewards, step = given.logits[..., table], given.table[:, table], 1e-5
        g = gradient(theta, rewards)

        def along(direction, theta=theta, rewards=rewards, step=step):
            ahead, behind = (gradient(theta + sign * step * direction, rewards) for sign in (1, -1))
            return np.sum(direction * (ahead - behind)) / (2 * step)

        blocks = sum(along(g * (np.arange(len(g)) == row)[:, None]) for row in range(len(g)))
        np.testing.assert_allclose(trees.curvature_gap(given)[table], along(g) - blocks, atol=1e-9)


@pytest.mark.parametrize("expectation", [Sampled(), Exact(cells=2)], ids=["sampled", "exact"])
def test_frozen_steps_of_sgd_are_one_longer_step(expectation):
    """C3, first reading: μ steps of η at θ_old's gradient are one step of μη, iteration after iteration."""
    ends = []
    for steps, rate in ((8, 0.3), (1, 2.4)):
        config = dataclasses.replace(
            tree("binary", low=1.0, high=trees.INF),
            method=grpo_frozen,
            optimizer=SGD(learning_rate=rate),
            loop=Loop(group_size=6, inner_steps=steps),
            expectation=expectation,
        )
        state = train.init(config, np.arange(6))
        after, _ = train.run(config, state, iterations=3, record=())
        ends.append(after.params - state.params)
    assert float(jnp.abs(ends[0]).max()) > 0.1
    np.testing.assert_allclose(ends[0], ends[1], atol=1e-12)


def test_paused_steps_are_inner_steps_of_adamw():
    """One, two and four of four steps in one program, moments and their count included."""
    config = tree("binary", period=4, low=0.2, high=0.2)
    steps = np.repeat([1.0, 2.0, 4.0], 2)
    paused = dataclasses.replace(config, optimizer=trees.stepping("AdamW", np.full(6, 0.2), steps, 4))
    found, _ = train.run(paused, train.init(paused, np.arange(6)), iterations=3, record=())
    for place, count in enumerate((1, 2, 4)):
        plain = dataclasses.replace(
            config,
            loop=Loop(group_size=2, inner_steps=count),
            optimizer=AdamW(learning_rate=0.2, weight_decay=0.0),
        )
        want, _ = train.run(plain, train.init(plain, np.arange(6)), iterations=3, record=())
        runs = slice(2 * place, 2 * place + 2)
        np.testing.assert_allclose(found.params[..., runs], want.params[..., runs], atol=1e-13)


@pytest.mark.parametrize(
    ("means", "where", "holds"),
    [
        ([[0.001, 0.004], [-0.005, 0.001]], "μ = 2, η = 2", True),
        ([[0.001, 0.03], [-0.05, 0.001]], "μ = 2, η = 2", False),
        ([[0.0, 0.019], [0.0, 0.0]], "μ = 8, η = 1", None),
    ],
)
def test_the_largest_gap_is_the_one_that_breaks_the_margin_most(means, where, holds):
    """Means over tables with a standard error of 0.001, against a margin of 0.02; over [rate, μ]."""
    noise = np.random.default_rng(0).normal(size=100)
    noise = 0.01 * (noise - noise.mean()) / noise.std(ddof=1)
    values = noise[:, None, None] + np.array(means)
    gap = xr.DataArray(values, {"rate": [1.0, 2.0], "steps": [2.0, 8.0]}, ("table", "rate", "steps"))
    found, number = c03_no_importance.largest_gap(gap, 0.999)
    assert (found, number.holds) == (where, holds)


def judged(sgd: int, adamw: int):
    """Regimes of 100 tables: on J TIC-GRPO is ahead on so many under SGD and AdamW, and ties elsewhere."""
    coords = {"kind": ["binary"], "sampling": ["exact"], "clipped": ["clipped"], "tic": ["GRPO", "TIC-GRPO"]}
    coords |= {"rate": [1.0, 2.0], "steps": [8.0]}
    dims = (*coords, "table")
    maps = []
    for scope in c05_convergence.SCOPES:
        ahead = {"sgd": sgd, "adamw": adamw}.get(scope)
        gap = np.zeros(100) if ahead is None else np.where(np.arange(100) < ahead, 1.0, -1.0)
        value = np.zeros((1, 1, 1, 2, 2, 1, 100))
        value[:, :, :, 1] = gap
        held = {"value": (dims, value), "square": (dims, 0 * value), "final": (dims, value)}
        maps.append(c05_convergence.stored(scope, xr.Dataset(held, coords)))
    return c05_convergence.regimes(xr.merge(maps))


def test_regimes_are_won_lost_or_undecided_and_ties_are_none():
    found = judged(90, 20)
    assert c05_convergence.counted(found) == (2, 2, 4)
    assert c05_convergence.counted(found, "SGD") == (2, 0, 2)
    assert c05_convergence.counted(found, "AdamW", "η = 2") == (0, 1, 1)
    assert c05_convergence.counted(judged(60, 45)) == (0, 0, 4)
