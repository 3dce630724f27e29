"""Written-out reductions, scans and softmaxes agree with the plain ones, in values and derivatives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from grpo_jax import kernels, runtime


def test_what_is_materialized_is_made_once_where_several_kernels_read_it():
    def program(x):
        made = kernels.materialize(jnp.exp(x) * 2)
        return made + 1, jnp.sin(made), made * x

    lowered = jax.jit(program).lower(jnp.ones((8, 64)))
    text = lowered.compile(compiler_options=runtime.compiler_options()).as_text()
    assert text.count(" exponential(") == 1


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


def test_what_is_materialized_is_itself_and_differentiates():
    x = jnp.arange(3.0)
    np.testing.assert_array_equal(kernels.materialize(x + 1), x + 1)
    for derivative in (jax.grad, jax.jacfwd):
        np.testing.assert_array_equal(derivative(lambda x: jnp.sum(kernels.materialize(x**2)))(x), 2 * x)
    np.testing.assert_array_equal(jax.vmap(kernels.materialize)(x), x)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("length", [1, 7, 64, 65, 97, 1024, 1025])
@pytest.mark.parametrize("name", ["total", "least", "greatest"])
def test_reductions_of_any_length(name, length):
    x = np.random.default_rng(0).normal(size=(2, length, 3))
    theirs = {"total": np.sum, "least": np.min, "greatest": np.max}[name](x, 1, keepdims=True)
    np.testing.assert_allclose(getattr(kernels, name)(jnp.asarray(x), (1,)), theirs, atol=1e-11)
    spoilt = np.where(np.arange(length)[:, None] == length // 2, np.nan, x)
    assert np.isnan(getattr(kernels, name)(jnp.asarray(spoilt), (1,))).all()


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    "length", [2, 96, 1100, *(pytest.param(n, marks=pytest.mark.slow) for n in (40, 100))]
)
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


@pytest.mark.parametrize("options", [{}, runtime.compiler_options()], ids=["plain", "as runs"])
def test_a_long_sum_is_right_to_rounding(options):
    """4e5 terms in float32, equal ones and ones that cancel, in a compiled loop; a plain sum loses 1e-3."""
    count = 400_000
    constants = np.float32([0.3, 1e-3, -7.1])

    def mean(start):
        def term(i):
            swing = jnp.where(i % 2 == 0, 1e6, -1e6).astype(jnp.float32)
            return jnp.append(constants, jnp.float32(0.25) + swing) * start

        def body(i, kept):
            total, plain = kept
            return total.add(term(i)), plain + term(i)

        empty = kernels.LongSum.empty(constants.repeat(2)[:4])
        total, plain = jax.lax.fori_loop(0, count, body, (empty, jnp.zeros(4)))
        return total.value / count, plain / count

    exact = np.append(constants.astype(float), np.mean(np.float64(np.float32([1e6 + 0.25, -1e6 + 0.25]))))
    found, plain = jax.jit(mean).lower(np.float32(1)).compile(compiler_options=options)(np.float32(1))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, exact, rtol=2e-7)
    assert (np.abs(plain - exact)[:3] > 1e-4 * np.abs(exact)[:3]).all()


def test_a_long_sum_is_infinite_where_a_sum_is():
    total = kernels.LongSum.empty(np.zeros(3, np.float32))
    for term in ([np.inf, 1.0, 3e38], [1.0, np.nan, 3e38], [2.0, 1.0, 1.0]):
        total = total.add(np.float32(term))
    np.testing.assert_array_equal(total.value, [np.inf, np.nan, np.inf])


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("length", [2, 15, 16, 70])
def test_a_softmax_that_is_known_has_the_values_and_derivatives_of_one_that_is_not(length):
    rng = np.random.default_rng(length)
    logits, weight = (jnp.asarray(rng.normal(size=(2, length, 3))) for _ in range(2))
    known = kernels.softmax(logits, 1)
    np.testing.assert_allclose(known.p, jax.nn.softmax(logits, 1), rtol=1e-12)
    np.testing.assert_allclose(known.logp, jax.nn.log_softmax(logits, 1), rtol=1e-12)

    def through(log_softmax):
        return lambda x: jnp.sum(weight * jnp.sin(log_softmax(x)))

    ours = through(lambda x: kernels.known_log_softmax(x, known, 1))
    theirs = through(lambda x: jax.nn.log_softmax(x, 1))
    np.testing.assert_allclose(jax.grad(ours)(logits), jax.grad(theirs)(logits), rtol=1e-9, atol=1e-12)

    def twice(function):
        return jax.grad(lambda x: jnp.sum(weight * jax.grad(function)(x) ** 2))(logits)

    np.testing.assert_allclose(twice(ours), twice(theirs), rtol=1e-8, atol=1e-11)

    def forwards(function):
        return jax.jvp(lambda y: jax.jvp(function, (y,), (weight,))[1], (logits,), (weight,))[1]

    np.testing.assert_allclose(forwards(ours), forwards(theirs), rtol=1e-8)
