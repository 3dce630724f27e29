"""Claims that decide nothing, the command that runs them, and made-up data that claims' rules judge."""

from pathlib import Path

import numpy as np
import tyro
import xarray as xr

from experiments.__main__ import main
from experiments.harness.verdict import Claim

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


RNG = np.random.default_rng(0)


def noisy(value, spread=1e-3, **labels):
    """An array of this value with a little noise."""
    shape = [len(values) for values in labels.values()]
    return xr.DataArray(value + spread * RNG.normal(size=shape), labels)


def verdicts(module, data):
    """Of a claim's sentence and of its further rows, in order."""
    claim = Claim(module.__name__.rsplit(".", 1)[-1][:3].upper(), "sentence")
    module.check(data, claim)
    return [row.verdict().verdict for row in (claim, *claim.rows)]
