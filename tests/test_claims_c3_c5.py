"""C3 and C5: their instruments equal what they stand for, and their sentences fall when they should."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr

from experiments.claims import c03_no_importance as c3
from experiments.claims import c05_convergence as c5
from experiments.harness.verdict import Claim
from experiments.problems import trees
from grpo_jax import train
from grpo_jax.config import Loop
from grpo_jax.exact import Exact
from grpo_jax.methods import SHIFT
from grpo_jax.optimizers import SGD, AdamW
from grpo_jax.parts.gains import Clip
from grpo_jax.parts.ratios import Frozen, Score, Token, Trajectory
from grpo_jax.parts.reductions import Constant, PerSequence
from grpo_jax.parts.shaping import DivideByLength, Sum
from grpo_jax.sequences import Sequences
from grpo_jax.surrogate import Method, loss
from grpo_jax.types import Rollout

pytestmark = pytest.mark.usefixtures("x64")
SPACE = Sequences(vocab=2, horizon=3)


def ended(config, *, iterations: int = 2):
    """Parameters after training, less those before."""
    state = train.init(config, 0)
    return train.run(config, state, iterations=iterations, record=())[0].params - state.params


def training(kind: str = "binary", *, tables: int = 1, optimizer: str = "SGD", **changes):
    """The whole distribution as a group, four steps a batch, at a learning rate that moves the policy."""
    given = {kind: trees.problem(5, SPACE, tables=tables, kind=kind)}
    config = trees.training(
        given, optimizer=optimizer, period=4.0, inner_steps=4, **({"steps": 4.0} | changes)
    )
    steps = dataclasses.replace(config.optimizer, learning_rate=3.0 if optimizer == "SGD" else 0.2)
    return dataclasses.replace(config, optimizer=steps, expectation=trees.Groups(exact=1.0))


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
    mask = jnp.asarray((np.arange(4) < rng.integers(1, 5, (2, 5, 1))).astype(float))
    old, rewards = jnp.asarray(-rng.uniform(0.1, 2, (2, 5, 4))), jnp.asarray(rng.normal(size=(2, 5, 1)))
    tokens = jnp.zeros(old.shape, int)
    batch = Rollout(np.arange(2), tokens, mask, rewards, jnp.ones((2, 5)), old, old, old)
    logp = old + jnp.asarray(rng.normal(scale=0.3, size=old.shape))
    switched = trees.method(low=0.2, high=0.3, **switches)
    named = Method(**({"shaping": Sum(), "advantage": SHIFT, "gain": Clip(low=0.2, high=0.3)} | slots))
    np.testing.assert_allclose(loss(switched, batch, logp), loss(named, batch, logp), atol=1e-14)


@pytest.mark.parametrize("kind", ["binary", "graded"])
def test_the_whole_distribution_is_the_expectation_over_pairs_up_to_its_factor(kind):
    """Pairs have 1 − 1/G = ½ of the update, so twice the rate; clipped where there are two levels."""
    config = training(kind)
    if kind == "graded":
        config = dataclasses.replace(config, method=trees.method(trajectory=0.0, low=1.0, high=trees.INF))
    twice = dataclasses.replace(
        config,
        expectation=Exact(cells=2 if kind == "binary" else 4),
        loop=Loop(group_size=2, inner_steps=4),
        optimizer=SGD(learning_rate=6.0),
    )
    assert float(jnp.abs(ended(config)).max()) > 0.1
    np.testing.assert_allclose(ended(config), ended(twice), atol=1e-12)


def test_questions_side_by_side_train_as_if_alone():
    together = training("graded", tables=3)
    alone = dataclasses.replace(
        together,
        policy=dataclasses.replace(together.policy, logits=together.policy.logits[1:2]),
        task=dataclasses.replace(together.task, table=together.task.table[1:2]),
    )
    np.testing.assert_allclose(ended(together)[1:2], ended(alone), atol=1e-13)


@pytest.mark.parametrize("optimizer", ["SGD", "AdamW"])
@pytest.mark.parametrize("steps", [1, 3])
def test_first_steps_are_inner_steps(optimizer, steps):
    """Some of four steps, moments and their count included, are as many steps of the library's optimizer."""
    config = training(optimizer=optimizer, steps=float(steps))
    rate = config.optimizer.learning_rate
    plain = SGD(learning_rate=rate) if optimizer == "SGD" else AdamW(learning_rate=rate, weight_decay=0.0)
    library = dataclasses.replace(config, optimizer=plain, loop=Loop(group_size=8, inner_steps=steps))
    np.testing.assert_allclose(ended(config), ended(library), atol=1e-13)


@pytest.mark.parametrize(("optimizer", "held"), [("SGD", 0.0), ("AdamW", 0.0), ("AdamW", 1.0)])
def test_few_steps_in_a_loop_as_long_are_the_first_of_a_longer_loop(optimizer, held):
    """The loop of C3 and C5, over three batches, against idle steps after the second."""
    idle = training("graded", tables=2, optimizer=optimizer, steps=2.0)
    idle = dataclasses.replace(idle, optimizer=dataclasses.replace(idle.optimizer, held=held))
    given = {"graded": trees.problem(5, SPACE, tables=2, kind="graded")}
    short = trees.training(given, optimizer=optimizer, **trees.few_steps(2))
    assert short.loop.inner_steps == 2
    numbers = {"held": held, "learning_rate": idle.optimizer.learning_rate}
    short = dataclasses.replace(
        short, optimizer=dataclasses.replace(short.optimizer, **numbers), expectation=idle.expectation
    )
    found = ended(short, iterations=3)
    assert float(jnp.abs(found).max()) > 0.1
    np.testing.assert_allclose(found, ended(idle, iterations=3), atol=1e-13)


@pytest.mark.parametrize("optimizer", ["SGD", "AdamW"])
def test_held_gradients_are_the_library_s_frozen_ones(optimizer):
    config = training(optimizer=optimizer)
    held = dataclasses.replace(config, optimizer=dataclasses.replace(config.optimizer, held=1.0))
    library = dataclasses.replace(config, method=dataclasses.replace(config.method, ratio=Frozen()))
    assert float(jnp.abs(ended(held) - ended(config)).max()) > 1e-3
    np.testing.assert_allclose(ended(held), ended(library), atol=1e-12)


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


def noise(error: float = 0.001, tables: int = 50) -> xr.DataArray:
    """Noise over tables whose mean is 0, with this standard error."""
    drawn = np.random.default_rng(0).normal(size=tables)
    return xr.DataArray((drawn - drawn.mean()) / drawn.std(ddof=1) * error * np.sqrt(tables), dims="table")


def zeros(**coords) -> xr.DataArray:
    """Zeros with these dimensions."""
    return xr.DataArray(np.zeros([len(v) for v in coords.values()]), {k: list(v) for k, v in coords.items()})


def without_importance(*, growth: dict | None = None, **changes: float) -> Claim:
    """C3 on made-up numbers: what is added to mean J of the frozen reading, at GRPO's best rate or below it.

    A change is named by optimizer, place ("best", "small" or "large" rate) and kind of reward; GRPO is best
    at the middle of the grid, and so is every other method, at the same J.
    """
    cell = {"kind": c3.KINDS, "sampling": c3.SAMPLINGS, "algorithm": c3.METHODS}
    data = {}
    for name, rates in c3.RATES.items():
        peak = xr.DataArray(-0.05 * np.abs(np.arange(len(rates)) - 3.0), {"learning_rate": rates})
        value = zeros(setting=c3.SETTINGS, **cell) + 0.5 + peak
        for place, rate in {"best": rates[3], "small": rates[1], "large": rates[5]}.items():
            for kind in c3.KINDS:
                at = {"setting": "μ = 8", "kind": kind, "sampling": "sampled", "learning_rate": rate}
                value.loc[at | {"algorithm": c3.READ}] += changes.get(f"{name}_{place}_{kind}", 0.0)
                value.loc[at | {"algorithm": "GRPO unclipped"}] += changes.get(f"{name}_{place}_free", 0.0)
                value.loc[at | {"algorithm": c3.OTHER}] += changes.get(f"{name}_{place}_score", 0.0)
        value = value + noise(changes.get("error", 0.001)) * (value.algorithm == c3.READ)
        data[name] = xr.Dataset({"value": value, "square": value})
    once = data["SGD"].value.sel(setting="μ = 8", algorithm=c3.READ, drop=True)
    once = once.expand_dims(algorithm=list(c3.METHODS)) + 0.0
    once = once + changes.get("instrument", 0.0) * (once.algorithm == "GRPO")
    data["once"] = xr.Dataset({"value": once, "square": once})
    mu = xr.DataArray([0, 1, 2, 4], {"mu": [0, 1, 2, 4]})
    powers = {c3.OTHER: 1.0, "GRPO": 0.0, "GRPO unclipped": 0.2} | (growth or {})
    power = xr.DataArray(list(powers.values()), {"algorithm": list(powers)})
    rise = zeros(**{k: v for k, v in cell.items() if k != "algorithm"}, table=range(2)) + mu**power * (mu > 0)
    data["one batch"] = xr.Dataset({"objective": rise, "truth": rise}).transpose(..., "mu")
    claim = Claim("C3", "sentence")
    c3.check(data, claim)
    return claim


@pytest.mark.parametrize(
    ("changes", "verdict"),
    [
        ({}, "reproduced"),
        ({"SGD_best_graded": 0.07}, "refuted"),
        ({"SGD_best_binary": 0.07}, "refuted"),
        ({"AdamW_best_graded": 0.07}, "refuted"),
        ({"AdamW_best_graded": -0.04}, "qualified"),  # its own best rate is another one, .01 lower
        ({"AdamW_best_binary": float("nan")}, "refuted"),
        ({"SGD_small_graded": -0.07}, "qualified"),
        ({"AdamW_small_binary": 0.07}, "qualified"),
        ({"SGD_large_graded": 0.07}, "reproduced"),  # beyond GRPO's best rate, and no better than the best
        ({"SGD_large_binary": 0.2}, "refuted"),
        ({"SGD_best_free": 0.07}, "reproduced"),
        ({"error": 0.01}, "not testable here"),
        ({"instrument": 1e-6}, "not testable here"),
    ],
)
def test_standard_grpo_decides_at_best_rates_and_one_rate_qualifies(changes, verdict):
    if changes == {"AdamW_best_graded": -0.04}:
        changes = changes | {"AdamW_small_graded": 0.09}
    assert without_importance(**changes).verdict().verdict == verdict


def test_the_other_baseline_and_the_other_reading_are_rows_of_their_own():
    free, score = without_importance(SGD_best_free=0.07), without_importance(AdamW_best_score=0.07)
    assert [row.verdict().verdict for row in free.rows] == ["refuted", "reproduced", "reproduced"]
    assert [row.verdict().verdict for row in score.rows] == ["reproduced", "refuted", "reproduced"]


@pytest.mark.parametrize("growth", [{"score at θ": 0.2}, {"GRPO": 0.2}, {"GRPO unclipped": 1.0}])
def test_on_one_batch_only_the_score_goes_on(growth):
    assert without_importance().rows[2].verdict().verdict == "reproduced"
    assert without_importance(growth=growth).rows[2].verdict().verdict == "refuted"


def converged(leads: dict, *, equal: float = 0.0, error: float = 0.001, left: float = 0.1) -> Claim:
    """C5 on made-up numbers: TIC-GRPO's lead by (optimizer, kind of reward), and the room with graded ones.

    GRPO leaves less than is judged with binary rewards. A lead named "r/|o|" or "upper" is of these methods.
    """
    data = {}
    for outputs, (name, rates) in ((o, r) for o in c5.SPACES for r in c5.RATES.items()):
        peak = xr.DataArray(-0.02 * np.abs(np.arange(len(rates)) - 3.0), {"learning_rate": rates})
        cell = {"kind": c5.KINDS, "sampling": ["exact", "sampled"], "algorithm": c5.METHODS[outputs]}
        value = zeros(setting=["μ = 8"], **cell) + 0.5 + peak
        square = zeros(setting=["μ = 8"], **cell, learning_rate=rates) + 0.5
        for kind in c5.KINDS:
            value.loc[{"kind": kind, "algorithm": "TIC-GRPO"}] += leads.get((name, kind), 0.02)
        if outputs == "ending at EOS":
            value.loc[{"algorithm": c5.PER_TOKEN}] += leads.get("r/|o|", 0.02)
            upper = [method for method, on in zip(c5.ENDING, c5.SWITCHES, strict=True) if on[1]]
            value.loc[{"algorithm": upper}] += leads.get("upper", 0.0)
        value.loc[{"algorithm": "GRPO", "learning_rate": rates[0]}] += equal
        both = {"value": value, "square": square}
        uneven = {key: made + noise(error) * (made.algorithm != "GRPO") for key, made in both.items()}
        data[f"{outputs}, {name}"] = xr.Dataset(uneven)
        start = zeros(kind=c5.KINDS, table=range(50)) + 0.5
        best = start + xr.DataArray([0.01, left], {"kind": list(c5.KINDS)})
        data[f"{outputs}, start"] = xr.Dataset({"value": start, "square": start, "best": best})
    small = zeros(kind=c5.KINDS, algorithm=c5.UNCLIPPED, learning_rate=c5.SMALL, table=range(2)) + 0.5
    gap = zeros(kind=c5.KINDS, horizon=c5.HORIZONS, table=range(2)) + 1.0
    data["leading order"] = xr.Dataset({"trained": small, "gap": gap})
    claim = Claim("C5", "sentence")
    c5.check(data, claim)
    return claim


@pytest.mark.parametrize(
    ("leads", "given", "verdict"),
    [
        ({}, {}, "reproduced"),
        ({("AdamW", "graded"): -0.02}, {}, "refuted"),
        ({("SGD", "graded"): -0.02}, {}, "refuted"),
        ({("SGD", "graded"): float("nan")}, {}, "refuted"),
        ({("SGD", "graded"): 0.0}, {"error": 0.0001}, "qualified"),
        ({("AdamW", "binary"): -0.05}, {}, "reproduced"),  # reported, as GRPO leaves too little
        ({}, {"left": 0.01}, "not testable here"),  # no setting is judged
        ({}, {"error": 0.02}, "not testable here"),
    ],
)
def test_judged_where_grpo_leaves_room_and_a_tie_is_not_slower(leads, given, verdict):
    assert converged(leads, **given).verdict().verdict == verdict


def test_equal_rates_per_token_parts_and_leading_order_are_rows_of_their_own():
    """GRPO is ahead at one rate that is best for neither; all predictions are 6 where nothing happens."""
    even, ahead, per_token = converged({}), converged({}, equal=0.05), converged({"r/|o|": -0.05})
    assert {claim.verdict().verdict for claim in (even, ahead, per_token)} == {"reproduced"}
    assert even.rows[0].verdict().verdict == even.rows[1].verdict().verdict == "reproduced"
    assert ahead.rows[0].verdict().verdict == "refuted"
    assert per_token.rows[1].verdict().verdict == "refuted"
    assert ahead.rows[-1].verdict().verdict == "refuted"


def test_a_part_that_lowers_the_reward_is_refuted_and_one_that_raises_it_is_not():
    """The parts are the trajectory ratio, the upper-only clip and r/|o|, in this order."""
    lower = converged({"upper": -0.1}).rows[2:5]
    raised = converged({"upper": 0.1, ("SGD", "graded"): 0.0, "r/|o|": 0.0}).rows[2:5]
    assert lower[1].verdict().verdict == "refuted"
    assert raised[1].verdict().verdict == "reproduced"
