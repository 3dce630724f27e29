"""Explorers: what their sliders show is what the formulas say, computed here by other means."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, optimize, stats

from docs.generate.explorer import Curve, Explorer, Grid, fill, printed
from docs.generate.explorers import EXPLORERS
from experiments.harness.scripts import find_scripts
from grpo_jax import theory

BY_NAME = {explorer.name: explorer for explorer in EXPLORERS}


def drive(p, group, *, gap=1.0, ddof=0, added=0.0):
    """E[K (G - K) gap/(G² d_K)]/(p (1 - p)): what a better answer gains over a worse one."""
    k = np.arange(1, group)
    spread = gap * np.sqrt(k * (group - k) / (group * (group - ddof))) + added
    return stats.binom.pmf(k, group, p) @ (gap * k * (group - k) / group**2 / spread) / (p * (1 - p))


def at(name, **settings):
    """Every curve at one point of the grid."""
    explorer = BY_NAME[name]
    for grid in explorer.grids:
        assert settings[grid.name] in grid.values
    given = settings | {explorer.grids[0].name: np.array([settings[explorer.grids[0].name]])}
    with jax.enable_x64(True):
        return {curve.name: np.broadcast_to(curve.function(**given), 1).item() for curve in explorer.curves}


def test_there_are_enough_and_each_belongs_to_a_claim():
    assert len(EXPLORERS) >= 6
    assert len(BY_NAME) == len(EXPLORERS)
    for explorer in EXPLORERS:
        assert set(explorer.claims) <= set(find_scripts())


@pytest.mark.parametrize("explorer", EXPLORERS, ids=lambda explorer: explorer.name)
def test_a_sentence_holds_every_setting_and_knows_what_it_holds(explorer):
    settings = {grid.name for grid in explorer.grids}
    held = set(re.findall(r"{(\w+)}", explorer.says))
    assert settings < held <= settings | {curve.name for curve in explorer.curves}
    assert set(re.findall(r"{(\w+)}", explorer.again)) <= settings
    assert all(len(set(grid.shown)) == len(grid.values) for grid in explorer.grids)
    assert all([float(text) for text in grid.shown] == list(grid.values) for grid in explorer.grids)


@pytest.mark.parametrize("explorer", EXPLORERS, ids=lambda explorer: explorer.name)
def test_the_code_that_a_page_gives_is_its_first_curve(explorer):
    given = {grid.name: grid.start for grid in explorer.grids}
    *before, last = fill(explorer.again, {k: f"{v:.6g}" for k, v in given.items()}).split("\n")
    known = {"jax": jax, "jnp": jnp, "theory": theory}
    with jax.enable_x64(True):
        exec("\n".join(before), known)
        value = eval(last, known)
    assert value == pytest.approx(at(explorer.name, **given)[explorer.curves[0].name], rel=1e-12)


def test_what_the_penalty_keeps():
    for beta, reference, group in ((1.0, 0.3, 8), (0.1, 0.6, 2), (2.0, 0.95, 32)):
        found = at("kept", beta=beta, reference=reference, group_size=group)
        z_ref = math.log(reference / (1 - reference))
        assert found["rlhf"] == pytest.approx(1 / (1 + math.exp(z_ref + 1 / beta)), rel=1e-12)
        better = 1 - found["loss"]
        trl = {"ddof": 1, "added": 1e-4}
        pull = better * (1 - better) * drive(better, group, **trl)
        assert beta * (better - reference) == pytest.approx(pull, abs=1e-9)
        acts = beta * drive(0.5, group) / drive(0.5, group, **trl)

        def rise(z, z_ref=z_ref, acts=acts, group=group):
            return z - z_ref - drive(1 / (1 + math.exp(-z)), group) / acts

        steps = np.linspace(z_ref, z_ref + min(12 / acts, 25), 4001)
        first = np.flatnonzero(np.diff(np.sign([rise(z) for z in steps])))[0]
        root = optimize.brentq(rise, steps[first], steps[first + 1], xtol=1e-13)
        assert found["ratio"] == pytest.approx(1 / (1 + math.exp(root)), rel=1e-8)


def test_how_prompts_weigh():
    found = at("weights", success=0.1, group_size=8)
    assert found["spread"] == pytest.approx(drive(0.1, 8) / drive(0.5, 8), rel=1e-10)
    assert found["mean"] == pytest.approx((1 - 0.9**7) / 0.1 / ((1 - 0.5**7) / 0.5), rel=1e-12)
    assert found["none"] == 1
    ends = drive(1e-9, 8) / drive(0.5, 8)
    assert found["fold"] == pytest.approx(ends, rel=1e-3)


def test_groups_filters_and_temperatures():
    dead = at("dead-groups", success=0.2, group_size=4)
    assert dead["tied"] == pytest.approx(0.2**4 + 0.8**4)
    assert dead["price"] == pytest.approx(1 / (1 - 0.2**4 - 0.8**4))
    assert at("top-p", tokens=256, top_p=0.99)["kept"] == pytest.approx(0.99**256)
    odds = (0.9 / 0.1) ** 1.5
    assert at("temperature", success=0.9, temperature=1.5)["deployed"] == pytest.approx(odds / (1 + odds))


def test_what_a_cap_leaves():
    found = at("caps", tokens=256, chi2=0.01, cap=3)
    s = math.sqrt(256 * math.log(1.01))
    law = stats.lognorm(s, scale=math.exp(-(s**2) / 2))
    assert law.mean() == pytest.approx(1)
    assert found["answers"] == pytest.approx(law.cdf(3))
    assert found["weight"] == pytest.approx(integrate.quad(lambda w: w * law.pdf(w), 0, 3)[0], rel=1e-6)
    assert found["moment"] == pytest.approx(1.01**256)


def test_momentum_by_running_the_optimizers():
    b1, b2, live, k = 0.8, 0.95, 10, 5
    m = v = ball = 0.0
    steps, balls = [], []
    for count, gradient in enumerate([1.0] * live + [0.0] * (k + 1), start=1):
        m, v = b1 * m + (1 - b1) * gradient, b2 * v + (1 - b2) * gradient**2
        steps.append(m / (1 - b1**count) / math.sqrt(v / (1 - b2**count)))
        ball = b1 * ball + gradient
        balls.append(ball)
    found = at("momentum", k=k, b1=b1, b2=b2, live=live)
    assert found["adam"] == pytest.approx(steps[-1] / steps[live - 1])
    assert found["ball"] == pytest.approx(balls[-1] / balls[live - 1])
    rate = b1 / math.sqrt(b2)
    assert found["travel"] == pytest.approx(sum(rate ** (n + 1) for n in range(400)))
    assert printed(at("momentum", k=0, b1=0.99, b2=0.95, live=10)["travel"], ".3g") == "infinitely many"


def test_conventions_and_scales():
    found = at("beta-conventions", gap=0.01, group_size=4)
    for name, added in (("trl", 1e-4), ("verl", 1e-6), ("openrlhf", 1e-9)):
        theirs = drive(0.5, 4, gap=0.01, ddof=1, added=added)
        assert found[name] == pytest.approx(drive(0.5, 4) / theirs, rel=1e-9)
    step = at("reward-scale", scale=1.0, root_v=1e-5, eps=1e-6)
    assert step["step"] == pytest.approx(1e-5 / (1e-5 + 1e-6))
    assert step["corner"] == pytest.approx(0.1)


def test_a_dataset_has_every_point_in_its_place():
    made = Explorer(
        "made",
        "",
        "",
        (Grid("x", "", (1, 2, 5), 2), Grid("a", "", (3, 7), 3), Grid("b", "", (11,), 11)),
        (Curve("sum", "", lambda x, a, b: x + 10 * a + 100 * b), Curve("one", "", lambda x, a, b: 1.0)),
        "",
        "{x} {a} {b} {sum} {one}",
        "",
        (),
    )
    data = made.dataset()
    assert data["sum"].dims == ("x", "a", "b")
    assert data["sum"].sel(x=5, a=7, b=11).item() == 5 + 70 + 1100
    assert made.shown(data)["sum"][0, 1, 0] == "1.17e+03"
    with pytest.raises(ValueError, match="must rise and hold 4"):
        Grid("x", "", (1, 2, 5), 4)


def test_only_names_in_braces_are_filled_in():
    assert fill("{a} of {b}: {c}", {"a": "1", "b": "{2}"}) == "1 of {2}: {c}"
    assert (printed(math.nan, ".3g"), printed(0.25, ".0%")) == ("nothing", "25%")


@pytest.mark.slow
@pytest.mark.parametrize("explorer", EXPLORERS, ids=lambda explorer: explorer.name)
def test_what_is_drawn_is_a_number_and_within_the_axis(explorer):
    data = explorer.dataset()
    for curve in explorer.curves:
        values = data[curve.name].values
        if curve.drawn:
            assert np.isfinite(values).all()
            assert explorer.span is None or (
                values.min() >= explorer.span[0] and values.max() <= explorer.span[1]
            )
            assert not explorer.log_y or values.min() > 0
        assert not np.isnan(values).any()
