"""A lane for each question: axes told apart, sums across lanes, and whole runs against the general path."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import grpo_jax as gj
from grpo_jax.fused import choice
from grpo_jax.fused.arrays import NoLanesError
from grpo_jax.fused.kernel import simulate
from tests.lanes import WIDTH, by_block, by_question, configuration, generally, given


def numbers(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=(*shape, WIDTH)), jnp.float32)


ON_QUESTIONS = {
    "sums over actions": lambda x: jnp.sum(x, 1),
    "sums over questions": lambda x: jnp.sum(x, 0),
    "sums over both": lambda x: jnp.sum(x, (0, 1)),
    "deviations": lambda x: x - jnp.mean(x, 0, keepdims=True),
    "extremes": lambda x: jnp.max(x, 0) - jnp.min(x, 0),
    "greatest of whole numbers": lambda x: jnp.max(jnp.floor(3 * x).astype(jnp.int32), 0) * 1.0,
    "any and all": lambda x: jnp.where(jnp.any(x > 1, 0) | jnp.all(x < 0.5, 0), 1.0, 2.0),
    "transposition": lambda x: x.transpose(1, 0, 2),
    "actions backwards": lambda x: x[:, ::-1] + x[:, :1],
    "actions' running sums": lambda x: jnp.cumsum(x, 1),
    "actions padded": lambda x: jnp.pad(x, ((0, 0), (1, 2), (0, 0)), constant_values=7),
    "flat, counted, and back": lambda x: (
        x.reshape(-1, x.shape[-1]) * jnp.arange(x.shape[0] * x.shape[1])[:, None]
    ).reshape(x.shape),
    "actions before questions, counted": lambda x: x.transpose(1, 0, 2) * jnp.arange(len(x))[:, None],
    "flat sums": lambda x: jnp.sum(x.reshape(-1, x.shape[-1]), 0),
    "questions counted down": lambda x: (
        x * (jnp.uint32(2) - jnp.arange(len(x), dtype=jnp.uint32))[:, None, None].astype(jnp.int32)
    ),
    "questions counted": lambda x: x * (jnp.arange(len(x)) + 5)[:, None, None],
    "actions counted": lambda x: x * jnp.arange(x.shape[1])[:, None],
    "a known number of each question": lambda x: x * np.cos(np.arange(len(x)))[:, None, None],
    "a known sum": lambda x: x * jnp.sum(jnp.arange(len(x))) + len(x) / 7,
    "one question, chosen": lambda x: jnp.where(jnp.arange(len(x))[:, None, None] == 1, x, 0.0),
    "nothing but a mark": lambda x: jnp.where(jnp.arange(len(x))[:, None, None] > 0, 1.0, x),
    "rounds": lambda x: jax.lax.fori_loop(0, 5, lambda i, c: c + i * x - jnp.mean(c, 0), x),
    "rounds kept": lambda x: jax.lax.scan(lambda c, _: (jnp.sin(c), jnp.sum(c, 0)), x, length=5)[1],
    "a mark kept": lambda x: jax.lax.scan(
        lambda c, _: (jnp.sin(c), jnp.arange(len(x))[:, None] + c[:, 0]), x, length=3
    )[1],
    "a branch": lambda x: jax.lax.cond(jnp.arange(4)[1] > 0, jnp.sin, jnp.cos, x),
    "a gradient": jax.grad(lambda x: jnp.sum(gj.kernels.log_softmax(x, 1)[:, 1] ** 2 * jnp.mean(x, 0)[0])),
    "kernels' sums": lambda x: gj.kernels.total(x, (0, 1)) + gj.kernels.least(x, (0,)),
}  # fmt: skip


@pytest.mark.parametrize("questions", [4, 3])
@pytest.mark.parametrize("name", ON_QUESTIONS)
def test_an_operation_is_that_on_arrays_with_as_many_actions_as_questions(name, questions):
    """Four of both: extents tell nothing. Three questions leave a lane of four idle."""
    x, function = numbers(questions, 4), ON_QUESTIONS[name]
    np.testing.assert_allclose(by_question(function, x), function(x), rtol=1e-5, atol=1e-5)


def test_what_is_unknown_stays_unknown_in_extremes():
    x = numbers(4, 4).at[2, 1, 0].set(jnp.nan)
    found = by_question(lambda x: gj.kernels.greatest(x, (0, 1)), x)
    np.testing.assert_array_equal(np.isnan(found)[0, 0], [True, False, False, False])


@pytest.mark.parametrize(
    ("function", "match"),
    [
        (lambda x: jnp.sort(x, 0), "sort has no form"),
        (lambda x: x[::-1], "rev over questions"),
        (lambda x: x[:2], "some of the questions"),
        (lambda x: x[:-1], "another number of questions"),
        (lambda x: jax.lax.dynamic_slice_in_dim(x, 1, 1, 0), "dynamic_slice over questions"),
        (lambda x: jnp.cumsum(x, 0), "cumsum over questions"),
        (lambda x: jnp.prod(x, 0), "mul over questions"),
        (lambda x: jnp.concatenate([x, x], 0), "concatenate over questions"),
        (lambda x: jnp.pad(x, ((1, 0), (0, 0), (0, 0))), "another number of questions"),
        (lambda x: x.transpose(1, 0, 2).reshape(-1, x.shape[-1]), "moves questions"),
        (lambda x: x.reshape(-1, x.shape[-1]).reshape(x.shape[1], -1, x.shape[-1]), "moves questions"),
        (lambda x: x[:, None] * x[None], "questions on two axes"),
        (lambda x: jax.lax.scan(lambda c, row: (c + row, c), x[0] * 0, x)[1], "question"),
        (lambda x: 2 * x if len(x) == 4 else x, "another number of questions"),
        (lambda x: sum(jnp.sin(x) for _ in range(len(x) % 7)), "another number of questions"),
    ],
)  # fmt: skip
def test_what_mixes_questions_otherwise_has_no_form(function, match):
    with pytest.raises(NoLanesError, match=match):
        by_question(function, numbers(4, 4))


def test_questions_do_not_meet_actions_though_they_are_as_many():
    with pytest.raises(TypeError, match="incompatible shapes"):
        by_question(lambda x: x + x.transpose(1, 0, 2), numbers(4, 4))


def problem(questions, actions, method, optimizer, **loop):
    """Unequal tables with ties."""
    rng = np.random.default_rng(10 * questions + actions)
    table = rng.choice([0.0, 1.0, 2.0], (questions, actions))
    logits = rng.normal(size=(questions, actions))
    return configuration(method, optimizer, table=table, logits=logits, **loop)


CASES = {
    "penalty, swept clip": (2, lambda: given(
        configuration(optimizer=gj.SGD(learning_rate=0.1), inner_steps=2),
        picked={"method.gain.high": [0.01, 0.1, 0.2, 0.4]},
    )),
    "as many actions and answers as questions, thinned, from the start": (4, lambda: given(
        problem(4, 4, gj.methods.dr_grpo, gj.AdamW(learning_rate=0.1, weight_decay=0.01)),
        iterations=4, every=2, start=True, record=["probabilities", "reward", "prompt_reward"],
    )),
    "sums of tokens, many inner steps": (2, lambda: given(
        problem(2, 3, gj.methods.dapo, gj.HeavyBall(learning_rate=0.1), inner_steps=8, group_size=3),
        iterations=2, picked={"optimizer.learning_rate": [0.05, 0.1, 0.2, 0.4]},
        record=["expected_reward", "step_surrogate", "clip_fraction_high"],
    )),
    "a norm and a deviation of all questions": (4, lambda: given(
        problem(4, 2, gj.methods.reinforce_plus_plus,
                gj.optimizers.ClippedNorm(max_norm=0.05, inner=gj.SGD(learning_rate=2.0)), group_size=3),
        record=["expected_reward", "probabilities", "tied", "update_norm", "finite"],
    )),
    "three questions, a lane idle": (3, lambda: given(
        problem(3, 3, gj.methods.reinforce_plus_plus, gj.Adam(learning_rate=0.1), group_size=3),
        iterations=2, record=["expected_reward", "probabilities", "grad_norm"],
    )),
    "samples, tables of their own, an old policy kept": (2, lambda: given(
        dataclasses.replace(
            configuration(gj.methods.gspo, gj.Adam(learning_rate=0.2), group_size=3, refresh_every=2),
            expectation=gj.Sampled(),
        ),
        picked={"task.table": np.random.default_rng(4).choice([0.0, 1.0, 3.0], (2, 3, WIDTH))},
        record=["reward", "probabilities"],
    )),
}  # fmt: skip
BOTH = ("penalty, swept clip", "sums of tokens, many inner steps")
"""Compared with a lane for each run, too."""
LONG = ("penalty, swept clip",)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name in LONG else []) for name in CASES]
)
def test_a_lane_for_each_question_computes_what_the_general_path_does(name, x64):
    """In double precision to 1e-12: only the order of sums differs."""
    questions, make = CASES[name]
    arguments = make()
    found, wanted = by_block(*arguments, questions=questions), generally(*arguments)
    assert found.keys() == wanted.keys()
    by_run = by_block(*arguments) if name in BOTH else {}
    for record, right in wanted.items():
        assert found[record].shape == right.shape
        for one in [found[record], *([by_run[record]] if by_run else [])]:
            np.testing.assert_allclose(one, right, rtol=1e-12, atol=1e-12, err_msg=record)


SWEEP = {"axes": {"task.scale": [1.0, 2.0]}, "seeds": 3, "iterations": 2, "progress": False}
SMALL = configuration(
    gj.methods.dr_grpo,
    gj.SGD(learning_rate=0.5),
    table=[[1.0, 0.0], [0.0, 3.0]],
    logits=[[0.0, 0.5], [1.0, 0.0]],
    group_size=2,
)


@pytest.mark.parametrize(
    ("measure", "answer"),
    [
        ({}, "yes, a lane for each question"),
        ({"first": lambda view: view.state.params[0, 0]}, "yes"),
        ({"sorted": lambda view: jnp.sort(view.state.params, 0)[0, 0]}, None),
    ],
)
def test_a_sweep_takes_the_best_form_that_there_is(measure, answer):
    """A measure of one question leaves a lane for each run, and one that sorts leaves no kernel at all."""
    asked = SWEEP | {"record": ["expected_reward", "prompt_reward"], "measure": measure}
    if answer is None:
        with pytest.raises(ValueError, match=r"cannot be one kernel: .*sort"):
            gj.sweep(SMALL, **asked, fused=True)
        return
    fused, general = gj.sweep(SMALL, **asked, fused=True), gj.sweep(SMALL, **asked)
    assert fused.attrs["fused"] == answer
    for name, right in general.data_vars.items():
        np.testing.assert_allclose(fused[name], right, rtol=1e-5, atol=1e-6)


def test_what_a_lane_holds_decides_what_fits():
    wide = configuration(table=np.zeros((4, 40)), logits=np.zeros((4, 40)), group_size=300)
    plan = given(wide)[-1]
    assert choice.forms(wide) == [4, 1]
    assert choice.refusal(wide, plan, questions=4) is None
    assert "160 parameters" in choice.refusal(wide, plan)
    assert choice.forms(configuration(table=[[1.0, 0.0]], logits=[[0.0, 0.0]])) == [1]
    assert choice.forms(configuration(table=np.zeros((200, 2)), logits=np.zeros((200, 2)))) == [1]


def operations(questions, lanes):
    made = problem(questions, 2, gj.methods.dr_grpo, gj.SGD(learning_rate=0.1), group_size=2)
    arguments = given(made, record=["expected_reward"])
    trace = jax.make_jaxpr(lambda *a: simulate(*a, *arguments[4:], questions=lanes))(*arguments[:4])
    return choice.operations(trace.jaxpr)


def test_a_kernel_does_not_grow_with_questions_that_are_lanes():
    small, large = operations(2, 2), operations(8, 8)
    assert large < 1.2 * small
    assert operations(8, 1) > 3 * large


@pytest.mark.filterwarnings("ignore:The Pallas Triton backend is deprecated")
@pytest.mark.parametrize("name", CASES)
def test_every_kernel_with_lanes_for_questions_lowers_for_a_gpu(name):
    """Until a newer JAX compiles while it lowers, Triton's lowering needs no GPU."""
    questions, make = CASES[name]
    arguments = make()

    def kernel(*shared):
        return simulate(*shared, *arguments[4:], questions=questions, interpret=False)

    traced = jax.jit(kernel).trace(*arguments[:4])
    try:
        lowered = traced.lower(lowering_platforms=("cuda",))
    except RuntimeError as error:
        if "No supported GPU" not in str(error):
            raise
        pytest.skip("this JAX asks for a GPU while it lowers")
    assert "triton" in lowered.as_text()
