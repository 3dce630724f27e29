"""The engine: results do not depend on layout, programs compile once, sweeps that cannot fit are refused."""

import dataclasses
import importlib
import threading
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr

import grpo_jax as gj
from grpo_jax import runtime, train
from grpo_jax.config import Config, Loop
from grpo_jax.measures import measure
from grpo_jax.policies.actions import ActionPolicy
from grpo_jax.records import recording
from grpo_jax.sweeps import sweep
from grpo_jax.sweeps.layout import Estimate, Layout, check_fits, estimate, layout
from grpo_jax.sweeps.program import Program, Request
from grpo_jax.sweeps.tuning import (
    PROBE,
    foreseen,
    foreseen_compiling,
    remember,
    remember_compiling,
    tuned,
)
from grpo_jax.tasks.questions import Questions

CONFIG = Config(
    policy=ActionPolicy.uniform(contexts=2, actions=3),
    task=Questions(table=np.array([[0.0, 1.0, 0.5], [0.2, 0.1, 0.9]])),
    loop=Loop(group_size=4, inner_steps=2),
)
RECORD = ("expected_reward", "kl_ref", "clip_fraction_high")


def module(name):
    """A module of the sweep; the function of that name hides the package from dotted paths."""
    return importlib.import_module(f"grpo_jax.sweeps.{name}")


def network_config():
    space = gj.Sequences(vocab=4, horizon=3, eos=3)
    network = gj.TransformerPolicy(space=space, prompt_length=1, width=4, layers=1, heads=1)
    task = gj.from_function([[0], [1]], lambda prompts, tokens, mask: mask[..., 0], space)
    return gj.Config(policy=network, task=gj.Verifiable(problems=task), loop=gj.Loop(prompts=2))


def swept(**layout):
    found = sweep(CONFIG, seeds=20, iterations=4, record=RECORD, progress=False, **layout)
    return {name: found[name].values for name in RECORD}


@pytest.fixture(scope="module")
def reference():
    """One run at a time: the same seeds through train.run without a runs axis of more than one."""
    runs = [
        train.run(CONFIG, train.init(CONFIG, np.array([seed])), iterations=4, record=RECORD)[1]
        for seed in range(20)
    ]
    return {name: np.stack([np.asarray(run[name])[:, 0] for run in runs]) for name in RECORD}


@pytest.mark.parametrize(
    ("chunk_size", "devices"), [(20, 1), (8, 1), (3, 1), (20, 2), (6, 2)], ids=lambda value: str(value)
)
def test_results_do_not_depend_on_chunks_or_devices(reference, chunk_size, devices):
    """Another chunk size vectorises another remainder, so the last bits may differ, no more than those."""
    found = swept(chunk_size=chunk_size, devices=devices)
    for name in RECORD:
        np.testing.assert_allclose(found[name], reference[name], rtol=2e-5, atol=2e-6, err_msg=name)


def test_results_do_not_depend_on_the_order_of_the_seeds():
    order = np.random.default_rng(0).permutation(20)
    found = sweep(CONFIG, seeds=order, iterations=4, record=RECORD, progress=False, chunk_size=20, devices=1)
    straight = swept(chunk_size=20, devices=1)
    for name in RECORD:
        np.testing.assert_array_equal(found[name].values, straight[name][order])


def test_a_device_computes_the_bits_that_a_chunk_of_its_size_computes():
    """Two devices share a chunk of 20: each computes what one device computes for chunks of 10."""
    two, one = swept(chunk_size=20, devices=2), swept(chunk_size=10, devices=1)
    for name in RECORD:
        np.testing.assert_array_equal(two[name], one[name])


@pytest.mark.parametrize(
    "layout", [{"chunk_size": 5, "devices": 2}, {"chunk_size": 0}, {"devices": 99}, {"devices": 0}]
)
def test_layouts_that_have_no_meaning_are_refused(layout):
    with pytest.raises(ValueError, match=r"devices|chunk_size"):
        swept(**layout)


def noted(notes):
    """A measure that leaves a note whenever JAX traces it."""

    @measure()
    def entropy(view):
        notes.append(1)
        return -jnp.sum(view.probabilities * jnp.log(view.probabilities), (0, 1))

    return {"spread_out": entropy}


def test_an_equal_sweep_neither_traces_nor_compiles_again():
    notes = []
    asked = {"measure": noted(notes), "seeds": 3, "iterations": 2, "progress": False}
    config = dataclasses.replace(CONFIG, loop=Loop(group_size=5))
    first = sweep(config, {"kl_coef": [0.1, 0.2]}, **asked)
    assert notes
    assert first.attrs["compilations"] == 1
    notes.clear()
    for other in ([0.1, 0.2], [0.2, 0.3]):
        again = sweep(config, {"kl_coef": other}, root=len(notes), **asked)
        assert again.attrs["compilations"] == 0
        assert not notes
    xr.testing.assert_equal(sweep(config, {"kl_coef": [0.1, 0.2]}, **asked), first)


@pytest.mark.parametrize(
    "plan", [{}, {"every": 3}, {"every": 2, "average_from": 3}, {"start": True}], ids=lambda p: "-".join(p)
)
def test_an_iteration_is_lowered_once(plan):
    asked = recording(CONFIG, RECORD, None, iterations=6, **plan)
    ready = train.ready(CONFIG, train.init(CONFIG, jnp.arange(3)))
    text = (
        jax.jit(train.advance, static_argnames=("iterations", "plan"))
        .lower(ready, train.init(CONFIG, jnp.arange(3)), 6, asked)
        .as_text()
    )
    assert text.count("func.func private @iterate") == 1


def test_every_core_is_kept_busy_by_threads_over_one_device(monkeypatch):
    """Parts are taken by as many threads as there are cores, and each gives what one thread alone gives."""
    monkeypatch.setattr(module("layout"), "cores", lambda: 3)
    working, most = [], []

    class Watched(module("program").Program):
        def __call__(self, *given):
            working.append(1)
            most.append(len(working))
            barrier.wait(timeout=60)
            found = super().__call__(*given)
            working.pop()
            return found

    barrier = threading.Barrier(3)
    monkeypatch.setattr(module("program"), "Program", Watched)
    config = dataclasses.replace(CONFIG, loop=Loop(group_size=7))
    found = sweep(config, seeds=300, iterations=3, record=RECORD, progress=False, chunk_size=100)
    assert max(most) == found.attrs["threads"] == 3
    barrier = threading.Barrier(1)
    alone = sweep(config, seeds=300, iterations=3, record=RECORD, progress=False, chunk_size=100, devices=1)
    assert alone.attrs["threads"] == 1
    for name in RECORD:
        np.testing.assert_array_equal(found[name].values, alone[name].values)


@pytest.mark.parametrize("networks", [False, True])
def test_the_compiler_is_asked_for_what_it_knows(networks):
    options = runtime.compiler_options(networks=networks)
    jax.jit(lambda x: 2 * x).lower(jnp.ones(3)).compile(compiler_options=options)
    assert ("xla_disable_hlo_passes" in options) == (jax.default_backend() == "cpu")
    assert not runtime._known({"xla_no_such_option": 1})


def test_a_run_inside_a_program_leaves_its_compilation_to_it():
    state = train.init(CONFIG, seed=jnp.arange(3))
    _, alone = train.run(CONFIG, state, iterations=2)
    _, inside = jax.jit(lambda: train.run(CONFIG, state, iterations=2))()
    _, traced = jax.jit(lambda c, s: train.run(c, s, iterations=2))(CONFIG, state)
    for name in alone:
        np.testing.assert_allclose(alone[name], inside[name], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(alone[name], traced[name], rtol=1e-5, atol=1e-6)


def test_no_kernel_is_split_over_threads():
    request = Request(2, recording(CONFIG, RECORD, None, iterations=2))
    program = Program(train.ready(CONFIG, train.init(CONFIG)), (), request, Layout(chunk_size=1024, chunks=1))
    program.compile()
    assert 'outer_dimension_partitions":["' not in program.compiled.as_text()


def test_an_estimate_counts_updates_and_bytes():
    shape = layout(CONFIG, 1000, 30, chunk_size=100, devices=1)
    wanted = estimate(CONFIG, shape, 1000, iterations=10, numbers=30)
    assert wanted.updates == 1000 * 10 * 2
    assert wanted.output == 1000 * 30 * 4
    assert wanted.memory >= shape.runs * 30 * 4


def test_a_sweep_that_cannot_fit_is_refused_with_a_suggestion():
    wanted = Estimate(updates=1, output=2**40, memory=2**20)
    with pytest.raises(MemoryError, match="record_every"):
        check_fits(wanted, 2**30, streamed=False)
    check_fits(wanted, 2**30, streamed=True)
    check_fits(wanted, None, streamed=False)


def test_a_hopeless_sweep_is_refused_before_anything_compiles():
    with pytest.raises(MemoryError, match="out="):
        sweep(CONFIG, seeds=2_000_000, iterations=100_000, progress=False)


def test_streamed_results_equal_those_in_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(module("runner"), "STREAM_BYTES", 0)
    plain = swept(chunk_size=4, devices=1)
    with sweep(
        CONFIG, seeds=20, iterations=4, record=RECORD, progress=False, chunk_size=4, devices=1, out=tmp_path
    ) as found:
        for name in RECORD:
            np.testing.assert_array_equal(found[name].values, plain[name])
    assert not list(tmp_path.glob(".array*"))


def test_a_tuned_chunk_size_is_remembered(tmp_path, monkeypatch):
    monkeypatch.setenv(runtime.CACHE, str(tmp_path / "jax"))
    request = Request(4, recording(CONFIG, RECORD, None, iterations=4))
    measured = []
    monkeypatch.setattr(
        module("tuning"),
        "_seconds_a_run",
        lambda config, axes, request, sizes, shape: measured.extend(sizes) or {w: 1 / w for w in sizes},
    )
    shape = Layout(chunk_size=1, chunks=1, devices=1, threads=2)
    first = tuned(CONFIG, (), request, runs=20_000, shape=shape)
    assert len(measured) == 3
    assert first.chunk_size == max(measured)
    assert first.seconds == 1 / first.chunk_size / PROBE
    assert tuned(CONFIG, (), request, runs=20_000, shape=shape) == first
    assert len(measured) == 3


@pytest.mark.parametrize("kind", ["table", "network"])
def test_tuning_a_network_is_bounded_and_asks_none_of_its_measures(monkeypatch, kind):
    """All held-out questions may take longer than training, and a round of a network as long as a sweep."""
    asked = []

    class Timed:
        def __init__(self, config, axes, request, shape):
            self.shape, self.names = shape, {name for name, _ in request.recording.measures}

        def compile(self):
            return 0.0

        def __call__(self, given, index, seeds):
            asked.append((self.shape.chunk_size, self.shape.chunks, self.names))

    monkeypatch.setattr(module("tuning"), "Program", Timed)
    monkeypatch.setattr(module("tuning"), "BUDGET", 0.0)
    config = CONFIG if kind == "table" else network_config()
    plan = recording(config, RECORD, {"own": lambda view: view.state.step}, iterations=4)
    shape = Layout(chunk_size=1, chunks=1, devices=1, threads=2)
    module("tuning")._seconds_a_run(config, (), Request(4, plan), [1, 2], shape)
    each = (4, {*RECORD, "own", "finite"}) if kind == "table" else (1, {"finite"})
    assert asked == [(1, *each)] * 2 + [(2, *each)] * 2  # once on every thread


def test_the_time_of_a_sweep_is_foreseen_from_the_last_one(tmp_path, monkeypatch):
    monkeypatch.setenv(runtime.CACHE, str(tmp_path / "jax"))
    one, two = (Layout(chunk_size=16, chunks=1, threads=n) for n in (1, 2))
    short, long = (Estimate(updates=n, output=0, memory=0) for n in (1_000, 50_000))
    assert foreseen(CONFIG, short, two) is None
    remember(CONFIG, short, two, 0.01)
    assert foreseen(CONFIG, short, two) is None
    remember(CONFIG, short, two, 4.0)
    assert foreseen(CONFIG, long, two) == pytest.approx(200.0)
    assert foreseen(CONFIG, long, one) is None
    other = network_config()
    assert foreseen(other, long, two) is None  # a table's pace says nothing of a network's
    remember(other, short, two, 4.0)
    assert foreseen(other, long, two) == pytest.approx(200.0)
    assert foreseen(CONFIG, short, two) == pytest.approx(4.0)


def test_the_time_of_compiling_is_foreseen_from_earlier_compilations(tmp_path, monkeypatch):
    monkeypatch.setenv(runtime.CACHE, str(tmp_path / "jax"))
    assert foreseen_compiling([]) == 0
    assert foreseen_compiling(["a" * 64]) is None
    for program, seconds in (("a", 2.0), ("b", 3.0), ("c", 10.0)):
        remember_compiling(program * 64, seconds)
    assert foreseen_compiling(["d" * 64, "e" * 64]) == pytest.approx(6.0)
    remember_compiling("a" * 64, 0.1)  # from the cache
    assert foreseen_compiling(["a" * 64, "d" * 64]) == pytest.approx(3.1)


@pytest.mark.parametrize("runs", [1, 7, 100, 5120, 70_000, 1_000_000])
@pytest.mark.parametrize("numbers", [5, 3_000, 10_000_000])
def test_parts_and_chunks_are_even_and_come_again_with_their_chunk_size(runs, numbers):
    for devices in (1, 2):
        if devices > runs:
            continue
        shape = layout(CONFIG, runs, numbers, devices=devices)
        assert layout(CONFIG, runs, numbers, chunk_size=shape.chunk_size, devices=devices) == shape
        parts = -(-runs // shape.runs)
        wasted = parts * shape.runs - runs
        assert wasted <= parts * max(32 * devices * shape.chunks, devices)


def test_an_estimate_reads_well():
    assert Estimate(updates=80, output=0, memory=0).sentence().startswith("80 updates, 0.0 MiB of results")
    long = Estimate(updates=200_000_000, output=2**20, memory=2**20, seconds=12.34).sentence()
    assert long.startswith("200 million updates, 1.0 MiB of results, about 1 MiB besides, about 12.3 s run")
    both = Estimate(updates=1, output=0, memory=0, seconds=2.0, compile_seconds=1.5).sentence()
    assert both.endswith("about 3.5 s (1.5 compiling)")


def test_an_unwritable_cache_warns_and_goes_on(tmp_path, monkeypatch):
    blocked = tmp_path / "file"
    blocked.write_text("")
    monkeypatch.setenv(runtime.CACHE, str(blocked / "below"))
    monkeypatch.setattr(runtime, "_setting", lambda name: None)
    with pytest.warns(UserWarning, match="cannot be written"):
        runtime.keep_compilations.__wrapped__()


def test_a_user_without_a_home_warns_and_goes_on(monkeypatch):
    """As in a container whose user has no entry: neither $HOME nor a line of the password file."""

    def homeless():
        raise RuntimeError("Could not determine home directory.")

    for name in (runtime.CACHE, "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(runtime.Path, "home", homeless)
    monkeypatch.setattr(runtime, "_setting", lambda name: None)
    assert runtime.cache_folder() is None
    with pytest.warns(UserWarning, match="this user has no home"):
        runtime.keep_compilations.__wrapped__()


def test_a_cache_that_is_switched_off_stays_off(monkeypatch):
    monkeypatch.setenv(runtime.CACHE, "")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        runtime.keep_compilations.__wrapped__()
    assert runtime.cache_folder() is None
