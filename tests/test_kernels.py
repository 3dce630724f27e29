"""The engine: results do not depend on layout, programs compile once, sweeps that cannot fit are refused."""

import dataclasses
import importlib
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from grpo_jax import kernels, runtime, train
from grpo_jax.config import Config, Loop
from grpo_jax.policies.actions import ActionPolicy
from grpo_jax.sweeps import sweep
from grpo_jax.sweeps.layout import Estimate, Shape, check_fits, estimate, layout
from grpo_jax.sweeps.program import Program, Request
from grpo_jax.sweeps.tuning import PROBE, foreseen, remember, tuned
from grpo_jax.tasks.questions import Questions

CONFIG = Config(
    policy=ActionPolicy.uniform(contexts=2, actions=3),
    task=Questions(table=np.array([[0.0, 1.0, 0.5], [0.2, 0.1, 0.9]])),
    loop=Loop(group_size=4, inner_steps=2),
)
RECORD = ("expected_reward", "kl_ref", "clip_high")


def module(name):
    """A module of the sweep; the function of that name hides the package from dotted paths."""
    return importlib.import_module(f"grpo_jax.sweeps.{name}")


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
    ("width", "devices"), [(20, 1), (8, 1), (3, 1), (20, 2), (6, 2)], ids=lambda value: str(value)
)
def test_results_do_not_depend_on_chunks_or_devices(reference, width, devices):
    """Another width vectorises another remainder, so the last bits may differ, and no more than those."""
    found = swept(width=width, devices=devices)
    for name in RECORD:
        np.testing.assert_allclose(found[name], reference[name], rtol=2e-5, atol=2e-6, err_msg=name)


def test_results_do_not_depend_on_the_order_of_the_seeds():
    order = np.random.default_rng(0).permutation(20)
    found = sweep(CONFIG, seeds=order, iterations=4, record=RECORD, progress=False, width=20, devices=1)
    straight = swept(width=20, devices=1)
    for name in RECORD:
        np.testing.assert_array_equal(found[name].values, straight[name][order])


def test_a_device_computes_the_bits_that_a_chunk_of_its_width_computes():
    """Two devices share a chunk of 20: each computes what one device computes for chunks of 10."""
    two, one = swept(width=20, devices=2), swept(width=10, devices=1)
    for name in RECORD:
        np.testing.assert_array_equal(two[name], one[name])


@pytest.mark.parametrize(
    "layout", [{"width": 5, "devices": 2}, {"width": 0}, {"devices": 99}, {"devices": 0}]
)
def test_layouts_that_have_no_meaning_are_refused(layout):
    with pytest.raises(ValueError, match=r"devices|width"):
        swept(**layout)


def test_one_trace_serves_every_value_of_a_number(monkeypatch):
    traces = []
    collect = train.step

    def counted(*args, **kwargs):
        traces.append(1)
        return collect(*args, **kwargs)

    monkeypatch.setattr(train, "step", counted)
    config = dataclasses.replace(CONFIG, loop=Loop(group_size=5))
    once = sweep(config, {"kl_coef": [0.0, 0.1]}, seeds=3, iterations=2, progress=False)
    first = len(traces)
    again = sweep(config, {"kl_coef": [0.2, 0.3]}, seeds=3, iterations=2, progress=False)
    assert first >= 1
    assert len(traces) == first
    assert once.attrs["compilations"] == again.attrs["compilations"] == 1


def test_the_compiler_is_asked_for_what_it_knows():
    options = runtime.compiler_options()
    jax.jit(lambda x: 2 * x).lower(jnp.ones(3)).compile(compiler_options=options)
    assert ("xla_disable_hlo_passes" in options) == (jax.default_backend() == "cpu")
    assert not runtime._known({"xla_no_such_option": 1})


def test_what_is_settled_is_made_once_where_several_kernels_read_it():
    def program(x):
        made = kernels.materialize(jnp.exp(x) * 2)
        return made + 1, jnp.sin(made), made * x

    lowered = jax.jit(program).lower(jnp.ones((8, 64)))
    text = lowered.compile(compiler_options=runtime.compiler_options()).as_text()
    assert text.count(" exponential(") == 1


def test_a_run_inside_a_program_leaves_its_compilation_to_it():
    state = train.init(CONFIG, seed=jnp.arange(3))
    _, alone = train.run(CONFIG, state, iterations=2)
    _, inside = jax.jit(lambda: train.run(CONFIG, state, iterations=2))()
    _, traced = jax.jit(lambda c, s: train.run(c, s, iterations=2))(CONFIG, state)
    for name in alone:
        np.testing.assert_allclose(alone[name], inside[name], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(alone[name], traced[name], rtol=1e-5, atol=1e-6)


def test_no_kernel_is_split_over_threads():
    request = Request(iterations=2, record_every=1, record=RECORD, root=0)
    program = Program(CONFIG, (), request, Shape(width=1024, chunks=1, devices=1))
    program.compile({})
    assert 'outer_dimension_partitions":["' not in program.compiled.as_text()


def test_an_estimate_counts_updates_and_bytes():
    shape = layout(CONFIG, 1000, 30, width=100, devices=1)
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
    plain = swept(width=4, devices=1)
    with sweep(
        CONFIG, seeds=20, iterations=4, record=RECORD, progress=False, width=4, devices=1, out=tmp_path
    ) as found:
        for name in RECORD:
            np.testing.assert_array_equal(found[name].values, plain[name])
    assert not list(tmp_path.glob(".array*"))


def test_a_tuned_width_is_remembered(tmp_path, monkeypatch):
    monkeypatch.setenv(runtime.CACHE, str(tmp_path / "jax"))
    request = Request(iterations=4, record_every=1, record=RECORD, root=0)
    measured = []
    monkeypatch.setattr(
        module("tuning"),
        "_seconds_a_run",
        lambda config, axes, request, widths, devices: measured.extend(widths) or {w: 1 / w for w in widths},
    )
    first = tuned(CONFIG, (), request, runs=20_000, devices=2)
    assert len(measured) == 3
    assert first.width == max(measured)
    assert first.seconds == 1 / first.width / PROBE
    assert tuned(CONFIG, (), request, runs=20_000, devices=2) == first
    assert len(measured) == 3


def test_the_time_of_a_sweep_is_foreseen_from_the_last_one(tmp_path, monkeypatch):
    monkeypatch.setenv(runtime.CACHE, str(tmp_path / "jax"))
    short, long = (Estimate(updates=n, output=0, memory=0) for n in (1_000, 50_000))
    assert foreseen(CONFIG, short, 2) is None
    remember(CONFIG, short, 2, 0.01)
    assert foreseen(CONFIG, short, 2) is None
    remember(CONFIG, short, 2, 4.0)
    assert foreseen(CONFIG, long, 2) == pytest.approx(200.0)
    assert foreseen(CONFIG, long, 1) is None


@pytest.mark.parametrize("runs", [1, 7, 100, 5120, 70_000, 1_000_000])
@pytest.mark.parametrize("numbers", [5, 3_000, 10_000_000])
def test_parts_and_chunks_are_even_and_come_again_with_their_width(runs, numbers):
    for devices in (1, 2):
        if devices > runs:
            continue
        shape = layout(CONFIG, runs, numbers, devices=devices)
        assert layout(CONFIG, runs, numbers, width=shape.width, devices=devices) == shape
        parts = -(-runs // shape.runs)
        wasted = parts * shape.runs - runs
        assert wasted <= parts * max(32 * devices * shape.chunks, devices)


def test_an_estimate_reads_well():
    assert Estimate(updates=80, output=0, memory=0).sentence().startswith("80 updates, 0.0 MiB of results")
    long = Estimate(updates=200_000_000, output=2**20, memory=2**20, seconds=12.34).sentence()
    assert long == "200 million updates, 1.0 MiB of results, about 1 MiB besides, about 12.3 s"


def test_an_unwritable_cache_warns_and_goes_on(tmp_path, monkeypatch):
    blocked = tmp_path / "file"
    blocked.write_text("")
    monkeypatch.setenv(runtime.CACHE, str(blocked / "below"))
    with pytest.warns(UserWarning, match="cannot be written"):
        runtime._keep_compilations()


def test_a_cache_that_is_switched_off_stays_off(monkeypatch):
    monkeypatch.setenv(runtime.CACHE, "")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        runtime._keep_compilations()
    assert runtime.cache_folder() is None


@settings(max_examples=30, deadline=None)
@given(
    values=arrays.arrays(np.float32, (2, 7, 3), elements=st.floats(-100, 100, width=32)),
    hole=st.booleans(),
)
def test_written_out_reductions_are_reductions(values, hole):
    if hole:
        values[0, 3, 1] = np.nan
    for ours, theirs in ((kernels.total, np.sum), (kernels.least, np.min), (kernels.greatest, np.max)):
        np.testing.assert_allclose(
            ours(values, (0, 1)), theirs(values, (0, 1), keepdims=True), rtol=1e-5, atol=1e-3
        )


@pytest.mark.usefixtures("x64")
def test_derivatives_of_written_out_sums():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 5, 3)))

    def ours(x):
        return jnp.sum(jnp.sin(kernels.total(x * x, (1,))) * kernels.log_softmax(x, 1))

    def theirs(x):
        return jnp.sum(jnp.sin(jnp.sum(x * x, 1, keepdims=True)) * jax.nn.log_softmax(x, 1))

    for derivative in (jax.grad, jax.jacfwd, jax.hessian):
        np.testing.assert_allclose(derivative(ours)(x), derivative(theirs)(x), atol=1e-12)


def test_a_bound_keeps_the_gradient_inside_and_at_the_bound():
    gradient = jax.vmap(jax.grad(lambda x: kernels.clamp(x, -1.0, 2.0)))
    np.testing.assert_array_equal(gradient(jnp.array([-1.5, -1.0, 0.0, 2.0, 2.5])), [0, 1, 1, 1, 0])
    assert np.isnan(kernels.clamp(jnp.float32(np.nan), -1.0, 2.0))


def test_what_is_settled_is_itself_and_differentiates():
    x = jnp.arange(3.0)
    np.testing.assert_array_equal(kernels.materialize(x + 1), x + 1)
    for derivative in (jax.grad, jax.jacfwd):
        np.testing.assert_array_equal(derivative(lambda x: jnp.sum(kernels.materialize(x**2)))(x), 2 * x)
    np.testing.assert_array_equal(jax.vmap(kernels.materialize)(x), x)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("length", [1, 7, 64, 65, 97, 1024, 1025])
@pytest.mark.parametrize("name", ["total", "least", "greatest"])
def test_folds_of_any_length(name, length):
    x = np.random.default_rng(0).normal(size=(2, length, 3))
    theirs = {"total": np.sum, "least": np.min, "greatest": np.max}[name](x, 1, keepdims=True)
    np.testing.assert_allclose(getattr(kernels, name)(jnp.asarray(x), (1,)), theirs, atol=1e-11)
    spoilt = np.where(np.arange(length)[:, None] == length // 2, np.nan, x)
    assert np.isnan(getattr(kernels, name)(jnp.asarray(spoilt), (1,))).all()


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("length", [2, 40, 96, 100, 1100])
def test_log_softmax_of_any_length_and_its_derivatives(length):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(1, length, 2)))
    weight = jnp.asarray(np.random.default_rng(1).normal(size=x.shape))

    def ours(x):
        return jnp.sum(weight * kernels.log_softmax(x, 1))

    def theirs(x):
        return jnp.sum(weight * jax.nn.log_softmax(x, 1))

    np.testing.assert_allclose(kernels.log_softmax(x, 1), jax.nn.log_softmax(x, 1), atol=1e-12)
    np.testing.assert_allclose(jax.grad(ours)(x), jax.grad(theirs)(x), atol=1e-12)
    np.testing.assert_allclose(jax.jvp(ours, (x,), (weight,)), jax.jvp(theirs, (x,), (weight,)), atol=1e-10)


def pulled_back(logits, cotangent):
    """The gradient of Σ_k c_k log softmax(θ)_k."""
    return np.asarray(jax.vjp(lambda x: kernels.log_softmax(x, 1), logits)[1](cotangent)[0])


@pytest.mark.parametrize("size", [1e30, 1.0, 1e-30])
@pytest.mark.parametrize("length", [5, 70, 1100])
def test_what_only_rounding_keeps_from_zero_is_zero(length, size):
    """Advantages of a group sum to 0, so an output that was not drawn has gradient −π·0 = 0."""
    rng = np.random.default_rng(0)
    logits = jnp.asarray(rng.normal(size=(50, length)), jnp.float32)
    rewards = rng.random((50, 4))
    advantages = (rewards - rewards.mean(1, keepdims=True)) / rewards.std(1, keepdims=True)
    drawn = np.zeros((50, length), np.float32)
    drawn[:, :4] = size * advantages
    assert (kernels.total(jnp.asarray(drawn), (1,)) != 0).any()
    found = pulled_back(logits, jnp.asarray(drawn))
    assert (found[:, 4:] == 0).all()
    np.testing.assert_allclose(found[:, :4], drawn[:, :4], rtol=1e-3)


@pytest.mark.usefixtures("x64")
def test_what_rounding_does_not_explain_stays():
    """A cotangent of sum 1e-12 among terms of 1 is resolved in float64, and kept."""
    logits = jnp.asarray([[0.3, -20.0, 1.0, 0.1]])
    cotangent = np.array([[0.5, 0.0, -0.5 + 1e-12, 0.0]])
    p = np.exp(logits) / np.exp(logits).sum()
    exact = cotangent - p * 1e-12
    np.testing.assert_allclose(pulled_back(logits, jnp.asarray(cotangent)), exact, rtol=1e-3)
    assert not np.isfinite(pulled_back(logits, jnp.asarray([[np.inf, 0.0, 1.0, 0.0]]))).any()
    assert np.isnan(pulled_back(logits, jnp.asarray([[np.nan, 0.0, 1.0, 0.0]]))).all()


@pytest.mark.parametrize("length", [1, 8, 33, 64, 1100])
def test_conditions_are_counted(length):
    values = jnp.asarray(np.random.default_rng(0).random((2, length, 3)))
    bounds = jnp.asarray(np.random.default_rng(1).random((2, 5, 3)))
    found = kernels.count(length, lambda i: kernels.at(values, i, 1) < bounds)
    brute = (np.asarray(values)[:, None] < np.asarray(bounds)[:, :, None]).sum(2)
    np.testing.assert_array_equal(found, brute)


@pytest.mark.parametrize("length", [1, 5, 40, 100, 1024, 1030])
def test_a_running_sum_is_a_running_sum(length):
    x = np.random.default_rng(0).normal(size=(2, length, 3)).astype(np.float32)
    np.testing.assert_allclose(kernels.cumulative(jnp.asarray(x), 1), np.cumsum(x, 1), rtol=1e-5, atol=1e-5)
