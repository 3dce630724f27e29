"""Verdicts are computed: three-valued numbers, the rule of precedence, and intervals that cover."""

import math

import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

from experiments.harness.numbers import (
    Number,
    at_best_rate,
    each,
    extrapolate,
    extrapolated,
    furthest,
    interval,
    mean,
    share,
    surest,
    tabulated,
    worst,
)
from experiments.harness.verdict import Claim, Verdict

YES = Number(1.0, expected=1.0)
NO = Number(2.0, expected=1.0, tolerance=0.5)
OPEN = Number(1.0, expected=1.0, tolerance=0.5, low=0.0, high=2.0)
NAN = Number(float("nan"), expected=1.0, tolerance=0.5)
PLAIN = Number(1.0)

reals = st.floats(-10, 10)


def judge(refutes=(), qualifies=(), requires=(), reports=()):
    """The verdict on a claim with these numbers, [(name, number), ...] a role."""
    claim = Claim("A1", "The sentence.")
    for name, number in requires:
        claim.requires(name, number)
    for name, number in refutes:
        claim.refutes(name, number)
    for name, number in qualifies:
        claim.qualifies(name, number, only="without noise")
    for name, number in reports:
        claim.reports(name, number)
    return claim.verdict()


@given(ends=st.tuples(reals, reals).map(sorted), expected=reals, tolerance=st.floats(0, 5))
def test_relations_hold_for_the_whole_interval_or_fail_for_the_whole_of_it(ends, expected, tolerance):
    low, high = ends
    # The least and the largest distance from `expected` within [low, high], and the ends of the allowed band.
    nearest = 0.0 if low <= expected <= high else min(abs(low - expected), abs(high - expected))
    if min(abs(e - m) for e in (low, high) for m in (expected - tolerance, expected + tolerance)) < 1e-9:
        return  # on the edge, rounding decides
    farthest = max(abs(low - expected), abs(high - expected))
    truth = {
        "equals": (farthest <= tolerance, nearest > tolerance),
        "differs": (nearest > tolerance, farthest <= tolerance),
        "at most": (high - expected <= tolerance, low - expected > tolerance),
        "at least": (expected - low <= tolerance, expected - high > tolerance),
    }
    for relation, (always, never) in truth.items():
        number = Number((low + high) / 2, expected, tolerance, low, high, relation)
        assert number.holds is (True if always else False if never else None), relation


def test_a_number_without_expectation_decides_nothing():
    assert PLAIN.holds is None
    assert Number(math.nan).holds is None
    assert Number(math.inf, expected=1.0, tolerance=0.5).holds is False


@pytest.mark.parametrize("relation", ["equals", "differs", "at most", "at least"])
@pytest.mark.parametrize(
    "where",
    [
        {"value": math.nan},
        {"expected": math.nan},
        {"low": math.nan, "high": 2.0},
        {"low": 0.0, "high": math.nan},
        {"low": math.nan, "high": math.nan},
    ],
    ids=str,
)
def test_nan_satisfies_no_relation_and_is_called_nan(relation, where):
    number = Number(**({"value": 1.0, "expected": 1.0, "tolerance": 5.0, "relation": relation} | where))
    assert number.holds is False
    assert "NaN" in str(number)
    if where.keys() != {"expected"}:
        assert "NaN" in judge([("lost", number)]).because


def test_the_mean_of_samples_with_nan_fails():
    number = mean([1.0, math.nan, 1.0], expected=1.0, tolerance=5.0)
    assert number.holds is False
    assert judge([("mean", number)]).verdict == "refuted"


def runs(samples, **labels):
    return xr.DataArray(samples, dims=("setting", "seed"), coords=labels)


def test_of_many_settings_one_that_is_nan_comes_first():
    """Whatever its place: NaN compares as neither more nor less, and a maximum may pass it over."""
    for place in range(3):
        samples = np.full((3, 4), 0.001) + np.arange(4) * 1e-6
        samples[place, 2] = math.nan
        assert furthest(runs(samples), tolerance=0.01).holds is False


def test_of_many_settings_one_that_lies_outside_comes_before_one_that_is_open():
    samples = np.array([[0.2, 0.2, 0.21], [-1.0, 1.0, 0.0], [0.0, 0.001, 0.0]])
    found = furthest(runs(samples, setting=[0.05, 0.5, 1.0]), tolerance=0.01)
    assert found.holds is False
    assert found.at == "setting 0.05"
    expected = xr.DataArray([0.2, 0.0, 0.0], {"setting": [0.05, 0.5, 1.0]})
    found = furthest(runs(samples, setting=[0.05, 0.5, 1.0]), expected, tolerance=0.01)
    assert found.holds is None
    assert found.at == "setting 0.5"
    with pytest.raises(ValueError, match=r"exact|align"):
        furthest(runs(samples, setting=[0.05, 0.5, 2.0]), expected, tolerance=0.01)


def test_intervals_are_those_of_each_setting_s_own_mean():
    samples = np.random.default_rng(0).normal(size=(3, 7))
    found, named = interval(runs(samples)), each(runs(samples, setting=["a", "b", "c"]), expected=0.0)
    assert list(named) == ["a", "b", "c"]
    for row, (place, number) in zip(samples, enumerate(named.values()), strict=True):
        alone = mean(row)
        ends = (float(found[end][place]) for end in ("value", "low", "high"))
        np.testing.assert_allclose(list(ends), [alone.value, alone.low, alone.high], rtol=1e-12)
        np.testing.assert_allclose([number.low, number.high], [alone.low, alone.high], rtol=1e-12)
    together = each(runs(samples, setting=["a", "b", "c"]), together=True)
    wide = mean(samples[1], confidence=1 - 0.001 / 3)
    np.testing.assert_allclose(together["b"].low, wide.low, rtol=1e-12)
    with pytest.raises(ValueError, match="two settings are called"):
        each(runs(samples, setting=["a", "a", "c"]))


@pytest.mark.parametrize(
    "bad", [{"low": 0.0}, {"low": 1.0, "high": 0.0}, {"tolerance": -1.0}, {"relation": "near"}]
)
def test_numbers_without_meaning_are_refused(bad):
    with pytest.raises(ValueError, match=r"interval|tolerance|relation"):
        Number(0.5, **bad)


@pytest.mark.parametrize(
    ("main", "side", "verdict"),
    [
        (YES, YES, "reproduced"),
        (YES, NO, "qualified"),
        (YES, OPEN, "not testable here"),
        (NO, YES, "refuted"),
        (NO, OPEN, "refuted"),
        (OPEN, YES, "not testable here"),
        (OPEN, NO, "not testable here"),
        (NAN, YES, "refuted"),
        (YES, NAN, "qualified"),
        (OPEN, NAN, "not testable here"),
        (NAN, OPEN, "refuted"),
    ],
)
def test_the_rule_of_precedence(main, side, verdict):
    judged = judge([("main", main)], [("side", side)])
    assert judged.verdict == verdict
    assert ("Holds only without noise" in judged.because) == (verdict == "qualified")
    assert ("only without noise" in judged.because) == (side.holds is False)
    assert ("NaN" in judged.because) == (main is NAN or side is NAN)


@pytest.mark.parametrize("main", [YES, NO, OPEN])
@pytest.mark.parametrize("instrument", [NO, OPEN, NAN])
def test_an_instrument_that_fails_decides_nothing(main, instrument):
    judged = judge([("main", main)], [("side", NO)], requires=[("solver", instrument)])
    assert judged.verdict == "not testable here"
    assert ("Our own check fails: solver" in judged.because) == (instrument.holds is False)
    assert ("Undecided at this size: solver" in judged.because) == (instrument is OPEN)
    assert ("Would fail: main" in judged.because) == (main is NO)
    assert judge([("main", main)], requires=[("solver", YES)]).verdict == judge([("main", main)]).verdict


@pytest.mark.parametrize("main", [YES, NO, OPEN])
@pytest.mark.parametrize("limit", [YES, NO])
def test_every_undecided_number_is_named_whatever_else_fails(main, limit):
    """Six of them, so that none is dropped for brevity; of 500 numbers that hold only some are."""
    open_ = [(f"open{i}", Number(1.0, 1.0, 0.5, low=0.0, high=2.0 + i)) for i in range(6)]
    held = [(f"held{i}", YES) for i in range(20)]
    because = judge([("main", main), *held], [("limit", limit), *open_]).because
    assert "Undecided at this size: " in because
    for i in range(6):
        assert f"open{i} is 1 in [0, {2 + i}] (expected 1 ± 0.5)" in because
    assert ("main is 1 in [0, 2]" in because) == (main is OPEN)
    assert ("main is 2" in because) == (main is NO)
    assert ("limit is 2" in because) == (limit is NO)
    assert "held19" not in because


def test_every_number_that_fails_is_named():
    because = judge([(f"n{i}", NO) for i in range(7)]).because
    assert all(f"n{i} is 2" in because for i in range(7))


def test_a_single_failure_among_many_refutes_and_is_named():
    judged = judge([*((f"n{i}", YES) for i in range(9)), ("culprit", NO)])
    assert judged.verdict == "refuted"
    assert "culprit" in judged.because
    assert "n1" not in judged.because


def test_what_is_reported_judges_nothing():
    judged = judge([("main", YES)], reports=[("seen", NO)])
    assert judged.verdict == "reproduced"
    assert judged.numbers["seen"] == Number(2.0)
    assert judged.roles == {"main": "refutes", "seen": "reports"}


def test_a_sentence_is_found_only_if_its_numbers_hold():
    claim = Claim("A1", "The sentence.")
    claim.refutes("main", YES)
    for number in (YES, NO, OPEN, NAN):
        claim.finds(f"{number} is found.", when=number)
    claim.finds("Both.", when=[YES, OPEN])
    claim.finds("Neither.", when=False)
    claim.finds("All.", when=[YES, YES])
    assert claim.verdict().found == f"{YES} is found. All."


def test_our_own_sentences_are_rows_judged_by_themselves():
    claim = Claim("A1", "The sentence.")
    claim.refutes("main", NO)
    first, second = claim.ours("It differs."), claim.also("It is so, too.")
    assert (first.says, second.says) == ("Ours: It differs.", "It is so, too.")
    first.refutes("main", YES)
    second.refutes("main", OPEN)
    verdicts = {row.id: row.verdict().verdict for row in (claim, *claim.rows)}
    assert verdicts == {"A1": "refuted", "A1.1": "reproduced", "A1.2": "not testable here"}


def test_many_numbers_under_one_name_are_judged_each():
    claim = Claim("A1", "The sentence.")
    claim.refutes("drift", {"SGD": YES, "AdamW": NO})
    assert claim.verdict().because == "Fails: drift: AdamW is 2 (expected 1 ± 0.5)."
    with pytest.raises(ValueError, match="holds no number"):
        claim.refutes("nothing", {})


def test_evidence_that_could_not_fail_is_refused():
    claim = Claim("A1", "The sentence.")
    claim.reports("plain", PLAIN)
    with pytest.raises(ValueError, match="nothing here could refute A1"):
        claim.verdict()
    for role in (claim.requires, claim.refutes):
        with pytest.raises(ValueError, match="nothing is expected"):
            role("plain too", PLAIN)
    with pytest.raises(ValueError, match="under which condition"):
        claim.qualifies("side", YES, only=" ")
    claim.refutes("main", YES)
    with pytest.raises(ValueError, match="two numbers called 'main'"):
        claim.requires("main", YES)
    with pytest.raises(TypeError, match="must be a Number"):
        claim.refutes("other", {"a": 1.0})
    with pytest.raises(ValueError, match="does not say"):
        Claim("A1", " ")


def test_a_verdict_is_one_of_four_and_has_a_reason():
    with pytest.raises(ValueError, match="one of reproduced"):
        Verdict("confirmed", "because")
    with pytest.raises(ValueError, match="reason"):
        Verdict("reproduced", " ")


def test_the_mean_has_students_interval():
    samples = np.arange(10.0)
    reach = 4.7809 * math.sqrt(
        110 / 12 / 10
    )  # tabulated t quantile at 0.9995, 9 degrees; variance (n² + n)/12
    number = mean(samples, expected=4.5, tolerance=9.0)
    assert number.value == 4.5
    assert number.low == pytest.approx(4.5 - reach, abs=1e-4)
    assert number.high == pytest.approx(4.5 + reach, abs=1e-4)
    assert number.holds
    with pytest.raises(ValueError, match="two or more"):
        mean([1.0])


def test_the_interval_of_the_mean_covers_as_often_as_it_says():
    draws = np.random.default_rng(0).normal(size=(2000, 6))
    covered = sum((n := mean(row, confidence=0.9)).low <= 0.0 <= n.high for row in draws)
    assert abs(covered - 1800) < 4 * math.sqrt(2000 * 0.9 * 0.1)


def test_the_share_has_clopper_and_pearsons_interval():
    number = share(3, 20)

    def tail(p, counts):
        return sum(math.comb(20, k) * p**k * (1 - p) ** (20 - k) for k in counts)

    assert tail(number.low, range(3, 21)) == pytest.approx(0.0005, rel=1e-6)
    assert tail(number.high, range(4)) == pytest.approx(0.0005, rel=1e-6)
    assert share(0, 20).low == 0.0


@pytest.mark.parametrize("degree", [1, 2])
def test_extrapolation_recovers_each_runs_polynomial(degree):
    x, coefficients = np.array([0.1, 0.2, 0.4, 0.8]), np.random.default_rng(1).normal(size=(degree + 1, 5))
    samples = sum(coefficients[d] * x[:, None] ** d for d in range(degree + 1))
    np.testing.assert_allclose(extrapolate(x, samples, degree=degree), coefficients, rtol=1e-10)
    with pytest.raises(ValueError, match="distinct"):
        extrapolate(x[:degree], samples[:degree], degree=degree)


def test_the_worst_entry_is_the_one_that_comes_closest_to_breaking_the_relation():
    values, expected = [1.0, 5.0, 2.5], [1.5, 4.0, 2.5]  # gaps -0.5, 1, 0
    found = {
        relation: worst(values, expected=expected, relation=relation)
        for relation in ("equals", "differs", "at most", "at least")
    }
    assert {relation: number.value for relation, number in found.items()} == {
        "equals": 1.0,
        "differs": 0.0,
        "at most": 1.0,
        "at least": -0.5,
    }
    assert not any(number.holds for number in found.values())
    assert worst([1.0, math.nan, 9.0], expected=1.0).holds is False
    with pytest.raises(ValueError, match="no values"):
        worst([], expected=[])


def test_the_worst_of_labelled_values_meets_its_expectation_by_name_and_says_where():
    values = xr.DataArray([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]], {"rate": [0.1, 0.2, 0.4], "kind": ["a", "b"]})
    found = worst(values, expected=xr.DataArray([1.0, 2.5], {"kind": ["a", "b"]}), tolerance=0.1)
    assert found.value == 4.0
    assert found.at == "rate 0.4, kind a"
    assert "at rate 0.4, kind a" in str(found)
    with pytest.raises(ValueError, match=r"exact|align"):
        worst(values, expected=xr.DataArray([1.0, 2.5], {"kind": ["a", "c"]}))


def test_a_function_of_a_product_of_axes_is_labelled():
    found = tabulated(lambda a, b: 10 * a + b, first=[1.0, 2.0], second=[3.0, 4.0, 5.0])
    assert float(found.sel(first=2.0, second=4.0)) == 24.0
    assert found.dims == ("first", "second")


def test_extrapolation_keeps_the_names_of_what_is_left():
    rates = [0.1, 0.2, 0.4]
    samples = xr.DataArray(
        np.random.default_rng(2).normal(size=(2, 3, 5)),
        {"setting": ["a", "b"], "learning_rate": rates},
        ("setting", "learning_rate", "seed"),
    )
    at_zero, slope = extrapolated(samples)
    for setting in "ab":
        fit = extrapolate(rates, samples.sel(setting=setting).values)
        np.testing.assert_allclose(at_zero.sel(setting=setting), fit[0])
        np.testing.assert_allclose(slope.sel(setting=setting), fit[1])


def test_of_numbers_any_of_which_would_do_the_surest_fails_only_where_all_do():
    gaps = xr.DataArray(np.random.default_rng(0).normal(size=(4, 40)) * 1e-3, dims=("setting", "seed"))
    means = np.array([0.0, 0.02, 0.015, 0.01])
    gaps = gaps - gaps.mean("seed") + xr.DataArray(means, {"setting": list("abcd")})

    def chosen(*settings):
        return surest(each(gaps.sel(setting=list(settings)), expected=0.01, relation="at least"))

    assert (chosen(*"abcd").at, chosen(*"abcd").holds) == ("b", True)
    assert (chosen(*"ad").at, chosen(*"ad").holds) == ("d", None)
    assert (chosen(*"a").at, chosen(*"a").holds) == ("a", False)
    wide = Number(0.9, 0.5, low=0.4, high=1.4, relation="at least")
    assert surest({"wide": wide, "sure": Number(0.6, 0.5, relation="at least")}).at == "sure"
    with pytest.raises(ValueError, match="no numbers"):
        surest({})


def test_every_setting_has_a_best_learning_rate_of_its_own():
    """At 0.1 the first setting has mean 2 and the second 5; at 0.2 they have 3 and 1."""
    runs = [[[1.0, 3.0], [4.0, 6.0]], [[3.0, 3.0], [0.0, 2.0]]]
    values = xr.DataArray(runs, {"learning_rate": [0.1, 0.2], "setting": ["one", "two"], "seed": [0, 1]})
    np.testing.assert_array_equal(at_best_rate(values), [[3, 3], [4, 6]])
    together = at_best_rate(values, over=["setting", "seed"])  # 3.5 against 2
    np.testing.assert_array_equal(together, values.sel(learning_rate=0.1))
