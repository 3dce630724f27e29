"""A sweep equals a Python loop, is labelled, resumes, and refuses what has no meaning before it compiles."""

import dataclasses
import itertools
import json
import signal
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr

import grpo_jax as gj
from grpo_jax import methods, train
from grpo_jax.parts.gains import Linear
from grpo_jax.parts.penalties import K3, Penalty
from grpo_jax.sweeps import layout, runner, storage
from grpo_jax.sweeps.axes import resolve

TABLE = np.random.default_rng(1).normal(size=(2, 3))
SHORT = {"iterations": 6, "record_every": 3, "progress": False}


def config(**changes):
    base = gj.Config(
        policy=gj.ActionPolicy.uniform(contexts=2, actions=3),
        task=gj.Questions(table=TABLE),
        loop=gj.Loop(group_size=4, inner_steps=2),
        optimizer=gj.AdamW(learning_rate=0.05),
    )
    return dataclasses.replace(base, **changes)


def test_sweep_equals_a_python_loop(x64):
    base = config()
    data = gj.sweep(base, {"learning_rate": [0.01, 0.2], "kl_coef": [0.0, 0.3]}, seeds=[5, 2], **SHORT)
    assert data.expected_reward.dims == ("learning_rate", "kl_coef", "seed", "iteration")
    for rate in (0.01, 0.2):
        for coef in (0.0, 0.3):
            method = dataclasses.replace(base.method, penalty=Penalty(divergence=K3(), coef=coef))
            single = dataclasses.replace(base, method=method, optimizer=gj.AdamW(learning_rate=rate))
            for seed in (5, 2):
                info = train.run(single, train.init(single, seed), iterations=6, record_every=3)[1]
                cell = data.sel(learning_rate=rate, kl_coef=coef, seed=seed)
                for name, value in info.items():
                    np.testing.assert_allclose(cell[name].values, value, rtol=1e-9, atol=1e-12, err_msg=name)


def test_every_label_names_its_own_runs(x64):
    """Sizes that all differ, so that no two axes can be taken for each other; single runs at each label."""
    base = config()
    rates, coefs, sizes, seeds = (0.01, 0.05, 0.2), (0.0, 0.3), (3, 5), (5, 2, 7, 0)
    record = ("expected_reward", "probabilities")
    data = gj.sweep(
        base,
        {"learning_rate": rates, "kl_coef": coefs},
        variants={"loop.group_size": sizes},
        seeds=seeds,
        record=record,
        **SHORT,
    )
    assert data.expected_reward.shape == (2, 3, 2, 4, 2)
    for rate, coef, size in itertools.product(rates, coefs, sizes):
        single = dataclasses.replace(
            base,
            method=dataclasses.replace(base.method, penalty=Penalty(divergence=K3(), coef=coef)),
            optimizer=gj.AdamW(learning_rate=rate),
            loop=dataclasses.replace(base.loop, group_size=size),
        )
        state = train.init(single, np.array(seeds))
        info = train.run(single, state, iterations=6, record_every=3, record=record)[1]
        cell = data.sel({"learning_rate": rate, "kl_coef": coef, "loop.group_size": size})
        for name in record:
            runs = np.moveaxis(np.asarray(info[name]), -1, 0)  # [seeds, recorded, ...]
            found = cell[name].sel(seed=list(seeds)).values
            np.testing.assert_allclose(found, runs, rtol=1e-9, atol=1e-12, err_msg=f"{name} {rate} {coef}")


def test_a_root_is_the_root_of_every_draw(x64):
    base = config()
    swept = {root: gj.sweep(base, seeds=[4, 1], root=root, **SHORT) for root in (0, 3, 2**32 - 1)}
    for root, data in swept.items():
        for seed in (4, 1):
            info = train.run(base, train.init(base, seed, root=root), iterations=6, record_every=3)[1]
            np.testing.assert_allclose(data.reward.sel(seed=seed), info["reward"], rtol=1e-12)
    rewards = [data.reward.values for data in swept.values()]
    assert not any(np.array_equal(a, b) for a, b in itertools.combinations(rewards, 2))


def test_a_network_is_swept_as_a_table_is(x64):
    space = gj.Sequences(vocab=2, horizon=2)
    task = gj.SequenceReward(function=lambda prompts, tokens, mask: jnp.sum(tokens * mask, 2))
    base = gj.Config(policy=gj.MLPPolicy(space=space, width=3), task=task, loop=gj.Loop(group_size=4))
    data = gj.sweep(base, {"learning_rate": [0.01, 0.1]}, seeds=3, **SHORT)
    for i, rate in enumerate((0.01, 0.1)):
        single = dataclasses.replace(base, optimizer=gj.AdamW(learning_rate=rate))
        for seed in range(3):
            info = train.run(single, train.init(single, seed), iterations=6, record_every=3)[1]
            found = data.expected_reward.values[i, seed]
            np.testing.assert_allclose(found, info["expected_reward"], rtol=1e-9)


def test_draws_are_shared_and_survive_a_larger_grid():
    small = gj.sweep(config(), {"learning_rate": [0.01]}, seeds=2, chunk_size=2, devices=1, **SHORT)
    large = gj.sweep(config(), {"learning_rate": [0.2, 0.01]}, seeds=4, chunk_size=2, devices=1, **SHORT)
    np.testing.assert_array_equal(
        small.reward.sel(learning_rate=0.01), large.reward.sel(learning_rate=0.01, seed=[0, 1])
    )


@pytest.mark.parametrize(("chunk_size", "devices"), [(2, 1), (4, 2), (6, 1)])
def test_results_do_not_depend_on_chunks_or_devices(chunk_size, devices):
    asked = {"axes": {"kl_coef": [0.0, 0.1, 0.2]}, "seeds": 2, **SHORT}
    reference = gj.sweep(config(), chunk_size=1, devices=1, **asked)
    other = gj.sweep(config(), chunk_size=chunk_size, devices=devices, **asked)
    for name in reference.data_vars:
        np.testing.assert_allclose(reference[name], other[name], rtol=2e-5, atol=1e-6, err_msg=name)


def test_zipped_axes_share_a_dimension():
    pairs = [(0.01, 0.0), (0.02, 0.1), (0.03, 0.2)]
    data = gj.sweep(config(), {("learning_rate", "kl_coef"): pairs}, **SHORT)
    dim = "learning_rate+kl_coef"
    assert data.sizes[dim] == 3
    np.testing.assert_allclose(data.learning_rate, [0.01, 0.02, 0.03])
    np.testing.assert_allclose(data.kl_coef, [0.0, 0.1, 0.2])
    alone = gj.sweep(config(), {"learning_rate": [0.02], "kl_coef": [0.1]}, **SHORT)
    np.testing.assert_allclose(data.expected_reward[1], alone.expected_reward[0, 0], rtol=1e-5)


def test_tables_are_swept_by_label():
    tables = {"up": TABLE, "down": -TABLE}
    data = gj.sweep(config(), {"task.table": tables}, **SHORT)
    assert list(data["task.table"].values) == ["up", "down"]
    alone = gj.sweep(config(task=gj.Questions(table=-TABLE)), **SHORT)
    np.testing.assert_allclose(
        data.expected_reward.sel({"task.table": "down"}), alone.expected_reward, rtol=1e-5
    )


def test_labels_that_are_numbers_stay_numbers():
    """So that a sweep of tables by one number can be selected, sorted and drawn by it."""
    zipped = {2.0: (0.1, 0.0), 0.5: (0.2, 0.1)}
    axes = {"task.table": {0.25: TABLE, 1: TABLE + 1}, ("learning_rate", "kl_coef"): zipped}
    data = gj.sweep(config(), axes, seeds=2, **SHORT)
    assert data["task.table"].dtype == float
    assert list(data["learning_rate+kl_coef"].values) == [2.0, 0.5]
    whole = data.expected_reward.sel({"task.table": 1.0, "learning_rate+kl_coef": 0.5})
    alone = gj.sweep(
        config(task=gj.Questions(table=TABLE + 1)),
        {"learning_rate": [0.2], "kl_coef": [0.1]},
        seeds=2,
        **SHORT,
    )
    np.testing.assert_array_equal(whole.squeeze(), alone.expected_reward.squeeze())
    mixed = gj.sweep(config(), {"task.table": {"plain": TABLE, 1: TABLE + 1}}, **SHORT)
    assert list(mixed["task.table"].values) == ["plain", "1"]


def test_variants_compile_once_for_each_structure():
    mine = dataclasses.replace(methods.grpo, gain=Linear())
    near = dataclasses.replace(methods.grpo, penalty=Penalty(divergence=K3(), coef=0.5))
    variants = {"method": {"grpo": methods.grpo, "near": near, "mine": mine}, "loop.group_size": [4, 6]}
    data = gj.sweep(config(), variants=variants, seeds=2, **SHORT)
    assert data.reward.dims == ("algorithm", "loop.group_size", "seed", "iteration")
    assert data.attrs["compilations"] == 4  # (grpo = near in structure, mine) x two group sizes
    assert list(data.algorithm.values) == ["grpo", "near", "mine"]
    assert not np.allclose(data.kl_ref.sel(algorithm="grpo"), data.kl_ref.sel(algorithm="near"))


def test_attributes_hold_the_configuration():
    data = gj.sweep(config(), **SHORT)
    held = json.loads(data.attrs["config"])
    assert held["task"]["table"] == TABLE.tolist()
    assert held["method"]["gain"] == {"kind": "Clip", "low": 0.2, "high": 0.2}
    assert data.attrs["expectation"] == "Counts"
    assert "few actions" in data.attrs["because"]


def test_an_interrupted_sweep_goes_on(tmp_path, monkeypatch):
    arguments = {"seeds": 7, "out": tmp_path, "chunk_size": 2, "devices": 1, **SHORT}
    monkeypatch.setattr(layout, "PART_RUNS", 2)
    whole = gj.sweep(config(), **{**arguments, "out": None})
    written = []
    write = storage.Store.write

    def failing(store, variant, part, result):
        if part == 2:
            raise KeyboardInterrupt
        written.append(part)
        write(store, variant, part, result)

    with monkeypatch.context() as patch:
        patch.setattr(storage.Store, "write", failing)
        with pytest.raises(KeyboardInterrupt):
            gj.sweep(config(), **arguments)
    with pytest.raises(FileNotFoundError, match="unfinished"):
        gj.load(tmp_path)
    assert written == [0, 1]
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]
    monkeypatch.setattr(storage.Store, "write", lambda s, v, p, r: (written.append(p), write(s, v, p, r)))
    resumed = gj.sweep(config(), **arguments)
    assert written == [0, 1, 2, 3]
    xr.testing.assert_equal(resumed, whole)
    xr.testing.assert_equal(gj.load(tmp_path), whole)
    flipped = bytearray(store_path(tmp_path, 1).read_bytes())
    flipped[-1000] ^= 1
    store_path(tmp_path, 1).write_bytes(flipped)
    store_path(tmp_path, 0).rename(tmp_path / "x")
    store_path(tmp_path, 2).rename(store_path(tmp_path, 0))
    (tmp_path / storage.RESULT).write_bytes(b"")
    (tmp_path / storage.MANIFEST).write_bytes(b"")
    with pytest.warns(UserWarning, match="damaged and (written|computed) again") as said:
        mended = gj.sweep(config(), **arguments)
    assert written[4:] == [0, 1, 2]
    assert sorted(str(w.message).split(" ")[0].rsplit("/")[-1] for w in said) == [
        "manifest.json",
        "part-000-000000.nc",
        "part-000-000001.nc",
    ]
    xr.testing.assert_equal(mended, whole)
    xr.testing.assert_equal(gj.load(tmp_path), whole)


def store_path(folder, part):
    return folder / f"part-000-{part:06d}.nc"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_a_sweep_between_parts(tmp_path, monkeypatch, number):
    arguments = {"seeds": 7, "out": tmp_path, "chunk_size": 2, "devices": 1, **SHORT}
    monkeypatch.setattr(layout, "PART_RUNS", 2)
    before = signal.signal(number, signal.default_int_handler)  # in the background Ctrl-C is ignored
    write = storage.Store.write

    def signalled(store, variant, part, result):
        if part == 1:
            signal.raise_signal(number)
        write(store, variant, part, result)

    with monkeypatch.context() as patch:
        patch.setattr(storage.Store, "write", signalled)
        sentence = rf"stopped after part 3 of 4; the same call with out='{tmp_path}' goes on there"
        with pytest.raises(KeyboardInterrupt, match=sentence):
            gj.sweep(config(), **arguments)
    signal.signal(number, before)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["manifest.json"] + [
        store_path(tmp_path, part).name
        for part in range(3)  # the third was being computed
    ]
    written = []
    monkeypatch.setattr(storage.Store, "write", lambda s, v, p, r: (written.append(p), write(s, v, p, r)))
    resumed = gj.sweep(config(), **arguments)
    assert written == [3]
    xr.testing.assert_equal(resumed, gj.sweep(config(), **{**arguments, "out": None}))


def test_results_on_disk_equal_those_in_memory_bit_for_bit(tmp_path, monkeypatch):
    near = dataclasses.replace(methods.grpo, penalty=Penalty(divergence=K3(), coef=0.5))
    arguments = {
        "axes": {"learning_rate": [0.01, 0.2]},
        "variants": {"method": {"grpo": methods.grpo, "near": near}},  # one program
        "seeds": 5,
        "chunk_size": 4,
        "devices": 1,
        "record": ["reward", "finite", "ratio_quantiles", "probabilities"],
        **SHORT,
    }
    monkeypatch.setattr(layout, "PART_RUNS", 4)
    memory = gj.sweep(config(), **arguments)
    monkeypatch.setattr(runner, "STREAM_BYTES", 0)
    streamed = gj.sweep(config(), out=tmp_path, **arguments)
    for found in (streamed, gj.load(tmp_path)):
        assert set(found.variables) == set(memory.variables)
        for name in memory.data_vars:
            assert found[name].dtype == memory[name].dtype
            assert found[name].dims == memory[name].dims
            assert found[name].values.tobytes() == memory[name].values.tobytes(), name
        xr.testing.assert_equal(found, memory)
    streamed.close()
    assert sorted(p.name for p in tmp_path.iterdir() if not p.name.startswith("part-")) == [
        storage.MANIFEST,
        storage.RESULT,
    ]


def test_a_folder_that_cannot_be_used_is_refused_before_compiling(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(runner, "program_of", None)
    for out in (tmp_path / "file", "~/file/below", ""):
        with pytest.raises((OSError, ValueError), match=r"give a folder|path of a folder"):
            gj.sweep(config(), out=out, **SHORT)
    monkeypatch.setattr(storage.shutil, "disk_usage", lambda _: SimpleNamespace(free=10))
    with pytest.raises(OSError, match=r"needs about .* GiB of disk"):
        gj.sweep(config(), out="~/new", **SHORT)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "new"]


def test_another_sweep_in_the_folder_is_refused(tmp_path):
    gj.sweep(config(), out=tmp_path, **SHORT)
    for other, changed in (
        ((config(), {"kl_coef": [0.1]}), "axes"),
        ((config(task=gj.Questions(table=2 * TABLE)), None), "configurations"),
        ((config(loop=gj.Loop(group_size=5)), None), "programs"),
    ):
        with pytest.raises(ValueError, match=f"another sweep.*{changed}"):
            gj.sweep(*other, out=tmp_path, **SHORT)


@pytest.mark.parametrize(
    ("changes", "changed"),
    [({"seeds": [3, 2]}, "seeds"), ({"seeds": [2, 1]}, "seeds"), ({"root": 4}, "root")],
    ids=["others", "reordered", "root"],
)
def test_runs_of_other_draws_are_not_read_back(tmp_path, changes, changed):
    """As many runs of one program: nothing but what they are drawn from tells them apart."""
    asked = {"seeds": [1, 2], "out": tmp_path, "chunk_size": 2, "devices": 1, **SHORT}
    first = gj.sweep(config(), **asked)
    with pytest.raises(ValueError, match=rf"another sweep \(different: {changed}\)"):
        gj.sweep(config(), **{**asked, **changes})
    xr.testing.assert_equal(gj.sweep(config(), **asked), first)


def test_a_run_that_turns_non_finite_is_marked_and_alone():
    base = config(optimizer=gj.SGD(learning_rate=0.1), method=methods.dr_grpo)
    wild = gj.sweep(base, {"reward_scale": [1.0, 3e38]}, seeds=3, **SHORT)
    calm = gj.sweep(base, {"reward_scale": [1.0]}, seeds=3, **SHORT)
    assert not wild.finite.sel(reward_scale=3e38).isel(iteration=-1).all()
    assert wild.finite.sel(reward_scale=1.0).all()
    np.testing.assert_allclose(
        wild.reward.sel(reward_scale=1.0), calm.reward.sel(reward_scale=1.0), rtol=1e-5
    )


BAD = [
    ({"learning_rat": [0.1]}, None, ValueError, "did you mean optimizer.learning_rate"),
    ({"gain.hihg": [0.1]}, None, ValueError, "method.gain.high"),
    ({"coef": [0.1]}, None, None, ""),
    ({"eps": [0.1]}, None, ValueError, "could be .*optimizer.eps"),
    ({"group_size": [4, 8]}, None, ValueError, "structure.*variants=.*Traced"),
    ({"method.gain": [0.1]}, None, ValueError, "structure.*method.gain.low, method.gain.high"),
    ({"learning_rate": []}, None, ValueError, "empty"),
    ({"learning_rate": [-1.0]}, None, ValueError, "learning_rate is -1"),
    ({"learning_rate": [float("nan")]}, None, ValueError, "NaN"),
    ({"learning_rate": ["fast"]}, None, TypeError, "traced number"),
    ({"learning_rate": [0.1, [0.1, 0.2]]}, None, ValueError, "ragged"),
    ({("learning_rate", "kl_coef"): [(0.1, 0.0), (0.1,)]}, None, ValueError, "ragged"),
    ({"learning_rate": [0.1], "optimizer.learning_rate": [0.2]}, None, ValueError, "swept twice"),
    ({"task.table": [np.zeros((2, 2))]}, None, ValueError, r"shape \(2, 3\)"),
    ({"task.table": [np.full((2, 3), np.nan)]}, None, ValueError, "NaN"),
    (None, {"learning_rate": [0.1]}, ValueError, "traced number.*axes="),
    (None, {"method.gain": [0.1]}, TypeError, "method.gain.low"),
    (None, {"loop.group_size": [1]}, ValueError, "at least 2"),
    (None, {"loop.group_size": [2.5]}, TypeError, "whole number"),
]


@pytest.mark.parametrize(("axes", "variants", "error", "match"), BAD)
def test_bad_sweeps_are_refused_before_compiling(axes, variants, error, match, monkeypatch):
    monkeypatch.setattr(runner, "program_of", None)
    if error is None:
        assert resolve(config(), next(iter(axes)), static=False) == "method.penalty.coef"
        return
    with pytest.raises(error, match=match):
        gj.sweep(config(), axes, variants=variants, **SHORT)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"seeds": 0}, "seeds"),
        ({"seeds": [1, 1]}, "repeat"),
        ({"iterations": 5, "record_every": 2}, "multiple"),
        ({"devices": 99}, "this process has"),
        ({"chunk_size": 3, "devices": 2, "seeds": 6}, "multiple of the 2 devices"),
        ({"record": ("entropi",)}, "did you mean entropy"),
    ],
)
def test_bad_arguments_are_refused(changes, match):
    with pytest.raises(ValueError, match=match):
        gj.sweep(config(), **{**SHORT, **changes})


def test_exact_sweeps_decide_their_cells_by_every_table(x64):
    """A base table that ties has one reward level; the swept ones have three."""
    base = config(
        task=gj.Questions(table=np.zeros((2, 3))), expectation=gj.Exact(), optimizer=gj.SGD(learning_rate=0.5)
    )
    swept = gj.sweep(base, {"task.table": [TABLE, 0 * TABLE]}, **SHORT)
    alone = gj.sweep(dataclasses.replace(base, task=gj.Questions(table=TABLE)), **SHORT)
    np.testing.assert_allclose(swept.expected_reward[0], alone.expected_reward, rtol=1e-12)
    assert alone.expected_reward[0, -1] > TABLE.mean() + 0.05
    np.testing.assert_allclose(swept.expected_reward[1], 0, atol=1e-12)
