"""Numbers and names as a reader wants them: three digits, words and a symbol, a line break in time."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.ticker import LogFormatterSciNotation

from grpo_jax.sweeps.axes import ALIASES

NAMES = {
    "learning_rate": "learning rate η",
    "kl_coef": "KL coefficient β",
    "beta": "β",
    "gain.beta": "quadratic penalty β",
    "clip_low": "lower clip ε",
    "clip_high": "upper clip ε",
    "group_size": "group size G",
    "inner_steps": "inner steps μ",
    "weight_decay": "weight decay λ",
    "b1": "β₁",
    "b2": "β₂",
    "eps": "stabiliser of the denominator",
}
"""Last part of a path, or its last two -> what is written at an axis or over a legend."""

PATHS = {path: alias for alias, path in ALIASES.items()}
CHARACTER = 0.54
"""Mean width of a character, in font sizes."""


def readable(name: str) -> str:
    """A dimension's or a variable's name in words.

    >>> readable("optimizer.learning_rate"), readable("method.gain.high"), readable("expected_reward")
    ('learning rate η', 'upper clip ε', 'expected reward')
    >>> readable("clip_low+clip_high")
    'lower clip ε + upper clip ε'
    >>> readable("method.gain.beta"), readable("method.advantage.eps"), readable("kl_coef")
    ('quadratic penalty β', 'stabiliser of the denominator', 'KL coefficient β')
    """
    words = []
    for part in str(name).split("+"):
        short = PATHS.get(part, part)
        tails = [".".join(short.split(".")[-n:]) for n in (2, 1)]
        known = [NAMES[tail] for tail in tails if tail in NAMES]
        words.append(known[0] if known else short.replace("_", " ").replace(".", " "))
    return " + ".join(words)


def number(value: float, digits: int = 3) -> str:
    """A number in a few digits, whole numbers below a million in full.

    >>> number(0.1 + 0.2), number(1024.0), number(1e-5), number(-0.25)
    ('0.3', '1024', '1e-5', '−0.25')
    """
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    if abs(value) < 1e6 and (value == round(value) or abs(value) >= 10**digits):
        text = f"{value:.0f}"
    else:
        text = f"{value:.{digits}g}"
    mantissa, _, exponent = text.partition("e")
    text = f"{mantissa}e{int(exponent)}" if exponent else mantissa
    return text.replace("-", "−") if value < 0 else text


def texts(values: Iterable[Any]) -> list[str]:
    """A short text for each value: numbers in as few digits as keep different ones apart, at least three.

    >>> texts([1.0001, 1.0002]), texts(["grpo", "trl"])
    (['1.0001', '1.0002'], ['grpo', 'trl'])
    """
    values = [value.item() if isinstance(value, np.generic) else value for value in values]
    if not all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in values):
        return [str(value) for value in values]
    for digits in range(3, 18):
        found = [number(float(value), digits) for value in values]
        if len(set(found)) == len(set(values)):
            break
    return found


class PlainLog(LogFormatterSciNotation):
    """Matplotlib's choice of labels on a logarithmic axis, without exponents too small to read."""

    def __call__(self, x: float, pos: Any = None) -> str:
        """The label, empty where there is none."""
        return number(x) if super().__call__(x, pos) else ""


def described(array: xr.DataArray) -> str:
    """What a variable is, from its metadata, with its unit: "entropy of whole outputs (nats)"."""
    name = "" if array.name is None else readable(str(array.name))
    said = str(array.attrs.get("long_name") or array.attrs.get("about") or name)
    unit = array.attrs.get("units")
    return f"{said} ({unit})" if said and unit else said


def titled(array: xr.DataArray, name: str) -> str:
    """What a coordinate is, from its metadata or else its name."""
    return described(array.coords[name]) if name in array.coords else readable(name)


def room(axes: Axes, along: str) -> float:
    """Points along the axes' "x" or "y" side."""
    box = axes.get_window_extent()
    inches = (box.width if along == "x" else box.height) / axes.get_figure().dpi  # type: ignore[union-attr]
    return 72 * inches


def wrapped(text: str, points: float, size: float = 8.0) -> str:
    """The text in lines of at most so many points."""
    return "\n".join(textwrap.wrap(text, max(12, int(points / (CHARACTER * size))))) or text


def label_axis(axes: Axes, along: str, text: str) -> None:
    """Name an axis that has no name yet: a name that the user gave stays."""
    if not getattr(axes, f"get_{along}label")():
        getattr(axes, f"set_{along}label")(wrapped(text, 1.15 * room(axes, along)))


def index_ticks(axes: Axes, along: str, values: Any, share: float = 1.0) -> None:
    """Values as tick labels of the places 0, 1, ..., as many as fit into this share of the side."""
    words, wide = texts(values), share * room(axes, along)
    figures = np.issubdtype(np.asarray(values).dtype, np.number)
    slot = int(wide / len(words) / (7.5 * CHARACTER)) - 1
    if (
        along == "x"
        and not figures
        and max(len(part) for word in words for part in word.split() or [""]) <= slot
    ):
        words = [textwrap.fill(word, slot) for word in words]
    longest = max(len(line) for word in words for line in word.split("\n"))
    gap = 7 if figures else 3
    step = math.ceil(len(words) * (7.5 * CHARACTER * longest + gap if along == "x" else 12.0) / wide)
    turned = along == "x" and step > 1 and not figures
    step = 1 if turned else step
    places = list(range(0, len(words), step))
    axis = getattr(axes, f"{along}axis")
    axis.set_ticks(places, [words[i] for i in places])
    if turned:
        for tick in axis.get_ticklabels():
            tick.set(rotation=30, ha="right", rotation_mode="anchor")
