"""Rules that judge E2, E3 and E7, with numbers made up for the purpose; their formulas and parts by hand."""

import functools
import itertools
from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr

import grpo_jax as gj
from experiments.claims import e02_normalisation as e2
from experiments.claims import e03_successes as e3
from experiments.claims import e07_means as e7
from experiments.formulas import denominators, difficulty
from experiments.problems import competing, difficulties, max_rl, prompt_lengths, token_means, weighings
from grpo_jax import presets
from grpo_jax.methods import SHIFT
from grpo_jax.parts.reductions import MicroBatches, PerSequence, PerToken
from grpo_jax.tasks import Bernoulli
from tests.made_up_claims import noisy, verdicts

pytestmark = pytest.mark.usefixtures("x64")
RNG = np.random.default_rng(0)
SEEDS = range(8)
RULES = {"σ": difficulty.divided, "others": difficulty.without_own, "r/r̄": difficulty.over_mean}


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
@pytest.mark.parametrize("p", [0.05, 0.6])
def test_a_weight_is_the_slope_of_the_update_in_a_coin(rule, p):
    """One token, right with probability p: the update in its log-odds over p(1 − p), over all 2^5 groups."""
    found = 0.0
    for drawn in itertools.product((0.0, 1.0), repeat=5):
        right = np.array(drawn)
        law = np.where(right > 0, p, 1 - p).prod()
        found += law * (rule(right) * (right - p)).mean()
    weight = difficulty.weight_of(rule, np.array([p]), 5)[0]
    assert weight == pytest.approx(found / (p * (1 - p)), rel=1e-10)


def test_the_deviation_of_the_others_is_theirs():
    rewards = np.array([1.0, 0.0, 0.0, 1.0, 0.0])
    for i, value in enumerate(difficulty.without_own(rewards, added=1e-6)):
        others = np.delete(rewards, i)
        assert value == pytest.approx((rewards[i] - others.mean()) / (others.std(ddof=1) + 1e-6))
    alone = difficulty.without_own(np.array([1.0, 0.0, 0.0]))
    assert alone[0] == pytest.approx(1.0)  # the others have no deviation: not divided


def test_a_batch_s_deviation_is_that_of_all_its_rewards():
    """Two prompts in pairs, every one of the 16 batches."""
    rates, found = np.array([0.2, 0.7]), np.zeros(2)
    for drawn in itertools.product((0.0, 1.0), repeat=4):
        right = np.array(drawn).reshape(2, 2)
        law = np.where(right > 0, rates[:, None], 1 - rates[:, None]).prod()
        if right.std() > 0:
            scaled = (right - right.mean(1, keepdims=True)) / right.std()
            found += law * (scaled * (right - rates[:, None])).mean(1)
    np.testing.assert_allclose(difficulty.batch_weight(rates, 2), found / (rates * (1 - rates)), rtol=1e-10)


def test_weighings_by_number_are_the_library_s_advantages():
    right = jnp.asarray(RNG.integers(0, 2, (6, 5)).astype(float)).at[0].set(0.0).at[1].set(1.0)
    rollout = token_means.batch(np.full((6, 5), 2), right)
    for name, numbers in max_rl.NUMBERS.items():
        centre, spread, level = numbers
        mine = difficulties.Weighing(centre=centre, spread=spread, level=level)(rollout, right)
        advantage, rule = max_rl.LIBRARY[name], max_rl.RULES[name]
        np.testing.assert_allclose(mine, advantage(rollout, right), atol=1e-12)
        np.testing.assert_allclose(mine[:, :, 0], [rule(np.asarray(row)) for row in right], atol=1e-12)


def test_prompts_start_at_their_rates_and_a_blind_policy_sees_none():
    chance = [
        difficulty.slope(difficulties.SPACE, row, difficulties.RIGHT)[0]
        for row in difficulties.logits(difficulties.PROMPTS)
    ]
    np.testing.assert_allclose(chance, difficulties.PROMPTS)
    policy = competing.Blind(inner=gj.ActionPolicy.from_probabilities(competing.START), contexts=4)
    params = policy.init(jax.random.key(0))
    logp = policy.score_support(params, jnp.arange(4)).logp
    np.testing.assert_allclose(np.exp(logp[:, :, 0]), np.tile(competing.START, (4, 1)), rtol=1e-12)


@functools.cache
def e2_weights():
    return e2.weights()


def e2_data(*, gap=0.0, limit=1.0, bend=None, steep=None, moved=0.0, alike=0.0):
    data = e2_weights().copy()
    if bend is not None:  # the arcsine's weight in all groups
        arcsine = 1 / np.sqrt(data.rate * (1 - data.rate))
        data["weight"] = data.weight.where(~data.group_size.isin(bend), arcsine)
    if steep is not None:  # an update that grows towards the ends
        away = (data.rate * (1 - data.rate)) ** -1.1
        data["weight"] = data.weight.where(~data.group_size.isin(steep), away)
    data["weight"] = data.weight * xr.where(data.group_size == 1024, limit, 1.0)
    labels = {"group_size": [e2.CONTROL, *e2.USED], "handling": ["r − r̄", "(r − r̄)/σ"],
              "learning_rate": e2.LEARNING, "seed": SEEDS, "iteration": [0, 10],
              "prompt": difficulties.PROMPTS}  # fmt: skip
    rate = noisy(0.5, **labels)
    control = {"group_size": e2.CONTROL}
    rate.loc[control | {"handling": "(r − r̄)/σ"}] = rate.sel(control | {"handling": "r − r̄"}) + alike
    rate.loc[{"group_size": 8, "handling": "(r − r̄)/σ", "iteration": 10}] += moved
    return {
        "identities": xr.Dataset({"gap": xr.DataArray([gap], {"rule": ["paper"]})}),
        "weights": data,
        "sampled": rate.to_dataset(name="rate"),
    }


@pytest.mark.parametrize(
    ("changed", "want"),
    [
        ({}, ["qualified", "refuted", "reproduced", "reproduced"]),
        ({"gap": 1e-6}, ["not testable here", "refuted", "reproduced", "reproduced"]),
        ({"moved": 0.05}, ["qualified", "refuted", "reproduced", "refuted"]),
        ({"alike": 1e-6}, ["qualified", "refuted", "reproduced", "not testable here"]),
    ],
)
def test_what_e2_says_falls_when_it_should(changed, want):
    assert verdicts(e2, e2_data(**changed)) == want


def test_e2_s_own_weights_are_checked_before_they_judge():
    """Weights that are not w_G decide nothing, whatever they say of the arcsine."""
    assert verdicts(e2, e2_data(limit=0.9))[0] == "not testable here"
    assert verdicts(e2, e2_data(bend=[8, 16]))[:3] == ["not testable here", "refuted", "refuted"]
    assert verdicts(e2, e2_data(steep=[64]))[:3] == ["not testable here", "qualified", "refuted"]
    assert verdicts(e2, e2_data(steep=[8, 16, 64]))[:3] == ["not testable here", "reproduced", "refuted"]


def test_gaps_to_sums_are_those_of_a_wrong_rule():
    """r − r̄ weighs every prompt by 1 − 1/G; twice the weight misses as much as the update is long."""
    told = {"group_size": 3, "seed": 0}
    assert weighings.gap_to_groups(SHIFT, difficulty.centred, **told) < 1e-12
    assert weighings.gap_to_groups(SHIFT, difficulty.over_mean, **told) > 0.01
    assert weighings.gap_to_weight(SHIFT, lambda p: 2 / 3, **told) < 1e-12
    once, twice = (weighings.gap_to_weight(SHIFT, lambda p, w=w: w, **told) for w in (0.0, 4 / 3))
    assert once == pytest.approx(twice)
    half = weighings.gap_to_weight(SHIFT, lambda p: 1 / 3, flips=0.25, noise=Bernoulli(), **told)
    assert half < 1e-12  # a verifier that errs in a quarter either way halves every slope


def test_the_greatest_fold_by_hand():
    """At G = 4 and one half, K = 1, 2, 3 in 4, 6, 4 of 16: √3/((8√3 + 6·2)/16)."""
    assert difficulty.greatest_fold(4) == pytest.approx(np.sqrt(3) * 16 / (8 * np.sqrt(3) + 12))
    assert [difficulty.greatest_fold(g) for g in (2, 3)] == pytest.approx([1, 1])


def e3_data(
    *, gap=0.0, own=0.0, limit=1.0, ahead=0.05, level=0.05, off=0.0, kept=0.2, lost=0.0, pairs=0.0, solved=0.0
):
    rules = list(e3.RULES)
    groups = xr.DataArray(np.full(4, gap), {"rule": rules})
    objective = xr.DataArray(np.full((2, 2), [own, 0.0]), {"group_size": [4, 8], "rule": list(e3.OWN)})
    weight = weighings.table(e3.RULES, [*e3.GROUPS, 64, 1024], e3.RATES)
    weight = weight * xr.where(weight.group_size == 1024, limit, 1.0)
    rate = noisy(0.5, rule=rules, group_size=[e3.PAIRS, *e3.GROUPS], learning_rate=max_rl.LEARNING,
                 seed=SEEDS, iteration=[0, 1, 2], prompt=difficulties.PROMPTS)  # fmt: skip
    equal = rate.sel(group_size=e3.GROUPS).copy()
    for name in e3.OWN:
        rate.loc[{"rule": name}] += ahead
        equal.loc[{"rule": name}] += level
    rate.loc[{"group_size": e3.PAIRS, "rule": e3.MAXRL}] = rate.sel(group_size=e3.PAIRS, rule=e3.GRPO) + pairs
    ends = noisy(0.7, rule=rules, seed=SEEDS, iteration=[0, 1], prompt=range(4))
    for name in rules:
        last = {"rule": name, "prompt": 3}
        ends.loc[last] += (kept if name in e3.OWN else lost) - 0.7
    exact = ends.isel(seed=0, drop=True)
    share = exact.isel(iteration=-1, prompt=-1, drop=True) + solved
    signal = noisy(0.3, rule=rules, prompt=max_rl.SEEN)
    return {
        "identities": xr.Dataset({"groups": groups, "objective": objective}),
        "weights": xr.Dataset({"weight": weight, "signal": signal}),
        "sampled": rate.to_dataset(name="rate"),
        "matched": xr.Dataset({"rate": equal, "off": equal.isel(iteration=0, seed=0, prompt=0) * 0 + off}),
        "competing": xr.Dataset({"exact": exact, "sampled": ends, "resting": share}),
    }


@pytest.mark.parametrize(
    ("changed", "want"),
    [
        ({}, ["reproduced", "reproduced", "reproduced", "reproduced"]),
        ({"own": 1e-3}, ["refuted", "reproduced", "reproduced", "reproduced"]),
        ({"limit": 0.9}, ["refuted", "reproduced", "reproduced", "reproduced"]),
        ({"gap": 1e-3}, ["not testable here", "reproduced", "reproduced", "reproduced"]),
        ({"ahead": -0.05}, ["reproduced", "refuted", "reproduced", "reproduced"]),
        ({"level": -0.05}, ["reproduced", "refuted", "reproduced", "reproduced"]),
        ({"ahead": 0.0, "level": 0.0}, ["reproduced", "refuted", "reproduced", "reproduced"]),
        ({"off": 0.1}, ["reproduced", "not testable here", "reproduced", "reproduced"]),
        ({"pairs": 1e-3}, ["reproduced", "not testable here", "reproduced", "reproduced"]),
        ({"kept": 0.05}, ["reproduced", "reproduced", "reproduced", "refuted"]),
        ({"lost": 0.1}, ["reproduced", "reproduced", "reproduced", "refuted"]),
        ({"solved": 0.1}, ["reproduced", "reproduced", "reproduced", "not testable here"]),
    ],
)
def test_what_e3_says_falls_when_it_should(changed, want):
    assert verdicts(e3, e3_data(**changed)) == want


def test_where_three_prompts_against_one_come_to_rest():
    """w = 1/p rests at a quarter; a weight that is the same at p and 1 − p nowhere inside."""
    likelihood = difficulty.over_mean
    inside, less = (competing.resting_share(r) for r in (likelihood, partial(likelihood, centre=True)))
    assert inside == pytest.approx(0.25, abs=0.04)  # 1/p up to eight terms
    assert competing.resting_share(difficulty.divided) == 0.0
    assert less < inside


def test_effective_rates_are_equal_at_every_step_and_prompts_start_where_they_should():
    """r − r̄ weighs every prompt alike all along, so that its rates are equal from the first pass on."""
    size = SimpleNamespace(seeds=2, iterations=5)
    found = max_rl.at_equal_rates(0, size, 8)
    assert found.rate.isel(iteration=0).dims == ("rule", "learning_rate", "seed", "prompt")
    np.testing.assert_allclose(found.rate.isel(iteration=0) - found.prompt, 0, atol=1e-9)
    np.testing.assert_allclose(found.off.sel(rule=max_rl.PLAIN), 0, atol=1e-9)
    assert list(found.rule.values) == list(max_rl.RULES)
    four = competing.trained(0, size, exact=True).isel(iteration=0, seed=0)
    np.testing.assert_allclose(four - xr.DataArray([0.3, 0.3, 0.3, 0.1], dims="prompt"), 0, atol=1e-9)


def test_micro_batches_are_divided_by_their_own_tokens():
    lengths = RNG.integers(1, 7, (6, 4))
    batch = token_means.batch(lengths)
    weight = np.asarray(MicroBatches(count=3)(batch))
    for p, i, t in np.ndindex(weight.shape):
        part = lengths[p // 2 * 2 : p // 2 * 2 + 2]
        assert weight[p, i, t] == pytest.approx((t < lengths[p, i]) / (3 * part.sum()))
    whole = np.asarray(PerToken()(batch))
    np.testing.assert_allclose(MicroBatches(count=1)(batch), whole)
    ranks = MicroBatches(inner=MicroBatches(count=3), count=2)
    np.testing.assert_allclose(ranks(batch), MicroBatches(count=6)(batch))
    alike = MicroBatches(inner=PerSequence(), count=3)(batch)
    np.testing.assert_allclose(alike, PerSequence()(batch))
    with pytest.raises(ValueError, match="4 micro-batches do not divide 6 prompts"):
        MicroBatches(count=4)(batch)


def test_trl_s_bnpo_divides_micro_batches_and_its_dapo_does_not():
    assert presets.trl(loss_type="bnpo", gradient_accumulation_steps=4).reduction == MicroBatches(count=4)
    assert presets.trl(loss_type="bnpo").reduction == PerToken()
    with pytest.raises(presets.NotModelled, match="gradient_accumulation_steps=4 changes nothing"):
        presets.trl(loss_type="dapo", gradient_accumulation_steps=4)


def test_weights_of_two_prompts_on_paper():
    lengths = np.array([[1, 3], [4, 4]])
    told = {
        "sequence": [[1 / 4, 1 / 12], [1 / 16, 1 / 16]],
        "prompt": [[1 / 8, 1 / 8], [1 / 16, 1 / 16]],
        "batch": [[1 / 12, 1 / 12], [1 / 12, 1 / 12]],
        "micro-batches": [[1 / 8, 1 / 8], [1 / 16, 1 / 16]],
        "constant": [[1 / 4, 1 / 4], [1 / 4, 1 / 4]],
    }
    for mean, weights in told.items():
        np.testing.assert_allclose(denominators.token_weights(lengths, mean, parts=2), weights)


def test_weights_of_prompts_are_those_of_groups_of_eight():
    np.testing.assert_allclose(token_means.weights_of_prompts([1, 4], "prompt"), [1 / 16, 1 / 64])
    np.testing.assert_allclose(token_means.weights_of_prompts([1, 4], "batch"), [1 / 40, 1 / 40])


def test_answers_are_as_long_as_they_are_called():
    order = prompt_lengths.ORDERS["sorted"]
    policy = prompt_lengths.config(PerToken(), "sorted").policy
    logp = policy.score_support(jnp.asarray(policy.logits), jnp.arange(len(order))).logp.sum(2)
    chance = np.exp(logp)
    np.testing.assert_allclose(chance @ prompt_lengths.TABLE[0], prompt_lengths.START)
    assert (abs(chance @ prompt_lengths.LENGTHS - order) < 0.8).all()


def e7_data(
    *, gap=0.0, pair=2.0, entering=1.0, longer=0.0, early=0.0, fold=10.0, lead=0.1, batch=0.0, alike=0.0
):
    means, orders = list(token_means.MEANS), list(prompt_lengths.ORDERS)
    gradient = xr.DataArray(np.ones((5, 2)), {"mean": means, "tokens": [3, 6]})
    gradient.loc[{"tokens": 6}] = entering
    found = xr.DataArray(np.ones((5, 2)), {"mean": means, "order": ["sorted", "paired"]})
    found.loc[{"mean": ["sequence", "prompt"]}] = 10.0
    found.loc[{"mean": "micro-batches", "order": "sorted"}] = fold
    known = xr.Dataset({
        "weights": xr.DataArray(np.full(5, gap), {"mean": means}),
        "updates": xr.DataArray(np.zeros(5), {"mean": means}),
        "gradient": gradient, "fold": found, "nested": 0.0, "pair": pair,
    })  # fmt: skip
    rate = noisy(0.5, mean=means, order=orders, learning_rate=e7.LEARNING, seed=SEEDS, iteration=[0, 1, 2],
                 context=range(8))  # fmt: skip
    short = {"order": "sorted", "context": [0, 1]}
    rate.loc[short | {"mean": ["sequence", "prompt"]}] += lead
    rate.loc[short | {"mean": "batch"}] += batch
    rate.loc[{"order": "alike", "context": [0, 1]}] += alike
    tokens = rate * 0 + noisy(4.0, seed=SEEDS)
    tokens.loc[{"mean": "sequence", "order": "any"}] += longer
    tokens.loc[{"mean": "sequence", "order": "any, hard", "iteration": 1}] += early
    tokens = tokens + 1e-4 * RNG.normal(size=tokens.shape)
    return {
        "identities": known,
        "runs": xr.Dataset({"prompt_reward": rate, "tokens": tokens, "square": abs(rate)}),
    }


@pytest.mark.parametrize(
    ("changed", "want"),
    [
        ({}, ["qualified", "refuted", "reproduced", "reproduced"]),
        ({"entering": 2.0}, ["reproduced", "refuted", "reproduced", "reproduced"]),
        ({"pair": 1.0}, ["refuted", "refuted", "reproduced", "reproduced"]),
        ({"gap": 1e-6}, ["not testable here", "refuted", "reproduced", "reproduced"]),
        ({"longer": 0.3}, ["qualified", "reproduced", "reproduced", "reproduced"]),
        ({"early": 0.3}, ["qualified", "qualified", "reproduced", "reproduced"]),
        ({"fold": 5.0}, ["qualified", "refuted", "refuted", "reproduced"]),
        ({"lead": 0.0}, ["qualified", "refuted", "reproduced", "refuted"]),
        ({"batch": 0.1}, ["qualified", "refuted", "reproduced", "refuted"]),
        ({"alike": 0.1}, ["qualified", "refuted", "reproduced", "not testable here"]),
    ],
)
def test_what_e7_says_falls_when_it_should(changed, want):
    assert verdicts(e7, e7_data(**changed)) == want


def test_the_library_s_updates_are_those_of_every_joint_batch():
    chance, pair = np.array([0.3, 0.6]), np.array([3, 6])
    for mean in ("batch", "micro-batches"):
        told = denominators.expected_update(chance, pair, mean, group_size=2, parts=2)
        np.testing.assert_allclose(token_means.updates(chance, pair, mean), told, rtol=1e-12)
