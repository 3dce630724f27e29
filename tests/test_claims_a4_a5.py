"""Rules and instruments of the claims on the fixed point and on pairs: what should fail fails."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr

from experiments.claims import (
    a04_fixed_point,
    a05_binary_pairs,
)
from experiments.formulas.inner_steps import multiplier
from experiments.formulas.optimality import LOCAL, MAXIMUM, MINIMUM
from experiments.harness.verdict import Claim
from experiments.problems import fixed_points
from grpo_jax.theory import stationary_pair

pytestmark = pytest.mark.usefixtures("x64")


def judged(check, *args, says="A sentence."):
    claim = Claim("X1", says)
    check(*args, claim)
    return claim


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
