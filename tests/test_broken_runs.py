"""Runs that turn non-finite: marked, named with their settings, and alone."""

import dataclasses
import sys

import numpy as np
import xarray as xr

import grpo_jax as gj
from grpo_jax import methods
from grpo_jax.cli import commands
from grpo_jax.pages import sweep_page
from grpo_jax.sweeps.dataset import NAMED, label, non_finite

SHORT = {"iterations": 4, "record_every": 2, "progress": False, "devices": 1}


def config(**changes):
    base = gj.Config(
        policy=gj.ActionPolicy.uniform(contexts=2, actions=3),
        task=gj.Questions(table=[[1.0, 0.5, 0.0], [0.0, 1.0, 0.3]]),
        loop=gj.Loop(group_size=4, inner_steps=2),
        optimizer=gj.SGD(learning_rate=0.1),
        method=methods.dr_grpo,
    )
    return dataclasses.replace(base, **changes)


def marked(bad, dims=("rate", "kind", "seed", "iteration"), **coords):
    """A dataset whose last iteration has these runs broken; before, all are sound."""
    whole = np.stack([np.ones_like(bad), ~bad], -1)
    return xr.Dataset({"finite": (dims, whole), "reward": (dims, whole * 1.0)}, coords)


def test_runs_are_named_by_setting_and_seed():
    bad = np.zeros((2, 3, 4), bool)
    bad[1, 0, [0, 3]] = bad[0, 2, 1] = True
    coords = {"rate": [0.1, 1e-7], "kind": ["a", "<b>", "c"], "seed": [5, 6, 8, 2**32 - 1]}
    assert non_finite(marked(bad, **coords)) == (
        "3 of 24 runs turned non-finite: rate 0.1, kind c (seed 6); rate 1e-07, kind a (seeds 5, 4294967295)"
    )
    averages = marked(bad, **coords).isel(iteration=-1)
    assert non_finite(averages) == non_finite(marked(bad, **coords))
    assert non_finite(marked(bad & False, **coords)) is None
    alone = marked(bad[0, 2], ("seed", "iteration"), seed=[5, 6, 7, 8])
    assert non_finite(alone) == "1 of 4 runs turned non-finite: seed 6"


def test_many_are_cut_short():
    told = non_finite(marked(np.ones((NAMED + 1, 1, NAMED + 1), bool)))
    assert told.startswith(
        f"{(NAMED + 1) ** 2} of {(NAMED + 1) ** 2} runs turned non-finite: rate 0, kind 0 ("
    )
    assert told.count("rate ") == NAMED
    assert told.endswith(f"{NAMED - 1} …); …")


def test_a_zipped_setting_without_labels_is_named_by_its_numbers():
    data = gj.sweep(config(), {("learning_rate", "reward_scale"): [(0.1, 1.0), (0.2, 3e38)]}, **SHORT)
    assert [label(data, "learning_rate+reward_scale", i) for i in range(2)] == ["0.1, 1", "0.2, 3e+38"]
    assert "learning_rate+reward_scale 0.2, 3e+38 (seed 0)" in non_finite(data)
    assert "0.2, 3e+38" in commands.summary(data)
    assert "0.2, 3e+38" in sweep_page(data, title="zipped")


def test_neighbours_of_a_broken_run_are_those_of_a_sweep_without_it():
    """To the bit: in its chunk, in other chunks, and in a sweep that never had it."""
    seeds = {"seeds": 3, **SHORT}
    for chunk in (9, 3):
        wild = gj.sweep(config(), {"reward_scale": [1.0, 3e38, 2.0]}, chunk_size=chunk, **seeds)
        calm = gj.sweep(config(), {"reward_scale": [1.0, 0.5, 2.0]}, chunk_size=chunk, **seeds)
        assert not wild.finite.sel(reward_scale=3e38).isel(iteration=-1).any()
        for scale in (1.0, 2.0):
            for name in wild.data_vars:
                one, other = (data[name].sel(reward_scale=scale).values for data in (wild, calm))
                assert one.tobytes() == other.tobytes(), (chunk, scale, name)
    without = gj.sweep(config(), {"reward_scale": [1.0, 2.0]}, chunk_size=3, **seeds)
    for name in without.data_vars:
        kept = wild[name].sel(reward_scale=[1.0, 2.0]).values
        assert kept.tobytes() == without[name].values.tobytes(), name


def test_show_and_report_name_them(monkeypatch, capsys, tmp_path):
    axes = {"reward_scale": [1.0, 3e38], "learning_rate": [0.1, 0.2]}
    data = gj.sweep(config(), axes, seeds=[4, 7], record=["reward"], out=tmp_path, **SHORT)
    assert int(data.finite.isel(iteration=-1).sum()) == 4
    told = "4 of 8 runs turned non-finite: reward_scale 3e+38, learning_rate 0.1 (seeds 4, 7); reward_scale"
    for command in ("show", "report"):
        monkeypatch.setattr(sys, "argv", ["grpo_jax", command, str(tmp_path)])
        commands.main()
    assert told in capsys.readouterr().out
    assert told in (tmp_path / "report.html").read_text("utf-8")
