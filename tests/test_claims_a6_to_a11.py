"""Rules of the claims on large groups, pooling, shift-only advantages, effective penalties and conventions.

What should fail fails, on made-up numbers; and the instruments against formulas and brute force.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr

import grpo_jax as gj
from experiments.claims import (
    a06_binary_large_groups as a06,
)
from experiments.claims import (
    a07_pooling as a07,
)
from experiments.claims import (
    a09_shift_only as a09,
)
from experiments.claims import (
    a10_effective_beta as a10,
)
from experiments.claims import (
    a11_conventions as a11,
)
from experiments.harness.numbers import tabulated
from experiments.harness.verdict import Claim
from experiments.problems.answers import force, logits
from grpo_jax import theory
from grpo_jax.collectors import Sampled
from grpo_jax.exact import expected_gradient
from grpo_jax.part import part

pytestmark = pytest.mark.usefixtures("x64")


def made(claim: str = "A0") -> Claim:
    return Claim(claim, "Something holds.")


def policies(count: int, size: int = 3, seed: int = 0) -> np.ndarray:
    """[count, K]."""
    return np.random.default_rng(seed).dirichlet(np.ones(size), count)


def large_groups(moved: float = 0.0, shift: float = 0.0) -> tuple[xr.Dataset, xr.DataArray, xr.DataArray]:
    """Trained and solved policies of A6 on (15) less a shift, but for one pair of coins; and (15)."""
    limit = tabulated(theory.stationary_large_group, reference=a06.REFERENCES, beta=a06.BETAS)
    noisy = limit + xr.DataArray([0.0, 0.0, moved, 0.0], {"pair": list(a06.PAIRS)})
    trained = (limit - shift).expand_dims(start=list(a06.STARTS))
    return xr.Dataset({"trained": trained, "noisy": noisy}), noisy, limit


@pytest.mark.parametrize(
    ("moved", "shift", "verdict"),
    [(0.0, 0.0, "reproduced"), (0.0, 0.02, "refuted"), (0.03, 0.0, "qualified"), (0.03, 0.02, "refuted")],
)
def test_a6_falls_with_certain_rewards_and_is_qualified_by_coins(moved, shift, verdict):
    large, solved, limit = large_groups(moved, shift)
    claim = made()
    a06.judge_certain(large, solved, limit, limit, claim)
    assert claim.verdict().verdict == verdict
    assert any("(15) holds" in sentence for sentence in claim.sentences) is (shift == 0)


@pytest.mark.parametrize(
    ("moved", "gap", "verdict"),
    [(0.0, 0.0, "reproduced"), (0.03, 0.0, "refuted"), (0.0, 0.03, "refuted")],
)
def test_the_order_s_row_of_a6_falls_where_rewards_of_the_same_order_move_the_policy(moved, gap, verdict):
    large, solved, _ = large_groups(moved)
    large["trained"] = large.trained + xr.DataArray([0.0, 0.0, gap], {"start": list(a06.STARTS)})
    solver = xr.concat([solved, solved], xr.Variable("group", [a06.LARGEST, np.inf]))
    anchors = a06.SAMPLED["reference"]
    on_curve = xr.DataArray(a06.curve(anchors, 1.0, a06.SAMPLED_GROUP), {"reference": anchors})
    noise = xr.DataArray(1e-4 * np.random.default_rng(0).normal(size=(3, 16)), dims=("learning_rate", "seed"))
    rates = {"learning_rate": a06.OPTIMIZERS["SGD"][1]}
    runs = (on_curve + noise.assign_coords(rates)).expand_dims(pair=[a06.COINS])
    row = made()
    a06.judge_order(large, solver, runs, row)
    assert row.verdict().verdict == verdict
    assert bool(row.sentences) is (moved > 0)


def test_a7_s_pairs_with_the_direct_penalty_climb_the_objectives_of_nlhf_and_rlhf():
    (anchor,), (pi,), beta = policies(1, seed=1), policies(1, seed=2), 0.7
    for objective in ("NLHF", "RLHF"):
        config = a07.setting(objective, reference=anchor)
        penalty = dataclasses.replace(config.method.penalty, coef=a07.felt(objective, beta))
        config = dataclasses.replace(config, method=dataclasses.replace(config.method, penalty=penalty))
        found = expected_gradient(config, logits(pi), reference=logits(anchor))[0]

        def climbed(z, objective=objective):
            here = jax.nn.softmax(z)
            divergence = here @ (jnp.log(here) - jnp.log(anchor))
            wins = jnp.sign(a07.REWARDS[:, None] - a07.REWARDS[None, :])
            if objective == "NLHF":
                return here @ wins @ pi - 2 * beta * divergence
            return 0.5 * (here @ a07.REWARDS - beta * divergence)

        np.testing.assert_allclose(found, jax.grad(climbed)(jnp.log(pi)), atol=1e-12)


def theirs(objective: str) -> xr.DataArray:
    """An objective's policies [reference, beta, output] by its theory."""
    return a07.aims(objective, a07.REFERENCES, a07.BETAS, ["x 1"]).sel(table="x 1", drop=True)


@pytest.mark.parametrize("objective", ["RLHF", "NLHF"])
def test_a7_falls_if_grpo_were_a_pooling(objective):
    claim, pools = made(), theirs(objective)
    a07.judge_shape(pools, claim)
    assert claim.numbers["GRPO: π/π_ref - 1/(1 - P/β)"].holds is False
    assert (a07._odds_spread(pools) < 1e-12) is (objective == "RLHF")
    if objective == "RLHF":
        nearest = [claim.numbers[f"GRPO, β = {beta:g}: distance from the nearest RLHF"] for beta in a07.BETAS]
        assert [number.holds for number in nearest] == [False] * len(a07.BETAS)
        assert not claim.sentences


def test_a7_s_distance_falls_at_the_one_penalty_where_grpo_is_near_rlhf():
    claim, policies = made(), theirs("GRPO")
    policies.loc[{"beta": 2.0}] = theirs("RLHF").sel(beta=2.0)
    a07.judge_shape(policies, claim)
    assert claim.numbers["GRPO, β = 2: distance from the nearest RLHF"].holds is False
    assert claim.numbers["GRPO, β = 1: distance from the nearest RLHF"].holds


def test_a7_tells_nlhf_by_its_own_form():
    assert a07.pooled_preferences(theirs("NLHF")).holds
    assert a07.pooled_preferences(theirs("GRPO")).holds is False


@pytest.mark.parametrize("variant", ["mean, G = 2", "left out, G = 8, coin flips"])
def test_a9_s_preferences_are_differences_of_means(variant):
    assert a09.preference_error(variant, 7) < 1e-13
    assert a09.factor("mean, G = 2") == 0.5


@pytest.mark.parametrize(
    ("wrong", "verdicts"),
    [
        (None, ["reproduced", "reproduced"]),
        ("mean, G = 64, coin flips", ["refuted", "reproduced"]),
        ("left out, G = 8, coin flips", ["reproduced", "refuted"]),
    ],
)
def test_leaving_out_is_a_row_of_its_own_in_a9(wrong, verdicts):
    names = a09.TRAINED
    ended = xr.concat(
        [a09.theory(v, a09.REFERENCES, a09.BETAS) for v in names], xr.Variable("variant", names)
    )
    if wrong:
        ended.loc[{"variant": wrong}] += 1e-3
    anchors = xr.DataArray(
        list(a09.REFERENCES.values()), {"reference": list(a09.REFERENCES)}, ("reference", "output")
    )
    equal = (xr.zeros_like(ended) + anchors).transpose(*ended.dims)
    trained = xr.concat([ended, equal], xr.Variable("table", ["rewards", "equal"]))
    error = xr.DataArray(np.zeros(len(a09.VARIANTS)), {"preference": list(a09.VARIANTS)})
    exact = {"trained": trained.expand_dims(start=["here"]), "preference_error": error}
    claim = made()
    a09.check(averages(0.0) | {"exact": xr.Dataset(exact)}, claim)
    assert [row.verdict().verdict for row in (claim, *claim.rows)] == verdicts


def averages(bend: float, shift: float = 0.0) -> dict[str, xr.Dataset]:
    """Time averages theory + shift + 0.1 rate + bend rate² with a little noise."""
    rng, found = np.random.default_rng(0), {}
    for name, (_, rates) in a09.OPTIMIZERS.items():
        rate = xr.DataArray(rates, {"learning_rate": rates})
        noise = xr.DataArray(1e-4 * rng.normal(size=20), dims="seed")
        rows = [
            a09.theory(v, ["rising"], a09.SAMPLED_BETAS).isel(reference=0, drop=True)
            + shift + 0.1 * rate + bend * rate**2 + noise
            for v in a09.SAMPLED[name]
        ]  # fmt: skip
        average = xr.concat(rows, xr.Variable("variant", a09.SAMPLED[name]))
        found[name] = xr.Dataset({"average": average})
    return found


@pytest.mark.parametrize(
    ("bend", "shift", "holds"), [(0.0, 0.0, True), (0.5, 0.0, True), (5.0, 0.0, False), (0.0, 0.02, False)]
)
def test_a9_is_judged_by_the_linear_extrapolation_and_tells_the_quadratic_one(bend, shift, holds):
    claim = made()
    a09.judge_sampled(averages(bend, shift), list(a09.VARIANTS), claim)
    for variant in a09.SAMPLED["AdamW"]:
        told = f"{variant}, SGD: sampled, extrapolated - theory"
        assert claim.numbers[told].holds is holds
        assert claim.roles[told] == "refutes"
        assert claim.roles[told.replace("SGD", "AdamW")] == "qualifies"
        quadratic = claim.numbers[f"{variant}, SGD: quadratic extrapolation - theory"]
        assert quadratic.value == pytest.approx(shift, abs=1e-3)


def test_all_training_of_a9_starts_apart_from_the_reference():
    for start in a09.STARTS.values():
        for anchor in a09.REFERENCES.values():
            assert abs(np.subtract(start, anchor)).max() > 0.1
    for variant in a09.VARIANTS:
        config = a09.setting(variant)
        assert abs(np.exp(config.policy.logits) - np.exp(config.reference)).max() > 0.1


@part
class Forgetful(Sampled):
    """The planted fault: the sampling policy stands in the reference's place."""

    def collect(self, config, state):
        """Groups whose penalty is always zero."""
        return Sampled.collect(self, config, state._replace(ref_params=state.old_params))


@pytest.mark.filterwarnings("ignore:everything recorded is identical")
def test_a_reference_replaced_by_the_sampling_policy_refutes_a9():
    rates = [0.1, 0.2, 0.4]
    runs = gj.sweep(
        a09.setting("mean, G = 2", expectation=Forgetful()),
        {"learning_rate": rates, "kl_coef": a09.SAMPLED_BETAS},
        seeds=8, iterations=400, average_from=0.25, record=["probabilities"], progress=False,
    )  # fmt: skip
    average = runs.probabilities.isel(context=0, drop=True).rename(kl_coef="beta")
    average = average.expand_dims(variant=a09.SAMPLED["SGD"])
    claim = made()
    data = {name: xr.Dataset({"average": average}) for name in a09.OPTIMIZERS}
    a09.judge_sampled(data, ["mean, G = 2"], claim)
    assert claim.numbers["mean, G = 2, SGD: sampled, extrapolated - theory"].holds is False


def test_a10_s_pairs_weigh_the_penalty_alike_at_every_policy():
    """A pair's advantage is a sign, so the spread never divides by less: the weight is 1, far from sigma."""
    places = {place: logits(policy) for place, policy in enumerate(policies(5, size=2))}
    found = a10.weights([1.0, 0.0], places, 2)
    np.testing.assert_allclose(found.weight, 1, atol=1e-12)
    np.testing.assert_allclose(found.cosine, 1, atol=1e-12)


def paths() -> xr.Dataset:
    """Weights that are σ along every path."""
    weight = xr.concat([a10.spread(name) for name in a10.PATHS], xr.Variable("path", list(a10.PATHS)))
    return xr.Dataset({"weight": weight, "cosine": xr.ones_like(weight)})


@pytest.mark.parametrize("wrong", range(11))
def test_no_point_of_a_path_is_left_out_of_a10(wrong):
    data = paths()
    data.weight.loc[{"path": a10.EXTREMES, "along": a10.ALONG[wrong]}] *= 1.03
    claim = made()
    a10.judge_weights(data, claim)
    found = [claim.numbers[f"{name}: weight / σ - 1"].holds for name in a10.PATHS]
    assert found == [True, False, True]


def test_a10_is_qualified_by_every_path_that_raises_the_weight_and_falls_if_none_lowers_it():
    claim = made()
    a10.judge_weights(paths(), claim)
    assert claim.verdict().verdict == "qualified"
    assert claim.sentences
    flat, claim = paths(), made()
    flat.weight.loc[{"path": a10.CERTAIN}] = 0.3
    a10.judge_weights(flat, claim)
    assert claim.numbers[f"to {a10.CERTAIN}: weight at the end less that at the start"].holds is False
    assert claim.verdict().verdict == "refuted"
    assert not claim.sentences
    rising = a10._rise(xr.DataArray([0.4, 0.395, 0.402], {"along": [0, 1, 2]}))
    assert rising.holds
    assert rising.value == pytest.approx(0.007)
    assert a10._rise(xr.DataArray([0.4, 0.38, 0.402], {"along": [0, 1, 2]})).holds is False


@pytest.mark.parametrize(
    ("trainer", "moved", "verdict"),
    [
        ("GRPO", 0.0, "reproduced"),
        ("shift-only at βσ", 0.02, "refuted"),
        ("shift-only at β", -0.1, "refuted"),  # ignoring the weight fits as well
        ("shift-only at the exact weight", 1e-4, "not testable here"),
        ("sampled", 0.004, "refuted"),
    ],
)
def test_trained_policies_decide_a10(trainer, moved, verdict):
    names = [a10.GRPO, a10.SAME, a10.EXACT, a10.PLAIN]
    ended = xr.DataArray(
        [[[0.6] * len(a10.BETAS)] * 4] * 2, {"rewards": list(a10.FLIPS), "trainer": names, "beta": a10.BETAS}
    )
    ended.loc[{"trainer": a10.PLAIN}] += 0.1
    if trainer in names:
        ended.loc[{"trainer": trainer}] += moved
    noise = xr.DataArray(1e-5 * np.random.default_rng(0).normal(size=(3, 16)), dims=("learning_rate", "seed"))
    noise = noise.assign_coords(learning_rate=a10.RATES[a10.GRPO])
    runs = (
        ended.sel(rewards="certain", trainer=[a10.GRPO, a10.SAME], beta=a10.SAMPLED_BETAS, drop=True) + noise
    )
    claim = made()
    a10.judge_policies(ended, runs + (moved if trainer == "sampled" else 0.0), claim)
    assert claim.verdict().verdict == verdict


def test_sampled_runs_of_a10_start_apart_from_where_they_end():
    betas = np.array(a10.SAMPLED_BETAS)
    ends = theory.stationary_binary(np.full(2, a10.REFERENCE), betas, group_size=a10.GROUP)
    assert (abs(np.asarray(ends) - a10.START[0]) > 0.1).all()


def test_a11_s_drives_equal_a_sum_over_groups_by_hand():
    """Three certain members, the library's ddof and constant, the better answer at 0.3."""
    found = a11.drive(a11.PRESETS["trl"], 3).sel(gap=1e-3, policy=0.3)
    total = 0.0
    for others, chance in (((1, 1), 0.09), ((1, 0), 0.42), ((0, 0), 0.49)):
        for own, sign in ((1, 1), (0, -1)):
            group = 1e-3 * np.array([own, *others])
            total += sign * chance * (group[0] - group.mean()) / (group.std(ddof=1) + 1e-4)
    assert float(found) == pytest.approx(total, rel=1e-5)


def test_a_convention_that_is_none_refutes_a11():
    factors = xr.Dataset({"enumerated": a11.enumerated(), "predicted": a11.predicted()})
    gaps = np.array([1e-3, 1.0])
    told = a11.told(gaps)

    def verdict(factors: xr.Dataset) -> str:
        claim = made()
        a11.check({"factors": factors, "trained": xr.Dataset({"ended": told, "told": told})}, claim)
        return claim.verdict().verdict

    assert verdict(factors) == "reproduced"
    assert verdict(factors.assign(enumerated=xr.ones_like(factors.enumerated))) == "refuted"


def test_forces_are_expected_gradients():
    config, pi = a07.setting("GRPO"), [0.2, 0.5, 0.3]
    found = force(config, {"policy.logits": {"here": logits(pi)}}).isel({"policy.logits": 0})
    aim = expected_gradient(config, logits(pi), reference=logits(a07.REFERENCES[a07.DRAWN]))[0]
    np.testing.assert_allclose(found, aim, atol=1e-14)
