"""Rules that judge D7, with numbers made up for the purpose."""

import numpy as np
import pytest
import xarray as xr

from experiments.claims import d07_map
from experiments.harness.verdict import Claim
from experiments.problems.mismatches import ENGINES, ROWS


def mapped(**levels: float) -> dict[str, xr.Dataset]:
    """D7's data: every row trains at .9, PPO's clip below under fixed noise; ``levels`` by row there."""
    rng = np.random.default_rng(0)
    axes = {"kind": list(ENGINES), "row": ROWS}
    base = xr.DataArray(np.full((len(ENGINES), len(ROWS)), 0.9), axes, tuple(axes))
    whole = base.expand_dims(table=24).copy()
    whole.loc[{"row": "PPO's clip", "kind": "fixed"}] = 0.893
    for row, value in levels.items():
        whole.loc[{"row": row, "kind": "fixed"}] = value + 0.001 * rng.normal(size=24)
    update = xr.Dataset({"bias": base * 0 + 1, "variance": base * 0 + 1})
    quoted = whole.sel(row=["DPPO (TV)", "IPO"]).assign_coords(row=list(d07_map.QUOTED)).copy()
    found = {"whole": whole}
    return {"update": update, "training": xr.Dataset(found), "quoted": xr.Dataset({"whole": quoted})}


def judged(data: dict[str, xr.Dataset]) -> Claim:
    claim = Claim("D7", "It gains nothing.")
    d07_map.check(data, claim)
    return claim


@pytest.mark.parametrize(
    ("levels", "verdict"),
    [
        ({}, "reproduced"),
        ({"IcePop": 0.92}, "refuted"),
        ({"IcePop": 0.88}, "reproduced"),
        ({"none": 0.88}, "refuted"),
    ],
)
def test_d7_falls_with_one_correction_under_one_kind(levels, verdict):
    claim = judged(mapped(**levels))
    assert claim.verdict().verdict == verdict
    assert claim.roles["bfloat16: gain of the correction that gains most"] == "reports"


def test_d7_s_control_is_one_run():
    data = mapped()
    data["training"]["whole"].loc[{"kind": "same", "row": "IPO"}] += 0.01
    assert judged(data).verdict().verdict == "not testable here"


def test_d7_names_who_is_dominated():
    data = mapped()
    data["update"]["bias"].loc[{"row": "KPop", "kind": "fresh"}] = 1.02
    row = judged(data).rows[0]
    assert row.verdict().verdict == "reproduced"
    assert "none beats 2." in row.verdict().found
    assert "rows that none beats (PPO's clip, KPop)" in row.numbers
    data["update"]["variance"].loc[{"row": ["KPop", "PPO's clip"], "kind": "fixed"}] = 0.9
    assert judged(data).rows[0].verdict().verdict == "refuted"


def test_dominance_in_reward_that_is_not_sure_is_open():
    """KPop's only fault is lost reward: .006 on average, by questions from none to three times as much."""
    data = mapped()
    data["training"]["whole"].loc[{"row": "PPO's clip"}] = 0.9
    data["training"]["whole"].loc[{"row": "KPop", "kind": "fresh"}] = 0.894
    assert judged(data).rows[0].verdict().verdict == "reproduced"
    away = np.tile([0.0, -0.004, 0.01, -0.006], 6)
    data["training"]["whole"].loc[{"row": "KPop", "kind": "fresh"}] = 0.894 + away
    assert judged(data).rows[0].verdict().verdict == "not testable here"


@pytest.mark.parametrize("form", [1, 2])
@pytest.mark.parametrize(
    ("changed", "verdict"),
    [
        ({}, "reproduced"),
        ({"fixed": 0.895}, "refuted"),
        ({"expert": 0.89}, "refuted"),
        ({"fixed": 0.895, "fresh": 0.91}, "reproduced"),
    ],
)
def test_d7_on_the_abstract_s_last_sentence(form, changed, verdict):
    data = mapped()
    name = ("DPPO (TV)", "DPPO (KL)")[form - 1]
    for kind, value in changed.items():
        data["training"]["whole"].loc[{"row": name, "kind": kind}] = value
    rows = judged(data).rows
    assert rows[form].verdict().verdict == verdict
    assert rows[3 - form].verdict().verdict == "reproduced"


def test_a_lead_that_is_open_under_one_kind_is_open_although_it_fails_under_another():
    """What a selection once got wrong: bfloat16's lead of exactly 0 hid that of fixed noise."""
    data = mapped()
    values = 0.893 + 0.004 + 0.005 * np.random.default_rng(1).normal(size=24)
    data["training"]["whole"].loc[{"row": "DPPO (TV)", "kind": "fixed"}] = values
    row = judged(data).rows[1]
    assert row.verdict().verdict == "not testable here"
    assert row.numbers["greatest lead of DPPO (TV) over PPO's clip"].at == "fixed"


@pytest.mark.parametrize(
    ("wide", "narrow", "verdict"),
    [
        (0.91, 0.91, "reproduced"),
        (0.91, 0.9, "qualified"),
        (0.9, 0.91, "refuted"),
        (0.88, 0.91, "refuted"),
    ],
)
def test_d7_on_dppo_beside_ipo_at_the_source_s_masks(wide, narrow, verdict):
    data = mapped()
    data["quoted"]["whole"].loc[{"row": d07_map.QUOTED[0], "kind": "fixed"}] = wide
    data["training"]["whole"].loc[{"row": "DPPO (TV)", "kind": "fixed"}] = narrow
    assert judged(data).rows[3].verdict().verdict == verdict
