"""Gradients of divergences on trees by differentiating sums over answers, and what penalties descend."""

import itertools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import grpo_jax as gj
from grpo_jax import presets
from grpo_jax.cli import commands
from grpo_jax.exact import divergences, penalties

pytestmark = pytest.mark.usefixtures("x64")
RNG = np.random.default_rng(4)
NOW, OLD, REFERENCE = RNG.normal(size=(3, 4, 3))
FORWARD, BACKWARD = divergences.FORWARD, divergences.BACKWARD


def token(logits, answer, t):
    """log-probability of a token of an answer of two out of three, under logits [4, 3]."""
    row = 0 if t == 0 else 1 + answer[0]
    return jax.nn.log_softmax(logits[row])[answer[t]]


def summed(term, sampler):
    """Σ_o sampler(o)·term(o) over all nine answers."""
    return sum(
        jnp.exp(token(sampler, o, 0) + token(sampler, o, 1)) * term(o)
        for o in itertools.product(range(3), repeat=2)
    )


def apart(free, o):
    return sum(token(free, o, t) - token(REFERENCE, o, t) for t in range(2))


def prefixes(term, free):
    """Σ_s d_old(s)·term(π(.|s), π_ref(.|s), π_old(.|s)) with d_old held."""
    p, q, old = (jax.nn.log_softmax(x, 1) for x in (free, jnp.asarray(REFERENCE), jnp.asarray(OLD)))
    first = term(p[0], q[0], old[0])
    return first + sum(jnp.exp(old[0, a]) * term(p[1 + a], q[1 + a], old[1 + a]) for a in range(3))


BY_HAND = {
    FORWARD: lambda free: summed(lambda o: apart(free, o), free),
    BACKWARD: lambda free: -summed(lambda o: apart(free, o), jnp.asarray(REFERENCE)),
    divergences.TOKENWISE.format(FORWARD): lambda free: prefixes(lambda p, q, _: jnp.exp(p) @ (p - q), free),
    divergences.TOKENWISE.format(BACKWARD): lambda free: prefixes(lambda p, q, _: jnp.exp(q) @ (q - p), free),
    divergences.VARIATION: lambda free: prefixes(
        lambda p, q, _: jnp.abs(jnp.exp(p) - jnp.exp(q)).sum() / 2, free
    ),
    divergences.AWAY: lambda free: summed(lambda o: token(free, o, 0) + token(free, o, 1), jnp.asarray(OLD)),
    divergences.TOWARDS: lambda free: prefixes(lambda p, _, old: jnp.exp(p) @ (p - old), free),
}


def test_gradients_of_divergences_equal_those_of_sums_over_answers():
    policy = gj.TreePolicy.uniform(gj.Sequences(vocab=3, horizon=2))
    now, reference, old = (x[None, ..., None] for x in (NOW, REFERENCE, OLD))
    found = divergences.divergence_gradients(policy, now, reference, old=old)
    aims = {name: np.asarray(jax.grad(value)(jnp.asarray(NOW))) for name, value in BY_HAND.items()}
    aims[divergences.MIXED] = aims[FORWARD] - aims[divergences.TOKENWISE.format(BACKWARD)]
    assert set(found) == set(aims)
    for name, aim in aims.items():
        np.testing.assert_allclose(found[name][0, ..., 0], aim, atol=1e-13, err_msg=name)
    at_now = divergences.divergence_gradients(policy, now, reference)
    here = divergences.divergence_gradients(policy, now, reference, old=now)
    for name, gradient in at_now.items():
        np.testing.assert_array_equal(gradient, here[name])


SCORES = {
    "verl,use_kl_loss=True,kl_loss_type=abs": lambda x, ratio: np.sign(x),
    "trl": lambda x, ratio: ratio * x,
    "liger": lambda x, ratio: 1 - np.exp(-x),
}
"""What multiplies ∇log π of a token, x = log π/π_ref."""


@pytest.mark.parametrize("label", SCORES)
def test_what_a_penalty_in_the_loss_adds_is_summed_by_hand(label):
    at = penalties.point(horizon=2)
    on, off, doubled = penalties.pull(label, at)
    np.testing.assert_allclose(on, doubled, atol=1e-13)
    now, reference = (jax.nn.log_softmax(x[0], 1) for x in (at.now, at.reference))
    for found, sampler in ((on, at.now), (off, at.old)):
        old, total = jax.nn.log_softmax(sampler[0], 1), np.zeros((4, 3))
        for o in itertools.product(range(3), repeat=2):
            rows = (0, 1 + o[0])
            chance = np.exp(sum(old[row, a] for row, a in zip(rows, o, strict=True)))
            for row, a in zip(rows, o, strict=True):
                weight = SCORES[label](now[row, a] - reference[row, a], np.exp(now[row, a] - old[row, a]))
                total[row] += (
                    chance * weight * (np.eye(3)[a] - np.exp(now[row])) / 2
                )  # a mean over two tokens
        np.testing.assert_allclose(found[0], total, atol=1e-12)


def test_rows_say_what_is_known_of_k1_and_k3():
    at = penalties.point(horizon=2)
    loss = penalties.descent("openrlhf,kl_estimator=k1", at)
    assert (loss.on, loss.off) == (penalties.NOTHING, divergences.AWAY)
    assert not loss.in_reward
    assert not loss.divided
    reward = penalties.descent("openrlhf", at)
    assert (reward.on, reward.in_reward, reward.divided) == (FORWARD, True, False)
    assert reward.on_sine < penalties.EXACTLY < reward.off_sine
    divided = penalties.descent("verl,use_kl_in_reward=True", at)
    assert (divided.in_reward, divided.divided, divided.default) == (True, True, 0.001)
    assert divided.on_sine > 0.01


def test_the_nearest_is_by_the_angle_and_not_by_the_length():
    names = {FORWARD: np.array([1.0, 0.0]), "up": np.array([0.0, 5.0])}
    assert penalties.nearest(np.array([0.3, 0.1]), names)[0] == FORWARD
    assert penalties.nearest(np.array([0.0, 0.2]), names) == ("up", 0.0)
    assert penalties.nearest(np.array([1e-9, 0.0]), names) == (penalties.NOTHING, 0.0)
    assert penalties.sine(np.array([-1.0, 0.0]), names[FORWARD]) == 1.0
    assert penalties.sine(np.array([1.0, 1.0]), names[FORWARD]) == pytest.approx(np.sqrt(0.5))


def test_defaults_are_the_libraries_own():
    labels = {"trl": 0.0, "liger": 0.04, "areal": 0.1, "prime_rl": 0.001, "grpo": 0.04, "nemo_rl": 0.01}
    labels |= {"open_instruct": 0.05}
    assert {label: penalties.default(label) for label in labels} == labels


def documented():
    """Rows of docs/penalties.md, by setting."""
    text = (Path(__file__).parent.parent / "docs" / "penalties.md").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line.startswith("| `")]
    return text, {line.split("`")[1]: line for line in lines}


def test_every_setting_is_documented_and_every_library_has_one():
    text, lines = documented()
    assert list(lines) == [*penalties.LIBRARIES, *penalties.PAPERS]
    names = {label.split(",")[0].split(":")[0] for label in penalties.LIBRARIES}
    assert names == set(presets.PRESETS)
    assert text.startswith(penalties.REPORT.format(coef=penalties.COEF, drift=penalties.DRIFT))


def test_a_documented_row_is_what_comes_out():
    found = penalties.table({"areal": penalties.descent("areal", penalties.point())})
    assert found.splitlines()[-1] == documented()[1]["areal"]


@pytest.mark.slow
def test_the_documented_table_is_what_comes_out():
    assert documented()[0] == penalties.report()


def test_the_command_prints_the_report(monkeypatch, capsys):
    monkeypatch.setattr(
        penalties, "rows", lambda: {"a": penalties.Descent("x", 0.0, "y", 0.5, 0.0, True, False, 0.1)}
    )
    commands.penalties()
    assert capsys.readouterr().out.endswith("| `a` | 0.1 | reward | x | 0 | ≈ y (0.50) | no |\n\n")
