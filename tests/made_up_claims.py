"""Claims that decide nothing, and the command that runs them."""

from pathlib import Path

import tyro

from experiments.__main__ import main

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = '''"""{says}

Refuted if the mean leaves its margin.
"""

import jax
import numpy as np
import xarray as xr

from experiments.harness.numbers import Number, mean
from experiments.harness.scripts import sizes
from grpo_jax import plotting

PRECISION = "{precision}"
SIZES = sizes(runs=(16, 16, 32))


def simulate(seed, size):
    return xr.Dataset({{"x": ("run", np.asarray(jax.random.uniform(jax.random.key(seed), (size.runs,))))}})


def check(data, claim):
    {check}
    claim.refutes("mean", mean(data.x, expected=0.5, tolerance={tolerance}))
    claim.reports("lost", Number(float("nan")))
    claim.finds("The mean is in the middle.", when=claim.numbers["mean"])
    row = claim.ours("The mean is far away.")
    row.refutes("mean", mean(data.x, expected=9.0, tolerance=0.1))


def draw(figure, data):
    plotting.panels(figure).plot(data.x)
'''


def says(claim: str) -> str:
    return f"Sentence of {claim}."


def write_claim(folder: Path, claim: str, *, check="pass", tolerance=0.5, precision="float32") -> None:
    text = SCRIPT.format(says=says(claim), check=check, tolerance=tolerance, precision=precision)
    (folder / f"{claim[0].lower()}{int(claim[1:]):02d}_noun.py").write_text(text)


def cli(*arguments: object) -> int:
    return tyro.cli(main, args=[str(argument) for argument in arguments])
