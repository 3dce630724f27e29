"""Rules that judge D4 and D5, with numbers made up for the purpose; their warnings and formulas by hand."""

import itertools

import numpy as np
import pytest
import xarray as xr

import grpo_jax as gj
from experiments.claims import d04_staleness as d4
from experiments.claims import d05_discarded as d5
from experiments.problems import staleness
from grpo_jax import train
from tests.made_up_claims import noisy, verdicts

pytestmark = pytest.mark.usefixtures("x64")
TASKS = 12


def d4_data(*, ess=0.95, jump=0.9, step=0.6, one=0.2, decoupled=0.1, relaxed=0.9, tight=0.8, fresh_ess=1.0):
    labels = {"quantity": list(d4.SIGNS), "objective": list(d4.OBJECTIVES), "task": range(TASKS)}
    area = noisy(0.7, **labels)
    for name, value in {"ess": ess, "spike": jump, "step": step}.items():
        area.loc[{"quantity": name}] += value - 0.7
    grid = {
        "group_size": d4.GROUPS, "objective": list(d4.OBJECTIVES), "clip": list(d4.CLIPS), "lag": d4.LAGS,
        "learning_rate": d4.RATES, "task": range(TASKS),
    }  # fmt: skip
    collapsed = abs(noisy(0.0, **grid))
    more = {k: v for k, v in grid.items() if k in ("learning_rate", "task")}
    late = noisy(one, objective=list(d4.WEIGHTED), clip=list(d4.CLIPPED), lag=d4.STALE, **more)
    late.loc[{"objective": d4.DECOUPLED}] += decoupled - one
    whole = noisy(relaxed, **grid)
    whole.loc[{"clip": "0.2"}] += tight - relaxed
    runs = xr.Dataset({"collapsed": collapsed, "whole": whole, "unshared": 0.0, "fresh_ess": fresh_ess})
    warnings = {"area": area, "within": area.rename(quantity="inside")}
    warnings["from_the_first"] = area.sel(quantity="ess", drop=True)
    several = xr.Dataset({"collapsed": late})
    return {"runs": runs, "several": several, "warnings": xr.Dataset(warnings)}


@pytest.mark.parametrize(
    ("changed", "want"),
    [
        ({}, ["reproduced", "reproduced", "reproduced", "reproduced"]),
        ({"ess": 0.75}, ["refuted", "reproduced", "reproduced", "reproduced"]),
        ({"step": 0.93}, ["qualified", "qualified", "reproduced", "reproduced"]),
        ({"jump": 0.6}, ["reproduced", "refuted", "reproduced", "reproduced"]),
        ({"decoupled": 0.3}, ["reproduced", "reproduced", "refuted", "reproduced"]),
        ({"decoupled": 0.2}, ["reproduced", "reproduced", "refuted", "reproduced"]),
        ({"relaxed": 0.8}, ["reproduced", "reproduced", "reproduced", "refuted"]),
        ({"fresh_ess": 0.9}, ["not testable here", "reproduced", "reproduced", "reproduced"]),
    ],
)
def test_what_d4_says_falls_when_it_should(changed, want):
    assert verdicts(d4, d4_data(**changed)) == want


def test_the_area_under_the_curve_is_the_share_of_pairs_in_order():
    """By hand over every pair of a moment before a fall and one not before; ties count half."""
    scores = np.array([0.1, 0.5, 0.5, 0.9, 0.2, np.nan, 0.4])
    labels = np.array([0.0, 1.0, 0.0, 1.0, 0.0, 1.0, np.nan])
    pairs = [
        1.0 if hit > miss else 0.5 if hit == miss else 0.0
        for hit, miss in itertools.product([0.5, 0.9], [0.1, 0.5, 0.2])
    ]
    given = [xr.DataArray(values, dims="moment_") for values in (scores, labels)]
    found = d4.area(*given, ("moment_",))
    assert float(found) == pytest.approx(np.mean(pairs))
    nothing = given[1].where(given[1] != 1, 0)
    assert np.isnan(d4.area(given[0], nothing, ("moment_",)))


def test_a_moment_warns_of_a_fall_that_is_near_and_not_of_one_that_was():
    steps = np.arange(1, 61)
    reward = np.where(steps < 5, 0.2 * steps, 1.0)
    reward = np.where(steps >= 20, 0.3, reward)  # falls below half of its best at 20
    one = xr.DataArray(reward, {"iteration": steps})
    data = xr.Dataset(dict.fromkeys(("ess", "kl", "ratio", "entropy", "grad_norm"), one * 0 + 1))
    data = data.assign(expected_reward=one).assign_coords(lag=2, learning_rate=0.5)
    found = d4.warned(data)
    soon = found.soon.to_series()
    assert list(soon.index) == list(range(2, d4.EARLY + 1))
    assert len(d4.warned(data, first=0).iteration) == d4.EARLY
    assert (soon.loc[2:9] == 0).all()
    assert (soon.loc[10:19] == 1).all()
    assert soon.loc[20:].isna().all()
    assert (found.step.to_series().loc[2:19] == 1).all()


def test_what_warns_is_measured_against_the_sampler_whatever_the_objective():
    """Two iterations of training with a lag of one: weights of the drawn outputs by hand."""
    base = staleness.config(group_size=8, depth=2)
    names = {"ess": d4.ess, "kl": d4.kl, "ratio": d4.ratio}
    table = staleness.tables(3, 1)[0]
    for weight in (0.0, 1.0):
        behavior = gj.Behavior(age=gj.Age(lag=1, depth=2), proximal=gj.Proximal(weight=weight))
        config = gj.Config(
            policy=base.policy, task=gj.SequenceTable(space=staleness.SPACE, table=table),
            method=base.method, optimizer=gj.SGD(learning_rate=3.0), loop=base.loop, behavior=behavior,
            expectation=gj.Sampled(),
        )  # fmt: skip
        state, _ = train.run(config, train.init(config, 5), iterations=2, record=())
        batch = config.expectation.collect(config, state)
        _, info = train.run(config, state, iterations=1, record=[], measure=names)
        tokens = np.asarray(batch.rollout.tokens)[0]

        def whole(params, tokens=tokens):
            rows = np.asarray(params)[0]
            logp = rows - np.log(np.exp(rows).sum(1, keepdims=True))
            return np.array([sum(logp[t, token] for t, token in enumerate(row)) for row in tokens])

        gap = whole(state.params) - whole(state.queue[1])
        assert abs(gap).max() > 1e-3
        w = np.exp(gap)
        np.testing.assert_allclose(info["ess"], w.sum() ** 2 / (8 * (w**2).sum()), rtol=1e-10)
        np.testing.assert_allclose(info["kl"], -gap.mean(), atol=1e-12)
        np.testing.assert_allclose(info["ratio"], gap.max(), atol=1e-12)


def d5_data(*, limited=0.5, free=1.0, length=0.6, moved=0.0, gap=0.0):
    labels = {
        "optimizer": list(d5.OPTIMIZERS), "limit": d5.LIMITS, "context": [d5.FAST, d5.SLOW],
        "seed": range(TASKS), "iteration": [0, 10],
    }  # fmt: skip
    reward = noisy(free, **labels)
    reward.loc[{"context": d5.SLOW, "limit": [0, 1, 2]}] += limited - free
    reward.loc[{"context": d5.FAST, "limit": 0}] = 0.2
    reward.loc[{"context": d5.FAST, "limit": 0, "iteration": 10}] += moved
    one = noisy(1.0, **labels)
    data = xr.Dataset({"prompt_reward": reward, "trained": one * length, "own": one * 0 + 1, "arriving": one})
    return {
        "identities": xr.Dataset({"gap": noisy(0.0, limit=d5.LIMITS) * 0 + gap}),
        "anew": data, "lost": data, "exact": data.isel(seed=0),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("changed", "want"),
    [
        ({}, ["reproduced"]),
        ({"limited": 0.95}, ["refuted"]),
        ({"length": 1.0}, ["refuted"]),
        ({"limited": 0.3, "free": 0.6}, ["qualified"]),
        ({"moved": 0.3}, ["not testable here"]),
        ({"gap": 1e-6}, ["not testable here"]),
    ],
)
def test_what_d5_says_falls_when_it_should(changed, want):
    assert verdicts(d5, d5_data(**changed)) == want


def test_the_tasks_of_d5_are_what_they_say():
    easy, slow = d5.rewards()
    lengths = d5.SPACE.support[1].sum(1)
    assert set(lengths[easy == 1]) == {2}
    assert (easy == 1).sum() == 2
    assert set(lengths[slow == 1]) == {4}
    assert set(lengths[slow == d5.HALF]) <= {1, 2}
    assert d5.identities().max() < 1e-12
