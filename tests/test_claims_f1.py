"""The rule that judges F1, with accuracies and lengths made up for the purpose."""

import numpy as np
import pytest
import xarray as xr

from experiments.claims import f01_long_chains as f1
from tests.made_up_claims import noisy, verdicts

SEEDS = range(6)
SHARES = [*f1.RARE, *f1.COMMON]


def numbers(rare, common, shares, **more):
    """``NUMBERS`` by share: the first ones at rare shares, the second ones at the others."""
    rows = [noisy(0.0, seed=SEEDS, number=f1.NUMBERS) + (rare if p in f1.RARE else common) for p in shares]
    return xr.concat(rows, xr.Variable("share", shares))


def said(sampled, greedy, length, tokens):
    return xr.DataArray([sampled, greedy, length, tokens], {"number": f1.NUMBERS})


def made_up(*, greedy=0.5, twice=0.5, common=0.99, after=0.99, grown=8.0, tokens=2.0, off=0.0):
    long = [said((1 + p) / 2 + off, common, 8.0, 11.0) for p in SHARES]
    short = [said((1 + p) / 2 + off, greedy, 3.0, tokens) for p in SHARES]
    once = xr.concat([numbers(s, w, [p]) for s, w, p in zip(short, long, SHARES, strict=True)], "share")
    again = numbers(said(0.6, twice, 3.0, 2.0), None, f1.RARE)
    start, end = once.sel(share=f1.RARE), numbers(said(0.97, after, 3.0 + grown, 11.0), None, f1.RARE)
    return {
        "imitated": xr.Dataset({"once": once}),
        "longer": xr.Dataset({"twice": again}),
        "reinforced": xr.Dataset({"told": xr.concat([start, end], xr.Variable("iteration", [0, 60]))}),
    }


@pytest.mark.parametrize(
    ("data", "wanted"),
    [
        (made_up(), ["reproduced"] * 3),
        (made_up(greedy=0.65), ["refuted", "reproduced", "reproduced"]),
        (made_up(greedy=0.35), ["refuted", "reproduced", "reproduced"]),
        (made_up(twice=0.7), ["refuted", "reproduced", "reproduced"]),
        (made_up(after=0.85), ["refuted", "reproduced", "reproduced"]),
        (made_up(common=0.8), ["not testable here", "reproduced", "not testable here"]),
        (made_up(grown=1.5), ["reproduced", "refuted", "reproduced"]),
        (made_up(tokens=3.0), ["reproduced", "reproduced", "refuted"]),
        (made_up(off=0.15), ["reproduced", "reproduced", "refuted"]),
    ],
)
def test_the_rule_on_long_chains(data, wanted):
    assert verdicts(f1, data) == wanted


def test_each_rare_share_is_judged_by_itself():
    data = made_up()
    data["reinforced"].told.loc[{"share": f1.RARE[1], "iteration": 60, "number": "greedy"}] = 0.6
    assert verdicts(f1, data)[0] == "refuted"
    assert np.isclose(float(data["imitated"].once.sel(share=0.1, number="greedy").mean()), 0.5, atol=0.01)
