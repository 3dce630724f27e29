"""Measured numbers that know whether they hold: a value, what is expected of it, and an interval."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike
from scipy import special

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
      at: where it was measured, in words, if it was chosen among many.

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
    at: str = ""

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
        return f"{text} at {self.at}" if self.at else text


def _digits(number: float) -> str:
    return "NaN" if np.isnan(number) else f"{number:.4g}"


def _decide(true: bool, false: bool) -> bool | None:
    return True if true else False if false else None


def worst(
    values: ArrayLike | xr.DataArray,
    *,
    expected: ArrayLike | xr.DataArray = 0.0,
    tolerance: float = 0.0,
    relation: Relation = "equals",
) -> Number:
    """The entry of `values` that comes closest to breaking `relation` with its entry of `expected`.

    The number reported is the signed difference, value minus expected, so that one tolerance serves a whole
    curve; an entry that is not a number counts as the worst. Labelled arrays meet by the names of their
    dimensions, and the number says at which labels it is. Raises `ValueError` if there are no entries, or if
    labels differ.
    """
    gaps = _gaps(values, expected)
    if gaps.size == 0:
        raise ValueError("there is no worst of no values")
    badness = {"equals": abs(gaps), "differs": -abs(gaps), "at most": gaps, "at least": -gaps}[relation]
    place = int(np.argmax(np.where(np.isnan(gaps), np.inf, badness)))
    value, where = float(gaps.values.ravel()[place]), _labels(gaps, place)
    return Number(value, expected=0.0, tolerance=tolerance, relation=relation, at=where)


def _gaps(values: ArrayLike | xr.DataArray, expected: ArrayLike | xr.DataArray) -> xr.DataArray:
    if isinstance(values, xr.DataArray):
        with xr.set_options(arithmetic_join="exact"):
            return (values - expected).astype(float)
    return xr.DataArray(np.asarray(np.asarray(values, float) - np.asarray(expected, float)).ravel(), dims="n")


def _labels(array: xr.DataArray, place: int) -> str:
    """The labels of an entry, by its place in row-major order; dimensions without labels are left out."""
    at = dict(zip(array.dims, np.unravel_index(place, array.shape), strict=True))
    found = {name: array[name].values[i] for name, i in at.items() if name in array.coords}
    return ", ".join(f"{name} {_label(label)}" for name, label in found.items() if array.sizes[name] > 1)


def _label(label: object) -> str:
    return f"{label:.4g}" if isinstance(label, float) else str(label)


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


def hardest(numbers: Mapping[str, Number]) -> Number:
    """Of numbers that are judged alike the one that fails first, saying where it is: its name.

    One that fails comes before one that is undecided, that before one that holds; among equals the one whose
    interval goes furthest over its margin, or is closest to it.

    >>> print(hardest({"SGD": Number(0.2, 0.0, 0.3), "AdamW": Number(-0.4, 0.0, 0.3)}))
    -0.4 (expected 0 ± 0.3) at AdamW
    """
    if not numbers:
        raise ValueError("there is no hardest of no numbers")

    def order(name: str) -> tuple[int, float]:
        number = numbers[name]
        low, high = (number.value if end is None else end for end in (number.low, number.high))
        goal, margin = number.expected or 0.0, number.tolerance or 0.0
        over = {"at most": high - goal, "at least": goal - low, "equals": max(high - goal, goal - low)}
        excess = over.get(number.relation, -min(abs(low - goal), abs(high - goal))) - margin
        rank = {False: 0, None: 1, True: 2}[number.holds]
        return rank, -np.inf if np.isnan(excess) else -excess

    name = min(numbers, key=order)
    return replace(numbers[name], at=name)


def surest(numbers: Mapping[str, Number]) -> Number:
    """Of numbers that should each be at least something, and any one of which would do, the one that most
    surely is, saying where it is: its name. Where none is, the one whose interval reaches highest.

    >>> low, high = (Number(value, 0.3, relation="at least") for value in (0.2, 0.4))
    >>> print(surest({"SGD": low, "AdamW": high}))
    0.4 (at least 0.3) at AdamW
    """
    if not numbers:
        raise ValueError("there is no surest of no numbers")

    def order(name: str) -> tuple[bool, float]:
        number = numbers[name]
        end = number.low if number.holds else number.high
        return number.holds is True, number.value if end is None else end

    name = max(numbers, key=order)
    return replace(numbers[name], at=name)


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


def tabulated(function: Callable[..., ArrayLike], **axes: ArrayLike) -> xr.DataArray:
    """A function of the axes' whole product, labelled: tabulated(f, a=[1, 2], b=[3]) has dimensions a, b.

    >>> tabulated(lambda a, b: a * b, a=[1, 2], b=[3, 4]).sel(a=2, b=3).item()
    6
    """
    labels = {name: np.asarray(values) for name, values in axes.items()}
    return xr.DataArray(np.asarray(function(*np.meshgrid(*labels.values(), indexing="ij"))), labels)


def extrapolated(
    array: xr.DataArray, *, over: str = "learning_rate", degree: int = 1
) -> tuple[xr.DataArray, xr.DataArray]:
    """Values at zero of the dimension `over`, and slopes there, of each run's polynomial: `extrapolate`."""
    rows = array.transpose(over, ...)
    found = extrapolate(rows[over].values, rows.values.reshape(rows.sizes[over], -1), degree=degree)
    like = rows.isel({over: 0}, drop=True)
    return like.copy(data=found[0].reshape(like.shape)), like.copy(data=found[1].reshape(like.shape))


def at_best_rate(values: xr.DataArray, *, over: str | list[str] = "seed") -> xr.DataArray:
    """Values at the learning rate whose mean over these dimensions is greatest, each other setting by itself.

    >>> rates = xr.DataArray([[1.0, 2.0], [4.0, 3.0]], {"learning_rate": [0.1, 0.2], "seed": [0, 1]})
    >>> at_best_rate(rates).values.tolist()
    [4.0, 3.0]
    """
    best = values.mean(over).argmax("learning_rate")
    return values.isel(learning_rate=best).drop_vars("learning_rate")


def interval(samples: xr.DataArray, *, over: str = "seed", confidence: float = CONFIDENCE) -> xr.Dataset:
    """Means over runs with Student's interval, for every setting: `value`, `low` and `high`."""
    count = samples.sizes[over]
    if count < 2:
        raise ValueError(f"an interval needs two or more samples; got {count} along {over!r}")
    value = samples.mean(over, skipna=False)
    reach = samples.std(over, ddof=1, skipna=False) / np.sqrt(count)
    reach = reach * special.stdtrit(count - 1, 0.5 + confidence / 2)
    return xr.Dataset({"value": value, "low": value - reach, "high": value + reach})


def furthest(
    samples: xr.DataArray,
    expected: float | xr.DataArray = 0.0,
    *,
    tolerance: float,
    over: str = "seed",
    confidence: float = CONFIDENCE,
) -> Number:
    """Of all settings the mean over runs, less what is expected, whose interval reaches furthest from 0.

    It lies within the margin only if every setting's does; a setting that lies outside comes first, lest a
    wider interval that decides nothing hide it, and one that is not a number before all.

    >>> outside, wide = [0.2, 0.2, 0.21], [-1.0, 1.0, 0.0]
    >>> runs = xr.DataArray([outside, wide], dims=("setting", "seed"))
    >>> furthest(runs, tolerance=0.01).holds
    False
    """
    found = interval(samples, over=over, confidence=confidence)
    gaps = xr.Dataset({name: _gaps(end, expected) for name, end in found.items()})
    outside = (gaps.low > tolerance) | (gaps.high < -tolerance)
    lost = gaps.value.isnull() | gaps.low.isnull()
    reach = np.maximum(-gaps.low, gaps.high).where(~lost, np.inf)
    order = np.lexsort((reach.values.ravel(), outside.values.ravel(), lost.values.ravel()))
    place = int(order[-1])
    value, low, high = (float(gaps[end].values.ravel()[place]) for end in ("value", "low", "high"))
    return Number(value, 0.0, tolerance, low, high, at=_labels(gaps.value, place))


def each(
    samples: xr.DataArray,
    *,
    over: str = "seed",
    expected: float | None = None,
    tolerance: float | None = None,
    relation: Relation = "equals",
    confidence: float = CONFIDENCE,
    together: bool = False,
) -> dict[str, Number]:
    """A number for every setting, named by its labels: the mean over runs.

    `together` widens the intervals (Bonferroni) so that all of them hold at once with this confidence.
    """
    rest = [dim for dim in samples.dims if dim != over]
    rows = samples.transpose(*rest, over)
    count = int(np.prod([rows.sizes[dim] for dim in rest], dtype=int))
    level = 1 - (1 - confidence) / count if together else confidence
    found = {}
    for place, index in enumerate(np.ndindex(*(rows.sizes[dim] for dim in rest))):
        here = rows.isel(dict(zip(rest, index, strict=True)))
        name = ", ".join(_named(rows, dim, i) for dim, i in zip(rest, index, strict=True))
        if name in found:
            raise ValueError(f"two settings are called {name!r}; label the dimensions {rest}")
        found[name or f"setting {place}"] = mean(
            here, expected=expected, tolerance=tolerance, relation=relation, confidence=level
        )
    return found


def _named(array: xr.DataArray, dim: Hashable, index: int) -> str:
    label = array[dim].values[index] if dim in array.coords else index
    return str(label) if isinstance(label, str) else f"{str(dim).replace('_', ' ')} {_label(label)}"


def prefixed(name: str, numbers: Mapping[str, Number]) -> dict[str, Number]:
    """The same numbers under names that start with this one."""
    return {f"{name}: {key}" if key else name: number for key, number in numbers.items()}
