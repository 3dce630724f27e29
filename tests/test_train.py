"""What the training loop promises of steps, records and runs; its numbers: ``test_simulation.py``."""

import contextlib
import dataclasses
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax import methods, presets, sweep, train
from grpo_jax.config import Config, Loop
from grpo_jax.optimizers import SGD, Adam, ClippedNorm
from grpo_jax.part import number, part, put_all
from grpo_jax.parts.advantages import Normalized
from grpo_jax.policies import ActionPolicy
from grpo_jax.surrogate import Method
from grpo_jax.tasks import Questions

RNG = np.random.default_rng(11)
LOGITS, REFERENCE = RNG.normal(size=(4, 3)), RNG.normal(size=(4, 3))
TABLE = np.array([[0.1, 0.9, 0.4], [1.0, 0.0, 0.0], [0.3, 0.2, 0.8], [0.5, 0.5, 0.7]])
LOW, HIGH, COEF, RATE = 0.15, 0.1, 0.3, 0.9
ALL = (
    "expected_reward", "entropy", "kl_ref", "kl_ref_reverse", "reward", "length", "surrogate", "grad_norm",
    "update_norm", "clip_fraction_high", "clip_fraction_low", "ratio_min", "ratio_max", "ratio_quantiles",
    "tied", "probabilities",
)  # fmt: skip


def configured(**changes: Any) -> Config:
    base = Config(
        policy=ActionPolicy(logits=LOGITS),
        task=Questions(table=TABLE),
        method=put_all(methods.grpo, {"gain.low": LOW, "gain.high": HIGH, "penalty.coef": COEF}),
        optimizer=SGD(learning_rate=RATE),
        loop=Loop(group_size=6),
        reference=REFERENCE,
    )
    return dataclasses.replace(base, **changes)


LOOPS = {
    "inner_steps": Loop(group_size=6, inner_steps=3),
    "drawn_prompts": Loop(group_size=4, prompts=6, inner_steps=2, minibatches=3, refresh_every=2),
}


@pytest.mark.usefixtures("x64")
def test_one_step_is_what_run_scans():
    config = configured(loop=LOOPS["inner_steps"])
    state = train.init(config, 7)
    stepped = jax.jit(train.step)
    infos = []
    for _ in range(2):
        state, info = stepped(config, state)
        infos.append(info)
    last, scanned = train.run(config, train.init(config, 7), iterations=2)
    np.testing.assert_allclose(state.params, last.params, rtol=1e-13)
    assert set(infos[0]) == set(scanned)
    for name, values in scanned.items():
        np.testing.assert_allclose([info[name] for info in infos], values, rtol=1e-12, atol=1e-14)


def test_recording_every_third_iteration_thins_the_record():
    config = configured()
    every = train.run(config, train.init(config, 1), iterations=6, record=("entropy", "reward"))[1]
    third = train.run(
        config, train.init(config, 1), iterations=6, record_every=3, record=("entropy", "reward")
    )[1]
    for name in ("entropy", "reward", "finite"):
        np.testing.assert_allclose(third[name], every[name][2::3], rtol=1e-6)


def test_two_short_runs_equal_one_long_run_bit_for_bit():
    seeds = np.arange(5)
    config = configured(loop=LOOPS["drawn_prompts"], optimizer=Adam(learning_rate=np.linspace(0.01, 0.1, 5)))
    state, long = train.run(config, train.init(config, seeds), iterations=8)
    half, first = train.run(config, train.init(config, seeds), iterations=4)
    end, second = train.run(config, half, iterations=4)
    for ours, theirs in zip(jax.tree.leaves(end), jax.tree.leaves(state), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    for name, values in long.items():
        np.testing.assert_array_equal(np.concatenate([first[name], second[name]]), values, err_msg=name)


def swept(optimizer, r=slice(None)):
    """A configuration with a number or table of its own for every run, or the one of run r."""
    tables = TABLE[..., None] * np.array([1.0, 0.5, -1.0])
    starts = LOGITS[..., None] + np.array([0.0, 1.0, -0.5]) * np.eye(4, 3)[..., None]
    numbers = {
        "task.table": tables[..., r], "policy.logits": starts[..., r], "reference": starts[..., r] / 2,
        "method.gain.high": np.array([0.1, 0.3, 0.2])[r], "method.penalty.coef": np.array([0.0, 0.1, 1.0])[r],
    }  # fmt: skip
    return put_all(configured(optimizer=optimizer, loop=LOOPS["drawn_prompts"]), numbers)


@pytest.mark.usefixtures("x64")
def test_runs_as_the_last_axis_equal_runs_one_by_one():
    rates, seeds = np.array([0.3, 0.1, 0.5]), np.array([8, 8, 2])

    def optimizer(rate):
        return ClippedNorm(inner=Adam(learning_rate=rate), max_norm=rate)

    config = swept(optimizer(rates))
    state, info = train.run(config, train.init(config, seeds), iterations=3, record=ALL)
    for r in range(3):
        one = swept(optimizer(rates[r]), r)
        alone, told = train.run(one, train.init(one, seeds[r]), iterations=3, record=ALL)
        np.testing.assert_allclose(state.params[..., r], alone.params, rtol=1e-11, atol=1e-12)
        for name, values in told.items():
            np.testing.assert_allclose(info[name][..., r], values, rtol=1e-9, atol=1e-11, err_msg=name)


def test_a_run_that_turns_non_finite_is_marked_and_its_neighbours_do_not_notice():
    def trained(scale, rate):
        task = Questions(table=TABLE, scale=np.array([1.0, scale, 1.0], np.float32))
        optimizer = SGD(learning_rate=np.array([0.1, rate, 0.2], np.float32))
        config = configured(task=task, method=methods.dr_grpo, optimizer=optimizer)
        return train.run(config, train.init(config, np.arange(3)), iterations=4)

    (sick, info), (well, _) = trained(3e38, 100.0), trained(1.0, 0.1)
    assert info["finite"][-1].tolist() == [True, False, True]
    for r in (0, 2):
        np.testing.assert_array_equal(sick.params[..., r], well.params[..., r])
        assert all(np.isfinite(values[..., r]).all() for values in info.values())


def test_a_jitted_step_is_traced_once_whatever_its_numbers():
    chex.clear_trace_counter()
    stepped = jax.jit(chex.assert_max_traces(lambda c, s: train.step(c, s, record=["reward"]), n=1))
    state = train.init(configured(), 0)
    for rate in (0.1, 0.2, 0.3):
        state, info = stepped(configured(optimizer=SGD(learning_rate=rate)), state)
        chex.assert_shape(info["reward"], ())
    chex.assert_trees_all_equal_shapes(state, train.init(configured(), 0))


@pytest.mark.parametrize("preset", [{"use_vllm": True}, {}])
def test_corrections_of_a_sampler_that_is_not_apart_are_said_to_be_idle(preset):
    config = configured(method=presets.trl(**preset))
    state = train.init(config, 0)
    said = pytest.warns(UserWarning, match="SamplerM.* corrects? nothing here")
    with said if preset else contextlib.nullcontext():
        train.run(config, state, iterations=1, record=["reward"])


def test_a_correction_at_theta_is_idle_in_the_first_step_only():
    at_theta, at_old = presets.open_instruct(beta=0.0), presets.trl(use_vllm=True)
    once, twice = Loop(group_size=6), Loop(group_size=6, inner_steps=2)
    with pytest.warns(UserWarning, match="SamplerMismatch corrects nothing here"):
        train.warn_of_idle_corrections(configured(method=at_theta, loop=once))
    train.warn_of_idle_corrections(configured(method=at_theta, loop=twice))
    with pytest.warns(UserWarning, match="SamplerMask corrects nothing here"):
        train.warn_of_idle_corrections(configured(method=at_old, loop=twice))


TRACES = []


@part
class Traced:
    """A user's gain that leaves a note whenever JAX traces it."""

    power: Any = number(1.0)

    def __call__(self, at):
        TRACES.append(1)
        return at.advantages * jnp.exp(self.power * at.log_ratio)


def test_one_compile_per_structure_whatever_the_numbers():
    def go(power, rate, loop=Loop(group_size=6), seed=0):  # noqa: B008
        method = dataclasses.replace(methods.grpo, gain=Traced(power=power))
        config = configured(method=method, optimizer=SGD(learning_rate=rate), loop=loop)
        train.run(config, train.init(config, seed), iterations=2)
        return len(TRACES)

    go(1.0, 0.1, Loop(group_size=5))  # tries the gain, once for its structure
    TRACES.clear()
    first = go(1.0, 0.1)
    assert first > 0
    assert go(0.5, 0.3) == go(2.0, 0.01, seed=9) == go(1.0, 0.1, Loop(group_size=6)) == first
    assert go(1.0, 0.1, Loop(group_size=7)) == 2 * first


def test_an_iteration_is_traced_once_a_program_however_it_is_recorded():
    """Shapes of what a loop keeps come from the trace that the loop runs, or cost no optimizer step."""

    def traced(group, **told):
        config = configured(
            method=dataclasses.replace(methods.grpo, gain=Traced()), loop=Loop(group_size=group)
        )
        train.run(config, train.init(config, 0), iterations=4, record=["reward"], **told)  # tries the gain
        TRACES.clear()
        train.run(config, train.init(config, 0), iterations=8, record=["probabilities"], **told)
        once = len(TRACES)
        TRACES.clear()
        sweep(config, iterations=8, record=["probabilities"], progress=False, **told)
        return once, len(TRACES)

    plain = traced(9)
    assert min(plain) > 0
    assert traced(10, record_every=2) == traced(11, average_from=0.5) == plain
    assert plain[0] == plain[1]


def test_frozen_gradients_make_inner_steps_one_long_step():
    """First reading of [C]: the gradient stays at θ_old, so μ steps of SGD at η are one at μη.

    The second reading, the score at the current θ, goes elsewhere; but where the advantages of a group of
    single actions sum to zero both are Σ_i A_i e_{a_i} at any θ, and no training can tell them apart.
    """
    inner = Loop(group_size=6, inner_steps=4)

    def end(method, loop=inner, rate=RATE):
        config = configured(method=method, loop=loop, optimizer=SGD(learning_rate=rate))
        return np.asarray(train.run(config, train.init(config, 2), iterations=3)[0].params)

    raw = methods.reinforce.advantage
    both = methods.grpo_frozen, methods.grpo_score
    frozen, score = (dataclasses.replace(method, advantage=raw) for method in both)
    apart = end(frozen)
    np.testing.assert_allclose(apart, end(frozen, Loop(group_size=6), 4 * RATE), rtol=1e-4, atol=1e-5)
    assert np.abs(apart - end(score)).max() > 1e-2
    np.testing.assert_allclose(end(methods.grpo_frozen), end(methods.grpo_score), rtol=1e-4, atol=1e-5)


@part
class Half:
    """A user's advantage: half of the library's."""

    share: Any = number(0.5)

    def __call__(self, rollout, rewards):
        return self.share * Normalized()(rollout, rewards)


def test_a_users_own_parts_train_and_carry_numbers_per_run():
    method = Method(advantage=Half(share=np.array([0.5, 1.0])), gain=Traced())
    config = configured(method=method)
    state, _ = train.run(config, train.init(config, np.array([1, 1])), iterations=1)
    plain = configured(method=Method())
    alone, _ = train.run(plain, train.init(plain, 1), iterations=1)
    moved = state.params - LOGITS[..., None]
    np.testing.assert_allclose(moved[..., 1], alone.params - LOGITS, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(2 * moved[..., 0], moved[..., 1], rtol=1e-5, atol=1e-6)


@pytest.mark.usefixtures("x64")
def test_training_is_differentiable_in_its_numbers():
    """d(final reward)/d(learning rate) of four optimizer steps, against a finite difference."""
    method = dataclasses.replace(methods.dr_grpo, gain=Traced())

    @jax.jit
    def final(rate):
        optimizer, loop = SGD(learning_rate=rate), Loop(group_size=6, inner_steps=2)
        config = configured(method=method, optimizer=optimizer, loop=loop)
        return train.run(config, train.init(config, 0), iterations=2)[1]["expected_reward"][-1]

    slope, step = jax.jit(jax.grad(final))(0.1), 1e-6
    np.testing.assert_allclose(slope, (final(0.1 + step) - final(0.1 - step)) / (2 * step), rtol=1e-6)
    assert abs(slope) > 1e-3


def test_common_random_numbers_and_roots():
    config = configured()
    ends = {
        key: train.run(config, train.init(config, seed, root=root), iterations=1)[0].params
        for key, seed, root in (("a", 0, 0), ("b", 0, 1), ("c", 1, 0), ("d", 0, 0))
    }
    np.testing.assert_array_equal(ends["a"], ends["d"])
    assert not np.array_equal(ends["a"], ends["b"])
    assert not np.array_equal(ends["a"], ends["c"])


def test_a_reference_is_its_own_and_the_start_by_default():
    given = train.init(configured(), np.arange(2))
    np.testing.assert_allclose(given.ref_params[..., 1], REFERENCE, rtol=1e-6)
    start = train.init(configured(reference=None), 0)
    np.testing.assert_array_equal(start.ref_params, start.params)
