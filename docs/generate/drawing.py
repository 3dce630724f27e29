"""The explorers' pages: their charts as Vega-Lite, and the script that draws them."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any

import altair as alt
import vl_convert

from docs.generate.explorer import Explorer, fill
from docs.generate.explorers import EXPLORERS
from docs.generate.text import page

COLOURS = ["#2b8cd6", "#d9742b", "#2aa37a", "#b06bc4"]
"""Told apart on white and on dark, and by readers who see no red or green."""
DASHES = [[1, 0], [7, 3], [2, 3], [9, 3, 2, 3]]
FAINT = "rgba(128, 128, 128, 0.3)"


def pages() -> Iterator[tuple[str, str]]:
    """(address in the site, Markdown) of every explorer; what it shows is computed here."""
    for explorer in EXPLORERS:
        yield f"explore/{explorer.name}.md", explorer_page(explorer)


def explorer_page(explorer: Explorer) -> str:
    """In Markdown: the sentence and the numbers at the start, and the dataset that sliders look up."""
    data = explorer.dataset()
    shown = explorer.shown(data)
    start = tuple(grid.values.index(grid.start) for grid in explorer.grids)
    given = {grid.name: grid.shown[k] for grid, k in zip(explorer.grids, start, strict=True)}
    values = given | {name: texts[start] for name, texts in shown.items()}
    payload = {
        "grids": [
            {"name": grid.name, "values": list(grid.values), "shown": grid.shown, "start": k}
            for grid, k in zip(explorer.grids, start, strict=True)
        ],
        "curves": [
            {
                "name": curve.name,
                "label": curve.label,
                "drawn": curve.drawn,
                "values": [float(v) if math.isfinite(v) else None for v in data[curve.name].values.ravel()],
                "shown": shown[curve.name].ravel().tolist(),
            }
            for curve in explorer.curves
        ],
        "says": explorer.says,
        "again": explorer.again,
        "chart": chart(explorer),
    }
    rows = [
        [explorer.grids[0].shown[k], *(shown[curve.name][(k, *start[1:])] for curve in explorer.curves)]
        for k in range(len(explorer.grids[0].values))
    ]
    return page(
        "explorer.md",
        explorer=explorer,
        start=start,
        sentence=fill(explorer.says, values),
        again=fill(explorer.again, values),
        rows=rows,
        payload=json.dumps(payload, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c"),
    )


def chart(explorer: Explorer) -> dict[str, Any]:
    """Vega-Lite: the rows of ``points`` at the signals ``at_<grid>``, which count a grid's values."""
    axis, *others = explorer.grids
    at = {grid.name: f"at_{grid.name}" for grid in explorer.grids}
    drawn = [curve.label for curve in explorer.curves if curve.drawn]
    y_scale = alt.Scale(type="log") if explorer.log_y else alt.Scale(zero=False)
    if explorer.span:
        y_scale.domain = list(explorer.span)
    series = {
        "color": alt.Color("curve:N", title=None, scale=alt.Scale(domain=drawn, range=COLOURS)),
        "strokeDash": alt.StrokeDash("curve:N", title=None, scale=alt.Scale(domain=drawn, range=DASHES)),
    }
    x = alt.X(
        "x:Q", title=axis.label, scale=alt.Scale(type="log" if explorer.log_x else "linear", nice=False)
    )
    y = alt.Y("y:Q", title=explorer.y, scale=y_scale)
    among = [f"datum.{grid.name} == {at[grid.name]}" for grid in others]
    points = alt.Chart(alt.NamedData("points")).transform_filter(" && ".join(among))
    here = points.transform_filter(f"datum.{axis.name} == {at[axis.name]}")
    layers = alt.layer(
        points.mark_line(clip=True, strokeWidth=2.5).encode(x=x, y=y, **series),
        here.mark_rule(color="gray", strokeDash=[3, 3]).encode(x=x),
        here.mark_point(filled=True, size=90, clip=True, opacity=1).encode(x=x, y=y, color=series["color"]),
    )
    signals = [alt.param(name=at[grid.name], value=grid.values.index(grid.start)) for grid in explorer.grids]
    return (
        layers.add_params(*signals)
        .properties(width="container", height=320, background="transparent")
        .configure_view(stroke=None)
        .configure_axis(
            labelColor="currentColor",
            titleColor="currentColor",
            domainColor=FAINT,
            tickColor=FAINT,
            gridColor=FAINT,
            labelFontSize=12,
            titleFontSize=13,
            titleFontWeight="normal",
            labelOverlap="greedy",
        )
        .configure_legend(
            orient="top",
            columns=1,
            labelColor="currentColor",
            labelFontSize=13,
            labelLimit=0,
            symbolType="stroke",
            symbolSize=900,
        )
        .to_dict()
    )


def script() -> str:
    """Vega, Vega-Lite and their embedding as one script that touches no other."""
    bundle = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")
    return f"// Vega, Vega-Lite, Vega-Embed; BSD-3-Clause\n(() => {{\n{bundle}\n}})();\n"
