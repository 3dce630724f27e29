"""Methods that divide by the length show the length bias; constant weights do not.

The summary that arXiv:2601.05002 draws from Table 1: the biases come with the weights, so a method that
divides by the length shows the length bias and pushes shared prefixes, and one with constant weights does
not. Refuted if GRPO, GRPO (V3.2), GSPO or CPPO do not shorten right answers against wrong ones by 0.3 tokens
at least, or if Dr. GRPO does so by as much. Qualified if a method with weights that are equal within a batch
(DAPO, GPG, CISPO) is not within 0.1 tokens of Dr. GRPO, on the same seeds, or if a method of the table does
not learn the task at all.
"""

from __future__ import annotations

import jax
import numpy as np
import xarray as xr

from experiments.problems.lengths import LEARNING, OPEN, RATES, correlation, table_runs
from experiments.problems.shared_prefix import DRIFTS, pushes
from experiments.verdict import judge, mean

CLAIM = "B7"
PAPER = "B"
PRECISION = "float64"

SIZES = {"smoke": 64, "quick": 128, "full": 1024}
BY_LENGTH = ("grpo", "grpo_v32", "gspo", "cppo")
EQUAL = ("dapo", "gpg", "cispo")
CONTRAST = 0.3
"""Tokens by which right answers get shorter against wrong ones, from which on a method counts as biased."""
MARGIN = 0.1
"""Tokens that do not count as a difference from Dr. GRPO."""


def simulate(key: jax.Array, size: str) -> xr.Dataset:
    """Every method of Table 1: pushes on prefixes, lengths, the value and the reward in training."""
    root = int(jax.random.key_data(key)[-1])
    seeds = np.arange(SIZES[size])
    adam = list(LEARNING).index("AdamW")
    runs = {
        name: {key: value[..., adam, :, :] for key, value in run.items()}
        for name, run in table_runs(root, seeds, size).items()
        if name != OPEN
    }
    lengths = np.array([run["length"][-1, :2] - run["length"][0, :2] for run in runs.values()])
    meters = np.array([correlation(run["surrogate"], run["expected_reward"]) for run in runs.values()])
    gained = np.array([run["expected_reward"][-1] - run["expected_reward"][0] for run in runs.values()])
    return xr.Dataset(
        {
            "push": (("row", "drift", "seed"), pushes(np.random.default_rng(root), len(seeds), list(runs))),
            "length": (("row", "kind", "rate", "seed"), lengths),
            "correlation": (("row", "rate", "seed"), meters),
            "gained": (("row", "rate", "seed"), gained),
        },
        coords={"row": list(runs), "drift": list(DRIFTS), "kind": ["right", "wrong"], "rate": RATES},
    )


def columns(data: xr.Dataset) -> dict[str, xr.DataArray]:
    """The table's columns, [method, seed] each."""
    contrast = data.length.sel(kind="right") - data.length.sel(kind="wrong")
    return {
        "prefix push,\non-policy": data.push.isel(drift=0),
        "prefix push,\ndrifted": data.push.isel(drift=1),
        "right − wrong,\ntokens, from 0.1": contrast.sel(rate=0.1),
        "right − wrong,\ntokens, from 0.5": contrast.sel(rate=0.5),
        "right − wrong,\ntokens, from 0.9": contrast.sel(rate=0.9),
        "value ~ reward,\ncorrelation": data.correlation.sel(rate=0.1),
        "reward gained\nfrom 0.1": data.gained.sel(rate=0.1),
    }


def check(data: xr.Dataset):
    """The length contrast of each method from 0.5, and whether it learns."""
    contrast = columns(data)["right − wrong,\ntokens, from 0.5"]
    numbers, words = {}, {}
    for name in data.row.values:
        here = contrast.sel(row=name)
        label = f"{name}: right - wrong, tokens"
        if name in BY_LENGTH:
            numbers[label] = mean(here, expected=-CONTRAST, relation="at most")
        elif name == "dr_grpo":
            numbers[label] = mean(here, expected=0, tolerance=CONTRAST)
        else:
            numbers[label] = mean(here)
        if name in EQUAL:
            paired = f"{name}: right - wrong, tokens, less Dr. GRPO's"
            numbers[paired] = mean(here - contrast.sel(row="dr_grpo"), expected=0, tolerance=MARGIN)
            words[paired] = "for weights that do not depend on the lengths in the group"
        gained = f"{name}: reward gained from 0.1"
        numbers[gained] = mean(data.gained.sel(row=name, rate=0.1), expected=0.1, relation="at least")
        words[gained] = f"for methods that learn this task, as {name} does not"
    refutes = [name for name, number in numbers.items() if number.expected is not None and name not in words]
    return judge(numbers, refutes=refutes, qualifies=words)


def draw(figure, data: xr.Dataset) -> None:
    """The table as a picture: numbers, and how strong each is in its column."""
    figure.set_size_inches(11.0, 4.6)
    axes = figure.subplots()
    shown = {name: column.mean("seed", skipna=True).values for name, column in columns(data).items()}
    values = np.array(list(shown.values())).T
    scale = np.nanmax(abs(values), axis=0)
    scale[-1] = np.inf  # learning is no bias: no colour
    axes.imshow(values / scale, cmap="RdBu_r", vmin=-1.6, vmax=1.6, aspect="auto")
    for row, column in np.ndindex(values.shape):
        value = values[row, column]
        text = "–" if np.isnan(value) else "0" if abs(value) < 1e-12 else f"{value:.2f}"
        axes.text(column, row, text, ha="center", va="center", fontsize=9)
    axes.set_xticks(range(len(shown)), list(shown), fontsize=8)
    axes.set_yticks(range(data.row.size), list(data.row.values), fontsize=9)
    axes.tick_params(length=0, top=True, labeltop=True, bottom=False, labelbottom=False)
    axes.spines[:].set_visible(False)
