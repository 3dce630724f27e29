"""Verdicts are computed: three-valued numbers, the rule of precedence, and intervals that cover."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments.alignment import furthest
from experiments.verdict import Number, Verdict, extrapolate, judge, mean, share, untestable, worst

YES = Number(1.0, expected=1.0)
NO = Number(2.0, expected=1.0, tolerance=0.5)
OPEN = Number(1.0, expected=1.0, tolerance=0.5, low=0.0, high=2.0)
NAN = Number(float("nan"), expected=1.0, tolerance=0.5)
PLAIN = Number(1.0)

reals = st.floats(-10, 10)


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
        assert "NaN" in judge({"lost": number}, refutes=["lost"]).because


def test_the_mean_of_samples_with_nan_fails():
    number = mean([1.0, math.nan, 1.0], expected=1.0, tolerance=5.0)
    assert number.holds is False
    assert judge({"mean": number}, refutes=["mean"]).verdict == "refuted"


def test_of_many_settings_one_that_is_nan_comes_first():
    """Whatever its place: NaN compares as neither more nor less, and a maximum may pass it over."""
    for place in range(3):
        samples = np.full((3, 4), 0.001) + np.arange(4) * 1e-6
        samples[place, 2] = math.nan
        assert furthest(samples, [0.0, 0.0, 0.0], tolerance=0.01).holds is False


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
    judged = judge({"main": main, "side": side}, refutes=["main"], qualifies={"side": "without noise"})
    assert judged.verdict == verdict
    assert ("Holds only without noise" in judged.because) == (verdict == "qualified")
    assert ("only without noise" in judged.because) == (side.holds is False)
    assert ("NaN" in judged.because) == (main is NAN or side is NAN)


@pytest.mark.parametrize("main", [YES, NO, OPEN])
@pytest.mark.parametrize("limit", [YES, NO])
def test_every_undecided_number_is_named_whatever_else_fails(main, limit):
    """Six of them, so that none is dropped for brevity; of 500 numbers that hold only some are."""
    numbers = {"main": main, "limit": limit} | {f"held{i}": YES for i in range(20)}
    numbers |= {f"open{i}": Number(1.0, 1.0, 0.5, low=0.0, high=2.0 + i) for i in range(6)}
    conditions = {"limit": "without noise"} | {f"open{i}": "on Sundays" for i in range(6)}
    judged = judge(numbers, refutes=["main", *(f"held{i}" for i in range(20))], qualifies=conditions)
    because = judged.because
    assert "Undecided at this size: " in because
    for i in range(6):
        assert f"open{i} is 1 in [0, {2 + i}] (expected 1 ± 0.5)" in because
    assert ("main is 1 in [0, 2]" in because) == (main is OPEN)
    assert ("main is 2" in because) == (main is NO)
    assert ("limit is 2" in because) == (limit is NO)
    assert "on Sundays" not in because
    assert "held19" not in because


def test_every_number_that_fails_is_named():
    numbers = {f"n{i}": NO for i in range(7)}
    because = judge(numbers, refutes=list(numbers)).because
    assert all(f"n{i} is 2" in because for i in range(7))


def test_a_single_failure_among_many_refutes_and_is_named():
    numbers = {f"n{i}": YES for i in range(9)} | {"culprit": NO}
    judged = judge(numbers, refutes=list(numbers))
    assert judged.verdict == "refuted"
    assert "culprit" in judged.because
    assert "n1" not in judged.because


@pytest.mark.parametrize(
    ("refutes", "qualifies", "words"),
    [
        ([], {}, "nothing here could refute"),
        (["absent"], {}, "no number is called 'absent'"),
        (["plain"], {}, "nothing is expected"),
        (["yes"], {"yes": "always"}, "not both"),
    ],
)
def test_a_verdict_that_could_not_fail_is_refused(refutes, qualifies, words):
    with pytest.raises(ValueError, match=words):
        judge({"yes": YES, "plain": PLAIN}, refutes=refutes, qualifies=qualifies)


def test_a_verdict_is_one_of_four_and_has_a_reason():
    with pytest.raises(ValueError, match="one of reproduced"):
        Verdict("confirmed", "because")
    with pytest.raises(ValueError, match="reason"):
        Verdict("reproduced", " ")
    assert untestable("The text of the proof is not public.").verdict == "not testable here"


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
