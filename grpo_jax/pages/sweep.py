"""A sweep's page: curves, a table of what came out, the configuration and how to load it again."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import xarray as xr
from scipy.special import stdtrit

from grpo_jax import plotting
from grpo_jax.pages.render import picture, render
from grpo_jax.sweeps.dataset import label, non_finite

LINES = 8
"""Settings that are drawn as lines of one picture at most."""
ROWS = 200
PICTURES = 12
BAND = 0.999


class Drawn(NamedTuple):
    """A picture on a page."""

    alt: str
    source: str
    caption: str


def sweep_page(data: xr.Dataset, *, title: str, folder: str | None = None) -> str:
    """One self-contained HTML page of a sweep's dataset.

    Args:
      data: what ``sweep`` returned or ``load`` read.
      title: the page's.
      folder: where it lies, for the line that loads it.
    """
    if "finite" not in data or "seed" not in data.dims:
        raise ValueError("this dataset is not a sweep's: it has no variable finite over seeds")
    grid = [str(d) for d in data["finite"].dims if d not in ("seed", "iteration")]
    last = data.isel(iteration=-1) if "iteration" in data.dims else data
    head, rows, left_out = _table(last, grid)
    made = data.attrs
    settings = "".join(f"{data.sizes[d]} of {d} × " for d in grid)
    return render(
        "sweep.html",
        title=title,
        summary=f"{settings}{data.sizes['seed']} seeds, {made.get('iterations', '?')} iterations; groups: "
        f"{made.get('expectation', '?')} ({made.get('because', 'as asked')}).",
        warnings=list(filter(None, [non_finite(data)])),
        figures=list(_figures(data, grid)),
        when=f"At iteration {int(data.iteration[-1])}" if "iteration" in data.dims else "Averages",
        head=head,
        rows=rows,
        left_out=left_out,
        configuration=_pretty(made.get("config", "")),
        loading=f'data = grpo_jax.load("{folder}")' if folder else "data",
        made=", ".join(f"{name} {made[name]}" for name in sorted(made) if _short(made[name])),
    )


def _short(value: Any) -> bool:
    return isinstance(value, (int, float)) or (isinstance(value, str) and len(value) < 40)


def _pretty(text: Any) -> str:
    try:
        return json.dumps(json.loads(text), indent=1, ensure_ascii=False)
    except (TypeError, ValueError):
        return str(text)


def _plain(data: xr.Dataset, grid: list[str]) -> list[str]:
    """Names of what has no axes of its own."""
    known = {*grid, "seed", "iteration"}
    return [
        str(n)
        for n, v in data.data_vars.items()
        if n != "finite" and set(map(str, v.dims)) <= known and "seed" in v.dims
    ]


def _table(last: xr.Dataset, grid: list[str]) -> tuple[list[str], list[list[str]], list[str]]:
    """Headings, a row for each setting, and what was left out."""
    names, rows = _plain(last, grid), list[list[str]]()
    for place in np.ndindex(*(last.sizes[d] for d in grid)):
        if len(rows) == ROWS:
            break
        one = last.isel(dict(zip(grid, place, strict=True)))
        labels = [label(last, d, i) for d, i in zip(grid, place, strict=True)]
        rows.append(labels + [_interval(one[n].values) for n in names])
    left_out = []
    every = math.prod(last.sizes[d] for d in grid)
    if every > len(rows):
        left_out.append(f"The first {len(rows)} of {every} settings are shown")
    own = sorted(set(map(str, last.data_vars)) - {*names, "finite"})
    if own:
        left_out.append(f"With axes of their own, and left out: {', '.join(own)}")
    return [*grid, *names], rows, left_out


def _interval(values: np.ndarray) -> str:
    """Mean ± half width of the t interval over finite runs."""
    values = values[np.isfinite(values)]
    if values.size == 0:
        return "not finite"
    if values.size == 1:
        return f"{values[0]:.4g}"
    half = stdtrit(values.size - 1, (1 + BAND) / 2) * values.std(ddof=1) / math.sqrt(values.size)
    return f"{values.mean():.4g} ± {half:.2g}"


def _figures(data: xr.Dataset, grid: list[str]) -> Iterator[Drawn]:
    """A picture of each measure: over iterations where settings are few, else over the longest axis."""
    count = math.prod(data.sizes[d] for d in grid)
    over_time = "iteration" in data.dims and data.sizes["iteration"] > 1 and count <= LINES
    if not over_time and not grid:
        return
    for name in _plain(data, grid)[:PICTURES]:
        values = data[name]
        if not np.isfinite(values.values).any():
            continue
        axes = plotting.panels()
        if over_time:
            plotting.curves(axes, values, over="seed", by=tuple(grid) or None, x="iteration")
            said = "over iterations"
        else:
            shown, x, by, said = _at_the_end(values, grid)
            plotting.curves(axes, shown, over="seed", x=x, by=by)
        with tempfile.TemporaryDirectory() as folder:
            path = next(p for p in plotting.save(axes, Path(folder) / "figure") if str(p).endswith(".svg"))
            source = picture(Path(path))
        yield Drawn(f"{name} {said}", source, f"{name} {said}: mean over seeds in its 99.9 % band.")


def _at_the_end(values: xr.DataArray, grid: list[str]) -> tuple[xr.DataArray, str, str | None, str]:
    """The last iteration over the longest axis and one more; further axes are held at their first place."""
    last = values.isel(iteration=-1, drop=True) if "iteration" in values.dims else values
    order = sorted(grid, key=lambda d: -values.sizes[d])
    x, others = order[0], order[1:]
    by = others[0] if others and values.sizes[others[0]] <= LINES else None
    held = [d for d in others if d != by]
    shown = last.isel(dict.fromkeys(held, 0), drop=False)
    told = "".join(f", {d} {label(last, d, 0)}" for d in held)
    return shown.drop_vars(held), x, by, f"at the end over {x}{told}"
