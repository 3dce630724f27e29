"""Rules by which A8, B0, B1, B3 and B6 are judged, with made-up numbers: what should fail fails."""

import itertools

import numpy as np
import pytest
import xarray as xr

import grpo_jax as gj
from experiments.claims import a08_direct_penalty as a8
from experiments.claims import b00_methods as b0
from experiments.claims import b01_prefix_weight as b1
from experiments.claims import b03_reward_scale as b3
from experiments.claims import b06_idle_clip as b6
from experiments.formulas import direct_phases
from experiments.harness.verdict import Claim
from grpo_jax import plotting

pytestmark = pytest.mark.usefixtures("x64")
UPPER, LOWER = 5.0, -1.0


def beside(lower, upper):
    """Where exact ascent ends from below and from above either root."""
    return xr.Dataset(
        {"at": ("root", [LOWER, UPPER]), "end": (("root", "side"), [lower, upper])},
        {"root": ["lower", "upper"], "side": ["below", "above"]},
    )


@pytest.mark.parametrize(
    ("lower", "verdict"),
    [([LOWER, LOWER], "reproduced"), ([LOWER, 3.0], "refuted"), ([np.nan, LOWER], "refuted")],
)
def test_training_beside_the_lower_zero_decides_a8(lower, verdict):
    claim = Claim("A8", "The stationary values are the zeros of h.")
    a8.judge_lower(beside(lower, [UPPER, UPPER]), claim)
    assert claim.verdict().verdict == verdict


def each_at_its_maximum(apart=0.0, count=2):
    """Values that maximise the surrogate frozen at them, but for the upper one; and their number."""
    frozen = xr.Dataset({"at": ("root", [0.3, 0.9]), "best": ("root", [0.3, 0.9 + apart])})
    number = xr.Dataset({"number": (("beyond", "reference"), [[0, 0], [2, count]])})
    return frozen.assign_coords(root=["lower", "upper"]), number.assign_coords(beyond=[0.999, 1.001])


@pytest.mark.parametrize(
    ("upper", "apart", "count", "verdict"),
    [
        ([LOWER, 9.0], 0.0, 2, "qualified"),  # as theory has it: the upper value repels
        ([UPPER, UPPER], 0.0, 2, "reproduced"),  # both attract: then the paper is right without condition
        ([UPPER, 9.0], 0.0, 2, "qualified"),
        ([UPPER, np.nan], 0.0, 2, "qualified"),
        ([UPPER - a8.NUDGE, UPPER + a8.NUDGE], 0.0, 2, "qualified"),  # nothing trained
        ([LOWER, 9.0], 1e-6, 2, "refuted"),  # the upper one maximises nothing
        ([LOWER, 9.0], 0.0, 1, "refuted"),  # there are not two
    ],
)
def test_frozen_surrogates_and_training_beside_the_upper_value_decide_a8_s_row(upper, apart, count, verdict):
    row, large = Claim("A8.1", "Two values maximise."), beside([LOWER, LOWER], upper)
    large = large.expand_dims(reference=[0.5], beta=[2.0])
    a8.judge_large(large, *each_at_its_maximum(apart, count), row)
    assert row.verdict().verdict == verdict
    assert bool(row.sentences) is (upper == [LOWER, 9.0])


def test_a_frozen_surrogate_has_its_maximum_where_a_fine_grid_has():
    """At the upper root, of the surrogate written out anew."""
    found = a8.frozen().sel(reference=0.1, beyond=1.5, root="upper")
    x, beta, y = float(found["at"]), 1.5 * direct_phases.born(0.1), np.linspace(1e-6, 1 - 1e-6, 1_000_001)
    divergence = y * np.log(y / 0.1) + (1 - y) * np.log((1 - y) / 0.9)
    surrogate = (y - x) / np.sqrt(x * (1 - x)) - beta * divergence
    assert y[surrogate.argmax()] == pytest.approx(x, abs=2e-6)
    assert float(found.best) == pytest.approx(x, abs=1e-9)


@pytest.mark.parametrize("p", [0.01, 0.3, 0.9])
def test_two_roots_are_born_where_h_s_minimum_is_zero(p):
    """Found here by bisection on the minimum of h over a fine grid of probabilities."""
    x = 1 / (1 + np.exp(-np.linspace(0, 12, 400_001)))

    def least(beta):
        return (1 / (beta * np.sqrt(x * (1 - x))) - np.log(x / (1 - x)) + np.log(p / (1 - p))).min()

    low, high = 0.1, 50.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if least(middle) > 0 else (low, middle)
    assert direct_phases.born(p) == pytest.approx(middle, abs=1e-7)
    if p == 0.9:
        assert direct_phases.born(p) == pytest.approx(4.1370, abs=5e-5)


@pytest.mark.parametrize(("p", "beta"), [(0.05, 0.8), (0.3, 1.6)])
def test_the_lower_root_is_a_fixed_point_of_groups_listed_one_by_one(p, beta):
    def preference(z):
        x, gap = 1 / (1 + np.exp(-z)), 0.0
        for others in itertools.product([1.0, 0.0], repeat=7):
            chance = np.prod([x if won else 1 - x for won in others])
            for own in (1.0, 0.0):
                group = np.array([own, *others])
                if group.std() > 0:
                    gap += (1 if own else -1) * chance * (own - group.mean()) / group.std()
        return gap

    z = direct_phases.lower_root(p, beta, group_size=8)
    assert z == pytest.approx(np.log(p / (1 - p)) + preference(z) / beta, abs=1e-9)


def methods_data(**changes):
    """What B0 measures where everything agrees, but for ``changes`` at Dr. GRPO."""
    names = [*b0.ROWS, "rloo"]
    zero = {key: ("batch", np.zeros(2)) for key in ("value_error", "penalty_error", "gradient_error")}
    held = {key: ("batch", np.full(2, 0.1)) for key in ("held_high", "held_low")}
    errors = xr.concat([xr.Dataset(zero | held) for _ in names], xr.Variable("algorithm", names))
    library = xr.Dataset({key: ("algorithm", np.zeros(10)) for key in ("error", "row", "apart")})
    literal = {"gpg": 1.0, "cispo": 1.0, "cppo": 1.0, "gcpo": 1.0, "gcpo_length_error": 0.0}
    data = {
        "errors": errors,
        "libraries": library.assign_coords(algorithm=list(b0.ROWS)),
        "literal": xr.Dataset({key: ("batch", np.full(2, value)) for key, value in literal.items()}),
    }
    for (kind, variable, name), value in changes.get("at", {}).items():
        data[kind][variable].loc[{"algorithm": name}] = value
    for name, value in changes.get("literal", {}).items():
        data["literal"][name][:] = value
    return data


@pytest.mark.parametrize(
    ("changes", "verdict"),
    [
        ({}, "reproduced"),
        ({"at": {("errors", "value_error", "gtpo"): 1e-6}}, "refuted"),
        ({"at": {("errors", "penalty_error", "cppo"): 1e-6}}, "refuted"),
        ({"at": {("errors", "gradient_error", "dapo"): np.nan}}, "refuted"),
        ({"at": {("libraries", "row", "gpg"): 1.5}}, "refuted"),
        ({"at": {("libraries", "error", "gpg"): 1.5}}, "not testable here"),
        ({"at": {("errors", "gradient_error", "rloo"): 1e-6}}, "not testable here"),
        ({"at": {("errors", "held_low", "grpo"): 0.0}}, "not testable here"),
        ({"literal": {"cispo": 0.0}}, "qualified"),
        ({"literal": {"cppo": 0.9}}, "qualified"),
        ({"literal": {"gcpo": 7.0}}, "reproduced"),
    ],
)
def test_every_row_of_table_1_can_fail_by_itself(changes, verdict):
    claim = Claim("B0", "One objective.")
    b0.check(methods_data(**changes), claim)
    assert claim.verdict().verdict == verdict


def prefix_data(rng):
    """What B1 measures, at random but for the cancellation."""
    names, drifts, ratios = list(b1.NAMES), [b1.OLD, b1.DRIFTED], np.linspace(-0.5, 0.5, 41)
    push = xr.DataArray(
        0.1 + 0.01 * rng.uniform(size=(2, 10, 30)),
        {"drift": drifts, "algorithm": names},
        ("drift", "algorithm", "group"),
    )
    push.loc[{"algorithm": list(b1.UNIFORM)}] = 0.0
    tree = xr.Dataset(
        {
            "push": push,
            "penalty_push": push,
            "error": (("drift", "algorithm"), np.zeros((2, 10))),
            "penalty_error": (("drift", "algorithm"), np.zeros((2, 10))),
            "printed": (("drift", "row"), np.zeros((2, 10))),
        },
        {"row": names},
    )
    covariance = rng.normal(size=(2, 30))
    prefix = {"constant": np.zeros((2, 30)), "by_length": covariance, "covariance": covariance}
    signs = xr.DataArray([0.2, -0.2, 0.0], {"winners": list(b1.WINNERS)}, ("winners",))
    signed = signs.expand_dims(algorithm=list(b1.BY_LENGTH), group=30).copy()
    return {
        "systematic": xr.Dataset({"push": signed}),
        "tree": tree,
        "network": tree.isel(drift=0),
        "prefix": xr.Dataset({key: (("prompt", "group"), value) for key, value in prefix.items()}),
        "uniform": xr.Dataset(
            {"push": (("log_ratio", "prompt", "group"), np.zeros((41, 2, 30)))}, {"log_ratio": ratios}
        ),
    }


@pytest.mark.parametrize(
    ("place", "value", "verdict"),
    [
        (None, 0.0, "reproduced"),
        (
            ("tree", "push", {"algorithm": "gspo"}),
            0.0,
            "refuted",
        ),  # it divides by the length and does not push
        (("tree", "push", {"algorithm": "dapo"}), 0.1, "refuted"),  # it does not, and pushes
        (("tree", "printed", {"row": "dapo"}), 0.1, "reproduced"),
        (("systematic", "push", {"winners": "long outputs win"}), 0.0, "refuted"),
        (("systematic", "push", {"algorithm": "grpo", "winners": "placebo"}), 0.2, "not testable here"),
        (("prefix", "constant", {"group": 3}), 0.1, "not testable here"),
        (("uniform", "push", {"log_ratio": 0.3}), -1.3, "qualified"),
        (("tree", "error", {"algorithm": "grpo"}), 1e-3, "not testable here"),
    ],
)
def test_prefixes_decide_b1(place, value, verdict):
    data = prefix_data(np.random.default_rng(0))
    if place is not None:
        kind, variable, at = place
        rest = {name: label for name, label in at.items() if name != "log_ratio"}
        here = data[kind][variable].copy()
        index = {"log_ratio": here.sel(log_ratio=0.3, method="nearest").log_ratio} if rest != at else rest
        here.loc[index] = value
        data[kind] = data[kind].assign({variable: here})
    claim = Claim("B1", "Prefixes are pushed.")
    b1.check(data, claim)
    assert claim.verdict().verdict == verdict


def test_b1_draws_what_was_measured_under_constant_weights():
    rng = np.random.default_rng(0)
    data = prefix_data(rng)
    constant = rng.normal(size=(2, 30))
    data["prefix"] = data["prefix"].assign(constant=(("prompt", "group"), constant))
    figure = plotting.figure()
    b1.draw(figure, data)
    drawn = [np.asarray(line.get_ydata()) for line in figure.axes[0].lines]
    assert any(line.shape == (60,) and (line == constant.ravel()).all() for line in drawn)
    assert not any(line.shape == (2,) and (line == 0).all() for line in drawn)


@pytest.mark.parametrize(("shift", "holds"), [(1.0, True), (1.04, True), (1.1, False), (0.9, False)])
def test_a_corner_that_is_off_by_a_tenth_refutes_b3(shift, holds):
    scale = 2.0 ** np.arange(-80, 28)
    told = xr.DataArray(1 / (1 + 1e-6 / scale), {"scale": scale}, ("scale",))
    found = xr.DataArray(1 / (1 + shift * 1e-6 / scale), {"scale": scale}, ("scale",))
    both = {"measured": found, "predicted": told}
    response = xr.Dataset({key: value.expand_dims(eps=[1e-8], seed=2) for key, value in both.items()})
    claim = Claim("B3", "AdamW does not see the scale.")
    b3.judge_corner(response.assign(root_v=("seed", [0.01, 0.01])), 1e-8, claim)
    assert claim.numbers["ε = 1e-08: scale of half the way, measured / predicted"].holds is holds


def test_the_worse_of_both_factors_is_judged_and_a_flat_curve_has_no_corner():
    apart = xr.DataArray(np.zeros((3, 8)), {"scale": [2.0**-6, 1.0, 2.0**6]}, ("scale", "seed"))
    assert b3.felt(apart).holds
    apart.loc[{"scale": 64.0}] = 0.006 + 1e-5 * np.arange(8)
    assert b3.felt(apart).holds is False
    assert np.isnan(b3.corner(xr.DataArray(np.ones(3), {"scale": [1.0, 2.0, 3.0]}, ("scale",))))


def passes_data(changes):
    """What B6 measures of both optimizers where the clip is idle at one pass."""
    passes, seeds = len(b6.PASSES), 6
    noise = 1e-4 * np.arange(seeds)
    runs = xr.Dataset(
        {
            "held": (("passes", "optimizer", "seed"), np.zeros((passes, 2, seeds))),
            "first": (("passes", "optimizer", "seed"), np.zeros((passes, 2, seeds))),
            "moved": (("passes", "optimizer", "seed"), np.zeros((passes, 2, seeds))),
            "gain": (("passes", "optimizer", "seed"), np.zeros((passes, 2, seeds))),
        },
        {"passes": b6.PASSES, "optimizer": list(b6.OPTIMIZERS)},
    )
    runs.moved.loc[{"passes": 64}] = 1 + noise
    runs.gain.loc[{"passes": 64}] = -0.05 + noise
    stale = runs.isel(passes=-1, drop=True).copy(deep=True)
    for (name, at), value in changes.items():
        runs[name].loc[{"passes": at, "optimizer": "AdamW"}] = value
    corner = xr.Dataset(
        {"gradient": (("gain", "side"), np.ones((1, 1)))}, {"gain": ["ours"], "side": ["above"]}
    )
    return {"runs": runs, "stale": stale, "parted": stale, "boundary": corner}


@pytest.mark.parametrize(
    ("changes", "verdicts"),
    [
        ({}, ["reproduced", "reproduced"]),
        ({("moved", 1): 1e-7}, ["refuted", "reproduced"]),  # one bit
        ({("first", 16): 1e-6}, ["refuted", "reproduced"]),
        (
            {("moved", 64): 0.0},
            ["not testable here", "reproduced"],
        ),  # a clip at work would not be seen
        ({("gain", 3): 0.02}, ["reproduced", "refuted"]),
        ({("gain", 64): 0.0}, ["reproduced", "refuted"]),
    ],
)
def test_one_bit_or_one_token_refutes_b6(changes, verdicts):
    claim = Claim("B6", "The clip is idle.")
    b6.check(passes_data(changes), claim)
    assert [row.verdict().verdict for row in (claim, *claim.rows)] == verdicts


@pytest.mark.parametrize(
    ("name", "plain"), [("SGD", gj.SGD(learning_rate=1.0)), ("AdamW", gj.AdamW(learning_rate=0.03))]
)
def test_both_optimizers_in_one_program_are_each_by_itself(name, plain):
    sgd, adamw = b6.OPTIMIZERS[name]
    config = gj.Config(
        policy=gj.ActionPolicy.uniform(contexts=2, actions=3),
        task=gj.Questions(table=np.random.default_rng(0).uniform(size=(2, 3))),
        loop=gj.Loop(group_size=4),
    )
    ends = []
    for optimizer in (plain, b6.Both(sgd=sgd, adamw=adamw)):
        here = gj.Config(**{**vars(config), "optimizer": optimizer})
        state = gj.train.init(here, np.arange(3), root=1)
        ends.append(gj.train.run(here, state, iterations=8, record=())[0].params)
    np.testing.assert_allclose(ends[0], ends[1], rtol=1e-12)
