"""The fused kernel against the general path: the same draws, the same mathematics, interpreted on a CPU."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr

import grpo_jax as gj
from grpo_jax.fused import choice
from grpo_jax.fused.arrays import RUNS, NoLanesError, filled, known
from grpo_jax.fused.kernel import simulate
from grpo_jax.fused.lanes import Lanes
from grpo_jax.random import Stream, threefry2x32, uniforms
from grpo_jax.records import recording
from grpo_jax.sweeps import fusing
from grpo_jax.sweeps.axes import parse_axes
from grpo_jax.sweeps.layout import Layout
from grpo_jax.sweeps.program import Request, program_of
from grpo_jax.sweeps.work import Work
from tests.lanes import TABLE, WIDTH, by_block, configuration, generally, given, on_lanes


def numbers(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=(*shape, WIDTH)), jnp.float32)


REARRANGED = {
    "slices": lambda x: x[:, 1:, :] * x[:1, :-1],
    "steps": lambda x: x[:, ::2],
    "backwards": lambda x: x[::-1, ::-1],
    "concatenation": lambda x: jnp.concatenate([x, 2 * x[:, :1]], 1),
    "padding": lambda x: jnp.pad(x, ((0, 0), (1, 2), (0, 0)), constant_values=7),
    "transposition": lambda x: x.transpose(1, 0, 2),
    "reshape": lambda x: x.reshape(6, -1)[2:5],
    "copies": lambda x: jnp.broadcast_to(x[:, None], (2, 4, 3, x.shape[-1])),
    "counting": lambda x: x * jnp.arange(3)[:, None],
    "difference": lambda x: jnp.diff(x, axis=1),
    "a place": lambda x: jax.lax.dynamic_slice_in_dim(x, 2, 1, 1),
    "sums": lambda x: jnp.sum(x, (0, 1)),
    "one sum": lambda x: jnp.sum(x, 1, keepdims=True),
    "extremes": lambda x: jnp.max(x, 1) - jnp.min(x, 1),
    "any and all": lambda x: jnp.where(jnp.any(x > 1, 1) | jnp.all(x < 0.5, 1), 1.0, 2.0),
    "product": lambda x: jnp.prod(x, 0),
    "running sums": lambda x: jnp.cumsum(x, 1) + jax.lax.cumsum(x, 1, reverse=True),
    "a short loop": lambda x: jax.lax.scan(lambda c, row: (c * 2 + row, c), x[0], x)[1],
    "a loop": lambda x: jax.lax.scan(lambda c, _: (jnp.sin(c) + x[1], c[:1]), x[0], length=5)[1],
    "rounds": lambda x: jax.lax.fori_loop(0, 6, lambda i, c: c + i * x, x),
    "a shared sum": lambda x: x * jnp.sum(jnp.sin(jnp.arange(3.0))),
    "shared running sums": lambda x: x * jnp.cumsum(jnp.sin(jnp.arange(3.0)))[:, None],
    "shared rows": lambda x: jax.lax.scan(lambda c, s: (c + s * x[0], s), x[0], jnp.sin(jnp.arange(3.0)))[0],
    "shared rounds": lambda x: (
        x * jax.lax.scan(lambda c, _: (jnp.sin(c) + 0.1, c), jnp.float32(0.3), length=5)[1][1:4, None]
    ),
    "a branch": lambda x: jax.lax.cond(jnp.arange(4)[1] > 0, jnp.sin, jnp.cos, x),
    "a gradient": jax.grad(lambda x: jnp.sum(gj.kernels.log_softmax(x, 1)[:, 1] ** 2)),
}


@pytest.mark.parametrize("name", REARRANGED)
def test_an_operation_on_lanes_is_that_on_arrays(name):
    x = numbers(2, 3)
    np.testing.assert_allclose(on_lanes(REARRANGED[name], x), REARRANGED[name](x), rtol=1e-6, atol=1e-6)


def test_draws_on_lanes_are_the_draws_to_the_bit():
    seeds = jnp.array([0, 7, 2**32 - 1, 12], jnp.uint32)

    def drawn(seeds):
        return uniforms(jnp.uint32(5), seeds, jnp.uint32(9), Stream.TOKEN, (2, 3))

    found = on_lanes(drawn, seeds)
    for place in np.ndindex(2, 3):
        position = 3 * place[0] + place[1] + (int(Stream.TOKEN) << 28)
        key, counter = (jnp.uint32(5), seeds), (jnp.uint32(9), jnp.uint32(position))
        word = np.asarray(threefry2x32(key, counter)[0])
        np.testing.assert_array_equal(found[place], (word >> 8) / np.float32(2**24))


@pytest.mark.parametrize(
    ("function", "match"),
    [
        (lambda x: jnp.sort(x, 1), "sort"),
        (lambda x: x - jnp.sum(x, 2, keepdims=True), "over runs"),
        (lambda x: x[:, :, ::-1], "over runs"),
        (lambda x: jnp.cumsum(x, 2), "over runs"),
        (lambda x: jnp.pad(x, ((0, 0), (0, 0), (1, 0))), "over runs"),
        (lambda x: jnp.concatenate([x, x], 2), "over runs"),
        (lambda x: x[:, :, :2], "some of the runs"),
        (lambda x: x.reshape(2, -1), "moves runs"),
        (lambda x: jax.lax.while_loop(lambda i: i < 3, lambda i: i + 1, 0) + x, "while"),
    ],
)
def test_what_lanes_cannot_do_is_said(function, match):
    with pytest.raises(NoLanesError, match=match):
        on_lanes(function, numbers(2, 3))


def test_what_is_known_is_computed_while_tracing():
    trace = jax.make_jaxpr(lambda x: jnp.where(jnp.arange(3)[:, None] == 1, x, 0.0))(
        jax.ShapeDtypeStruct((3, RUNS), jnp.float32)
    )
    (found,) = Lanes((WIDTH, 1))(trace, [filled((3, 1), [*known([0.0, 1.0]), marked := jnp.float32(2)])])
    assert [float(element) for element in found.flat] == [0.0, 1.0, 0.0]
    assert marked == 2


CASES = {
    "penalty, swept clip": lambda: given(
        configuration(inner_steps=2), picked={"method.gain.high": [0.01, 0.1, 0.2, 0.4]}
    ),
    "one context, every output": lambda: given(
        configuration(gj.methods.dr_grpo, gj.SGD(learning_rate=0.3), table=[[1.0, 0.0, 1.0, 2.0]],
                      logits=[[0.0, 0.5, -0.5, 1.0]], group_size=3),
        record=["probabilities", "reward", "step_grad_norm"],
    ),
    "many inner steps, one for all": lambda: given(
        configuration(gj.methods.dapo, gj.HeavyBall(learning_rate=0.1), inner_steps=5, group_size=3),
        iterations=2, picked={"optimizer.learning_rate": [0.05, 0.1, 0.2, 0.4]},
        record=["step_surrogate", "clip_fraction_high"],
    ),
    "samples, rewards of their own, an old policy kept, thinned, from the start": lambda: given(
        dataclasses.replace(
            configuration(gj.methods.gspo, gj.Adam(learning_rate=0.2), group_size=3, refresh_every=2),
            expectation=gj.Sampled(),
        ),
        iterations=4, every=2, start=True,
        picked={"task.table": np.random.default_rng(4).choice([0.0, 1.0, 3.0], (2, 3, WIDTH))},
    ),
}  # fmt: skip


LONG = ("penalty, swept clip", "one context, every output")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name in LONG else []) for name in CASES]
)
def test_the_kernel_computes_what_the_general_path_does(name, x64):
    """In double precision to 1e-12: only the order of sums differs."""
    arguments = CASES[name]()
    found, wanted = by_block(*arguments), generally(*arguments)
    assert found.keys() == wanted.keys()
    for record, right in wanted.items():
        np.testing.assert_allclose(found[record], right, rtol=1e-12, atol=1e-12, err_msg=record)


@pytest.mark.slow
def test_in_single_precision_only_rounding_differs():
    arguments = given(configuration(inner_steps=2), picked={"method.gain.high": [0.01, 0.1, 0.2, 0.4]})
    found, wanted = by_block(*arguments), generally(*arguments)
    for record, right in wanted.items():
        np.testing.assert_allclose(found[record], right, rtol=1e-5, atol=1e-6, err_msg=record)


SMALL = configuration(
    gj.methods.dr_grpo,
    gj.SGD(learning_rate=0.5),
    table=[[1.0, 0.0]],
    logits=[[0.0, 0.5]],
    group_size=2,
)
SWEEP = {"axes": {"task.scale": [1.0, 2.0]}, "seeds": 3, "iterations": 4, "record_every": 2}
SWEEP |= {"record": ["expected_reward", "reward"], "progress": False}


def swept(config=SMALL, **changes):
    return gj.sweep(
        config, **(SWEEP | {"record": ["expected_reward", "reward"], "progress": False} | changes)
    )


def test_a_fused_sweep_is_the_sweep():
    """Six runs, fewer than a block; interpreted, so that it compiles."""
    general, fused = swept(), swept(fused=True)
    assert fused.attrs["fused"] == "yes"
    assert general.attrs["fused"] == "no: not on a GPU"
    for name, right in general.data_vars.items():
        assert fused[name].dims == right.dims
        np.testing.assert_allclose(fused[name], right, rtol=1e-5, atol=1e-6)


def test_a_sweep_that_is_not_fused_is_the_same_program_and_numbers(monkeypatch):
    made = []
    monkeypatch.setattr(
        "grpo_jax.sweeps.runner.program_of",
        lambda *given: made.append(program_of(*given)) or made[-1],
    )
    plain, forbidden = swept(), swept(fused=False)
    assert forbidden.attrs["fused"] == "no: as asked"
    assert made[0] is made[1]
    xr.testing.assert_equal(plain, forbidden)


def fails(*given, **named):
    raise RuntimeError("no such instruction\nand more")


def differs(*given, **named):
    return {name: value + 1 for name, value in generally(*given).items()}


@pytest.mark.parametrize(
    ("kernel", "reason"),
    [
        (fails, r"it does not compile here \(no such instruction\)"),
        (differs, "expected_reward agrees in 0% of the runs"),
    ],
)
def test_a_kernel_that_fails_or_differs_gives_way_with_one_warning(kernel, reason, monkeypatch):
    monkeypatch.setattr(fusing, "_tried", {})
    monkeypatch.setattr(choice, "untraceable", lambda *given: None)
    monkeypatch.setattr(choice, "simulate", kernel)
    with pytest.warns(
        UserWarning, match=f"the general path is taken, not the fused kernel: {reason}"
    ) as said:
        found = swept(fused=True)
    again = swept(fused=True)
    assert [warning.filename for warning in said] == [__file__]
    assert found.attrs["fused"].startswith("no: ")
    xr.testing.assert_equal(found, swept())
    xr.testing.assert_equal(again, found)


def test_a_step_that_cannot_be_traced_is_a_reason_and_no_error(monkeypatch):
    monkeypatch.setattr(choice, "simulate", fails)
    reason = choice.untraceable(*given(SMALL))
    assert reason == "its step cannot be traced on lanes (no such instruction)"


@pytest.mark.parametrize("worth", [True, False])
def test_on_a_gpu_a_long_sweep_is_fused_unasked(worth, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(fusing, "WORTH", 24 if worth else 25)
    monkeypatch.setattr(choice, "untraceable", lambda *given: None)
    monkeypatch.setattr(choice, "disagreement", lambda *given: None)
    config, _, seeds, _, _, plan = given(SMALL)
    axes = parse_axes(SMALL, SWEEP["axes"])
    work = Work([config], [axes], [], np.asarray(seeds[:3]), Request(4, plan), 0, [""])
    shape = Layout(chunk_size=6, chunks=1)
    asked, answers = fusing.requests(work, shape, None)
    assert [request.lanes for request in asked] == [worth]
    assert answers == (["yes"] if worth else ["no: too short to be worth compiling"])


def test_runs_agree_where_few_of_them_part():
    wanted = {"x": np.ones((2, 40)), "finite": np.ones((2, 40), bool), "n": np.full((2, 40), np.nan)}
    assert choice.unlike(wanted, wanted) is None
    for parted, allowed in ((2, True), (3, False)):
        found = wanted | {"x": np.where(np.arange(40) < parted, 1.5, 1.0) * np.ones((2, 1))}
        assert (choice.unlike(found, wanted) is None) == allowed
    assert "n agrees in 0%" in choice.unlike(wanted | {"n": np.zeros((2, 40))}, wanted)


@pytest.mark.parametrize(
    ("config", "plan", "devices", "match"),
    [
        (gj.Config(policy=gj.TreePolicy.uniform(gj.Sequences(vocab=2, horizon=2)),
                   task=gj.Questions(table=TABLE)), {}, 1, "not single actions"),
        (configuration(), {"average_from": 0}, 1, "averages"),
        (configuration(), {}, 2, "2 devices"),
        (configuration(prompts=4), {}, 1, "differs from run to run"),
        (configuration(minibatches=2), {}, 1, "differs from run to run"),
        (configuration(refill=gj.Refill(tries=2)), {}, 1, "differs from run to run"),
        (configuration(table=np.zeros((2, 40)), logits=np.zeros((2, 40))), {}, 1, "80 parameters"),
        (configuration(group_size=300), {}, 1, "600 draws"),
        (dataclasses.replace(configuration(), behavior=gj.Behavior(age=gj.Age(lag=1, depth=1))), {}, 1,
         "sampler of its own"),
    ],
)  # fmt: skip
def test_what_is_no_kernel_is_refused_with_the_reason(config, plan, devices, match):
    made = recording(config, ["reward"], None, iterations=4, **plan)
    assert match in choice.refusal(config, made, devices=devices)
    assert choice.refusal(configuration(), recording(configuration(), None, None, iterations=4)) is None


@pytest.mark.parametrize(
    ("changes", "error", "match"),
    [
        ({"fused": "yes"}, TypeError, "fused is 'yes'; it must be True, False or None"),
        ({"fused": True, "average_from": 0}, ValueError, "cannot be one kernel: averages"),
        ({"fused": True, "record": ["ratio_quantiles"]}, ValueError, "cannot be one kernel: .* no form on"),
        ({"fused": True, "axes": {"task.table": np.zeros((2, 1, 2)), "policy.logits": np.ones((2, 1, 2)),
                                  "task.scale": [1.0]}}, ValueError, "5 numbers of each run are swept"),
    ],
)  # fmt: skip
def test_what_cannot_be_fused_is_refused_before_compiling(changes, error, match, monkeypatch):
    monkeypatch.setattr("grpo_jax.sweeps.runner.program_of", fails)
    with pytest.raises(error, match=match):
        swept(**changes)


@pytest.mark.filterwarnings("ignore:The Pallas Triton backend is deprecated")
@pytest.mark.parametrize("case", CASES)
def test_every_kernel_lowers_for_a_gpu(case):
    """Until a newer JAX compiles while it lowers, Triton's lowering needs no GPU."""
    arguments = CASES[case]()
    traced = jax.jit(lambda *given: simulate(*given, *arguments[4:], interpret=False)).trace(*arguments[:4])
    try:
        lowered = traced.lower(lowering_platforms=("cuda",))
    except RuntimeError as error:
        if "No supported GPU" not in str(error):
            raise
        pytest.skip("this JAX asks for a GPU while it lowers")
    assert "triton" in lowered.as_text()
