"""Rules and instruments of the claims on pairs, large groups, the penalty and the fixed point."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr

import grpo_jax as gj
from experiments.claims import (
    a01_pairwise,
    a02_large_groups,
    a03_penalty_gradient,
    a04_fixed_point,
    a05_binary_pairs,
)
from experiments.formulas import group_sums
from experiments.formulas.inner_steps import multiplier
from experiments.formulas.optimality import LOCAL, MAXIMUM, MINIMUM
from experiments.formulas.sequence_divergences import sequence_gradients
from experiments.harness.verdict import Claim
from experiments.problems import divergences, fixed_points
from grpo_jax.theory import stationary_pair
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


def test_gradients_of_both_divergences_of_sequences_equal_sums_over_sequences():
    rng = np.random.default_rng(4)
    logits, reference = jnp.asarray(rng.normal(size=(2, 4, 3)))

    def both(free, prefix):
        """KL(π‖π_ref) and KL(π_ref‖π), the first token's chance held at π's if `prefix`."""
        p, q = jax.nn.log_softmax(free, 1), jax.nn.log_softmax(reference, 1)
        held = jax.nn.log_softmax(logits, 1)[0]
        total = jnp.stack([jnp.exp(p[0]) @ (p[0] - q[0]), jnp.exp(q[0]) @ (q[0] - p[0])])
        for a in range(3):
            met = jnp.exp(jnp.stack([held[a], held[a]] if prefix else [p[0, a], q[0, a]]))
            here, there = p[1 + a], q[1 + a]
            total += met * jnp.stack([jnp.exp(here) @ (here - there), jnp.exp(there) @ (there - here)])
        return total

    found = sequence_gradients(
        gj.Sequences(vocab=3, horizon=2), logits[None, ..., None], reference[None, ..., None]
    )
    for held in ("prefix", "sequence"):
        aims = jax.jacobian(both)(logits, held == "prefix")
        for aim, direction in zip(aims, ("forward", "reverse"), strict=True):
            np.testing.assert_allclose(found[direction, held][0, ..., 0], aim, atol=1e-13)


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


@pytest.mark.parametrize(
    ("greatest", "gap", "verdict"),
    [(0.05, 0.0, "reproduced"), (0.05, 1e-3, "refuted"), (0.005, 0.0, "refuted"), (0.0, 0.0, "refuted")],
)
def test_a5_s_row_on_optimality_falls(monkeypatch, greatest, gap, verdict):
    def rank(reference, strength):
        return np.where(np.asarray(reference) <= greatest, MINIMUM, MAXIMUM) + 0 * np.asarray(strength)

    references, strengths = np.array([0.005, 0.01, 0.05, 0.1]), np.array([0.5, 1.0])
    points = {"reference": references, "strength": strengths}
    kind = xr.DataArray(rank(references[:, None], strengths[None]), points, tuple(points))
    monkeypatch.setattr(
        a05_binary_pairs, "rank", lambda reference, strength: np.full(np.shape(reference), MINIMUM)
    )
    ended = xr.DataArray(np.full(kind.shape, gap), points, tuple(points))
    claim = Claim("X1", "A sentence.")
    a05_binary_pairs.judge_optimality(kind, ended, claim)
    assert claim.rows[0].verdict().verdict == verdict
    assert MAXIMUM < LOCAL < MINIMUM


def inner_data(swing=(0.0, 0.0, 1.0), back=0.0, multiplier=(1.0, 1.0, -2.0), references=(0.01, 0.1)):
    points = {"travel": a04_fixed_point.TRAVEL, "reference": list(references), "strength": [1.0, 2.0]}
    whole = np.ones((3, 2, 2))
    shaped = {
        "swing": np.array(swing)[:, None, None] * whole,
        "multiplier": np.array(multiplier)[:, None, None] * whole,
    }
    shaped["back"] = back * shaped["swing"]
    return xr.Dataset({name: (tuple(points), values) for name, values in shaped.items()}, points)


def fixed_point_data(
    moves: dict[str, float] | None = None, gap: float = 0.0, slack: float = 0.1, sgd: float = 0.0
):
    """What A4 measures where each AdamW setting rests `moves` from the root."""
    rng, root = np.random.default_rng(0), np.array([0.5, 0.3, 0.2])
    noise = lambda *shape: 1e-4 * rng.normal(size=shape)  # noqa: E731
    moves = moves or {}
    answers = np.full((2, 3), 1 / 3)
    made = xr.Dataset({
        "root": (("question", "output"), answers), "root_gap": ("question", np.zeros(2)),
        "gap": (("question", "start"), np.full((2, 4), gap)),
        "slack": (("question", "start"), np.full((2, 4), slack)),
        "ended": (("question", "start", "output"), np.repeat(answers[:, None], 4, 1)),
    })  # fmt: skip
    groups, rates = a04_fixed_point.GROUPS, a04_fixed_point.SGD_RATES
    slope = np.array([-0.03, 0.02, 0.01])
    average = (
        root
        + sgd * np.array([1, -1, 0])
        + np.array(rates)[None, :, None, None] * slope
        + noise(3, len(rates), 20, 3)
    )
    away = np.array([[moves.get(name, 0.0), -moves.get(name, 0.0), 0.0] for name in a04_fixed_point.ADAM])
    adam = (root + away)[:, None, None] + noise(len(away), 3, 20, 3)
    coords = {"setting": list(a04_fixed_point.ADAM), "learning_rate": a04_fixed_point.ADAM_RATES}
    return {
        "3 answers, G = 8": made,
        "SGD": xr.Dataset(
            {
                "average": (("group_size", "learning_rate", "seed", "output"), average),
                "root": (("group_size", "output"), np.tile(root, (3, 1))),
                "slope": (("group_size", "output"), np.tile(slope, (3, 1))),
            },
            {"group_size": groups, "learning_rate": rates},
        ),
        "AdamW": xr.Dataset(
            {
                "average": (("setting", "learning_rate", "seed", "output"), adam),
                "root": ("output", root),
                "rest": (("setting", "output"), root + away),
            },
            coords,
        ),
        "inner": inner_data(),
    }


def test_a4_is_reproduced_only_if_no_optimizer_moves_the_root():
    assert judged(a04_fixed_point.check, fixed_point_data()).verdict().verdict == "reproduced"


@pytest.mark.parametrize("name", list(a04_fixed_point.ADAM))
def test_every_setting_of_adamw_qualifies_a4_by_itself(name):
    found = judged(a04_fixed_point.check, fixed_point_data({name: 0.02})).verdict()
    assert found.verdict == "qualified"
    assert [
        key for key, role in found.roles.items() if role == "qualifies" and not found.numbers[key].holds
    ] == [f"AdamW, {name}: sampled, extrapolated - root"]


@pytest.mark.parametrize("wrong", [{"gap": 1e-5}, {"slack": -1e-3}, {"sgd": 0.02}])
def test_a4_falls(wrong):
    assert judged(a04_fixed_point.check, fixed_point_data(**wrong)).verdict().verdict == "refuted"


def test_a4_s_rows_fall_by_themselves():
    data = fixed_point_data()
    still = data | {"inner": data["inner"].assign(swing=0 * data["inner"].swing)}
    claim = judged(a04_fixed_point.check, still)
    assert claim.verdict().verdict == "reproduced"
    assert [row.verdict().verdict for row in claim.rows] == ["reproduced", "reproduced", "refuted"]
    elsewhere = data | {"AdamW": data["AdamW"].assign(rest=data["AdamW"].rest + 0.02)}
    rows = judged(a04_fixed_point.check, elsewhere).rows
    assert [row.verdict().verdict for row in rows] == ["reproduced", "refuted", "reproduced"]


def test_a4_s_condition_names_the_least_decay_that_fails():
    found = judged(a04_fixed_point.check, fixed_point_data({"weight decay 0.1": 0.02})).verdict()
    assert "Holds only with weight decay below 0.1" in found.because


@pytest.mark.parametrize(("times", "verdict"), [(1.0, "reproduced"), (1.5, "refuted"), (0.0, "refuted")])
def test_a4_s_slopes_are_judged(times, verdict):
    data = fixed_point_data()
    data["SGD"]["average"] = data["SGD"].average + (times - 1) * data["SGD"].slope * data["SGD"].learning_rate
    assert judged(a04_fixed_point.check, data).rows[1].verdict().verdict == verdict


@pytest.mark.parametrize(
    ("wrong", "verdict"),
    [
        ({}, "reproduced"),
        ({"back": 1.0}, "refuted"),  # it never settles, but does not come back after two batches
        ({"swing": (0.0, 0.0, 0.0)}, "refuted"),  # it settles at an unstable root
        ({"swing": (0.0, 1.0, 1.0)}, "refuted"),  # it does not settle at a stable one
        ({"references": (0.01, 0.9)}, "refuted"),  # nor where π_ref is not small
        ({"multiplier": (1.0, 1.0, 1.0)}, "refuted"),
    ],
)
def test_a4_s_row_on_inner_steps_falls(wrong, verdict):
    claim = judged(a04_fixed_point.judge_inner_steps, inner_data(**wrong))
    assert claim.rows[0].verdict().verdict == verdict


def test_a_batch_of_inner_steps_multiplies_distances_as_predicted():
    """Two answers, the surrogate frozen at a policy beside the stationary point, ascended in small steps."""
    reference, strength, travel = 0.05, 1.2, 4.0
    root = float(stationary_pair(reference, strength))
    old = root + 1e-5

    def surrogate(z):
        y = jax.nn.sigmoid(z)
        both = jnp.stack([y, 1 - y]), jnp.array([reference, 1 - reference]), jnp.array([old, 1 - old])
        odds = both[1] / both[0]
        return y * (1 - old) - (1 - y) * old - strength * both[2] @ (odds - jnp.log(odds) - 1)

    z = jnp.log(old / (1 - old))
    slope, steps = jax.jit(jax.grad(surrogate)), 4000
    for _ in range(steps):
        z = z + 2 * travel / steps * slope(z)  # two logits move apart
    assert float(jax.nn.sigmoid(z) - root) / 1e-5 == pytest.approx(
        float(multiplier(reference, strength, travel)), rel=2e-2
    )


def test_starts_lie_all_over_the_simplex():
    for answers in (3, 8):
        starts = np.stack(list(fixed_points.around(answers).values()))
        np.testing.assert_allclose(starts.sum(1), 1)
        assert starts.min() > 0
        assert (starts.max(0) > 0.8).all()
