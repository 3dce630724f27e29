"""SGD and AdamW in one program: both are numbers of AdamW, which a sweep varies. Short names for sweeps."""

from __future__ import annotations

from typing import Any

FREE = 1e9
"""AdamW with an eps as great, and without momentum, is SGD with a learning rate as much smaller: second
moments do not count."""
OPTIMIZER = ("optimizer.learning_rate", "optimizer.b1", "optimizer.eps")


def sgd(rate: float) -> tuple[float, float, float]:
    """Values of ``OPTIMIZER``."""
    return rate * FREE, 0.0, FREE


def adamw(rate: float) -> tuple[float, float, float]:
    """Values of ``OPTIMIZER``."""
    return rate, 0.9, 1e-8


def named(data: Any, names: dict[Any, str]) -> Any:
    """A sweep's dimensions under other names, a tuple of paths as an axis is given; no second labels.

    >>> import xarray as xr
    >>> swept = xr.Dataset({"x": ("a+b", [1, 2])}, {"a+b": ["one", "two"], "a": ("a+b", [3, 4])})
    >>> list(named(swept, {("a", "b"): "both"}).coords)
    ['both']
    """
    whole = {"+".join(key) if isinstance(key, tuple) else key: name for key, name in names.items()}
    data = data.rename(whole)
    return data.drop_vars([name for name in data.coords if name not in data.dims])
