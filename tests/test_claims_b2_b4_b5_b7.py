"""Rules of the claims on lengths, momentum, the surrogate's value and the methods: what should fail fails."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr

import grpo_jax as gj
from experiments.claims import b02_length_drift as b2
from experiments.claims import b04_momentum as b4
from experiments.claims import b05_surrogate_value as b5
from experiments.claims import b07_method_table as b7
from experiments.formulas.length_forecast import forecast
from experiments.harness.verdict import Claim
from experiments.problems import lengths as task
from experiments.problems import past_the_clip as past
from grpo_jax import methods, train
from grpo_jax.collectors import Sampled
from grpo_jax.diagnostics import log_support
from grpo_jax.exact import Exact, expected_gradient
from grpo_jax.optimizers import SGD, AdamW
from grpo_jax.theory.optimizer import coasting

pytestmark = pytest.mark.usefixtures("x64")
SEEDS = np.arange(4)
JITTER = xr.DataArray(np.array([-1, 1, -1, 1]) * 1e-3, {"seed": SEEDS})


def verdict(module, data) -> str:
    claim = Claim("B0", "A sentence.")
    module.check(data, claim)
    return claim.verdict().verdict


def full(value: float, **labels) -> xr.DataArray:
    """One value under all labels, with a little noise over seeds."""
    shape = [len(values) for values in labels.values()]
    return xr.DataArray(np.full(shape, float(value)), {k: list(v) for k, v in labels.items()}) + JITTER


def drifts(
    effect: float = 1.0, rise: float = 0.5, flat: float = 0.0, advantage: str = ""
) -> dict[str, xr.Dataset]:
    """B2's data by hand: 1/len moves right answers by -effect and wrong ones by effect on the task alone."""
    sampled = full(
        task.MEAN_LENGTH, iteration=[10, 50, 120], kind=["right", "wrong", "all"],
        optimizer=list(task.LEARNING), weight=list(b2.POWERS), advantage=list(b2.ADVANTAGES), rate=task.RATES,
        world=["task", "placebo", "tied tail"],
    )  # fmt: skip
    sign = xr.DataArray([-effect, effect, 0.0], {"kind": ["right", "wrong", "all"]})
    on = (sampled.weight == "1/len") & (sampled.world == "task")
    here = (sampled.world == "task") & ((sampled.advantage == advantage) | (advantage == ""))
    sampled = sampled + xr.where(on, sign, 0.0) + flat * here
    late = (sampled.kind == "all") & (sampled.weight == "1/len") & (sampled.world == "task")
    sampled = sampled + late * (
        rise * ((sampled.iteration == 50) & (sampled.rate < 0.5)) - (sampled.iteration == 120)
    )
    path = full(
        task.MEAN_LENGTH, iteration=[1, 10, 50, 120], kind=["right", "wrong", "all"],
        optimizer=list(task.LEARNING), weight=list(b2.POWERS), rate=task.RATES,
    ).isel(seed=0, drop=True)  # fmt: skip
    up = (path.iteration == 50) & (path.rate < 0.5)
    zero = xr.DataArray(np.zeros(3), dims="token")
    final = xr.DataArray([5.0, 4.0], {"iteration": [1, 120]})
    exact = {"lengths": path + rise * up - 1.0 * (path.iteration == 120), "gradient": zero, "formula": zero}
    return {"sampled": xr.Dataset({"lengths": sampled}), "exact": xr.Dataset(exact).assign(
        final=final.rename(iteration="iteration").reindex(iteration=path.iteration.values, method="nearest")
    )}  # fmt: skip


def rows(module, data) -> list[str]:
    claim = Claim("B0", "A sentence.")
    module.check(data, claim)
    return [row.verdict().verdict for row in (claim, *claim.rows)]


def test_lengths_fall_without_an_effect_and_by_its_direction():
    assert rows(b2, drifts()) == ["reproduced"] * 3
    assert rows(b2, drifts(rise=0.0)) == ["reproduced", "reproduced", "refuted"]
    assert rows(b2, drifts(effect=0.05))[:2] == ["refuted", "refuted"]
    assert rows(b2, drifts(effect=-1.0))[:2] == ["reproduced", "refuted"]
    for advantage in b2.ADVANTAGES:
        assert rows(b2, drifts(flat=0.3, advantage=advantage))[:2] == ["reproduced", "refuted"]
    broken = drifts()
    broken["exact"]["gradient"] = broken["exact"].gradient + 1e-6
    assert verdict(b2, broken) == "not testable here"


def contrasts(at: float | None = None, **changes: float) -> dict[str, xr.Dataset]:
    """B7's data by hand: right less wrong answers' length, by method."""
    found = dict.fromkeys(b7.OWN, -1.0) | dict.fromkeys((*b7.EQUAL, *b7.CONSTANT), 0.0)
    changed = xr.DataArray(list((found | changes).values()), {"algorithm": list(found)})
    rate = xr.DataArray(list(task.RATES), {"rate": list(task.RATES)})
    value = xr.DataArray(list(found.values()), {"algorithm": list(found)})
    value = xr.where((rate == at) | (at is None), changed, value)
    labels = {"optimizer": list(task.LEARNING), "rate": task.RATES, "kind": ["right", "wrong"]}
    half = xr.DataArray([0.5, -0.5], {"kind": ["right", "wrong"]})
    drift = full(0.0, **labels) + value * half
    gained = full(0.8, optimizer=list(task.LEARNING)) * xr.ones_like(value.isel(rate=0, drop=True))
    told = forecast(list(found))
    runs = xr.Dataset({"drift": drift + 1e-3 * JITTER, "gained": gained})
    return {"runs": runs, "forecast": xr.Dataset({"drift": told})}


def test_every_method_of_the_table_is_judged():
    assert verdict(b7, contrasts()) == "reproduced"
    assert verdict(b7, contrasts(gcpo=2.0)) == "refuted"
    assert verdict(b7, contrasts(dr_grpo=-0.5)) == "refuted"
    assert verdict(b7, contrasts(grpo=-0.1)) == "refuted"
    for name in ("dapo", "gtpo"):
        assert verdict(b7, contrasts(**{name: -0.2})) == "qualified"
    for rate in task.RATES:
        assert verdict(b7, contrasts(at=rate, gcpo=2.0)) == "refuted"
        assert verdict(b7, contrasts(at=rate, gspo=-0.1)) == "refuted"


def test_every_method_must_go_the_way_of_its_forecast():
    along = {"dapo": -1.0, "gpg": -1.0, "cispo": -1.0, "gcpo": 1.0}
    assert rows(b7, contrasts(**along, **{task.OPEN: -1.0}, at=0.5))[1] == "reproduced"
    assert rows(b7, contrasts(**along, **{task.OPEN: 1.0}, at=0.5))[1] == "refuted"
    assert rows(b7, contrasts(**along | {"gcpo": -1.0}, at=0.5))[1] == "refuted"


def meters(
    value: float = 0.0, penalised: float = -0.9, freed: float = 0.0, seen: float = 0.9
) -> dict[str, xr.Dataset]:
    """B5's data by hand: one method's correlation of value and reward, the others at 0."""
    names = [*task.TABLE, task.OPEN, task.FREED]
    found = full(0.0, algorithm=names, optimizer=list(task.LEARNING), rate=task.RATES)
    where = (found.algorithm == "dapo") & (found.optimizer == "SGD") & (found.rate == 0.9)
    found = xr.where(where, found + value, found)
    found = xr.where(found.algorithm == task.FREED, found + freed, found)
    found = xr.where(found.algorithm == "grpo", found + penalised, found)
    both = xr.concat([found, full(seen) * xr.ones_like(found)], xr.Variable("meter", ["surrogate", "reward"]))
    zero = xr.DataArray(np.zeros((len(b5.FIRST), 4)), {"algorithm": list(b5.FIRST), "seed": SEEDS})
    first = xr.Dataset(dict.fromkeys(("value", "penalty", "constant", "covariance"), zero + 0.1))
    greatest = xr.DataArray(np.zeros(len(names)), {"algorithm": names})
    once = xr.Dataset({"greatest": xr.DataArray(0.0)})
    return {"first": first, "once": once, "runs": xr.Dataset({"correlation": both, "greatest": greatest})}


def test_a_meter_refutes_and_a_reversed_one_does():
    assert rows(b5, meters(penalised=0.0))[:2] == ["reproduced", "reproduced"]
    assert rows(b5, meters(value=0.8, penalised=0.0))[:2] == ["reproduced", "refuted"]
    assert rows(b5, meters()) == ["reproduced", "refuted", "reproduced"]
    assert rows(b5, meters(freed=-0.8))[2] == "refuted"
    assert rows(b5, meters(value=0.8, penalised=0.0, seen=0.3))[1] == "not testable here"


def test_values_at_the_old_policy_must_be_those_of_the_formulas():
    for name in ("penalty", "constant", "covariance"):
        broken = meters()
        broken["first"][name] = broken["first"][name] + 1e-6
        assert verdict(b5, broken) == "refuted"
    idle = meters()
    idle["first"] = 0 * idle["first"]
    assert verdict(b5, idle) == "not testable here"


def test_coasting_is_found_in_steps_by_hand():
    """Adam in NumPy with gaps in its gradient: every factor is C_{T,k}, a wrong one is seen."""
    slope = np.array([1.0, 0.5, 0.0, 0.0, 0.2, 0.0, 0.0, 0.0])
    m = v = 0.0
    change = []
    for t, g in enumerate(slope, 1):
        m, v = 0.9 * m + 0.1 * g, 0.95 * v + 0.05 * g * g
        change.append(-m / (1 - 0.9**t) / np.sqrt(v / (1 - 0.95**t)))
    labels = {"step": np.arange(1, 9)}
    data = xr.Dataset({"change": ("step", change), "slope": ("step", slope)}, labels)
    found = past.coasted(data, 0.9, 0.95)
    assert found.ratio.notnull().values.tolist() == (slope == 0).tolist()
    xr.testing.assert_allclose(found.ratio, found.expected, rtol=1e-12)
    np.testing.assert_allclose(found.ratio[2], coasting(0.9, 0.95, live=2, k=0), rtol=1e-12)
    wrong = past.coasted(data, 0.9, 0.999)
    assert abs(wrong.ratio - wrong.expected).max() > 1e-3


def length_gradients(rate: float) -> jax.Array:
    """[2, nodes, V] gradient of E[len | right] and E[len | wrong] in the logits at the start."""
    policy, start = task.problem(methods.grpo).policy, jnp.asarray(task.logits(rate))

    def expected(params, inside):
        chance = jnp.exp(log_support(policy, params, jnp.arange(1)))[0] * inside
        return jnp.sum(chance * task.LENGTHS) / jnp.sum(chance)

    return jnp.stack([jax.grad(expected)(start, inside)[0] for inside in (task.RIGHT, ~task.RIGHT)])


@pytest.mark.parametrize("name", ["grpo", "cppo", "dr_grpo"])
def test_the_forecast_is_the_exact_gradient_where_lengths_are_not_coupled(name):
    method = dataclasses.replace(methods.get(name), penalty=None)
    config = task.problem(method, expectation=Exact(cells=2))
    told = forecast([name]).sel(algorithm=name)
    for rate in task.RATES:
        push = expected_gradient(config, jnp.asarray(task.logits(rate)))[0]
        found = (length_gradients(rate) * push).sum((1, 2))
        np.testing.assert_allclose(told.sel(rate=rate), found, rtol=1e-9, atol=1e-13)


def test_one_program_serves_sgd_and_adamw():
    axes = {task.OPTIMIZER: task.LEARNING}
    options = {"seeds": [3], "iterations": 5, "record": [], "measure": {"lengths": task.lengths}}
    both = gj.sweep(task.problem(methods.dr_grpo), axes, progress=False, **options)
    for name, optimizer in (("SGD", SGD(learning_rate=0.6)), ("AdamW", AdamW(learning_rate=0.02))):
        config = task.problem(methods.dr_grpo, optimizer=optimizer)
        alone = gj.sweep(config, progress=False, **options)
        np.testing.assert_allclose(
            both.lengths.sel({"+".join(task.OPTIMIZER): name}), alone.lengths, rtol=1e-7
        )


def test_lengths_at_the_start_are_the_mean_length():
    config = task.problem(methods.grpo)
    state = train.init(config, 0)
    chance = np.exp(log_support(config.policy, state.params, jnp.arange(1)))[0]
    for inside in (task.RIGHT, ~task.RIGHT):
        assert (chance * task.LENGTHS * inside).sum() / (chance * inside).sum() == pytest.approx(
            task.MEAN_LENGTH, rel=1e-12
        )


def test_the_ratios_of_a_network_are_those_of_its_scores():
    """One batch by hand: passes over it with ``train.run`` and scores alone."""
    config = past.network(passes=9)
    state = train.init(config, 7, root=3)
    _, seen = train.run(config, state, iterations=1, record=[], measure=past.RATIOS)
    rollout = Sampled().collect(config, state).rollout
    short = dataclasses.replace(config, loop=gj.Loop(group_size=8, inner_steps=8))
    after, _ = train.run(short, state, iterations=1, record=[])
    scores = config.policy.score(after.params, rollout.prompts, rollout.tokens, rollout.mask)
    ratio, reward = np.exp(np.asarray(scores.logp - rollout.old_logp)), np.asarray(rollout.rewards)
    live = np.asarray(rollout.mask) > 0
    wins = (reward > reward.mean(1, keepdims=True)) & live
    loses = (reward < reward.mean(1, keepdims=True)) & live
    out = ((ratio > 1 + past.CLIP) & wins).sum() + ((ratio < 1 - past.CLIP) & loses).sum()
    expected = {
        "winner": ratio[wins].max(initial=1.0), "loser": ratio[loses].min(initial=1.0),
        "held": out / live.sum(), "moved": abs(np.log(ratio))[live].mean(),
    }  # fmt: skip
    for name, value in expected.items():
        np.testing.assert_allclose(seen[name][0, 8], value, rtol=1e-8, err_msg=name)


def test_measured_factors_are_those_of_the_formula():
    found = b4.factors(0)
    told = found.ratio.notnull()
    assert float(abs(found.ratio - found.expected).where(told).max()) < 1e-9
    claim = Claim("B0", "A sentence.")
    b4.judge_growth(found, claim)
    assert claim.rows[0].verdict().verdict == "reproduced"
    claim = Claim("B0", "A sentence.")
    b4.judge_growth(found.assign(ratio=1 / found.ratio.where(found.ratio != 0)), claim)
    assert claim.rows[0].verdict().verdict == "refuted"


def test_printed_numbers_are_compared_with_the_limit(monkeypatch):
    def judged() -> str:
        claim = Claim("B0", "A sentence.")
        b4.judge_printed(claim)
        return claim.rows[0].verdict().verdict

    assert judged() == "refuted"
    monkeypatch.setattr(b4, "FIVE_STEPS", 0.671)
    assert judged() == "reproduced"
    monkeypatch.setattr(b4, "ONE_STEP", 0.95)
    assert judged() == "refuted"


def networks(with_momentum: float, without: float) -> dict[str, xr.Dataset]:
    """B4's ratios by hand: 1.02 at a rate of 1e-4, at 0.01 these."""
    names = [b4.worded(*setting) for setting in b4.NETWORKS]
    found = full(1.0, setting=names, passes=b4.PASSES)
    still = found.setting == b4.worded(0.01, *b4.NO_MOMENTUM, 1e-8)
    high = xr.DataArray([name.endswith("rate 0.01") for name in names], {"setting": names})
    winner = found + 0.02 + xr.where(still, without - 1, xr.where(high, with_momentum - 1, 0.0))
    data = xr.Dataset({"winner": winner, "loser": found, "held": found, "moved": found})
    decays = [str(pair) for pair in b4.USERS]
    pairs = full(1.0, decays=decays, rate=b4.PAIR_RATES, passes=b4.PAIR_PASSES)
    return {"networks": data, "pairs": xr.Dataset({"ratio": pairs})}


def test_a_network_must_overshoot_as_far_without_momentum():
    for ratios, expected in {(1.6, 1.6): "reproduced", (1.6, 1.25): "refuted", (1.1, 1.1): "refuted"}.items():
        claim = Claim("B0", "A sentence.")
        b4.judge_users(networks(*ratios), claim)
        assert claim.rows[0].verdict().verdict == expected
