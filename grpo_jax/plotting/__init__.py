"""Pictures of sweeps: curves with bands in three lines, and everything else that the papers' figures need.

    axes = plotting.panels()
    plotting.curves(axes, data.expected_reward, over="seed", by="learning_rate")
    plotting.save(axes, "curves")

Everything is drawn on Matplotlib's objects, without the global state of pyplot and without a change to a
user's settings, so it works in scripts without a screen, in other processes and in notebooks (end a cell in
a ``Figure``, or in ``axes.figure``). It is imported by itself, ``from grpo_jax import plotting``:
simulations need no Matplotlib.
"""

from grpo_jax.plotting.colors import COLORS, DIVERGING, SEQUENTIAL, shades
from grpo_jax.plotting.lines import curves
from grpo_jax.plotting.maps import heatmap, phases
from grpo_jax.plotting.marks import points, theory
from grpo_jax.plotting.ratios import ratio_histogram
from grpo_jax.plotting.rows import intervals
from grpo_jax.plotting.style import STYLE, figure, panels, save, styled
from grpo_jax.plotting.triangle import simplex

__all__ = [
    "COLORS",
    "DIVERGING",
    "SEQUENTIAL",
    "STYLE",
    "curves",
    "figure",
    "heatmap",
    "intervals",
    "panels",
    "phases",
    "points",
    "ratio_histogram",
    "save",
    "shades",
    "simplex",
    "styled",
    "theory",
]
