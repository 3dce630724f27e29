"""Rules by which single claims are judged, with numbers made up for the purpose: what should fail fails."""

import itertools

import numpy as np
import pytest
import xarray as xr
from experiments.verdict import judge
from matplotlib.figure import Figure

from experiments import (
    a05_binary_pairs,
    a08_direct_penalty,
    a09_shift_only,
    a10_effective_beta,
    alignment,
    b01_prefix_weight,
    c04_variance,
    direct_phases,
)
from grpo_jax.collectors import Sampled
from grpo_jax.optimizers import SGD
from grpo_jax.part import part
from grpo_jax.theory import rlhf

pytestmark = pytest.mark.usefixtures("x64")


@pytest.mark.parametrize("factor", [1.0, 1.1, 1 / 1.1])
def test_a_variance_that_is_wrong_by_a_tenth_refutes_c4(factor):
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


def test_c4_s_samples_are_those_of_one_long_row_of_seeds():
    """Chunks are seeds of their own: no group is counted twice."""
    new = c04_variance.drifted(c04_variance.DRIFTS["towards losers"], 0.1)
    found = c04_variance.sampled_variance(3, 2, 1, new, "token", "none").reshape(2, -1)
    assert found.shape == (2, c04_variance.CHUNK)
    assert (found[0] != found[1]).any()
    np.testing.assert_array_equal(found[:1], [c04_variance.sampled_variance(3, 1, 1, new, "token", "none")])


UPPER, LOWER = np.array([5.0, 4.0]), np.array([-1.0, 0.5])


@pytest.mark.parametrize(
    ("left", "verdict"),
    [
        ([[-1.0, 9.0], [0.5, 9.0]], "qualified"),  # as theory has it: the root repels
        ([[5.0, 5.0], [4.0, 4.0]], "refuted"),  # it attracts: then theory is wrong, and the paper right
        ([[-1.0, 9.0], [0.5, 4.0]], "refuted"),
        ([[-1.0, 9.0], [0.6, 9.0]], "refuted"),
        ([[np.nan, 9.0], [0.5, 9.0]], "refuted"),
    ],
)
def test_training_beside_the_upper_root_decides_a8(left, verdict):
    numbers = a08_direct_penalty.upper_root_numbers(UPPER, np.array(left), LOWER)
    others = [name for name in numbers if name != a08_direct_penalty.STAYS]
    judged = judge(numbers, refutes=others, qualifies={a08_direct_penalty.STAYS: "where nothing trains"})
    assert judged.verdict == verdict
    back = numbers[a08_direct_penalty.STAYS]
    assert back.holds is (left == [[5.0, 5.0], [4.0, 4.0]])


@pytest.mark.parametrize("p", [0.01, 0.3, 0.9])
def test_two_roots_are_born_where_h_s_minimum_is_zero(p):
    """Found here by bisection on the minimum of h over a fine grid of probabilities."""
    x = 1 / (1 + np.exp(-np.linspace(0, 12, 400_001)))

    def least(beta: float) -> float:
        return (1 / (beta * np.sqrt(x * (1 - x))) - np.log(x / (1 - x)) + np.log(p / (1 - p))).min()

    low, high = 0.1, 50.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if least(middle) > 0 else (low, middle)
    assert direct_phases.born(p) == pytest.approx(middle, abs=1e-7)
    if p == 0.9:
        assert direct_phases.born(p) == pytest.approx(4.1370, abs=5e-5)


def test_at_the_lower_root_groups_prefer_the_better_answer_by_as_much_as_the_penalty_holds_it_back():
    """The preference by listing all groups of eight; and no root lies below."""
    p, beta = 0.05, 0.8

    def preference(z: float) -> float:
        x, gap = 1 / (1 + np.exp(-z)), 0.0
        for others in itertools.product([1.0, 0.0], repeat=7):
            chance = np.prod([x if won else 1 - x for won in others])
            for own in (1.0, 0.0):
                group = np.array([own, *others])
                if group.std() > 0:
                    gap += (1 if own else -1) * chance * (own - group.mean()) / group.std()
        return gap

    anchor = np.log(p / (1 - p))
    z = direct_phases.lower_root(p, beta, group_size=8)
    assert preference(z) / beta == pytest.approx(z - anchor, abs=1e-9)
    assert all(preference(y) / beta > y - anchor for y in np.linspace(anchor, z - 1e-6, 6))


@pytest.mark.parametrize("wrong", range(11))
def test_no_point_of_a_path_is_left_out_of_a10(wrong):
    weight = np.stack([a10_effective_beta.spread(name) for name in a10_effective_beta.PATHS])
    weight[1, wrong] *= 1.03
    data = xr.Dataset(
        {"weight": (("path", "along"), weight), "cosine": (("path", "along"), np.ones(weight.shape))},
        {"path": list(a10_effective_beta.PATHS)},
    )
    numbers = a10_effective_beta.weight_numbers(data)
    assert [numbers[f"{name}: weight / sigma"].holds for name in a10_effective_beta.PATHS] == [
        True,
        False,
        True,
    ]


@pytest.mark.parametrize(("bend", "agree"), [(0.0, True), (0.5, True), (5.0, False)])
def test_a9_compares_its_quadratic_extrapolation_with_the_linear_one(bend, agree):
    """Averages theory + 0.1 rate + bend rate^2, of which a straight line misses the last term's share."""
    rng = np.random.default_rng(0)
    dims = ("optimizer", "sampled", "rate", "entry", "seed")
    average = np.empty((2, len(a09_shift_only.SAMPLED), 3, 8, 20))
    for o, rates in enumerate(a09_shift_only.RATES.values()):
        for v, variant in enumerate(a09_shift_only.SAMPLED):
            betas = a09_shift_only.SAMPLED_BETAS / a09_shift_only.factor(variant)
            aim = np.concatenate(
                [rlhf(a09_shift_only.REFERENCES[0], a09_shift_only.REWARDS, b) for b in betas]
            )
            curve = 0.1 * rates + bend * rates**2
            average[o, v] = aim[:, None] + curve[:, None, None] + 1e-4 * rng.normal(size=(3, 8, 20))
    coords = {"optimizer": list(a09_shift_only.RATES), "sampled": list(a09_shift_only.SAMPLED)}
    numbers = a09_shift_only.sampled_numbers(xr.Dataset({"average": (dims, average)}, coords))
    for variant in a09_shift_only.SAMPLED:
        name = f"{variant}, SGD: sampled, extrapolated"
        assert numbers[f"{name} (quadratic) - theory"].holds
        assert numbers[f"{name}: linear less quadratic"].holds is agree
        both = numbers[f"{name} (linear) - theory"].value - numbers[f"{name} (quadratic) - theory"].value
        assert both == pytest.approx(numbers[f"{name}: linear less quadratic"].value, abs=1e-3)


def starts_and_references(monkeypatch, module, run) -> list[tuple[np.ndarray, np.ndarray]]:
    """[..., K, R] policies of every run that a claim asks for: where it starts and its reference."""
    seen = []

    def watch(config, runs, **_):
        count = np.size(runs) if np.ndim(runs) else runs
        start, reference = (
            np.exp(np.broadcast_to(x if np.ndim(x) == 3 else x[..., None], (1, np.shape(x)[1], count))[0])
            for x in (config.policy.logits, config.reference)
        )
        seen.append((start, reference))
        return start

    for place in (module, alignment):
        for name in ("time_average", "ascend"):
            monkeypatch.setattr(place, name, watch)
    run()
    return seen


def test_all_training_of_a5_and_a9_starts_apart_from_the_reference(monkeypatch):
    """But for A9's runs under equal rewards, of which half are to stay where they are."""
    five = a05_binary_pairs
    pairs = [
        *starts_and_references(monkeypatch, five, lambda: five.placebo(2, 10, 0)),
        *starts_and_references(
            monkeypatch,
            five,
            lambda: [five.sampled(name, 2, 10, 0) for name in five.RATES],
        ),
        *starts_and_references(
            monkeypatch,
            a09_shift_only,
            lambda: [
                a09_shift_only.sampled(name, SGD, a09_shift_only.RATES["SGD"], (2, 10), 0)
                for name in a09_shift_only.SAMPLED
            ],
        ),
    ]
    assert len(pairs) == 6
    for start, reference in pairs:
        assert abs(start - reference).max(0).min() > 0.1


@part
class Forgetful(Sampled):
    """The planted fault: the sampling policy stands in the reference's place."""

    def collect(self, config, state):
        """Groups whose penalty is always zero."""
        return Sampled.collect(self, config, state._replace(ref_params=state.old_params))


def test_a_reference_replaced_by_the_sampling_policy_moves_a5_s_placebo(monkeypatch):
    """Equal rewards: without the penalty every mean stays where it starts."""
    five = a05_binary_pairs

    def faulty(*args, **changes):
        return alignment.problem(*args, **(changes | {"expectation": Forgetful()}))

    monkeypatch.setattr(five, "problem", faulty)
    data = xr.DataArray(five.placebo(8, 300, 0), dims=("rate", "sampled_pi_ref", "seed"))
    number = five.placebo_number(data)
    assert number.holds is False
    assert abs(number.value) > 0.1


def test_b1_draws_what_was_measured_under_constant_weights():
    rng = np.random.default_rng(0)
    rows, drifts = list(b01_prefix_weight.TABLE), ["at the old policy", "drifted"]
    data = xr.Dataset(
        {
            "constant": (("prompt", "seed"), rng.normal(size=(2, 3))),
            "net": (("prompt", "seed"), rng.normal(size=(2, 3))),
            "covariance": (("prompt", "seed"), rng.normal(size=(2, 3))),
            "uniform": (("log_ratio", "seed"), rng.normal(size=(5, 3))),
            "push": (("drift", "row", "seed"), rng.normal(size=(2, len(rows), 3))),
        },
        {"row": rows, "drift": drifts, "log_ratio": np.linspace(-0.5, 0.5, 5)},
    )
    figure = Figure()
    b01_prefix_weight.draw(figure, data)
    left = figure.axes[0]
    drawn = [np.asarray(line.get_ydata()) for line in left.lines]
    assert any(line.shape == (6,) and (line == data.constant.values.ravel()).all() for line in drawn)
    assert not any(line.shape == (2,) and (line == 0).all() for line in drawn)
