"""Rules that judge C1, C2, C4 and C6, with numbers made up for the purpose: what should fail fails."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr

from experiments.claims import c01_estimand, c02_trajectory, c04_variance, c06_length
from experiments.formulas import drift_moments, sentence_atlas
from experiments.formulas import expected_updates as closed
from experiments.harness.verdict import Claim
from experiments.problems import estimands, three_tokens
from grpo_jax.parts.ratios import SequenceMean, Token, Trajectory
from grpo_jax.theory import variance
from grpo_jax.types import Rollout

pytestmark = pytest.mark.usefixtures("x64")


def made_up(nearer, distance) -> xr.Dataset:
    """Three horizons and two drifts in one direction, of one estimator."""
    nearer, distance = np.array(nearer)[:, None], np.array(distance)[:, None, :, None, None]
    return xr.Dataset(
        {
            "nearer": (("horizon", "direction", "drift"), nearer),
            "distance": (("horizon", "direction", "drift", "target", "quantile"), distance),
        },
        {"horizon": [1, 2, 3], "drift": [0.1, 1.0], "target": [estimands.TARGETS[0]], "quantile": [0.5]},
        {"tables": 200},
    )


NEAR, FAR = [[0.01, 0.05]] * 3, [[0.01, 0.2], [0.3, 0.2], [0.01, 0.01]]


@pytest.mark.parametrize(
    ("nearer", "distance", "start", "reach"),
    [
        ([[200, 200]] * 3, NEAR, 1, 1.0),
        ([[200, 101], [200, 150], [200, 200]], NEAR, 2, 1.0),
        ([[200, 200], [200, 110], [150, 150]], [[0.01, 0.2]] * 3, 3, 0.1),
        ([[200, 200], [200, 200], [99, 200]], FAR, np.nan, 0.0),
    ],
)
def test_where_the_sentence_is_true(nearer, distance, start, reach):
    """101 or 110 of 200 tables are not most of them at 99.9 %; 150 are."""
    found = sentence_atlas.sentence(made_up(nearer, distance))
    np.testing.assert_equal((float(found.start), float(found.reach)), (start, reach))


def compared_by_hand(found, targets, scale):
    """Distances table by table."""
    size = np.linalg.norm(targets[0].reshape(-1, targets.shape[-1]), axis=0)
    gaps = found[:, None] / scale[:, None, None, None] - targets
    return np.sqrt((gaps**2).sum((2, 3))) / size


def test_distances_of_the_atlas_are_those_table_by_table():
    rng = np.random.default_rng(0)
    found, targets = rng.normal(size=(2, 3, 2, 9)), rng.normal(size=(3, 3, 2, 9))
    scale = rng.uniform(0.5, 1, (2, 9))
    want = compared_by_hand(found, targets, scale)
    got = sentence_atlas.compared(found, targets, scale)
    np.testing.assert_allclose(got[:3], np.quantile(want, sentence_atlas.QUANTILES, -1))
    np.testing.assert_array_equal(got[-1], (want[:, :1] < want).sum(-1))


def atlas(nearer_old: dict[str, int], *, tables: int = 200) -> dict[str, xr.Dataset]:
    """C1's data with so many tables nearer to the old gradient, by estimator and clip, everywhere."""
    axes = {
        "kind": list(c01_estimand.KINDS), "horizon": c01_estimand.HORIZONS, "direction": ["random", "ascent"],
        "drift": c01_estimand.DRIFTS, "estimator": list(closed.ESTIMATORS), "clip": list(closed.CLIPS),
        "advantage": list(c01_estimand.ADVANTAGES),
    }  # fmt: skip
    nearer = xr.DataArray(np.full([len(v) for v in axes.values()], tables), axes, tuple(axes))
    nearer.loc[{"estimator": "TIC-GRPO"}] = 0
    for clip, count in nearer_old.items():
        nearer.loc[{"estimator": "GRPO", "clip": clip}] = count
    spread = {"target": list(estimands.TARGETS), "quantile": [0.1, 0.5, 0.9]}
    distance = (0.01 + 0 * nearer).expand_dims(spread)
    each = {"kind": axes["kind"], "horizon": axes["horizon"]}
    residual = xr.DataArray(
        np.zeros((2, 8, 3)),
        each | {"identity": ["at the old policy", "away", "the atlas"]},
        (*each, "identity"),
    )
    found = xr.Dataset(
        {"nearer": nearer, "distance": distance, "angle": distance.copy()}, attrs={"tables": tables}
    )
    return {"identities": xr.Dataset({"residual": residual}), "atlas": found}


@pytest.mark.parametrize(
    ("nearer", "residual", "verdict"),
    [
        ({}, 0.0, "reproduced"),
        ({"two-sided": 60}, 0.0, "qualified"),
        ({"two-sided": 105}, 0.0, "not testable here"),
        ({"none": 60}, 0.0, "refuted"),
        ({"none": 105}, 0.0, "not testable here"),
        ({}, 1e-6, "not testable here"),
    ],
)
def test_c1_falls_with_the_printed_sentence_and_not_with_our_identity(nearer, residual, verdict):
    data = atlas(nearer)
    data["identities"]["residual"] += residual
    claim = Claim("C1", "GRPO's update estimates the gradient at the old policy.")
    c01_estimand.check(data, claim)
    assert claim.verdict().verdict == verdict
    assert claim.rows[0].verdict().verdict == ("refuted" if residual else "reproduced")


@pytest.mark.parametrize("advantage", c01_estimand.ADVANTAGES)
@pytest.mark.parametrize("kind", c01_estimand.KINDS)
def test_c1_falls_with_either_advantage_and_kind_of_reward_alone(kind, advantage):
    data = atlas({})
    where = {"estimator": "GRPO", "clip": "none", "kind": kind, "advantage": advantage, "horizon": 8}
    data["atlas"]["nearer"].loc[where] = 60
    claim = Claim("C1", "GRPO's update estimates the gradient at the old policy.")
    c01_estimand.check(data, claim)
    assert claim.verdict().verdict == "refuted"


@pytest.mark.parametrize(("idle", "words"), [(0.03, "here up to 0.03 nat"), (0.0, "only without a clip")])
def test_c1_s_condition_says_how_long_the_clip_is_idle(idle, words):
    data = atlas({"two-sided": 60})
    clipped = {
        "clip": "two-sided",
        "estimator": "GRPO",
        "drift": c01_estimand.DRIFTS[idle < c01_estimand.DRIFTS],
    }
    data["atlas"]["angle"].loc[clipped] += 50
    claim = Claim("C1", "GRPO's update estimates the gradient at the old policy.")
    c01_estimand.check(data, claim)
    assert words in claim.verdict().because
    assert "near to neither" in claim.verdict().found


@pytest.mark.parametrize(
    ("estimator", "kind", "verdict"),
    [
        ("score", "binary", "refuted"),
        ("frozen", "graded", "refuted"),
        ("frozen", "binary", "not testable here"),
    ],
)
def test_c1_s_row_on_no_ratio(estimator, kind, verdict):
    data = atlas({})
    data["atlas"]["nearer"].loc[{"estimator": estimator, "kind": kind, "advantage": "σ-normalised"}] = 60
    claim = Claim("C1", "GRPO's update estimates the gradient at the old policy.")
    c01_estimand.check(data, claim)
    assert claim.rows[1].verdict().verdict == verdict


def test_c1_is_qualified_where_short_outputs_or_large_drifts_break_it():
    data = atlas({})
    data["atlas"]["nearer"].loc[{"estimator": "GRPO", "horizon": [1, 2]}] = 10
    claim = Claim("C1", "GRPO's update estimates the gradient at the old policy.")
    c01_estimand.check(data, claim)
    assert claim.verdict().verdict == "qualified"
    assert "from T = 3 on" in claim.verdict().because


def tables(**wrong) -> dict[str, xr.Dataset]:
    """C2's data where everything is as a right update has it, but for what is said."""
    axes = {
        "kind": list(c02_trajectory.KINDS), "horizon": c02_trajectory.HORIZONS,
        "direction": list(closed.DIRECTIONS), "drift": c02_trajectory.DRIFTS, "clip": list(closed.CLIPS),
        "advantage": [c02_trajectory.SHIFT, c02_trajectory.NORMAL], "table": np.arange(200),
    }  # fmt: skip
    blank = xr.DataArray(np.zeros([len(v) for v in axes.values()]), axes, tuple(axes))
    right = {"scale": 1.0, "error": 0.0, "angle": 0.0, "gap": 0.0, "nearer": 1.0, "old angle": 0.0} | wrong
    each = {"kind": axes["kind"], "horizon": axes["horizon"]}
    identity = [c02_trajectory.SHIFT, c02_trajectory.NORMAL, "token ratio"]
    residual = xr.DataArray(
        np.full((2, 8, 3), wrong.get("residual", 0.0)), each | {"identity": identity}, (*each, "identity")
    )
    residual.loc[{"identity": "token ratio"}] = wrong.get("control", 0.05)
    forms = xr.DataArray(
        np.full(3, wrong.get("clipped", 0.0)), {"form": list(c02_trajectory.UPPER)}, ("form",)
    )
    found = xr.Dataset({name: blank + right[name] for name in c02_trajectory.WHAT})
    return {"identities": xr.Dataset({"residual": residual, "clipped": forms}), "tables": found}


@pytest.mark.parametrize(
    ("wrong", "verdict"),
    [
        ({}, "reproduced"),
        ({"residual": 1e-6}, "refuted"),
        ({"gap": 1e-6}, "not testable here"),
        ({"clipped": 1e-6}, "not testable here"),
        ({"error": 0.2}, "qualified"),
        ({"angle": 1.0}, "qualified"),
        ({"scale": 0.875}, "qualified"),
        ({"control": 0.0}, "not testable here"),
    ],
)
def test_c2_falls_with_a_bias_and_is_qualified_by_the_clip(wrong, verdict):
    claim = Claim("C2", "The update is unbiased.")
    c02_trajectory.check(tables(**wrong), claim)
    assert claim.verdict().verdict == verdict


def test_c2_is_judged_by_its_own_clip_and_not_by_others():
    data = tables()
    data["tables"]["error"].loc[{"clip": ["two-sided", "upper, truncated", "upper, truncated score"]}] = 1.0
    claim = Claim("C2", "The update is unbiased.")
    c02_trajectory.check(data, claim)
    assert claim.verdict().verdict == "reproduced"


def test_c2_holds_for_one_question_if_their_scales_differ():
    data = tables()
    few = {"kind": "binary", "advantage": c02_trajectory.NORMAL, "clip": "none", "table": [0, 1]}
    data["tables"]["scale"].loc[few] = 1.2
    claim = Claim("C2", "The update is unbiased.")
    c02_trajectory.check(data, claim)
    assert claim.verdict().verdict == "qualified"
    assert "only for one question at a time" in claim.verdict().because


@pytest.mark.parametrize(
    ("where", "verdict"),
    [
        ({}, "reproduced"),
        ({"clip": c02_trajectory.OWN}, "qualified"),
        ({"clip": "none", "advantage": c02_trajectory.NORMAL, "kind": "graded"}, "refuted"),
        ({"clip": "none", "advantage": c02_trajectory.SHIFT}, "not testable here"),
        ({"clip": "two-sided"}, "reproduced"),
    ],
)
def test_c2_judges_v5_by_the_unclipped_update_and_qualifies_by_its_own_clip(where, verdict):
    data = tables()
    if where:
        data["tables"]["nearer"].loc[where] = 0.0
    claim = Claim("C2", "The update is unbiased.")
    c02_trajectory.check(data, claim)
    assert claim.rows[0].verdict().verdict == verdict


def test_c2_says_how_long_the_clip_is_idle():
    data = tables(angle=90.0, **{"old angle": 80.0})
    data["tables"]["nearer"].loc[{"clip": c02_trajectory.OWN}] = 0.0
    data["tables"]["error"].loc[{"clip": c02_trajectory.OWN, "drift": [0.1, 1.0]}] = 0.2
    claim = Claim("C2", "The update is unbiased.")
    c02_trajectory.check(data, claim)
    assert "while the clip is idle (here up to 0.01 nat)" in claim.rows[0].verdict().because
    assert "current gradient is then 90 to 90 degrees, to the old one 80" in claim.rows[0].verdict().found


@pytest.mark.parametrize("factor", [1.0, 1.1, 1 / 1.1])
def test_a_variance_that_is_wrong_by_a_tenth_fails_c4_s_check(factor):
    """Settings whose intervals are as wide as C4 says that they are, 2.5 % to either side."""
    rng = np.random.default_rng(0)
    settings = [f"setting {i}" for i in range(31)]
    samples = rng.normal(size=(31, 24576))
    samples = (samples - samples.mean(1, keepdims=True)) / samples.std(1, keepdims=True)
    reach, mistake = 0.025, rng.normal(size=(31, 1)) / 4.1 * 0.015
    samples = factor * (1 + mistake + samples * reach / 4.15 * np.sqrt(24576))
    data = xr.DataArray(samples, {"setting": settings}, ("setting", "seed"))
    numbers = c04_variance.sampled_numbers(data)
    half = [(number.high - number.low) / 2 for number in numbers.values()]
    np.testing.assert_allclose(half, reach * factor, rtol=0.02)
    assert len(numbers) == 31
    assert {number.holds for number in numbers.values()} == {factor == 1.0}


def variances(factor: float = 1.0, **relative: float) -> dict[str, xr.Dataset]:
    """C4's data with these variances over on-policy, by clip, at every T and drift."""
    axes = {
        "drift": list(three_tokens.DRIFTS), "chi2": drift_moments.CHI2, "ratio": list(variance.RATIOS),
        "clip": list(variance.FORMS), "horizon": drift_moments.HORIZONS,
    }  # fmt: skip
    ones = xr.DataArray(np.ones([len(v) for v in axes.values()]), axes, tuple(axes))
    moment = ones * (1 + ones.chi2) ** ones.horizon
    spread = ones.copy()
    for clip, value in relative.items():
        spread.loc[{"clip": clip}] = value
    listed = moment.isel(drift=0, ratio=0, clip=0, drop=True).sel(horizon=slice(1, 6)).expand_dims(tree=2)
    samples = factor * (1 + 0.1 * np.random.default_rng(0).normal(size=(2, 1000)))
    sampled = xr.DataArray(samples, {"setting": ["a", "b"]}, ("setting", "seed"))
    return {
        "exact": xr.Dataset({"bias": 0 * ones, "variance": spread, "moment": moment}),
        "listed": xr.Dataset({"moment": listed}),
        "sampled": xr.Dataset({"variance": sampled}),
    }


@pytest.mark.parametrize(
    ("relative", "factor", "verdicts"),
    [
        ({}, 1.0, ("reproduced", "reproduced")),
        ({"upper, minimum": 17.0}, 1.0, ("qualified", "reproduced")),
        ({"upper, truncated": 17.0}, 1.0, ("refuted", "reproduced")),
        ({"upper, truncated score": 1.5}, 1.0, ("refuted", "reproduced")),
        ({"two-sided": 17.0}, 1.0, ("reproduced", "refuted")),
        ({"upper, minimum": 17.0}, 1.1, ("not testable here", "reproduced")),
    ],
)
def test_c4_falls_with_a_clip_that_ignores_the_sign_and_is_qualified_by_ppo_s_minimum(
    relative, factor, verdicts
):
    claim = Claim("C4", "The clip bounds the variance.")
    c04_variance.check(variances(factor, **relative), claim)
    assert tuple(row.verdict().verdict for row in (claim, *claim.rows)) == verdicts


def test_c4_s_ratio_is_the_library_s_by_numbers():
    rng = np.random.default_rng(1)
    old, logp = (jnp.asarray(-rng.uniform(0.1, 2, (2, 5, 4))) for _ in range(2))
    ones = jnp.ones((2, 5, 4))
    rollout = Rollout(
        np.arange(2), jnp.zeros((2, 5, 4), int), ones, jnp.zeros((2, 5, 1)), jnp.ones((2, 5)), old, old, old
    )
    named = {"token": Token(), "trajectory": Trajectory(), "length-normalised": SequenceMean()}
    for name, ratio in named.items():
        given = three_tokens.numbers_of(name, "none", 4)
        mixed = three_tokens.Mixed(token=given["method.ratio.token"], whole=given["method.ratio.whole"])
        np.testing.assert_allclose(mixed(rollout, logp), ratio(rollout, logp), atol=1e-14)


def test_c4_s_optimizer_jumps_to_theta():
    law = three_tokens.AWAY["towards losers"]
    transform = three_tokens.Jump(gain=law[0] - three_tokens.OLD[0]).transform()
    params = jnp.zeros((1, 4, 3)) + 0.3
    updates, _ = transform.update(jax.tree.map(jnp.ones_like, params), transform.init(params), params)
    np.testing.assert_allclose(jax.nn.softmax(params + updates)[0, 2], law, rtol=1e-12)


def corrected(cosine: float, short: float, residual: float = 0.0) -> dict[str, xr.Dataset]:
    """C6's data: this cosine to ∇J on every table, and the short answer's share in the end under r/|o|."""
    names = list(c06_length.UPDATES)
    first, plain, loss = c06_length.CORRECTED, c06_length.PLAIN, c06_length.LOSS
    identity = [f"{loss}, θ_old", f"{first}, θ_old", f"{first}, θ", f"{plain}, θ"]
    ends = xr.DataArray(np.full((4, 3, 4, 2), 0.01), dims=("update", "start", "answer", "iteration"))
    ends = ends.assign_coords(update=names, start=list(c06_length.STARTS), answer=list(c06_length.REWARDS))
    ends.loc[{"update": first, "answer": "."}] = short
    cosines = xr.DataArray(np.full((2, 9), cosine), {"update": [first, loss]}, ("update", "table"))
    gaps = xr.DataArray([0.0, 0.0, 0.0, residual], {"identity": identity}, ("identity",))
    return {
        "identities": xr.Dataset({"residual": gaps}),
        "random": xr.Dataset({"cosine": cosines}),
        "training": xr.Dataset({"probability": ends}),
    }


@pytest.mark.parametrize(
    ("data", "verdict"),
    [
        (corrected(0.86, 0.99), "reproduced"),
        (corrected(0.86, 0.01), "refuted"),
        (corrected(0.999, 0.99), "refuted"),
        (corrected(0.86, 0.99, residual=1e-3), "not testable here"),
    ],
)
def test_c6_falls_where_the_reward_is_learned_or_its_gradient_followed(data, verdict):
    claim = Claim("C6", "Ours: the corrected update maximises reward per token.")
    c06_length.check(data, claim)
    assert claim.verdict().verdict == verdict


def test_c6_s_row_falls_with_its_formula():
    data = corrected(0.86, 0.99)
    data["identities"].residual.loc[{"identity": f"{c06_length.LOSS}, θ_old"}] = 1e-3
    claim = Claim("C6", "Ours: the corrected update maximises reward per token.")
    c06_length.check(data, claim)
    assert (claim.verdict().verdict, claim.rows[0].verdict().verdict) == ("reproduced", "refuted")
