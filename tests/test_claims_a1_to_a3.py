"""Rules and instruments of the claims on pairs, large groups, the penalty and the fixed point."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr

import grpo_jax as gj
from experiments.claims import (
    a01_pairwise,
    a02_large_groups,
    a03_penalty_gradient,
)
from experiments.formulas import group_sums
from experiments.harness.verdict import Claim
from experiments.problems import divergences
from grpo_jax.types import Evaluation

pytestmark = pytest.mark.usefixtures("x64")


def judged(check, *args, says="A sentence."):
    claim = Claim("X1", says)
    check(*args, claim)
    return claim


def pairs_data(rng: np.random.Generator) -> dict[str, xr.Dataset]:
    """What A1 measures if it is as the claim says."""
    sign = rng.integers(-1, 2, (5, 2)).astype(float)
    win = rng.uniform(0, 0.4, 6)
    lose = rng.uniform(0, 0.4, 6)
    transforms = list(a01_pairwise.TRANSFORMS)
    path = np.broadcast_to(rng.dirichlet(np.ones(3), 4)[None], (len(transforms), 4, 3)).copy()
    policy = xr.DataArray(
        np.stack([path[:, :, None]] * 2), {"transform": transforms, "optimizer": ["SGD", "AdamW"]},
        ("optimizer", "transform", "seed", "iteration", "output"),
    )  # fmt: skip
    eight = policy.sel(optimizer="SGD", drop=True).copy()
    eight.loc[{"transform": "-1/(r + 0.01)"}] += 0.1
    ended = xr.DataArray(
        np.zeros((3, 9, 3)), {"group_size": a01_pairwise.GROUPS, "middle": a01_pairwise.MIDDLES},
        ("group_size", "middle", "output"),
    )  # fmt: skip
    ended = ended + ended.middle * (ended.group_size > 2)
    two = xr.DataArray(
        np.zeros((3, len(transforms), 3)),
        {"group_size": a01_pairwise.GROUPS, "transform": transforms},
        ("group_size", "transform", "output"),
    )
    return {
        "signs": xr.Dataset(
            {"advantage": (("pair", "member", "token"), sign[:, :, None]), "sign": (("pair", "member"), sign)}
        ),
        "preferences": xr.Dataset(
            {
                "engine": ("table", win - lose),
                "win": ("table", win),
                "tie": ("table", 1 - win - lose),
                "lose": ("table", lose),
            }
        ),
        "exact": xr.Dataset({"three_levels": ended, "two_levels": two, "solved": ended}),
        "pairs": xr.Dataset({"policy": policy}),
        "eight": xr.Dataset({"policy": eight}),
    }


def test_ties_qualify_a1_and_a1_can_fall():
    data = pairs_data(np.random.default_rng(0))
    found = judged(a01_pairwise.check, data)
    assert found.verdict().verdict == "qualified"
    assert "only if P counts a tie as half a win" in found.verdict().because
    assert found.rows[0].verdict().verdict == "reproduced"
    without_ties = data["preferences"].assign(tie=0 * data["preferences"].tie)
    without_ties["lose"] = 1 - without_ties.win
    without_ties["engine"] = 2 * without_ties.win - 1
    assert judged(a01_pairwise.check, data | {"preferences": without_ties}).verdict().verdict == "reproduced"
    for name, place in (("signs", "advantage"), ("preferences", "engine")):
        wrong = data[name].assign({place: data[name][place] + 1e-6})
        assert judged(a01_pairwise.check, data | {name: wrong}).verdict().verdict == "refuted"
    moved = data["pairs"].copy(deep=True)
    moved.policy.loc[{"optimizer": "AdamW", "transform": "r³"}] += 1e-6
    found = judged(a01_pairwise.check, data | {"pairs": moved}).verdict()
    assert found.verdict == "refuted"
    assert "Fails: AdamW" in found.because


def test_a1_s_row_on_sizes_falls_if_larger_groups_do_not_see_them():
    data = pairs_data(np.random.default_rng(0))
    same = data["exact"].isel(middle=0, drop=True).three_levels + 0 * data["exact"].three_levels
    flat = data["exact"].assign(three_levels=same, solved=same)
    found = judged(a01_pairwise.check, data | {"exact": flat})
    assert found.verdict().verdict == "qualified"
    assert found.rows[0].verdict().verdict == "refuted"


@pytest.mark.parametrize("name", ["two levels", "three levels", "coin flips"])
def test_direct_sums_equal_brute_force_over_groups(name):
    policy, levels, probs = a02_large_groups.law(name)
    chance = policy @ probs
    found = np.zeros(len(levels))
    for own in range(len(levels)):
        for others in itertools.product(range(len(levels)), repeat=3):
            group = levels[[own, *others]]
            spread = group.std()
            advantage = (levels[own] - group.mean()) / spread if len(set(group)) > 1 else 0.0
            found[own] += np.prod(chance[list(others)]) * advantage
    np.testing.assert_allclose(
        group_sums.preference_by_sum(policy, levels, probs, 4), probs @ found, atol=1e-13
    )


def test_the_law_of_rare_levels_has_both_its_limits():
    small, large = 1e-6, 1500.0
    found = group_sums.rare_law(np.array([small, large, 1e5]))
    assert found[0] == pytest.approx(np.sqrt(small), rel=1e-5)
    assert found[1] == pytest.approx(1, abs=1e-3)
    assert found[2] == 1


def large_data(exponent: float = -1.0, scale: float = 1.0, apart: float = 1.0) -> dict[str, xr.Dataset]:
    """Errors that fall as a power of G, and rare levels that follow their law."""
    groups = np.array([4, 64, 256, 1024, 4096])
    names = list(a02_large_groups.POLICIES)
    limit = xr.DataArray(np.ones((len(names), 3)), {"setting": names}, ("setting", "answer"))
    error = xr.DataArray(scale * groups.astype(float) ** exponent, {"group_size": groups}, "group_size")
    rare_groups = np.array(a02_large_groups.RARE_GROUPS)
    p = xr.DataArray(a02_large_groups.RARE, {"p": a02_large_groups.RARE}, "p")
    x = p * xr.DataArray(rare_groups, {"group_size": rare_groups}, "group_size")
    preference = x.copy(data=group_sums.rare_law(x.values)) * np.sqrt((1 - p) / p)
    preference = np.minimum(preference, np.sqrt(x.group_size - 1))
    return {
        "preference": xr.Dataset(
            {"engine": limit + error, "sum": limit + error, "limit": limit, "limit_of_means": limit + apart}
        ),
        "rare": xr.Dataset({"preference": preference}),
    }


@pytest.mark.parametrize(
    ("exponent", "scale", "main", "rate"),
    [
        (-1.0, 1.0, "qualified", "reproduced"),
        (-0.8, 1.0, "qualified", "refuted"),  # slower, and still there
        (-0.5, 1.0, "refuted", "refuted"),
        (-1.0, 100.0, "refuted", "reproduced"),
    ],
)
def test_the_rate_is_ours_and_the_limit_the_paper_s_in_a2(exponent, scale, main, rate):
    found = judged(a02_large_groups.check, large_data(exponent, scale))
    assert found.verdict().verdict == main
    assert [row.verdict().verdict for row in found.rows] == [rate, "reproduced"]


def test_a2_is_reproduced_only_if_both_readings_of_sigma_are():
    assert judged(a02_large_groups.check, large_data(apart=0.0)).verdict().verdict == "reproduced"
    found = judged(a02_large_groups.check, large_data(apart=0.05)).verdict()
    assert found.verdict == "qualified"
    assert "Holds only if σ(π) counts the noise within an answer" in found.because


def test_a2_judges_the_engine_where_it_enumerates():
    data = large_data()
    wrong = data["preference"].assign(engine=data["preference"].engine + 0.02)
    found = judged(a02_large_groups.check, data | {"preference": wrong}).verdict()
    assert found.verdict == "not testable here"  # the sums disagree
    assert "Would fail: two levels: error" in found.because


def test_rare_levels_that_see_the_limit_refute_a2_s_row():
    data = large_data()
    rare = data["rare"].preference
    seen = xr.Dataset({"preference": np.sqrt((1 - rare.p) / rare.p) + 0 * rare})
    found = judged(a02_large_groups.check, data | {"rare": seen})
    assert found.verdict().verdict == "qualified"
    assert found.rows[1].verdict().verdict == "refuted"


def test_a_penalty_chosen_by_numbers_is_that_penalty():
    rng = np.random.default_rng(0)
    logp, anchor, old = (jnp.asarray(np.log(rng.uniform(0.1, 1, (2, 3, 1)))) for _ in range(3))
    zeros = np.zeros((2, 3, 1))
    rollout = gj.Rollout(
        np.zeros(2, int), zeros.astype(int), zeros + 1, zeros, zeros[:, :, 0] + 1, old, old, anchor
    )
    at = Evaluation(rollout, logp, logp - old, zeros)
    for name, chosen in divergences.weights(divergences.ESTIMATORS).items():
        found = divergences.Chosen(weights=chosen, coef=1.0)(at)
        np.testing.assert_allclose(found, divergences.ESTIMATORS[name](at), atol=1e-15)


def test_distances_off_policy_are_zero_for_a_gradient_that_is_the_target_s():
    rng = np.random.default_rng(1)
    now, reference = (xr.DataArray(rng.dirichlet(np.ones(4), 3), dims=("table", "answer")) for _ in range(2))
    step = xr.Dataset({"now": now, "reference": reference})
    aims = a03_penalty_gradient.targets(step)
    step["gradient"] = xr.concat([aims.forward, aims.reverse], xr.Variable("estimator", ["f", "r"]))
    found = a03_penalty_gradient.distances(step)
    np.testing.assert_allclose(
        [found.sel(estimator="f", target="KL(π‖π_ref)"), found.sel(estimator="r", target="KL(π_ref‖π)")],
        0,
        atol=1e-12,
    )
    assert float(found.sel(estimator="f", target="KL(π_ref‖π)")) > 0.1


@pytest.mark.parametrize(("share", "verdict"), [(0.5, "reproduced"), (0.0, "refuted")])
def test_a3_s_row_on_sequences_falls_if_nothing_is_missing(share, verdict):
    values = np.zeros((2, 2, 2, 16))
    values[1, :, 1] = share + 1e-3 * np.arange(16)
    dims = {
        "horizon": a03_penalty_gradient.HORIZONS,
        "estimator": ["k2", "k3"],
        "held": ["prefix", "sequence"],
    }
    claim = judged(a03_penalty_gradient.judge_sequences, xr.DataArray(values, dims, (*dims, "tree")))
    assert claim.rows[0].verdict().verdict == verdict


def drift_data(exponent: float = 1.0, forward: float = 0.8) -> xr.DataArray:
    """Distances of k3's gradient from both divergences' that are powers of the drift."""
    drift = np.array([0.01, 0.03, 0.1, 0.3, 1.0])
    values = np.stack([np.full(5, forward), drift**exponent])
    return xr.DataArray(
        values, {"target": ["KL(π‖π_ref)", "KL(π_ref‖π)"], "drift": drift}, ("target", "drift")
    )


@pytest.mark.parametrize(
    ("exponent", "forward", "verdict"),
    [(1.0, 0.8, "reproduced"), (2.0, 0.8, "refuted"), (0.5, 0.8, "refuted"), (1.0, 0.05, "refuted")],
)
def test_a3_s_row_on_drift_falls_by_its_exponent_and_by_the_other_divergence(exponent, forward, verdict):
    claim = judged(a03_penalty_gradient.judge_drift, drift_data(exponent, forward))
    assert claim.rows[0].verdict().verdict == verdict
