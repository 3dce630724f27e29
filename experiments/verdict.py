"""Numbers that know whether they hold, and the rule that turns them into a verdict.

A script measures numbers and says beforehand which of them refute the claim when they fail and which only
qualify it. The verdict and its reason are computed; no script writes one by hand.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

VERDICTS = ("reproduced", "qualified", "refuted", "not testable here")
CONFIDENCE = 0.999

Relation = Literal["equals", "differs", "at most", "at least"]


@dataclass(frozen=True)
class Number:
    """A measured value and, where there is one, what it is expected to be.

    With an interval the whole of `[low, high]` must satisfy the relation, which makes `equals` a test of
    equivalence with the margin `tolerance`; without one the value alone must. A value, an end or an
    expectation that is NaN satisfies no relation: what could not be computed was not found to hold.

    Args:
      value: what was measured.
      expected: what the claim says; without it the number is only reported.
      tolerance: margin around `expected`, not negative; none is a margin of zero.
      low: lower end of the interval, given together with `high`.
      high: upper end of the interval.
      relation: how the value should stand to the expected one, each up to the tolerance.

    >>> Number(0.503, expected=0.5, tolerance=0.01).holds
    True
    >>> print(Number(0.503, expected=0.5, tolerance=0.01, low=0.45, high=0.55).holds)
    None
    >>> Number(float("nan"), expected=0.5, tolerance=0.01).holds
    False
    """

    value: float
    expected: float | None = None
    tolerance: float | None = None
    low: float | None = None
    high: float | None = None
    relation: Relation = "equals"

    def __post_init__(self) -> None:
        if (self.low is None) != (self.high is None):
            raise ValueError("an interval needs both its ends: give low and high together")
        if self.low is not None and self.high is not None and self.low > self.high:
            raise ValueError(f"the interval [{self.low}, {self.high}] is empty")
        if self.tolerance is not None and not self.tolerance >= 0:
            raise ValueError(f"a tolerance is not negative; got {self.tolerance}")
        if self.relation not in ("equals", "differs", "at most", "at least"):
            raise ValueError(f"a relation is equals, differs, at most or at least; got {self.relation!r}")

    @property
    def holds(self) -> bool | None:
        """Whether the relation holds; `None` if the interval reaches over the margin. NaN does not hold."""
        if self.expected is None:
            return None
        low, high = (self.value if end is None else end for end in (self.low, self.high))
        if np.isnan([low, high, self.value, self.expected]).any():
            return False
        bottom, top = self.expected - (self.tolerance or 0.0), self.expected + (self.tolerance or 0.0)
        if self.relation == "at most":
            return _decide(high <= top, low > top)
        if self.relation == "at least":
            return _decide(low >= bottom, high < bottom)
        inside, outside = bottom <= low and high <= top, high < bottom or low > top
        return _decide(inside, outside) if self.relation == "equals" else _decide(outside, inside)

    def __str__(self) -> str:
        text = _digits(self.value)
        if self.low is not None and self.high is not None:
            text += f" in [{_digits(self.low)}, {_digits(self.high)}]"
        if self.expected is not None:
            words = {"equals": "expected", "differs": "expected other than"}.get(self.relation, self.relation)
            margin = f" ± {self.tolerance:.2g}" if self.tolerance else ""
            text += f" ({words} {_digits(self.expected)}{margin})"
        return text


def _digits(number: float) -> str:
    return "NaN" if np.isnan(number) else f"{number:.4g}"


def _decide(true: bool, false: bool) -> bool | None:
    return True if true else False if false else None


@dataclass(frozen=True)
class Verdict:
    """What became of a claim, why, and the numbers that say so; made by `judge` or `untestable`."""

    verdict: str
    because: str
    numbers: Mapping[str, Number] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.verdict not in VERDICTS:
            raise ValueError(f"a verdict is one of {', '.join(VERDICTS)}; got {self.verdict!r}")
        if not self.because.strip():
            raise ValueError("a verdict needs its reason")


def judge(
    numbers: Mapping[str, Number], *, refutes: Iterable[str], qualifies: Mapping[str, str] | None = None
) -> Verdict:
    """The verdict that the numbers give.

    Refuted if a number in `refutes` fails; else not testable here if one of them is undecided; else qualified
    if one in `qualifies` fails; else not testable here if one of those is undecided; else reproduced. Numbers
    in neither are reported and judge nothing. The reason names every number that fails and every one that is
    undecided, whatever the verdict, and the first of those that hold.

    Args:
      numbers: name to number.
      refutes: names without which the claim falls; at least one.
      qualifies: names without which the claim holds only under a condition, and that condition in words,
        which completes "Holds only ...".

    Raises:
      ValueError: a name is unknown or judged twice, a judged number expects nothing, or nothing refutes.

    >>> judge({"gap": Number(0.25, expected=0, tolerance=0.1)}, refutes=["gap"])
    Verdict(verdict='refuted', because='Fails: gap is 0.25 (expected 0 ± 0.1).', numbers=...)
    """
    refutes, qualifies = tuple(refutes), dict(qualifies or {})
    _require_judgeable(numbers, refutes, tuple(qualifies))

    def pick(names: Iterable[str], holds: bool | None) -> list[str]:
        return [name for name in names if numbers[name].holds is holds]

    broken, unclear, limits = pick(refutes, False), pick(refutes, None), pick(qualifies, False)
    undecided = [*unclear, *pick(qualifies, None)]
    holds = "Holds" if not (broken or unclear) else "Would hold"
    conditions = [_sentence(f"{holds} only {qualifies[name]}", numbers, [name]) for name in limits]
    open_ = [_sentence("Undecided at this size", numbers, undecided)] if undecided else []
    if broken:
        said = [_sentence("Fails", numbers, broken), *conditions, *open_]
        return Verdict("refuted", " ".join(said), numbers)
    if unclear or (undecided and not limits):
        return Verdict("not testable here", " ".join([*open_, *conditions]), numbers)
    if limits:
        said = [*conditions, *open_, _sentence("It holds in", numbers, refutes, most=4)]
        return Verdict("qualified", " ".join(said), numbers)
    return Verdict("reproduced", _sentence("Holds", numbers, [*refutes, *qualifies], most=4), numbers)


def _require_judgeable(
    numbers: Mapping[str, Number], refutes: tuple[str, ...], qualifies: tuple[str, ...]
) -> None:
    if not refutes:
        raise ValueError("nothing here could refute the claim: name at least one number in refutes")
    if twice := set(refutes) & set(qualifies):
        raise ValueError(f"a number refutes or qualifies, not both: {', '.join(sorted(twice))}")
    for name in (*refutes, *qualifies):
        if name not in numbers:
            raise ValueError(f"no number is called {name!r}; there are {', '.join(numbers)}")
        if numbers[name].expected is None:
            raise ValueError(f"{name!r} judges nothing: nothing is expected of it")


def _sentence(
    start: str, numbers: Mapping[str, Number], names: Iterable[str], *, most: int | None = None
) -> str:
    names = list(names)
    told = "; ".join(f"{name} is {numbers[name]}" for name in names[:most])
    more = len(names) - len(names[:most])
    return f"{start}: {told}{f'; and {more} more' if more else ''}."


def untestable(missing: str, numbers: Mapping[str, Number] | None = None) -> Verdict:
    """The verdict on a claim whose source says too little or which needs what is not here: `missing`."""
    return Verdict("not testable here", missing, numbers or {})


def worst(
    values: ArrayLike, *, expected: ArrayLike, tolerance: float = 0.0, relation: Relation = "equals"
) -> Number:
    """The entry of `values` that comes closest to breaking `relation` with its entry of `expected`.

    The number reported is the signed difference, value minus expected, so that one tolerance serves a whole
    curve; an entry that is not a number counts as the worst. Raises `ValueError` if there are no entries.
    """
    gaps = np.asarray(np.asarray(values, float) - np.asarray(expected, float)).ravel()
    if gaps.size == 0:
        raise ValueError("there is no worst of no values")
    badness = {"equals": np.abs(gaps), "differs": -np.abs(gaps), "at most": gaps, "at least": -gaps}[relation]
    gap = gaps[np.argmax(np.where(np.isnan(gaps), np.inf, badness))]
    return Number(float(gap), expected=0.0, tolerance=tolerance, relation=relation)


def mean(
    samples: ArrayLike,
    *,
    expected: float | None = None,
    tolerance: float | None = None,
    relation: Relation = "equals",
    confidence: float = CONFIDENCE,
) -> Number:
    """The mean of independent samples, one a run, with Student's interval; needs two or more samples."""
    samples = np.asarray(samples, float).ravel()
    if samples.size < 2:
        raise ValueError(f"an interval needs two or more samples; got {samples.size}")
    middle, error = samples.mean(), samples.std(ddof=1) / np.sqrt(samples.size)
    reach = error * special.stdtrit(samples.size - 1, 0.5 + confidence / 2)
    return Number(float(middle), expected, tolerance, float(middle - reach), float(middle + reach), relation)


def share(
    successes: int,
    trials: int,
    *,
    expected: float | None = None,
    tolerance: float | None = None,
    relation: Relation = "equals",
    confidence: float = CONFIDENCE,
) -> Number:
    """The share of independent trials that succeed, with Clopper and Pearson's exact interval."""
    successes, failures, tail = int(successes), int(trials) - int(successes), (1 - confidence) / 2
    if min(successes, failures) < 0 or trials == 0:
        raise ValueError(f"{successes} of {trials} trials cannot succeed")
    low = special.betaincinv(successes, failures + 1, tail) if successes else 0.0
    high = special.betaincinv(successes + 1, failures, 1 - tail) if failures else 1.0
    return Number(successes / trials, expected, tolerance, float(low), float(high), relation)


def extrapolate(x: ArrayLike, samples: ArrayLike, *, degree: int = 1) -> np.ndarray:
    """Each run's polynomial through its time averages: samples(x) = c_0 + c_1 x + ..., by least squares.

    `c_0` is the run's value at learning rate zero and `c_1` the slope of its bias; their `mean` over runs has
    an honest interval whatever the runs' noise, as the runs are independent.

    Args:
      x: learning rates, [L] distinct, more than `degree`.
      samples: a value for each learning rate and run, [L, R].
      degree: of the polynomial.

    Returns:
      Coefficients, [degree + 1, R], lowest power first.

    >>> extrapolate([1, 2, 4], [[1.5], [2.0], [3.0]]).round(6).tolist()
    [[1.0], [0.5]]
    """
    x, samples = np.asarray(x, float), np.asarray(samples, float)
    if np.unique(x).size != x.size or x.size <= degree:
        raise ValueError(f"a polynomial of degree {degree} needs more than {degree} distinct points; got {x}")
    return np.linalg.lstsq(np.vander(x, degree + 1, increasing=True), samples, rcond=None)[0]
