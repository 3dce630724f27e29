"""Optimizers against their equations in NumPy, and many runs against a loop over runs."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from grpo_jax import optimizers
from grpo_jax.optimizers import (
    L2,
    SGD,
    Adam,
    AdamW,
    ClippedNorm,
    Cosine,
    Custom,
    HeavyBall,
    Lion,
    RMSProp,
    Warmup,
)  # fmt: skip

STEPS = 6
RNG = np.random.default_rng(5)
START = RNG.normal(size=(2, 3))
GRADS = RNG.normal(size=(STEPS, 2, 3))
GRADS[:, 0, 0] = 0.0
GRADS[:3, 1, 1] = 0.0


@functools.partial(jax.jit, static_argnames="runs")
def trained(optimizer, start, grads, *, runs=False):
    """[STEPS, ...] parameters after every step on given gradients."""

    def body(carry, grad):
        params, state = carry
        updates, state = optimizers.update(optimizer, grad, state, params, runs=runs)
        params = jax.tree.map(jnp.add, params, updates)
        return (params, state), params

    carry = start, optimizers.init(optimizer, start, runs=runs)
    return jax.lax.scan(body, carry, grads)[1]


def rate(learning_rate, step):
    """Schedules written out."""
    if isinstance(learning_rate, Cosine):
        share = min(step / learning_rate.steps, 1.0)
        return learning_rate.init * (
            learning_rate.end + (1 - learning_rate.end) * (1 + np.cos(np.pi * share)) / 2
        )
    if isinstance(learning_rate, Warmup):
        return learning_rate.peak * min((step + 1) / learning_rate.steps, 1.0)
    return learning_rate


def quotient(a, b):
    return np.divide(a, b, out=np.zeros_like(a), where=a != 0)


def sgd(o, theta, g, memory, t):
    return theta - rate(o.learning_rate, t) * g


def heavy_ball(o, theta, g, memory, t):
    memory["m"] = o.momentum * memory.get("m", 0) + g
    return theta - rate(o.learning_rate, t) * memory["m"]


def rmsprop(o, theta, g, memory, t):
    memory["v"] = o.decay * memory.get("v", 0) + (1 - o.decay) * g**2
    return theta - rate(o.learning_rate, t) * quotient(g, np.sqrt(memory["v"] + o.eps))


def adam(o, theta, g, memory, t):
    memory["m"] = o.b1 * memory.get("m", 0) + (1 - o.b1) * g
    memory["v"] = o.b2 * memory.get("v", 0) + (1 - o.b2) * g**2
    m, v = memory["m"] / (1 - o.b1 ** (t + 1)), memory["v"] / (1 - o.b2 ** (t + 1))
    step = quotient(m, np.sqrt(v) + o.eps) + getattr(o, "weight_decay", 0.0) * theta
    return theta - rate(o.learning_rate, t) * step


def lion(o, theta, g, memory, t):
    m = memory.get("m", np.zeros_like(g))
    memory["m"] = o.b2 * m + (1 - o.b2) * g
    return theta - rate(o.learning_rate, t) * (np.sign(o.b1 * m + (1 - o.b1) * g) + o.weight_decay * theta)


def clipped(o, theta, g, memory, t):
    size = np.sqrt((g**2).sum())
    return by_hand(o.inner)(o.inner, theta, g * min(1.0, o.max_norm / size), memory, t)


def coupled(o, theta, g, memory, t):
    return by_hand(o.inner)(o.inner, theta, g + o.coef * theta, memory, t)


EQUATIONS = {
    SGD: sgd, HeavyBall: heavy_ball, RMSProp: rmsprop, Adam: adam, AdamW: adam, Lion: lion,
    ClippedNorm: clipped, L2: coupled,
}  # fmt: skip


def by_hand(optimizer):
    return EQUATIONS[type(optimizer)]


COSINE = Cosine(init=0.2, steps=4.0, end=0.1)
CASES = {
    "sgd": SGD(learning_rate=0.3),
    "sgd_cosine": SGD(learning_rate=COSINE),
    "sgd_warmup": SGD(learning_rate=Warmup(peak=0.2, steps=3.0)),
    "heavy_ball": HeavyBall(learning_rate=0.1, momentum=0.8),
    "rmsprop": RMSProp(learning_rate=0.1, decay=0.7, eps=1e-3),
    "rmsprop_eps0": RMSProp(learning_rate=0.1, decay=0.7, eps=0.0),
    "adam": Adam(learning_rate=0.1, b1=0.8, b2=0.95, eps=1e-2),
    "adam_eps0": Adam(learning_rate=0.1, eps=0.0),
    "adam_b0": Adam(learning_rate=0.1, b1=0.0, b2=0.0, eps=0.0),
    "adam_cosine": Adam(learning_rate=COSINE),
    "adamw": AdamW(learning_rate=0.1, b2=0.9, eps=1e-4, weight_decay=0.3),
    "lion": Lion(learning_rate=0.1, b1=0.7, b2=0.8, weight_decay=0.2),
    "clipped_sgd": ClippedNorm(inner=SGD(learning_rate=0.3), max_norm=1.5),
    "clipped_adamw": ClippedNorm(inner=AdamW(learning_rate=COSINE, weight_decay=0.1), max_norm=1.0),
    "l2": L2(inner=HeavyBall(learning_rate=0.1), coef=0.4),
}


@pytest.mark.parametrize("optimizer", CASES.values(), ids=CASES)
@pytest.mark.usefixtures("x64")
def test_every_step_is_the_equation(optimizer):
    theta, memory, expected = START, {}, []
    for t, g in enumerate(GRADS):
        theta = by_hand(optimizer)(optimizer, theta, g, memory, t)
        expected.append(theta)
    np.testing.assert_allclose(trained(optimizer, START, GRADS), expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", ["adam_eps0", "adam_b0", "rmsprop_eps0"])
def test_at_epsilon_zero_a_coordinate_without_gradient_stays(name):
    """In float32 too, where 0/0 is the artefact to avoid."""
    found = np.asarray(trained(CASES[name], START.astype(np.float32), GRADS.astype(np.float32)))
    assert np.isfinite(found).all()
    assert (found[:, 0, 0] == np.float32(START[0, 0])).all()
    assert (found[:3, 1, 1] == np.float32(START[1, 1])).all()
    assert found[3, 1, 1] != np.float32(START[1, 1])


RATES = np.array([0.1, 0.02, 0.3])
MANY = {
    "sgd": lambda lr: SGD(learning_rate=lr),
    "schedule": lambda lr: Adam(learning_rate=Cosine(init=lr, steps=30 * lr), eps=lr),
    "adamw": lambda lr: AdamW(learning_rate=lr, b1=1 - lr, weight_decay=lr),
    "clipped": lambda lr: ClippedNorm(inner=HeavyBall(learning_rate=lr, momentum=lr), max_norm=5 * lr),
    "clipped_schedule": lambda lr: ClippedNorm(inner=SGD(learning_rate=Cosine(init=0.1, steps=30 * lr))),
    "l2_clipped": lambda lr: L2(inner=ClippedNorm(inner=SGD(learning_rate=0.1), max_norm=lr), coef=lr),
    "custom": lambda lr: Custom(transformation=CHAIN),
}
CHAIN = optax.chain(optax.clip_by_global_norm(0.7), optax.scale_by_trust_ratio(), optax.adam(0.05))


@pytest.mark.parametrize("name", MANY)
@pytest.mark.usefixtures("x64")
def test_runs_as_the_last_axis_equal_a_loop_over_runs(name):
    start = np.stack([START, 3 * START, START + 1], -1)
    grads = np.stack([GRADS, 0.1 * GRADS, 5 * GRADS], -1)
    together = trained(MANY[name](RATES), start, grads, runs=True)
    for r, lr in enumerate(RATES):
        alone = trained(MANY[name](float(lr)), start[..., r], grads[..., r])
        np.testing.assert_allclose(together[..., r], alone, rtol=1e-13, atol=1e-15)


ALL = CASES | {"custom": Custom(transformation=CHAIN), "custom_lion": Custom(transformation=optax.lion(0.1))}


@pytest.mark.parametrize("optimizer", ALL.values(), ids=ALL)
@pytest.mark.usefixtures("x64")
def test_a_logit_of_minus_infinity_stays_and_is_read_by_nothing(optimizer):
    """Decay would be 0·inf. The others move as beside a parameter that is 0 and never has a gradient."""
    barred, zero = START.copy(), START.copy()
    barred[0, 0], zero[0, 0] = -np.inf, 0.0
    found, beside = (np.array(trained(optimizer, start, GRADS)) for start in (barred, zero))
    assert np.isneginf(found[:, 0, 0]).all()
    found[:, 0, 0] = beside[:, 0, 0]
    np.testing.assert_array_equal(found, beside)
    assert np.isfinite(found).all()
    assert np.abs(found[-1] - zero).max() > 0.01


@pytest.mark.usefixtures("x64")
def test_a_custom_transformation_is_itself():
    state, theta = CHAIN.init(START), START
    for g in GRADS:
        updates, state = CHAIN.update(jnp.asarray(g), state, theta)
        theta = theta + np.asarray(updates)
    found = trained(Custom(transformation=CHAIN), START, GRADS)[-1]
    np.testing.assert_allclose(found, theta, rtol=1e-12)


def test_a_run_that_overflows_leaves_a_clipped_neighbour_alone():
    start = np.ones((2, 3, 2), np.float32)
    grads = np.ones((STEPS, 2, 3, 2), np.float32)
    grads[..., 1] = np.inf
    found = trained(ClippedNorm(inner=SGD(learning_rate=0.1)), start, grads, runs=True)
    alone = trained(ClippedNorm(inner=SGD(learning_rate=0.1)), start[..., 0], grads[..., 0])
    np.testing.assert_allclose(found[..., 0], alone, rtol=1e-6)
    assert not np.isfinite(found[..., 1]).any()


def test_numbers_are_differentiable():
    """∂θ_1/∂lr = −g for SGD: the learning rate is a number like any other."""

    def first(optimizer):
        return jnp.sum(trained(optimizer, START.astype(np.float32), GRADS[:1].astype(np.float32)))

    slope = jax.grad(first)(SGD(learning_rate=0.1))
    np.testing.assert_allclose(slope.learning_rate, -GRADS[0].sum(), rtol=1e-5)


@pytest.mark.parametrize(
    ("build", "says"),
    [
        (lambda: SGD(learning_rate=-0.1), r"SGD\.learning_rate is -0\.1; allowed is \[0, inf\]"),
        (lambda: Adam(learning_rate=float("nan")), r"Adam\.learning_rate is NaN"),
        (lambda: Adam(eps=-1e-8), r"Adam\.eps"),
        (lambda: Adam(b1=1.0), r"Adam\.b1 is 1; allowed is \[0, 1\)"),
        (lambda: AdamW(weight_decay=-1.0), r"AdamW\.weight_decay"),
        (lambda: Cosine(steps=0.0), r"Cosine\.steps is 0; allowed is \(0, inf\]"),
        (lambda: SGD(learning_rate=Warmup(peak=-1.0)), r"Warmup\.peak"),
        (lambda: ClippedNorm(inner=SGD(), max_norm=0.0), r"ClippedNorm\.max_norm"),
        (lambda: SGD(learning_rate=np.array([0.1, -0.1])), r"SGD\.learning_rate is -0\.1"),
    ],
)
def test_numbers_without_meaning_are_refused(build, says):
    with pytest.raises(ValueError, match=says):
        build()
