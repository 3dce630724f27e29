"""Rules of the claims on who sampled, with numbers made up for the purpose: what should fail fails."""

import dataclasses
import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import xarray as xr

from experiments.claims import d01_top_p as d1
from experiments.claims import d02_temperature as d2
from experiments.claims import d06_baseline as d6
from experiments.formulas import sampler_bias as by_hand
from experiments.harness.scripts import find_scripts
from experiments.harness.verdict import Claim
from experiments.problems import samplers, stale
from experiments.problems.trees import Problem
from grpo_jax import train
from grpo_jax.decoding import Decoding
from grpo_jax.sequences import Sequences
from tests.filters import softmax, top_p

pytestmark = pytest.mark.usefixtures("x64")
TABLES = np.arange(6)
JITTER = xr.DataArray(np.array([-1, 1, -1, 1, -1, 1]) * 1e-5, {"table": TABLES})


def full(value: float, **labels) -> xr.DataArray:
    """One value under all labels, with a little noise over tables."""
    shape = [len(list(values)) for values in labels.values()]
    return xr.DataArray(np.full(shape, float(value)), {k: list(v) for k, v in labels.items()}) + JITTER


def judged(module, data) -> list[str]:
    """Verdicts of the sentence and of its rows."""
    claim = Claim("D0", "A sentence.")
    module.check(data, claim)
    return [row.verdict().verdict for row in (claim, *claim.rows)]


# What NumPy enumerates, by brute force


def node(prefix) -> int:
    """The row of a prefix of a tree of three tokens."""
    return sum(3**depth for depth in range(len(prefix))) + int("".join(map(str, prefix)) or "0", 3)


RNG = np.random.default_rng(4)
LOGITS = RNG.normal(size=(4, 3, 2))
REWARDS = RNG.normal(size=(9, 2))
OUTPUTS = list(itertools.product(range(3), repeat=2))
PI = by_hand.softmax(LOGITS)


def test_rows_filters_and_products_are_those_of_single_rows():
    for row, run in itertools.product(range(4), range(2)):
        np.testing.assert_allclose(PI[row, :, run], softmax(LOGITS[row, :, run]), atol=1e-15)
        for level in (0.5, 0.8, 1.0):
            own = by_hand.kept_by_top_p(PI, level)[row, :, run]
            np.testing.assert_array_equal(own, top_p(PI[row, :, run], level))
    along = [PI[0, a] * PI[node((a,)), b] for a, b in OUTPUTS]
    np.testing.assert_allclose(by_hand.products(PI), along, atol=1e-15)


def test_ascent_is_the_sum_over_outputs():
    factor = RNG.normal(size=(4, 2))
    weights = by_hand.centred(by_hand.truncated(PI, 0.6), REWARDS)
    want = np.zeros(PI.shape)
    for place, (a, b) in enumerate(OUTPUTS):
        for token, row in ((a, 0), (b, node((a,)))):
            unit = np.eye(3)[token][:, None] - PI[row]
            want[row] += weights[place] * factor[row] * unit
    np.testing.assert_allclose(by_hand.ascent(weights, PI, factor), want, atol=1e-15)
    np.testing.assert_allclose(weights.sum(0), 0, atol=1e-15)


@pytest.mark.parametrize("level", [0.6, 1.0])
def test_ratios_are_those_of_the_tokens_that_are_drawn(level):
    noise = np.random.default_rng(5).normal(size=LOGITS.shape)
    drawn = by_hand.truncated(by_hand.softmax(LOGITS + 0.1 * noise), level)
    average, share = np.zeros(2), np.zeros(2)
    for (a, b), run in itertools.product(OUTPUTS, range(2)):
        rows = ((0, a), (node((a,)), b))
        chance = np.prod([drawn[row, token, run] for row, token in rows])
        for row, token in rows if chance else ():
            ratio = PI[row, token, run] / drawn[row, token, run]
            average[run] += chance * ratio / 2
            share[run] += chance * (abs(ratio - 1) > 0.1) / 2
    found = by_hand.ratios(PI, drawn, 2)
    np.testing.assert_allclose(found, (average, share), atol=1e-14)
    assert level < 1 or ((share > 0) & (share < 1)).all()


def test_weights_by_length_are_those_of_outputs_that_end():
    """Two levels of a tree in which token 2 ends an output: nodes are the root and what follows 0 and 1."""
    rows, factor = by_hand.softmax(RNG.normal(size=(3, 3, 2))), RNG.uniform(0.5, 1, (3, 2))
    weight, chance = by_hand.by_length(rows, factor)
    longer = 1 - rows[0, 2]
    np.testing.assert_allclose(chance, [rows[0, 2], longer], atol=1e-15)
    second = factor[0] * (rows[0, 0] * factor[1] + rows[0, 1] * factor[2])
    np.testing.assert_allclose(weight, [factor[0] * rows[0, 2], second], atol=1e-15)


def test_the_sine_is_that_of_the_angle():
    one, other = np.zeros((1, 2, 3)), np.zeros((1, 2, 3))
    one[0, 0], other[0] = 2.0, [[1.0, 0.0, -3.0], [1.0, 1.0, 0.0]]
    np.testing.assert_allclose(by_hand.sine(one, other), [np.sqrt(0.5), 1, 0], atol=1e-12)


@pytest.mark.parametrize("level", [0.6, 1.0])
def test_whole_distributions_are_the_sampler_s(level):
    """Every output as often as the truncated policy gives it, its log-probability what q reports."""
    space = Sequences(vocab=3, horizon=2)
    given = Problem(space, REWARDS, LOGITS)
    config = samplers.training(given, decoding=Decoding(top_p=level))
    config = dataclasses.replace(config, policy=dataclasses.replace(config.policy, decoding=None))
    rollout = config.expectation.collect(config, train.init(config)).rollout
    want = by_hand.products(by_hand.truncated(PI, level)).T
    np.testing.assert_allclose(rollout.multiplicity, want, atol=1e-14)
    told = np.exp(np.asarray(rollout.sampling_logp).sum(2))
    np.testing.assert_allclose(np.where(want > 0, told, 0), want, atol=1e-14)
    np.testing.assert_allclose(
        np.exp(np.asarray(rollout.old_logp).sum(2)), by_hand.products(PI).T, atol=1e-14
    )


# D1


def top_p_data() -> dict[str, xr.Dataset]:
    """D1's data where every sentence holds."""
    at = {"horizon": d1.HORIZONS, "top_p": d1.LEVELS}
    trees = xr.Dataset({
        name: full(value, **at)
        for name, value in {
            "ratio": 0.9, "kept": 0.9, "far": 0.5, "far, top-p 1": 0.07, "mean mass": 0.9,
            "no correction": 1.0, "token weights": 0.9, "sequence weights": 0.9,
        }.items()
    })  # fmt: skip
    trees["sequence"] = trees["outputs kept"] = full(0.7, **at)
    trees["second term"] = 0 * full(0.0, **at)
    here = trees.isel(horizon=0, drop=True)
    cells = {
        "top_p": [*d1.CUTS, 1.0], "handling": [*d1.HANDLINGS, d1.REPLAY], "sampling": ["exact", "sampled"],
        "iteration": [0, 5, 10],
    }  # fmt: skip
    rise = xr.DataArray([0.0, 0.1, 0.2], {"iteration": [0, 5, 10]})
    plain = full(0.5, **cells) + rise * xr.DataArray([0.5, 0.5, 1.0], {"top_p": cells["top_p"]})
    training = {
        "plain": plain,
        "decoded": full(0.6, **cells) + rise,
        "outside": full(0.1, **cells) + rise / 2,
    }
    chance = full(0.1, top_p=d1.LEVELS, length=d1.HORIZONS)
    falls = xr.DataArray(np.linspace(0.95, 0.5, 6), {"length": list(d1.HORIZONS)})
    seeds = xr.DataArray(np.zeros(4), dims="seed") + JITTER[:4].values.mean()
    recorded = xr.Dataset({
        "mismatch": here["mean mass"].mean("table"), "mismatch_sequence": here.sequence.mean("table")
    })  # fmt: skip
    return {
        "trees": trees,
        "here": here,
        "wide": xr.Dataset({"kept": full(0.9, top_p=d1.LEVELS)}),
        "lengths": xr.Dataset({"weight": chance * falls, "chance": chance}),
        "library": xr.Dataset({"residual": xr.DataArray(np.zeros((3, 4)), dims=("top_p", "handling"))}),
        "recorded": recorded,
        "drawn": recorded + seeds,
        "training": xr.Dataset(training),
    }


def test_d1_s_sentences_can_hold():
    verdicts = judged(d1, top_p_data())
    assert verdicts == ["reproduced"] * 6 + ["not testable here"]


@pytest.mark.parametrize(
    ("group", "name", "where", "by", "row", "verdict"),
    [
        ("trees", "ratio", {"horizon": 6, "top_p": 0.95}, 0.004, 0, "refuted"),
        ("trees", "sequence", {"horizon": 2}, 1e-6, 0, "not testable here"),
        ("trees", "second term", {"horizon": 1}, 1e-6, 0, "not testable here"),
        ("library", "residual", {}, 1e-6, 0, "not testable here"),
        ("drawn", "mismatch", {"top_p": 0.8}, 0.05, 0, "not testable here"),
        ("recorded", "mismatch_sequence", {"top_p": 0.8}, 1e-6, 0, "not testable here"),
        ("training", "plain", {"top_p": 1.0, "handling": "token weights"}, 1e-6, 0, "not testable here"),
        ("trees", "token weights", {"horizon": 3}, 0.05, 1, "refuted"),
        ("trees", "sequence weights", {"horizon": 3}, -0.05, 1, "qualified"),
        ("trees", "ratio", {"horizon": 6, "top_p": 0.95}, 0.1, 2, "refuted"),
        ("training", "decoded", {"handling": "sequence weights"}, 0.03, 3, "refuted"),
        ("training", "decoded", {"handling": "sequence weights", "iteration": 10}, 0.03, 3, "reproduced"),
        ("lengths", "weight", {"length": 6, "top_p": 0.9}, 0.09, 4, "refuted"),
        ("training", "outside", {"handling": d1.REPLAY, "iteration": 10, "top_p": 0.95}, -0.3, 5, "refuted"),
        ("training", "plain", {"top_p": 0.8, "iteration": 10, "sampling": "sampled"}, 0.1, 5, "refuted"),
    ],
)  # fmt: skip
def test_d1_s_sentences_fall_one_by_one(group, name, where, by, row, verdict):
    data = top_p_data()
    shift = xr.zeros_like(data[group][name])
    shift.loc[where] = by
    data[group][name] = data[group][name] + shift
    assert judged(d1, data)[row] == verdict


def test_d1_needs_something_that_collapses_and_finds_it():
    data = top_p_data()
    fallen = {"iteration": 10, "top_p": 1.0, "handling": "no correction"}
    data["training"].decoded.loc[fallen] = 0.2
    assert judged(d1, data)[6] == "refuted"
    fallen |= {"top_p": d1.CUTS, "handling": list(d1.BIASED)}
    data["training"].decoded.loc[fallen] = 0.2
    assert judged(d1, data)[6] == "reproduced"


# D2


def temperature_data() -> dict[str, xr.Dataset]:
    """D2's data where every sentence holds without a condition."""
    at = {"horizon": d2.HORIZONS, "temperature": d2.TEMPERATURES}
    trees = {"to J": full(0.6, **at), "to J_τ": full(0.6, **at), "entropy gap": full(0.4, **at)}
    names = [name for name in d2.handled(1.0) if name != d2.CONTROL]
    cells = {
        "temperature": [*d2.TEMPERATURES, 1.0], "handling": names, "sampling": ["exact", "sampled"],
        "learning_rate": d2.RATES, "iteration": [0, 5],
    }  # fmt: skip
    gap = xr.DataArray([0.02, 0.02, -0.02, -0.02, 0.0], {"temperature": cells["temperature"]})
    training = {"plain": full(0.8, **cells), "decoded": full(0.8, **cells) + gap}
    return {
        "trees": xr.Dataset(trees),
        "library": xr.Dataset({"residual": xr.DataArray(np.zeros((4, 5)), dims=("temperature", "handling"))}),
        "training": xr.Dataset(training),
    }


def test_d2_s_sentences_can_hold():
    assert judged(d2, temperature_data()) == ["reproduced"] * 4


@pytest.mark.parametrize(
    ("group", "name", "where", "to", "row", "verdict"),
    [
        ("trees", "to J", {"horizon": 1, "temperature": 0.8}, 0.01, 0, "refuted"),
        ("trees", "to J_τ", {"horizon": 1}, 0.0, 0, "qualified"),
        ("library", "residual", {}, 1e-6, 0, "not testable here"),
        ("training", "decoded", {"temperature": 1.0, "handling": "both"}, 0.801, 0, "not testable here"),
        ("trees", "to J_τ", {"horizon": 4}, 0.3, 1, "reproduced"),
        ("training", "plain", {"temperature": 1.5, "handling": "both", "iteration": 5}, 0.85, 2, "refuted"),
        ("training", "plain", {"temperature": 0.6, "handling": "both", "iteration": 5}, 0.85, 3, "refuted"),
    ],
)  # fmt: skip
def test_d2_s_sentences_fall_one_by_one(group, name, where, to, row, verdict):
    data = temperature_data()
    data[group][name].loc[where] = to
    assert judged(d2, data)[row] == verdict


def test_d2_leaves_a_bias_open_that_grows_with_the_answer_and_counts_no_identity():
    data = temperature_data()
    trees = data["trees"]
    for name in ("to J", "to J_τ"):
        trees[name].loc[{"horizon": slice(2, None)}] = 0.3
    assert judged(d2, data)[1] == "refuted"  # though at T = 1 it is .6
    trees["to J"].loc[{"horizon": 6, "temperature": 0.8}] = 0.4
    assert judged(d2, data)[1] == "not testable here"
    trees["to J"].loc[{"horizon": 6, "temperature": 0.8}] = 0.6
    assert judged(d2, data)[1] == "reproduced"


def test_d2_takes_every_setting_at_its_best_rate():
    data = temperature_data()
    data["training"].plain.loc[{"learning_rate": d2.RATES[0]}] = 0.1
    best = d2.at_best_rate(data["training"])
    np.testing.assert_allclose(best.plain, 0.8, atol=1e-4)


# D6


def test_the_limit_is_where_the_flow_of_single_answers_stands_still():
    """dl(o) = q(r − V) − (E_q r − V)π is one number on what is kept, and no more on what vanishes."""
    chance = by_hand.softmax(RNG.normal(size=(1, 6, 50)))[0]
    rewards = RNG.normal(size=(6, 50))
    mean = (chance * rewards).sum(0)
    for value in (-0.05, -0.5, -3.0):
        found = stale.limit(chance, rewards - mean, value)
        np.testing.assert_allclose(found.sum(0), 1, atol=1e-12)
        flow = chance * (rewards - mean - value) + value * found
        kept = found > 0
        top = flow.max(0)
        np.testing.assert_allclose(np.where(kept, flow, top), np.broadcast_to(top, flow.shape), atol=1e-12)
        never_below = (rewards - mean > value).all(0)
        assert (kept.all(0) == never_below).all()
    with pytest.raises(ValueError, match="not below every"):
        stale.limit(chance, rewards - mean, 0.1)


def test_rewards_are_standardised_under_the_start():
    for kind in ("binary", "graded"):
        given = stale.standardised(3, Sequences(vocab=2, horizon=3), tables=5, kind=kind)
        chance = by_hand.products(by_hand.softmax(given.logits))
        np.testing.assert_allclose((chance * given.table).sum(0), 0, atol=1e-12)
        np.testing.assert_allclose((chance * given.table**2).sum(0), 1, atol=1e-12)


@pytest.mark.parametrize("value", [-0.7, 0.4])
def test_stale_training_is_the_flow_by_hand(value):
    """Three exact steps of E_q[(r − V)∇log π] from q, single answers."""
    given = stale.standardised(1, Sequences(vocab=4, horizon=1), tables=3)
    runs = d6.trained(
        given, {0.0: stale.constant(value)}, {"SGD": (0.0, 0.3, 1.0)}, SimpleNamespace(iterations=40), 0
    )
    logits, start = given.logits.copy(), by_hand.softmax(given.logits)
    for _ in range(40):
        pull = start[0] * (given.table - value)
        logits[0] += 0.3 * (pull - pull.sum(0) * by_hand.softmax(logits)[0])
    np.testing.assert_allclose(runs.end.squeeze(), by_hand.softmax(logits)[0].T, atol=1e-10)


def stale_data() -> dict[str, xr.Dataset]:
    """D6's data where every sentence holds."""
    cells = {
        "kind": ["binary", "graded"],
        "baseline": d6.LEVELS,
        "update": list(d6.UPDATES),
        "iteration": [0, 5, 9],
    }
    later = xr.DataArray([0.0, 0.5, 1.0], {"iteration": [0, 5, 9]})
    low = xr.DataArray([1.0 if v <= 0 else 0.5 for v in d6.LEVELS], {"baseline": d6.LEVELS})
    runs = xr.Dataset({"gain": full(0.0, **cells) + later * low, "most": full(0.995, **cells)})
    limits = full(0.5, kind=cells["kind"], baseline=d6.LEVELS[:5], output=[0, 1])
    others = cells | {"baseline": list(d6.OTHERS)}
    other = xr.Dataset({"gain": full(0.3, **others), "most": full(0.995, **others)})
    fresh = xr.Dataset({"gain": full(1.0, baseline=[-1.0, 1.0], iteration=[0, 9])})
    flat = xr.Dataset({"most": full(0.4, baseline=[-1.0], iteration=[0, 9])})
    data = {"limits": xr.Dataset({"policy": limits}), "fresh": fresh, "flat": flat}
    for name in d6.SPACES:
        data |= {name: runs.copy(deep=True), f"{name}, others": other.copy(deep=True)}
        data[f"{name}, renewed"] = runs.copy(deep=True)
    every = full(0.5, kind=cells["kind"], baseline=d6.LEVELS, update=cells["update"], output=[0, 1])
    data["answers"]["end"] = every
    return data


def test_d6_s_sentences_can_hold():
    assert judged(d6, stale_data()) == ["reproduced"] * 5


@pytest.mark.parametrize(
    ("group", "name", "where", "to", "row", "verdict"),
    [
        ("trees", "gain", {"update": "SGD", "baseline": 0.0, "iteration": 5, "table": 2}, -0.1, 0, "refuted"),
        ("answers", "gain", {"update": "SGD", "baseline": -4, "iteration": 9, "table": 0}, -1, 0, "refuted"),
        ("answers", "gain", {"update": "AdamW", "baseline": -1.0, "iteration": 9}, -0.1, 0, "qualified"),
        ("fresh", "gain", {"baseline": 1.0, "iteration": 9}, 0.9, 0, "not testable here"),
        ("flat", "most", {"iteration": 9}, 0.5, 0, "not testable here"),
        ("trees", "gain", {"baseline": 0.5, "kind": "graded", "iteration": 9}, 1.2, 1, "refuted"),
        ("trees, renewed", "gain", {"baseline": 0.5, "kind": "graded"}, 1.2, 2, "refuted"),
        ("answers", "end", {"baseline": -0.5, "update": "SGD", "output": 0}, 0.6, 3, "refuted"),
        ("answers", "most", {"baseline": 1.0, "update": "SGD", "iteration": 9}, 0.7, 4, "refuted"),
        ("trees", "most", {"baseline": 1.0, "update": "SGD", "iteration": 9}, 0.7, 4, "qualified"),
        ("trees, others", "most", {"baseline": "group mean", "iteration": 9}, 0.9, 4, "not testable here"),
    ],
)  # fmt: skip
def test_d6_s_sentences_fall_one_by_one(group, name, where, to, row, verdict):
    data = stale_data()
    data[group][name].loc[where] = to
    assert judged(d6, data)[row] == verdict


def test_d6_asks_of_the_signs_that_one_gains_somewhere_and_not_everywhere():
    data = stale_data()
    same = data["trees"].gain.sel(baseline=-0.1)
    data["trees"].gain.loc[{"baseline": 0.1}] = same
    assert judged(d6, data)[1] == "reproduced"
    for name in d6.SPACES:
        for value in d6.SIGNS:
            data[name].gain.loc[{"baseline": value}] = data[name].gain.sel(baseline=-value)
    assert judged(d6, data)[1:3] == ["refuted", "reproduced"]


def test_the_letter_d_names_its_sources():
    assert "each claim" in find_scripts()["D1"].paper
